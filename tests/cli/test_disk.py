"A disk that takes no more is one line that names the file, and leaves nothing half-written."
import numpy as np
import pandas as pd
import pytest

import programs
from hpa_fastai.data.labels import HPA28
from hpa_fastai.deploy.tables import result_columns
from hpa_fastai.experiments.compare import compare


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A table of predictions of 40 fields of view"
    folder = tmp_path_factory.mktemp('disk')
    probs = np.random.default_rng(0).random((40, 28))
    named = probs>.8
    table = pd.DataFrame(probs, columns=list(HPA28.classes)).assign(
        Id=[f'{10+k}_1_A1_1' for k in range(40)], Predicted=HPA28.decode(named), flags='', error='',
        Names=['|'.join(names) for names in HPA28.to_names(named)])
    table[result_columns(HPA28)].to_csv(folder/'p.csv', index=False)
    return folder


COMMANDS = [f'proteins p.csv --by antibody --out new{end}' for end in ('.csv', '.parquet')]
COMMANDS.append('figure p.csv --kind counts --out new.pdf')


@pytest.mark.parametrize('command', COMMANDS)
def test_files_may_not_grow(folder, command):
    done = programs.run(programs.COMMAND, *command.split(), cwd=folder, largest_file=1024)
    said = [line for line in done.stderr.splitlines() if not line.startswith('note')]
    assert done.returncode==2 and len(said)==1, done.stderr
    assert command.split()[-1] in said[0] and 'File too large' in said[0] and 'make room' in said[0]
    assert [p.name for p in folder.iterdir()] == ['p.csv']


def test_a_comparison_that_can_write_nothing_ends(small_atlas, folder):
    with pytest.raises(OSError) as failed:
        compare(small_atlas/'train.csv', small_atlas/'train', folder/'p.csv'/'below', archs=['lenet5'], progress=False)
    assert str(folder/'p.csv'/'below') == failed.value.filename
