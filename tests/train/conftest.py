"Loaders and learners that the tests of training share."
import pytest
from fastai.callback.progress import ProgressCallback
from fastai.torch_core import set_seed

from hpa_fastai.all import HPADataLoaders, hpa_learner


@pytest.fixture(scope='session')
def cache(tmp_path_factory):
    "A folder of decoded pixels"
    return tmp_path_factory.mktemp('train')/'cache'


@pytest.fixture
def loaders(small_atlas, cache):
    return HPADataLoaders.from_csv(small_atlas, size=48, bs=16, group='antibody', cache=cache, progress=False)


@pytest.fixture
def make_learner(small_atlas, cache, tmp_path):
    "Makes silent learners that begin with the same weights"
    def make(arch='lenet5', size=48, pretrained=False, **kwargs):
        set_seed(0)
        dls = HPADataLoaders.from_csv(small_atlas, size=size, bs=16, group='antibody', cache=cache, progress=False)
        learn = hpa_learner(dls, arch, pretrained=pretrained, path=tmp_path, **kwargs)
        learn.remove_cb(ProgressCallback)
        learn.logger = lambda *_: None
        return learn
    return make
