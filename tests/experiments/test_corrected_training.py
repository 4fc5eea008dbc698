"A training with corrected labels says what they changed, and whether the model is better on the same images."
import json
import shutil

import numpy as np
import pytest

from hpa_fastai.basics.errors import HPAError
from hpa_fastai.batches.splits import antibody_of
from hpa_fastai.cli.main import main
from hpa_fastai.data.corrections import Corrections, merge_corrections
from hpa_fastai.data.label_tables import read_labels
from hpa_fastai.data.labels import HPA28
from hpa_fastai.data.files import attach_images
from hpa_fastai.deploy.bundle import picture_digests
from hpa_fastai.deploy.loading import load_bundle
from hpa_fastai.deploy.predictor import Predictor
from hpa_fastai.deploy.saving import describe_training
from hpa_fastai.evaluate.metrics import macro_f1
from hpa_fastai.experiments import training
from hpa_fastai.experiments.folds import train_folds
from hpa_fastai.experiments.options import ExperimentError
from hpa_fastai.experiments.paired import compare_with_old, find_old_model
from hpa_fastai.experiments.training import train_model

pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(scope='module')
def table(small_atlas): return read_labels(small_atlas/'train.csv', HPA28)


@pytest.fixture
def mine(table, tmp_path):
    "Corrections of every second image"
    mine = Corrections(tmp_path/'corrections.csv', HPA28)
    rows = [f'{Id},{k%3},,,anna,' for k, Id in enumerate(table.Id[::2])]
    mine.file.write_text('\n'.join(['Id,Target,previous,model,user,time', *rows, '']))
    return mine


@pytest.fixture
def quick(fast): return {**fast, 'seed': 42}


def test_the_old_and_the_new_model_answer_for_the_same_images(
    small_atlas, table, trained, mine, quick, tmp_path, capsys
):
    learn = train_model(small_atlas, tmp_path/'new', corrections=mine.file, against=trained[1], valid_pct=.2, **quick)
    said = capsys.readouterr().out
    assert said.count('Corrections: labels of ') == 1 and said.count(f'Compared with {trained[1]} on the same ') == 1
    items = learn.dls.valid_ds.items
    assert items.Id.tolist() == trained[0].dls.valid_ds.items.Id.tolist()  # of the split before
    merged = merge_corrections(table, mine.file, HPA28)[0].set_index('Id').Target
    truth = HPA28.encode(merged[items.Id])
    found, comparison = learn.history['comparison'], learn.comparison.comparison
    old = macro_f1(HPA28.encode(Predictor(trained[1], 'cpu')(items).Predicted), truth)
    assert found['old_macro_f1'] == pytest.approx(old, abs=1e-4)
    assert found['new_macro_f1'] == pytest.approx(learn.evaluation.macro_f1, abs=1e-4)
    assert found['images'] == len(items) and found['old'] == 'hpa_model' and comparison.n_groups < len(items)
    config = load_bundle(tmp_path/'new').config['training']
    assert config['comparison'] == json.loads(json.dumps(found)) and str(tmp_path) not in json.dumps(config)
    assert config['corrections']['changed'] + config['corrections']['same'] == 45
    card = (tmp_path/'new'/'README.md').read_text()
    assert f'Corrections changed the labels of {config["corrections"]["changed"]} images and added 0' in card
    assert f'On the same {len(items)} images, hpa_model had a macro F1 of {old:.3f}' in card
    assert describe_training(config) in card


def test_a_model_that_training_goes_on_from_is_compared_with(small_atlas, table, trained, tmp_path, fast, capsys):
    few = table[10:]
    few.to_csv(tmp_path/'few.csv', index=False)
    mine = Corrections(tmp_path/'c.csv', HPA28)
    for row in table[:10].itertuples(): mine.add(row.Id, row.Target)
    learn = train_model(small_atlas, tmp_path/'new', csv=tmp_path/'few.csv', corrections=mine.file, fine_tune=False,
                        **{**fast, 'pretrained': trained[1], 'arch': None})
    said, n_seen = capsys.readouterr().out, len(trained[0].dls.train_ds)
    found, n = learn.history['comparison'], len(table) - n_seen
    assert learn.history['corrections']['added'] == 10
    if n < 20: assert found['images'] == len(table) and not found['fair'] and 'no fair comparison' in said
    else: assert found['images'] == n and f'{n_seen} of {len(table)} images trained the old model, and are left' in said
    assert 'no images were held out: of the new model, each is scored by a last layer that' in said
    assert any('trained the old model' in note for note in found['notes'])


