"Options find their function, or are named."
import pytest

from hpa_fastai.all import ImageReader
from hpa_fastai.experiments.options import ExperimentError, split_options


def test_options_find_their_function():
    reader = ImageReader(size=64)
    parts = split_options(dict(arch='lenet5', lr=1e-3, wd=.1, sizes=(32, 64), oversample=0, reader=reader))
    assert set(parts['data']) == {'oversample', 'reader', 'size'}
    assert set(parts['model']) == {'arch', 'wd'} and set(parts['fit']) == {'lr', 'sizes'}
    with pytest.raises(ExperimentError, match="'epoch'.*did you mean epochs"): split_options(dict(epoch=3))
