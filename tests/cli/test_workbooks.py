"A spreadsheet with columns of its own goes in by every door, and results come out as workbooks."
import pandas as pd
import pytest

from hpa_fastai.basics.workbooks import read_sheets
from hpa_fastai.batches.loaders import HPADataLoaders
from hpa_fastai.cli.main import main, make_parser
from hpa_fastai.data.files import find_images
from hpa_fastai.data.labels import HPA28
from hpa_fastai.data.verify import verify_folder
from hpa_fastai.deploy.scoring import evaluate_predictions
from hpa_fastai.experiments.folds import labelled_table
from hpa_fastai.simulate.atlas import simulate_atlas

NAMES = dict(id_column='Feld', label_column='Ort')


@pytest.fixture(scope='module')
def atlas(tmp_path_factory):
    "A data set whose labels are words in a workbook with German headings"
    folder = tmp_path_factory.mktemp('atlas')/'data'
    df = simulate_atlas(folder, n=12, size=64, difficulty='easy', progress=False)
    words = [', '.join(HPA28.classes[i] for i in HPA28.parse(cell)) for cell in df.Target]
    pd.DataFrame({'Feld': df.Id, 'Ort': words}).to_excel(folder/'labels.xlsx', index=False)
    pd.DataFrame({'Field': df.Id, 'Location': words}).to_excel(folder/'usual.xlsx', index=False)
    (folder/'train.csv').unlink()
    return folder


@pytest.mark.parametrize('command', ['train', 'compare', 'evaluate', 'calibrate', 'verify', 'explore', 'report'])
def test_every_command_with_a_table_takes_its_columns(command):
    places = {'calibrate': ['m', 'd', '--out', 'o']}.get(command, ['d'])
    args = make_parser().parse_args([command, *places, '--id-column', 'Feld', '--label-column', 'Der Ort'])
    assert (args.id_column, args.label_column) == ('Feld', 'Der Ort')


def test_the_shell_reads_a_workbook(atlas, capsys, tmp_path):
    table = ['--csv', 'labels.xlsx', '--id-column', 'Feld', '--label-column', 'Ort']
    training = ['--arch', 'lenet5', '--pretrained', 'no', '--dry-run', '--out', str(tmp_path/'m')]
    assert main(['train', str(atlas), *table, *training]) == 0
    assert '12 labelled images' in capsys.readouterr().out
    assert main(['train', str(atlas), *table[:2], *training]) == 2
    assert '--id-column Feld --label-column Ort' in capsys.readouterr().err
    with pytest.warns(UserWarning, match="the column 'Field' is read as Ids, the column 'Location' is read as labels"):
        assert main(['train', str(atlas), '--csv', 'usual.xlsx', *training]) == 0
    problems = tmp_path/'problems.xlsx'
    assert main(['verify', str(atlas), *table, '--out', str(problems), '--no-progress']) == 0
    assert read_sheets(problems)['Problems'][0] == ['level', 'problem', 'Id', 'file', 'detail']


def test_python_reads_a_workbook(atlas):
    dls = HPADataLoaders.from_csv(atlas, 'labels.xlsx', size=32, bs=4, cache=False, progress=False, **NAMES)
    assert len(dls.train_ds)+len(dls.valid_ds) == 12
    truth = labelled_table(atlas/'labels.xlsx', HPA28, atlas/'train', **NAMES)
    assert truth.Id.tolist() == pd.read_excel(atlas/'labels.xlsx').Feld.tolist()
    assert labelled_table(pd.read_excel(atlas/'labels.xlsx'), HPA28, atlas/'train', **NAMES).equals(truth)
    assert verify_folder(atlas/'train', atlas/'labels.xlsx', progress=False, **NAMES).exit_code == 0
    known = HPA28.encode(truth.Target)
    said = pd.DataFrame(known.astype(float), columns=list(HPA28.classes)).assign(
        Id=truth.Id, Predicted=truth.Target, Names='', flags='', error='')
    assert evaluate_predictions(said, atlas/'labels.xlsx', HPA28, n_draws=2, **NAMES).macro_f1 == 1


def test_paths_may_stand_in_a_workbook(atlas, tmp_path):
    table = find_images(atlas/'train')
    table[['Id', 'red', 'green', 'blue', 'yellow']].to_excel(tmp_path/'paths.xlsx', index=False)
    assert find_images(tmp_path/'paths.xlsx').values.tolist() == table.values.tolist()
