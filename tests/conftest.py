"Options and fixtures that all tests share."
import os
from pathlib import Path

import pytest


def pytest_addoption(parser):
    parser.addoption('--real-data', default=os.environ.get('HPA_FASTAI_REAL_DATA'), help='folder with real HPA images and tables')


@pytest.fixture(scope='session')
def real_data(request):
    "The folder with real images and tables; tests that need it are skipped where it is not given."
    folder = request.config.getoption('--real-data')
    if not folder: pytest.skip('no real data: pass --real-data DIR')
    folder = Path(folder)
    if not folder.is_dir(): pytest.fail(f'--real-data {folder}: no such folder')
    return folder.resolve()
