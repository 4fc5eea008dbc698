"A layout of wells reaches every field of view of its wells and no other; what does not fit is said in one line."
import warnings

import pandas as pd
import pytest

from hpa_fastai.cells.layout import add_layout
from hpa_fastai.cells.proteins import summarise_proteins
from hpa_fastai.cli.main import main
from hpa_fastai.data.files import find_images
from hpa_fastai.data.labels import LabelSet
from hpa_fastai.deploy.tables import ResultError, read_predictions, with_labels
from hpa_fastai.interpret.prediction import predict

LABELS = LabelSet('two', ('Nucleoplasm', 'Cytosol'))
LAYOUT = pd.DataFrame(dict(Plate=['P1', 'P1', 'P2'], Well=['a1', 'B-12', 'r01c01'], gene=['TP53', 'ACTB', 'GFAP'],
                           treatment=['DMSO', '-x', 'DMSO']))


def fields(wells=('A01', 'A01', 'B12'), plates=('P1', 'P1', 'P1')):
    ids = [f'{p}_{w}_{i}' for i, (p, w) in enumerate(zip(plates, wells))]
    table = pd.DataFrame(dict(Id=ids, Predicted='0', Names='Nucleoplasm', Nucleoplasm=.9, Cytosol=.1, flags='',
                              error='', plate=plates, well=wells))
    return with_labels(table, LABELS)


def test_a_well_counts_whatever_its_spelling_and_on_its_own_plate():
    table = fields(('A01', 'B12', 'A01'), ('P1', 'P1', 'P2'))
    assert add_layout(table, LAYOUT).gene.tolist() == ['TP53', 'ACTB', 'GFAP']
    found = summarise_proteins(table, layout=LAYOUT)
    assert found.gene.tolist() == ['ACTB', 'GFAP', 'TP53'] and found.fields.tolist() == [1, 1, 1]


def test_a_layout_without_plates_holds_for_each_plate():
    table = fields(('A01', 'A01', 'B12'), ('P1', 'P2', 'P2'))
    layout = LAYOUT.head(2).drop(columns='Plate')
    assert add_layout(table, layout).gene.tolist() == ['TP53', 'TP53', 'ACTB']


def test_no_field_of_view_is_lost_that_a_layout_does_not_know():
    with pytest.warns(UserWarning, match='does not know 1 of 3 fields of view, such as P1_C05_1'):
        found = add_layout(fields(('A01', 'C05', 'B12')), LAYOUT)
    assert found.gene.tolist() == ['TP53', '', 'ACTB'] and found.index.tolist() == [0, 1, 2]


@pytest.mark.parametrize('layout, said', [
    (LAYOUT.rename(columns=dict(Well='where')), 'none of the columns Id, well and antibody'),
    (LAYOUT.assign(Well=['A1', 'B12', 'AG1']), "layout row 2: 'AG1' is in no plate"),
    (LAYOUT.assign(Well=['A1', 'B12', '12']), "layout row 2: '12' is not the name of a well"),
    (LAYOUT.assign(Plate='P9'), 'knows none of the 3 fields of view: it has well A01 of plate P9'),
    (LAYOUT.assign(Plate='P1', Well=['A1', 'B12', 'A01']), 'layout rows 0 and 2: A01 of plate P1 has two values of'),
])
def test_a_layout_that_does_not_fit_is_refused_in_one_line(layout, said):
    for use in (add_layout, lambda table, layout: summarise_proteins(table, layout=layout)):
        with pytest.raises(ResultError, match=said) as why: use(fields(), layout)
        assert '\n' not in str(why.value)


def test_plates_that_pictures_do_not_name_are_refused():
    table = fields().drop(columns='plate')
    with pytest.raises(ResultError, match=r'is of 2 plates \(P1, P2\)'): add_layout(table, LAYOUT)
    assert add_layout(table, LAYOUT.head(2)).gene.tolist() == ['TP53', 'TP53', 'ACTB']


def test_a_layout_of_another_format_is_said():
    with pytest.warns(UserWarning, match=r'of a plate of 384 wells \(up to P24\), and the pictures are of one of 96'):
        add_layout(fields(), pd.concat([LAYOUT, pd.DataFrame(dict(Plate=['P1'], Well=['P24'], gene=['X']))]))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        add_layout(fields(), LAYOUT)


def test_a_layout_never_replaces_results_and_places():
    found = add_layout(fields(), LAYOUT.assign(row=9, well='B12', Nucleoplasm=0, error='x', red='y'), LABELS.classes)
    assert found.Nucleoplasm.eq(.9).all() and found.well.tolist() == ['A01', 'A01', 'B12']
    assert not {'row', 'red'} & set(found) and found['error'].eq('').all()


def test_wells_of_two_plates_are_two_even_if_wells_stand_for_proteins():
    found = summarise_proteins(fields(('A01', 'A01', 'B12'), ('P1', 'P2', 'P2')), by='well')
    assert found.well.tolist() == ['P1 A01', 'P2 A01', 'P2 B12']


def test_predict_adds_the_columns_of_a_layout(small_atlas, trained, tmp_path, monkeypatch, capsys):
    table = find_images(small_atlas/'train').head(4).assign(plate='P1', well=['A01', 'A01', 'B12', 'B12'])
    LAYOUT.to_csv(tmp_path/'layout.csv', index=False)
    LAYOUT.to_excel(tmp_path/'layout.xlsx', index=False)
    for layout in (LAYOUT, tmp_path/'layout.csv', tmp_path/'layout.xlsx'):
        found = predict(table, trained[1], layout=layout, progress=False)
        assert list(found)[-4:] == ['plate', 'well', 'gene', 'treatment']
        assert found.treatment.tolist() == ['DMSO']*2+['-x']*2
    table.to_csv(tmp_path/'paths.csv', index=False)
    args = ['predict', str(tmp_path/'paths.csv'), '--model', str(trained[1]), '--out', str(tmp_path/'p.csv')]
    assert main([*args, '--layout', str(tmp_path/'layout.xlsx')]) in (0, None)
    assert read_predictions(tmp_path/'p.csv').gene.tolist() == ['TP53']*2+['ACTB']*2
    assert main([*args, '--force', '--layout', str(tmp_path/'absent.csv')]) == 2
    assert 'absent.csv' in capsys.readouterr().err
    assert main(['predict', str(tmp_path), '--watch', '--layout', str(tmp_path/'layout.csv')]) == 2
    assert '--watch' in capsys.readouterr().err
