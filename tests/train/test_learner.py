"A learner of this package: one answer everywhere, exported as fastai does, and fastai itself as it was."
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.training import GradientClip
from fastai.data.transforms import get_image_files
from fastai.interpret import Interpretation
from fastai.learner import Learner
from fastai.vision.learner import vision_learner
from fastcore.foundation import L
from matplotlib import pyplot as plt

from hpa_fastai.all import (CHANNELS, HPA28, HPADataBlock, HPADataLoaders, HPAError, HPALearner, attach_images,
                            create_model, find_images, get_loss, hpa_learner, macro_f1, plain_thresholds, predict,
                            read_labels)


@pytest.fixture
def decided(trained, monkeypatch):
    "The trained learner, calibrated and with thresholds that name a few classes of each picture; as it was afterwards"
    learn, _ = trained
    for name in ('thresholds', 'calibration', 'evaluation'): monkeypatch.setattr(learn, name, getattr(learn, name))
    calibration = learn.calibrate('platt')
    with learn.no_bar(): raw = learn.get_preds(act=torch.sigmoid)[0].numpy()
    learn.thresholds = plain_thresholds(np.quantile(calibration(raw), .8, axis=0))
    return learn


def probabilities(table): return table[list(HPA28.classes)].to_numpy(float)


# One answer

LOAD = """
import sys, warnings; warnings.filterwarnings('ignore')
import numpy as np
from fastai.learner import load_learner
learn = load_learner(sys.argv[1])
dl = learn.dls.test_dl(sys.argv[2], num_workers=0)
with learn.no_bar(): probs, _, named = learn.get_preds(dl=dl, with_decoded=True)
one = learn.predict(learn.dls.fields(sys.argv[2]).green[3])
assert (one[1] == named[3]).all() and (one[2]-probs[3]).abs().max() < 1e-5 and learn.calibration is not None
np.savez(sys.argv[3], probs=probs.numpy(), named=named.numpy())
"""


def test_exported_learner_predicts_the_same_in_a_new_process(decided, small_atlas, tmp_path):
    "The same answer as the package gives with the model in memory, by calibration and thresholds; and no images in it"
    file, found = tmp_path/'export.pkl', tmp_path/'found.npz'
    decided.export(file.absolute())
    subprocess.run([sys.executable, '-c', LOAD, file, small_atlas/'train', found], check=True, cwd=tmp_path)
    there, here = np.load(found), predict(small_atlas/'train', model=decided, progress=False)
    assert np.abs(there['probs'] - probabilities(here)).max() < 1e-4
    assert HPA28.decode(there['named']) == here.Predicted.tolist() and there['named'].any()
    weights = sum(v.numel()*v.element_size() for v in decided.model.state_dict().values())
    assert file.stat().st_size < weights*1.1 + 200_000


def test_a_learner_decides_as_its_bundle_does(decided, monkeypatch):
    items = decided.dls.valid_ds.items.reset_index(drop=True)
    want = predict(items, model=decided, progress=False)
    with decided.no_bar(): probs, targets, named = decided.get_preds(with_decoded=True)
    assert np.abs(probs.numpy() - probabilities(want)).max() < 1e-4
    assert HPA28.decode(named.numpy()) == want.Predicted.tolist()
    with decided.no_bar(): found = Interpretation.from_learner(decided)[[1, 3]]
    assert HPA28.decode(found[3].numpy()) == want.Predicted[[1, 3]].tolist()
    shown = []
    monkeypatch.setattr(type(decided.dls.valid), 'show_results', lambda self, b, out, **kwargs: shown.append(out))
    with decided.no_bar(): decided.show_results(shuffle=False)
    assert HPA28.decode(shown[0].numpy()) == want.Predicted[:len(shown[0])].tolist()
    several = want.Predicted[want.Predicted.str.contains(' ')].iloc[0]
    labels = replace(HPA28, negative=HPA28.parse(several)[0])
    for dl in decided.dls.loaders: monkeypatch.setattr(dl, 'labels', labels)
    with decided.no_bar(): alone = decided.get_preds(with_decoded=True)[2]
    assert HPA28.decode(alone.numpy()) == predict(items, model=decided, progress=False).Predicted.tolist()
    assert not torch.equal(alone, named) and not (alone[:, labels.negative] & (alone.sum(1) > 1)).any()


