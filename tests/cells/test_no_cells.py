"A folder in which no cell is found ends with 1, and the likeliest reason is said"
import numpy as np
import pytest
from PIL import Image

from hpa_fastai.cli.main import main
from hpa_fastai.data.files import find_images
from hpa_fastai.formats.names import CHANNELS


@pytest.mark.parametrize('change, words', [
    (lambda a: a//32, '--bits 12'),
    (lambda a: a*0, 'nearly black'),
    (lambda a: np.full_like(a, 120), 'nearly black')])
def test_the_reason_is_said(trained, small_atlas, tmp_path, capsys, change, words):
    (tmp_path/'plate').mkdir()
    for row in find_images(small_atlas/'train').head(3).to_dict('records'):
        for c in CHANNELS:
            name = row[c].rsplit('/', 1)[-1]
            Image.fromarray(change(np.asarray(Image.open(row[c])))).save(tmp_path/'plate'/name)
    out = tmp_path/'cells.csv'
    code = main(['cells', str(tmp_path/'plate'), '--model', str(trained[1]), '--out', str(out), '--no-progress'])
    said = capsys.readouterr()
    assert code == 1 and '0 cells of 3 fields of view' in said.out and '3 fields of view have no cells' in said.out
    assert 'No cell was found in any field of view' in said.err and words in said.err
