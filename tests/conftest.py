import os
from pathlib import Path
import pytest

def pytest_addoption(parser): parser.addoption('--real-data', default=os.environ.get('HPA_FASTAI_REAL_DATA'), help='folder with real HPA images and tables')

@pytest.fixture(scope='session')
def real_data(request):
    path = request.config.getoption('--real-data')
    if not path: pytest.skip('no real data: pass --real-data DIR')
    return Path(path)
