"The index of a plate: it is read once, however often the folder is searched."

import pytest
from hpa_fastai.data.files import find_images
from hpa_fastai.plates import image_xpress, images
from microscopes import write_image_xpress, write_operetta, write_yokogawa

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')


@pytest.mark.parametrize('write_plate, index, n_indexes', [
    (lambda folder: write_operetta(folder, [(3, 3)]), 'Images/Index.xml', 1),
    (write_yokogawa, 'MeasurementData.mlf', 3)], ids=['Opera', 'CellVoyager'])
def test_an_index_is_read_again_only_when_it_has_changed(write_plate, index, n_indexes, tmp_path, monkeypatch):
    write_plate(tmp_path/'plate')
    parsed, create = [], images.expat.ParserCreate
    monkeypatch.setattr(images.expat, 'ParserCreate', lambda *args: parsed.append(1) or create(*args))
    first = find_images(tmp_path/'plate')
    assert len(parsed) == n_indexes
    assert find_images(tmp_path/'plate').equals(first) and len(parsed) == n_indexes
    index = tmp_path/'plate'/index
    index.write_text(index.read_text() + '\n')
    assert find_images(tmp_path/'plate').equals(first) and len(parsed) == n_indexes+1


def test_names_of_channels_are_looked_for_in_a_few_images(tmp_path, monkeypatch):
    asked, wave_name = [], image_xpress._wave_name
    monkeypatch.setattr(image_xpress, '_wave_name', lambda file: asked.append(file) or wave_name(file))
    write_image_xpress(tmp_path, [f'{row}{k:02d}' for row in 'AB' for k in range(1, 13)], table=False)
    assert len(find_images(tmp_path, dict(red=3, green=2, blue=1, yellow=4))) == 24
    assert len(asked) == 3*4