def test_one_picture_in_whatever_form(decided, small_atlas):
    row = decided.dls.valid_ds.items.iloc[2]
    table, pixels = decided.dls.valid_ds.items.iloc[[2]], decided.dls.reader.array(row)
    as_floats = torch.from_numpy(pixels).float().requires_grad_()/255
    want = predict(table, model=decided, progress=False).iloc[0]
    paths = {c: row[c] for c in CHANNELS}
    forms = [row.Id, row, row.to_dict(), paths, row.green, Path(row.red), table, pixels, as_floats]
    for item in forms:
        names, given, probs = decided.predict(item)
        assert '|'.join(names) == want.Names and HPA28.decode(given[None].numpy()) == [want.Predicted]
        assert np.abs(probs.numpy() - want[list(HPA28.classes)].to_numpy(float)).max() < 1e-4
    with pytest.raises(HPAError, match='takes one field of view and got 90'): decided.predict(small_atlas/'train')
    with pytest.raises(HPAError, match='no such f'): decided.predict('nothing')


def test_many_pictures_in_whatever_form(decided, small_atlas, tmp_path):
    table = find_images(small_atlas/'train').head(6)
    folder = tmp_path/'some'
    folder.mkdir()
    for p in table[list(CHANNELS)].to_numpy().ravel(): shutil.copy(p, folder)
    table[['Id', *CHANNELS]].to_csv(tmp_path/'some.csv', index=False)
    files, ids = [p for row in table[list(CHANNELS)].to_numpy() for p in row], table.Id.tolist()
    pixels = [decided.dls.reader.array(r) for r in table.to_dict('records')]
    def probs(items):
        with decided.no_bar(): return decided.get_preds(dl=decided.dls.test_dl(items, num_workers=0))[0].numpy()
    want = probs(table)
    forms = [folder, str(folder), tmp_path/'some.csv', files, L(files), iter(files), get_image_files(folder).sorted(),
             ids, table.Id, pd.Index(ids), L(*ids), pixels, np.stack(pixels)]
    for items in forms: assert np.abs(probs(items) - want).max() < 1e-5
    backwards = [files[::-1], table[['Id', *CHANNELS]].iloc[::-1], ids[::-1], pixels[::-1]]
    for items in backwards: assert np.abs(probs(items)[::-1] - want).max() < 1e-5


def test_what_is_shown_of_pictures_without_labels(decided, small_atlas):
    some = find_images(small_atlas/'train').head(4)
    def dl(): return decided.dls.test_dl(some, num_workers=0, bs=4)
    with decided.no_bar():
        decided.show_results(dl=dl())
        given = decided.get_preds(dl=dl(), with_decoded=True)[2]
    titles = [ax.get_title().split('\n') for ax in plt.gcf().axes]
    plt.close('all')
    assert titles == [names or ['no label'] for names in HPA28.to_names(given)]


def test_names_that_are_no_pictures(decided):
    known = decided.dls.valid_ds.items.Id.iloc[0]
    for name in ('nothing', [known, 'nothing']):
        with pytest.raises(HPAError, match="'nothing': no such file, and not the Id"): decided.dls.test_dl(name)
    with pytest.raises(HPAError, match='no images found'): decided.dls.test_dl([])


@pytest.mark.parametrize('value', [.02, np.float32(.02), [.02]*28, torch.full((28,), .02)])
def test_thresholds_are_set_by_hand(decided, value):
    decided.thresholds = value
    with decided.no_bar(): probs, _, given = decided.get_preds(with_decoded=True)
    assert torch.equal(given, probs > .02)
    assert decided.to_bundle().thresholds.values.round(3).tolist() == [.02]*28
    with pytest.raises(HPAError, match='between 0 and 1'): decided.thresholds = 50
    with pytest.raises(HPAError, match='one number'): decided.thresholds = 'low'


# Evaluation

def test_thresholds_and_evaluation_use_validation(trained):
    learn, _ = trained
    ev = learn.evaluate()
    with learn.no_bar(): probs, targets = learn.get_preds()
    assert np.isclose(ev.macro_f1, macro_f1(learn.thresholds.predict(probs.numpy()), targets.numpy()))
    assert len(learn.thresholds.values) == 28


def test_unknown_antibodies_are_groups_of_their_own(small_atlas, tmp_path, cache):
    "Half of the images name no antibody: evaluation and saving take each of them for itself"
    df = read_labels(small_atlas/'train.csv')
    df.loc[::2, 'antibody'] = None
    dls = HPADataLoaders.from_df(df, small_atlas/'train', size=32, bs=16, group='antibody', cache=cache, progress=False)
    learn = hpa_learner(dls, 'lenet5', pretrained=False)
    known = dls.valid_ds.items.antibody
    assert learn.evaluate().n_groups == known.isna().sum() + known.dropna().nunique()
    assert (learn.save_bundle(tmp_path/'model')/'model.safetensors').is_file()


