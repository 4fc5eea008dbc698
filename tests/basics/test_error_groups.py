"Equal errors are one line, whatever files, numbers and Ids they name"
import pytest
from hpa_fastai.basics.error_groups import ErrorGroups

NAMES = ['A01_s{}_w1', 'plate 7/A 01 s{}', 'Exp12_A01_s{}_DAPI', 'äöü_{}', r'D:\run\A1_{}']


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('reason', [
    '{Id}: no ER channel; give --missing zero',
    '{Id}: /data/my plates/{Id}_red.tif: damaged or cut off (it ends in a chunk); copy it again',
    '{Id}: https://host.org:80/{Id}_red.tif: HTTP error 404',
    'channels of different sizes: {Id}_red.png {n}x{n}, {Id}_green.png 128x128',
    '/data/{Id}.ome.tif: 3 planes, but {n} are wanted'])
def test_seven_hundred_equal_errors_are_one_line(name, reason):
    ids = [name.format(n) for n in range(720)]
    lines = ErrorGroups((Id, reason.format(Id=Id, n=n)) for n, Id in enumerate(ids)).lines(800)
    assert len(lines) == 1 and lines[0].startswith('720 of 800: '), lines[:3]
    assert lines[0].endswith(f'({ids[0]}, {ids[1]}, {ids[2]}, …)')


def test_other_reasons_stay_apart():
    "What differs in words is another fault, and the commonest stands first"
    errors = [('a', 'a_red.png: an empty file'), *((f'b{n}', f'b{n}: no red channel') for n in range(3)),
              ('c', 'no green channel'), ('d', 'd: no green channel')]
    assert ErrorGroups(errors).lines(9) == [
        '3 of 9: no red channel (b0, b1, b2)', '2 of 9: no green channel (c, d)', 'a: a_red.png: an empty file']
