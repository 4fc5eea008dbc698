"The package's metadata, read from settings.ini."
import sys
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=['='])
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
# The tools of the development environment are no part of a wheel: they come with an editable install alone.
scripts = cfg['console_scripts'].split()
if {'editable_wheel', 'develop'} & {*sys.argv}: scripts += cfg['dev_console_scripts'].split()
extras = ('zarr', 'lif', 'czi', 'nd2', 'microscopes', 'cloud', 'excel', 'parquet', 'onnx', 'openvino', 'engines',
          'watch', 'interpret', 'cells', 'map', 'app', 'anndata', 'distributed', 'ray', 'dev')
statuses = {'3': '3 - Alpha', '4': '4 - Beta', '5': '5 - Production/Stable'}

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=(here/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    license=cfg['license'],
    keywords=cfg['keywords'],
    classifiers=[f'Development Status :: {statuses[cfg["status"]]}', 'Intended Audience :: Science/Research',
                 'Topic :: Scientific/Engineering :: Bio-Informatics', 'Programming Language :: Python :: 3'],
    packages=[*find_packages(include=['hpa_fastai', 'hpa_fastai.*'], exclude=['hpa_fastai.dev']),
              'hpa_fastai.weights', 'hpa_fastai.interpret.static', 'hpa_fastai.app.static'],
    package_data={'hpa_fastai.weights': ['*.safetensors'], 'hpa_fastai.interpret.static': ['*'],
                  'hpa_fastai.app.static': ['*']},
    python_requires=f'>={cfg["min_python"]}',
    install_requires=cfg['requirements'].split(),
    extras_require={extra: cfg[f'{extra}_requirements'].split() for extra in extras},
    entry_points={'console_scripts': scripts, 'nbdev': [f'{cfg["lib_name"]}={cfg["lib_name"]}._modidx:d']},
)