def test_learners_that_share_loaders_keep_their_own_size(loaders):
    "What another learner does with the loaders changes neither what this one sees nor what is saved of it"
    a, b = (hpa_learner(loaders, 'lenet5', pretrained=False) for _ in range(2))
    for learn, size in ((a, 48), (b, 32)):
        with learn.no_bar(), learn.no_logging(): learn.fit_progressive(sizes=(size,), epochs=1, verbose=False)
    with a.no_bar(), a.no_logging(): validated, evaluated = a.validate()[1], a.evaluate()
    assert validated == pytest.approx(evaluated.table.average_precision.mean(), abs=1e-6)
    assert a.dls.valid.one_batch()[0].shape[-1] == 48
    assert [o.to_bundle().settings.size for o in (a, b)] == [48, 32]


# Fastai's own learners

def test_plain_datablock_learners_work_too(small_atlas):
    items = attach_images(read_labels(small_atlas/'train.csv'), small_atlas/'train')
    dls = HPADataBlock(size=32).dataloaders(items, bs=16, num_workers=0)
    learn = hpa_learner(dls, 'lenet5', pretrained=False)
    with learn.no_bar(), learn.no_logging():
        learn.fit_progressive(epochs=1, verbose=False)
        assert len(learn.evaluate().table) == 28


@pytest.mark.parametrize('made_by', ['Learner', 'vision_learner'])
def test_learners_of_fastai_train_on_these_loaders(loaders, made_by):
    loss = get_loss('focal')
    if made_by == 'Learner': learn = Learner(loaders, create_model('lenet5', 28, pretrained=False, size=48), loss)
    else:
        learn = vision_learner(loaders, 'resnet10t', n_in=4, n_out=28, pretrained=False, normalize=False,
                               loss_func=loss)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, 1e-3)
        probs, targets = learn.get_preds()
    assert type(learn) is Learner and not hasattr(Learner, 'fit_progressive') and probs.shape == targets.shape
    learn.add_cb(GradientClip(1.))
    ours = HPALearner.from_learner(learn)
    assert all(cb.learn is learn for cb in learn.cbs) and ours.gradient_clip.learn is ours
    with ours.no_bar(), ours.no_logging():
        assert torch.allclose(ours.get_preds()[0], probs, atol=1e-5)
        ours.fit_progressive(sizes=(48,), epochs=1, verbose=False)
        assert len(ours.evaluate().table) == 28 and ours.calibrate() is not None


CHANGED = """
import warnings; warnings.filterwarnings('ignore')
import inspect, sys
import torch
import fastai.vision.all, fastai.distributed, fastai.callback.all, fastai.interpret
def attributes():
    modules = [m for name, m in sys.modules.items() if name.split('.')[0] in ('fastai', 'fastcore', 'torch')]
    found = {}
    for m in modules:
        for name, cls in list(vars(m).items()):
            if inspect.isclass(cls) and cls.__module__ == m.__name__:
                found[cls] = {k: v for k, v in vars(cls).items() if not k.startswith('_abc')}
    return found
before = attributes()
import hpa_fastai.all, hpa_fastai.cli.main
after = attributes()
changed = [f'{cls.__name__}.{name}' for cls, was in before.items() for name in was.keys() | after[cls].keys()
           if was.get(name) is not after[cls].get(name)]
print(*sorted(changed), sep='\\n')
"""


def test_importing_this_package_changes_no_class_of_fastai_or_torch():
    done = subprocess.run([sys.executable, '-c', CHANGED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only the GNU C library is set')
@pytest.mark.parametrize('compute', [lambda learn: learn.fit(1, 1e-3), lambda learn: learn.get_preds(),
                                     lambda learn: learn.fit_head()], ids=['fit', 'predictions', 'head'])
def test_memory_of_dropped_arrays_is_kept_while_a_network_computes(make_learner, compute):
    def occupied(): return int(Path('/proc/self/statm').read_text().split()[1])*os.sysconf('SC_PAGE_SIZE')/2**20
    returned = []
    def look(*_):
        array = np.ones(2**25)
        full = occupied()
        del array
        returned.append(full-occupied())
    learn = make_learner(size=32)
    learn.model[0].register_forward_hook(look)
    compute(learn)
    assert returned and max(returned) < 128  # of 256 MB