@pytest.mark.parametrize('n_new', [30, 5])
def test_nothing_is_concluded_from_images_that_the_old_model_was_trained_on(small_atlas, table, trained, n_new):
    old = find_old_model(trained[1], False, HPA28)
    items = attach_images(table, small_atlas/'train')
    old.bundles[0].config['seen'] = dict(trained=picture_digests(items[n_new:]), fitted='')
    probs = np.random.default_rng(0).random((len(items), 28))
    found = compare_with_old(old, items, probs, .5, HPA28, False)
    if n_new == 30:
        assert found.comparison.n_images == 30
        assert '60 of 90 images trained the old model, and are left out' in str(found)
        alone = compare_with_old(old, items[:30], probs[:30], .5, HPA28, False)
        assert alone.comparison.scores == found.comparison.scores and alone.notes == []
        return
    assert found.comparison.n_images == 90 and 'no fair comparison' in str(found) and not found.to_dict()['fair']
    assert 'is better' not in str(found) and 'most:' not in str(found)
    training = dict(comparison=found.to_dict())
    assert 'macro F1' not in describe_training(training) and 'trained the old model' in describe_training(training)


def test_without_an_old_model_nothing_is_compared(small_atlas, mine, quick, tmp_path, capsys):
    learn = train_model(small_atlas, tmp_path/'new', corrections=mine.file, **quick)
    assert learn.comparison is None and 'comparison' not in learn.history and 'corrections' in learn.history
    assert 'Compared with' not in capsys.readouterr().out
    assert find_old_model(None, 'auto', HPA28) is find_old_model(None, False, HPA28) is None


def test_a_model_may_take_the_place_of_the_one_it_is_compared_with(small_atlas, trained, quick, tmp_path):
    shutil.copytree(trained[1], tmp_path/'model')
    other = train_model(small_atlas, tmp_path/'other', against=trained[1], **quick)
    learn = train_model(small_atlas, tmp_path/'model', against=tmp_path/'model', force=True, **quick)
    for key in ('old_macro_f1', 'new_macro_f1'):
        assert learn.history['comparison'][key] == other.history['comparison'][key]


@pytest.mark.parametrize('against, labels, message', [
    ('none_such', 'hpa28', 'none_such'), ('trained', 'hpa31', 'the 28 classes of another label set')])
def test_what_can_not_be_compared_is_said_before_training(
    small_atlas, trained, quick, tmp_path, against, labels, message
):
    model = trained[1] if against == 'trained' else tmp_path/against
    with pytest.raises(HPAError, match=message):
        train_model(small_atlas, tmp_path/'new', labels=labels, against=model, **quick)
    assert not (tmp_path/'new').exists() and not (tmp_path/'new.training').exists()


def test_a_comparison_that_fails_costs_no_training(small_atlas, trained, quick, tmp_path, monkeypatch, capsys):
    def fail(learn, old): raise HPAError('it can read none of the images')
    monkeypatch.setattr(training, 'compare_learner', fail)
    learn = train_model(small_atlas, tmp_path/'new', against=trained[1], **quick)
    assert learn.comparison is None and load_bundle(tmp_path/'new').config['metrics']
    assert 'note: no comparison with' in capsys.readouterr().err


