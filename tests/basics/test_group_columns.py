"Columns whose groups a split should keep together: found by their names and by what stands in them."
import numpy as np
import pandas as pd
import pytest

from hpa_fastai.basics.group_columns import find_group_columns, group_note
from hpa_fastai.batches.splits import check_split

PROBE = np.repeat(np.arange(60), 4)
TABLE = pd.DataFrame({'Id': [f'f{i}' for i in range(240)], 'Target': (PROBE*7 % 28).astype(str)})


@pytest.mark.parametrize('name', ['antibody', 'Antibody ID', 'WELL', 'plateName', 'slide_no', 'Patient',
                                  'gene', 'Genes', 'exp batch', 'acquisition date', 'experiment'])
def test_names_in_any_form(name):
    assert find_group_columns(TABLE.assign(**{name: PROBE})) == [name]


@pytest.mark.parametrize('name, values', [
    ('antibody', np.arange(240)),  # nothing is shared
    ('antibody', ''),
    ('well', 'A1'),
    ('wellness', np.tile([1, 2], 120)),
    ('operator', np.tile(['Ann', 'Bo'], 120)),
    ('exposure', np.repeat(np.linspace(0, 1, 60), 4)),
    ('location', TABLE.Target + ' in words'),
])
def test_what_is_no_group(name, values):
    assert find_group_columns(TABLE.assign(**{name: values})) == []


def test_members_that_share_labels_are_a_group_by_any_name():
    assert find_group_columns(TABLE.assign(Sonde=PROBE, other=np.random.default_rng(0).permutation(PROBE))) == ['Sonde']


def test_one_line_asks_for_the_first_of_several():
    note = group_note(TABLE.assign(plate=PROBE // 12, antibody=PROBE))
    assert note.startswith('the table has columns antibody, plate; images of one antibody may share')
    assert '\n' not in note
    assert '(--group antibody)' in note and '(--group none)' in note


def test_a_split_asks_only_where_it_divides_and_nobody_spoke():
    table, part = TABLE.assign(antibody=PROBE), np.arange(240) % 2
    def asked(part, **kwargs): return [f for f in check_split(table, part, **kwargs).faults if 'the table has' in f]
    assert len(asked(part)) == 1
    assert asked(PROBE % 2) == asked(part, group=False) == asked(PROBE % 2, group='antibody') == []
    assert any('groups are in more than one part' in f for f in check_split(table, part, 'antibody').faults)
