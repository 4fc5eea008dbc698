"Names of wells in every usual spelling mean one well, and a plate has the smallest format that holds its wells."
import pytest

from hpa_fastai.basics.errors import HPAError
from hpa_fastai.plates.wells import MOST_COLUMNS, MOST_ROWS, PLATE_FORMATS, parse_well, plate_format_of, well_name


@pytest.mark.parametrize('text', ['D5', 'D05', 'd-5', 'D_05', 'D 5', 'D005', 'D/5', 'r04c05', 'R4C5', 'row 4, column 5',
                                  '004005', 'Well D05', 'well_d5', ' D05 '])
def test_every_usual_spelling_means_the_same_well(text):
    assert parse_well(text) == (4, 5)
    assert well_name(*parse_well(text)) == 'D05'


@pytest.mark.parametrize('text', [
    '', 'D', '5', 'D0', 'D5.0', '4,5', 'DD5D', 'AG01', 'A49', 'r33c1', 'r0c1', '000001', 'nan',
])
def test_what_is_no_well_is_refused_in_one_line(text):
    with pytest.raises(HPAError, match='not the name of a well|in no plate') as why: parse_well(text)
    assert '\n' not in str(why.value) and repr(text) in str(why.value)


def test_sorted_names_have_the_order_of_the_wells_of_a_plate():
    names = [well_name(row, column) for row in range(1, 17) for column in range(1, 25)]
    assert names == sorted(names) and len(set(names)) == 384


@pytest.mark.parametrize('n', PLATE_FORMATS)
def test_the_last_well_of_each_format_needs_that_format(n):
    last = well_name(*PLATE_FORMATS[n])
    assert plate_format_of(['A1', last]) == plate_format_of([parse_well(last)]) == n


def test_rows_and_columns_beyond_a_plate_are_refused():
    for row, column in ((0, 1), (MOST_ROWS+1, 1), (1, 0), (1, MOST_COLUMNS+1)):
        with pytest.raises(HPAError, match='of a plate are'): well_name(row, column)