def test_folds_are_those_of_the_labels_before(small_atlas, table, trained, mine, fast, tmp_path, capsys):
    df, added = table[12:], table[:12]
    for row in added.itertuples(): mine.add(row.Id, row.Target)
    fast = {**fast, 'group': antibody_of}
    before = train_folds(df, small_atlas/'train', tmp_path/'before', 2, **fast)
    after = train_folds(df, small_atlas/'train', tmp_path/'after', 2, corrections=mine.file, against=trained[1], **fast)
    assert after.predictions[['Id', 'fold']].equals(before.predictions[['Id', 'fold']])
    merged = merge_corrections(df, mine.file, HPA28)[0]
    truth = HPA28.encode(merged.Target)
    assert after.predictions.Id.tolist() == merged.Id.tolist()
    predicted = HPA28.encode(after.predictions.Predicted)
    assert after.evaluation.macro_f1 == pytest.approx(macro_f1(predicted, truth))
    old = HPA28.encode(Predictor(trained[1], 'cpu')(small_atlas/'train').set_index('Id').Predicted[merged.Id])
    is_new = ~merged.Id.isin(trained[0].dls.train_ds.items.Id).to_numpy()
    if is_new.sum() < 20: is_new[:] = True
    assert after.comparison.comparison.scores == pytest.approx(
        (macro_f1(old[is_new], truth[is_new]), macro_f1(predicted[is_new], truth[is_new])))
    trainings = [load_bundle(model).config['training'] for model in after.models]
    assert [o['comparison'] for o in trainings] == [json.loads(json.dumps(after.comparison.to_dict()))]*2
    assert all(o['corrections']['changed'] == after.corrections.n_changed for o in trainings)
    images = [load_bundle(model).config['training']['images'] for model in (*before.models, *after.models)]
    assert all(b <= a <= b + len(added) for b, a in zip(images[:2], images[2:])) and sum(images[2:]) > sum(images[:2])
    assert capsys.readouterr().out.count('Corrections: ') == 1


def test_folds_with_other_corrections_are_not_taken_for_these(small_atlas, table, mine, fast, tmp_path):
    common = dict(df=table, images=small_atlas/'train', out=tmp_path/'out', folds=2, trained_folds=[0], **fast)
    first = train_folds(**common, corrections=mine.file)
    file = tmp_path/'out'/'fold0.csv'
    written = file.stat().st_mtime_ns
    again = train_folds(**common, corrections=mine.table())  # the same, however they are given
    assert file.stat().st_mtime_ns == written and again.evaluation.macro_f1 == first.evaluation.macro_f1
    mine.add(table.Id[1], 'Cytosol')
    with pytest.raises(ExperimentError, match='corrections was .* and is now'):
        train_folds(**common, corrections=mine.file)
    with pytest.raises(ExperimentError, match='corrections was'): train_folds(**common)


def test_a_rehearsal_says_what_would_change(small_atlas, table, trained, mine, tmp_path, capsys):
    for k in range(4): mine.add(f'x{k}', '1')
    more = ['--corrections', str(mine.file), '--dry-run', '--group', 'antibody', '--arch', 'lenet5']
    out = ['--pretrained', 'no', '--out', str(tmp_path/'new')]
    assert main(['train', str(small_atlas), *more, '--against', str(trained[1]), *out]) == 0
    said = capsys.readouterr().out
    assert 'Corrections: labels of ' in said and 'x0, x1, x2 and 1 more' in said
    n_train, n_valid = (len(dl.dataset) for dl in trained[0].dls.loaders)
    assert f'{n_train} to train on and {n_valid} to validate' in said and f'compared with {trained[1]}' in said
    assert main(['train', str(small_atlas), *more, '--folds', '3', *out]) == 0
    mine.file.write_text('Id,Target\na,Nucleoly\n')
    assert main(['train', str(small_atlas), *more, *out]) == 2
    assert "corrections.csv row 2: label 'Nucleoly' is not a class of hpa28; did you mean 'Nucleoli'" in (
        capsys.readouterr().err)
    assert main(['train', str(small_atlas), '--corrections', 'none.csv', '--dry-run', *out]) == 2
    assert 'none.csv: no such file or folder' in capsys.readouterr().err
    assert not (tmp_path/'new').exists()


def test_the_command_trains_with_corrections(small_atlas, trained, mine, tmp_path, capsys):
    settings = ['--arch', 'lenet5', '--pretrained', 'no', '--sizes', '32', '--epochs', '1', '--no-progress', '--group',
                'antibody', '--cache', str(tmp_path/'cache'), '--out', str(tmp_path/'new')]
    code = main(['train', str(small_atlas), '--corrections', str(mine.file), '--against', str(trained[1]), *settings])
    said = capsys.readouterr().out
    assert code == 0 and 'Corrections: labels of ' in said and 'Compared with ' in said and 'difference ' in said
    assert np.isfinite(load_bundle(tmp_path/'new').config['training']['comparison']['difference'])
