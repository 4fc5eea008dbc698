"Options and fixtures that all tests share."
import ctypes
import gc
import os
import signal
from pathlib import Path

import pytest


# A shell starts jobs in the background deaf to Ctrl-C, and their children with them.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption('--real-data', default=os.environ.get('HPA_FASTAI_REAL_DATA'),
                     help='folder with real HPA images and tables')


def pytest_collection_finish():
    "What is imported by now stays; looking through it for garbage each time takes half a second"
    gc.collect()
    gc.freeze()


@pytest.fixture(scope='module', autouse=True)
def give_memory_back():
    "The C library keeps what was freed; several processes with the networks of a whole run would fill a computer"
    yield
    gc.collect()
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None) if os.name == 'posix' else None
    if trim: trim(0)


@pytest.fixture(scope='session')
def real_data(request):
    "The folder with real images and tables; tests that need it are skipped where it is not given."
    folder = request.config.getoption('--real-data')
    if not folder: pytest.skip('no real data: pass --real-data=DIR')
    folder = Path(folder)
    if not folder.is_dir(): pytest.fail(f'--real-data {folder}: no such folder')
    return folder.resolve()


@pytest.fixture(scope='session')
def small_atlas(tmp_path_factory):
    "A simulated atlas of 90 small fields of view, all classes; read only"
    from hpa_fastai.simulate.atlas import simulate_atlas
    path = tmp_path_factory.mktemp('data')/'atlas'
    simulate_atlas(path, n=90, size=64, balance='even', seed=0, difficulty='easy', progress=False)
    return path


@pytest.fixture(scope='session')
def trained(small_atlas, tmp_path_factory):
    "A learner trained for a moment on the small atlas, and the bundle it was saved as"
    from fastai.torch_core import set_seed
    from hpa_fastai.all import HPADataLoaders, hpa_learner
    set_seed(0)
    folder = tmp_path_factory.mktemp('trained')
    dls = HPADataLoaders.from_csv(small_atlas, size=48, bs=16, group='antibody', cache=folder/'cache', progress=False)
    learn = hpa_learner(dls, 'resnet10t', pretrained=False)
    with learn.no_bar(), learn.no_logging(): learn.fit_progressive(sizes=(32, 48), epochs=1, verbose=False)
    learn.fit_thresholds()
    learn.evaluate()
    saved = learn.save_bundle(folder/'hpa_model')
    fitted = {name: vars(learn).get(name) for name in ('_thresholds', 'calibration', 'evaluation')}
    DECISIONS.update(learn=learn, **fitted)
    return learn, saved


DECISIONS = {}  # the learner that all tests share, and what was fitted on its outputs


@pytest.fixture(autouse=True)
def decisions_stay():
    "What a test fits on the outputs of the shared learner is its own"
    yield
    if DECISIONS: vars(DECISIONS['learn']).update({name: o for name, o in DECISIONS.items() if name != 'learn'})


@pytest.fixture(scope='session')
def opened_browser():
    "A real browser; tests that need it are skipped where there is none"
    from browser import Browser, find_browser
    found = find_browser()
    if found is None: pytest.skip('no browser: install chromium and chromium-driver')
    browser = Browser(*found)
    yield browser
    browser.close()


@pytest.fixture
def browser(opened_browser):
    "The browser; the page that a test leaves open would go on working beside all later tests"
    yield opened_browser
    opened_browser.leave()
