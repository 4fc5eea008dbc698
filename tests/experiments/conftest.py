"What the tests of folds and comparisons share."
import matplotlib
import pytest

matplotlib.use('agg')


@pytest.fixture(scope='session')
def fast(tmp_path_factory):
    "Options of a training that takes a moment"
    cache = tmp_path_factory.mktemp('experiments')/'cache'
    return dict(group='antibody', progress=False, cache=cache, arch='lenet5', pretrained=False, size=32, sizes=(32,),
                epochs=1, bs=16)
