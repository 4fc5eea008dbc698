"Training: it learns, plans its time, exports as fastai does."
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.transforms import get_image_files
from fastai.interpret import Interpretation
from fastai.torch_core import set_seed
from fastcore.foundation import L

from hpa_fastai.all import CHANNELS, HPA28, HPADataBlock, HPADataLoaders, HPAError, attach_images, find_images, hpa_learner, plain_thresholds, predict, read_labels
from hpa_fastai.train.callbacks import TrainingBar
from hpa_fastai.train.schedule import Stage, default_sizes, plan_stages


def test_it_learns_what_it_sees(tmp_path):
    "A few images are learned by heart"
    from hpa_fastai.simulate.atlas import simulate_atlas
    simulate_atlas(tmp_path/'atlas', n=56, size=64, balance='even', progress=False)
    df = read_labels(tmp_path/'atlas'/'train.csv')
    set_seed(0)
    dls = HPADataLoaders.from_df(df, tmp_path/'atlas'/'train', size=32, bs=16, augment=False, oversample=0, cache=tmp_path/'cache', progress=False)
    learn = hpa_learner(dls, 'resnet10t', pretrained=False, dropout=0.)
    with learn.no_bar(), learn.no_logging(): learn.fit_progressive(sizes=(32,), epochs=20, best=False, verbose=False)
    with learn.no_bar(): probs, targets = learn.get_preds(ds_idx=0)
    assert probs[targets == 1].mean() > probs[targets == 0].mean() + .3


def test_sizes_grow_and_end_at_what_is_read():
    for size in (32, 48, 96, 128, 224, 512, 1024):
        sizes = default_sizes(size)
        assert list(sizes) == sorted(set(sizes)) and sizes[-1] == size and min(sizes) >= min(size, 32)


@pytest.mark.parametrize('per_pass', [3, 100, 10_000])
def test_a_plan_fills_its_time_for_any_amount_of_data(per_pass):
    seconds = [(.1, 2.), (.2, 4.), (.4, 8.)]
    plan = plan_stages((64, 96, 128), seconds, [1, 1, 2], 600, per_pass)
    spent = sum(s.epochs*(s.steps*t + v) for s, (t, v) in zip(plan, seconds))
    assert abs(spent/600 - 1) < .05
    assert [s.size for s in plan] == [64, 96, 128] and all(1 <= s.epochs <= 12 for s in plan)


def test_no_time_at_all_still_gives_a_plan():
    assert plan_stages((64,), [(1., 10.)], [1], 1, 5) == [Stage(64, 1, 1)]


@pytest.fixture
def loaders(small_atlas, tmp_path):
    return HPADataLoaders.from_csv(small_atlas, size=48, bs=16, group='antibody', cache=tmp_path/'cache', progress=False)


class Rates(Callback):
    "The learning rate of each step, over all stages"
    def __init__(self): self.seen = []
    def after_batch(self):
        if self.training: self.seen.append(self.opt.hypers[-1]['lr'])


@pytest.mark.parametrize('time', [dict(minutes=.2), dict(epochs=(3, 2))])
def test_all_stages_are_one_cycle(loaders, time):
    rates = Rates()
    learn = hpa_learner(loaders, 'lenet5', pretrained=False, cbs=rates)
    with learn.no_bar(), learn.no_logging(): learn.fit_progressive(verbose=False, **time)
    assert len(learn.history['stages']) == 2
    top = rates.seen.index(max(rates.seen))
    assert max(rates.seen) > 2.9e-3 and rates.seen[0] < 3e-4 and rates.seen[-1] < 3e-4
    assert rates.seen[:top+1] == sorted(rates.seen[:top+1]) and rates.seen[top:] == sorted(rates.seen[top:], reverse=True), 'up once, and down once'
    assert learn.recorder.lrs[0] > 1.2e-3, 'the last stage goes on where the first left'


class FirstSteps(Callback):
    "The weights that the first step of each training meets"
    def __init__(self): self.met = []
    def before_train(self): self.fresh = True
    def before_batch(self):
        if self.training and self.fresh: self.met.append({k: v.clone() for k, v in self.learn.model.state_dict().items()})
        self.fresh = False


def test_a_pretrained_network_gets_its_head_before_it_is_trained(loaders):
    steps, rates = FirstSteps(), Rates()
    learn = hpa_learner(loaders, 'smallresnet', cbs=[steps, rates])
    as_made = {k: v.clone() for k, v in learn.model.state_dict().items()}
    with learn.no_bar(), learn.no_logging(): learn.fit_progressive(sizes=(48,), epochs=2, best=False, verbose=False)
    changed = [k for k in as_made if not torch.equal(as_made[k], steps.met[0][k])]
    assert changed and all(k.startswith('1.') for k in changed), 'the head alone'
    after = learn.model.state_dict()
    assert not torch.equal(after['0.0.weight'], as_made['0.0.weight']) and torch.equal(after['0.1.running_mean'], as_made['0.1.running_mean'])
    assert max(rates.seen) == pytest.approx(3e-4, rel=.1), 'gently'


def test_the_fitted_head_is_the_best_there_is(loaders):
    from hpa_fastai.train.head import known_head
    learn = hpa_learner(loaders, 'smallresnet')
    before = hpa_learner(loaders, 'smallresnet')
    norm, layer = learn.fit_head().model[1][-3], learn.model[1][-1]
    known = known_head(before, norm.running_mean, (norm.running_var + norm.eps).sqrt())
    def value():
        with learn.no_bar(): x, y = learn.get_preds(dl=loaders.test_dl(loaders.train_ds.items, with_labels=True, cache=loaders.train.cache), act=lambda o: o)
        weights = torch.tensor(loaders.train.weights).float()
        return ((learn.loss_func.elements(x, y)*weights[:, None]).mean(0).sum() + (torch.cat([layer.weight, layer.bias[:, None]], 1) - known).square().sum()/2/len(y)).item()
    best = value()
    for t in (layer.weight, layer.bias):
        for way in (-1, 1):
            with torch.no_grad():
                kept, step = t.clone(), .05*torch.randn(t.shape)
                t += way*step
                assert value() > best
                t.copy_(kept)


def test_a_head_for_as_many_images_as_there_is_time_for(loaders):
    fitted = lambda **kwargs: hpa_learner(loaders, 'smallresnet').fit_head(**kwargs).model[1][-1].weight
    whole = fitted()
    assert torch.allclose(fitted(), whole, atol=1e-4)
    assert not torch.allclose(fitted(most=16), whole, atol=1e-2) and not torch.allclose(fitted(seconds=1e-6), whole, atol=1e-2)


@pytest.mark.parametrize('minutes', [None, .05])
def test_bars_for_terminals(loaders, capsys, minutes):
    learn = hpa_learner(loaders, 'lenet5', pretrained=False, cbs=TrainingBar())
    with learn.no_bar(), learn.no_logging():
        learn.fit_progressive(sizes=(32,), epochs=2, minutes=minutes, verbose=False)
        learn.get_preds()
    err = capsys.readouterr().err
    assert err.count('training at 32 px: 100%') <= 1 and 'training at 32 px' in err and 'mean_ap=' in err


def test_training_on_forgets_what_was_fitted_before(loaders):
    learn = hpa_learner(loaders, 'lenet5', pretrained=False)
    with learn.no_bar(), learn.no_logging():
        learn.fit_progressive(sizes=(32,), epochs=1, verbose=False)
        learn.calibrate(), learn.fit_thresholds(), learn.evaluate()
        learn.fit_progressive(sizes=(32,), epochs=1, verbose=False)
    assert learn.thresholds is None and learn.calibration is None and learn.evaluation is None


def test_learners_that_share_loaders_keep_their_own_size(loaders):
    a, b = (hpa_learner(loaders, 'lenet5', pretrained=False) for _ in range(2))
    with a.no_bar(), a.no_logging(): a.fit_progressive(sizes=(48,), epochs=1, verbose=False)
    with b.no_bar(), b.no_logging(): b.fit_progressive(sizes=(32,), epochs=1, verbose=False)
    assert a.to_bundle().preprocess.size == 48 and b.to_bundle().preprocess.size == 32


def test_plain_datablock_learners_work_too(small_atlas):
    items = attach_images(read_labels(small_atlas/'train.csv'), small_atlas/'train')
    dls = HPADataBlock(size=32).dataloaders(items, bs=16, num_workers=0)
    learn = hpa_learner(dls, 'lenet5', pretrained=False)
    with learn.no_bar(), learn.no_logging():
        learn.fit_progressive(epochs=1, verbose=False)
        assert len(learn.evaluate().table) == 28


def test_sizes_that_a_network_cannot_take_are_said(loaders):
    learn = hpa_learner(loaders, 'mixer_s16_224', pretrained=False)
    with pytest.raises(HPAError, match=r'mixer_s16_224 does not take pictures of 32 px; pass sizes=\(48,\)'): learn.fit_progressive()


def test_measuring_leaves_the_model_alone(trained):
    from hpa_fastai.train.schedule import measure_steps
    learn, _ = trained
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    measure_steps(learn)
    assert all(torch.equal(before[k], v) for k, v in learn.model.state_dict().items())


def test_sizes_beyond_what_is_read_are_refused(trained):
    with pytest.raises(HPAError, match='larger than the 48 px'): trained[0].fit_progressive(sizes=(48, 64))


LOAD = """
import sys, warnings; warnings.filterwarnings('ignore')
import numpy as np
from fastai.learner import load_learner
from hpa_fastai.data.files import find_images
learn = load_learner(sys.argv[1])
files = find_images(sys.argv[2]).head(12)
with learn.no_bar(): probs, _, named = learn.get_preds(dl=learn.dls.test_dl(files, num_workers=0), with_decoded=True)
one = learn.predict(files.green[3])
assert (one[1] == named[3]).all() and (one[2]-probs[3]).abs().max() < 1e-5 and (learn.calibration is None) == (sys.argv[4]=='raw')
np.savez(sys.argv[3], probs=probs.numpy(), named=named.numpy())
"""


@pytest.fixture
def decided(trained, monkeypatch):
    "The trained learner, calibrated and with thresholds that name a few classes of each picture; as it was afterwards"
    learn, _ = trained
    for name in ('thresholds', 'calibration', 'evaluation'): monkeypatch.setattr(learn, name, getattr(learn, name))
    calibration = learn.calibrate('platt')
    with learn.no_bar(): raw = learn.get_preds(act=torch.sigmoid)[0].numpy()
    learn.thresholds = plain_thresholds(np.quantile(calibration(raw), .8, axis=0))
    return learn


def test_exported_learner_predicts_the_same_in_a_new_process(decided, small_atlas, tmp_path):
    "The same answer as the package gives with the model in memory, by calibration and thresholds"
    decided.export((tmp_path/'export.pkl').absolute())
    subprocess.run([sys.executable, '-c', LOAD, tmp_path/'export.pkl', small_atlas/'train', tmp_path/'said.npz', 'calibrated'], check=True, cwd=tmp_path)
    there, here = np.load(tmp_path/'said.npz'), predict(find_images(small_atlas/'train').head(12), model=decided, progress=False)
    assert np.abs(there['probs'] - here[list(HPA28.classes)].to_numpy(float)).max() < 1e-4
    assert HPA28.decode(there['named']) == here.Predicted.tolist() and there['named'].any()


def test_a_learner_decides_as_its_bundle_does(decided, monkeypatch):
    items = decided.dls.valid_ds.items.reset_index(drop=True)
    want = predict(items, model=decided, progress=False)
    with decided.no_bar(): probs, targets, named = decided.get_preds(with_decoded=True)
    assert np.abs(probs.numpy() - want[list(HPA28.classes)].to_numpy(float)).max() < 1e-4
    assert HPA28.decode(named.numpy()) == want.Predicted.tolist()
    with decided.no_bar(): found = Interpretation.from_learner(decided)[[1, 3]]
    assert HPA28.decode(found[3].numpy()) == want.Predicted[[1, 3]].tolist()
    shown = []
    monkeypatch.setattr(type(decided.dls.valid), 'show_results', lambda self, b, out, **kwargs: shown.append(out))
    with decided.no_bar(): decided.show_results(shuffle=False)
    assert HPA28.decode(shown[0].numpy()) == want.Predicted[:len(shown[0])].tolist()
    labels = replace(HPA28, negative=HPA28.parse(want.Predicted[want.Predicted.str.contains(' ')].iloc[0])[0])
    for dl in decided.dls.loaders: monkeypatch.setattr(dl, 'labels', labels)
    with decided.no_bar(): alone = decided.get_preds(with_decoded=True)[2]
    assert HPA28.decode(alone.numpy()) == predict(items, model=decided, progress=False).Predicted.tolist()
    assert not torch.equal(alone, named) and not (alone[:, labels.negative] & (alone.sum(1) > 1)).any()


def test_one_picture_in_whatever_form(decided, small_atlas):
    items = decided.dls.valid_ds.items
    row, pixels = items.iloc[2], decided.dls.reader.array(items.iloc[2])
    want = predict(items.iloc[[2]], model=decided, progress=False).iloc[0]
    paths = {c: row[c] for c in ('red', 'green', 'blue', 'yellow')}
    for item in (row.Id, row, row.to_dict(), paths, row.green, Path(row.red), items.iloc[[2]], pixels, torch.from_numpy(pixels).float().requires_grad_()/255):
        names, given, probs = decided.predict(item)
        assert '|'.join(names) == want.Names and HPA28.decode(given[None].numpy()) == [want.Predicted]
        assert np.abs(probs.numpy() - want[list(HPA28.classes)].to_numpy(float)).max() < 1e-4
    with pytest.raises(HPAError, match='takes one field of view and got 90'): decided.predict(small_atlas/'train')
    with pytest.raises(HPAError, match='no such f'): decided.predict('nothing')


def test_what_is_shown_of_pictures_without_labels(decided, small_atlas):
    from matplotlib import pyplot as plt
    with decided.no_bar(): decided.show_results(dl=decided.dls.test_dl(small_atlas/'train', num_workers=0, bs=4))
    titles = [ax.get_title().split('\n') for ax in plt.gcf().axes]
    plt.close('all')
    with decided.no_bar(): given = decided.get_preds(dl=decided.dls.test_dl(small_atlas/'train', num_workers=0, bs=4), with_decoded=True)[2][:4]
    assert titles == [names or ['no label'] for names in HPA28.to_names(given)]


def test_names_that_are_no_pictures(decided, small_atlas):
    known = decided.dls.valid_ds.items.Id.iloc[0]
    for name in ('nothing', [known, 'nothing']):
        with pytest.raises(HPAError, match="'nothing': no such file, and no Id of an image"): decided.dls.test_dl(name)
    with pytest.raises(HPAError, match='no images found'): decided.dls.test_dl([])


@pytest.mark.parametrize('value', [.02, np.float32(.02), [.02]*28, torch.full((28,), .02)])
def test_thresholds_are_set_by_hand(decided, value):
    before = decided.thresholds
    try:
        decided.thresholds = value
        with decided.no_bar(): probs, _, given = decided.get_preds(with_decoded=True)
        assert torch.equal(given, probs > .02) and decided.to_bundle().thresholds.values.round(3).tolist() == [.02]*28
        with pytest.raises(HPAError, match='between 0 and 1'): decided.thresholds = 50
        with pytest.raises(HPAError, match='one number'): decided.thresholds = 'low'
    finally: decided.thresholds = before


def test_many_pictures_in_whatever_form(decided, small_atlas, tmp_path):
    table = find_images(small_atlas/'train').head(6)
    folder = tmp_path/'some'
    folder.mkdir()
    for p in table[list(CHANNELS)].to_numpy().ravel(): shutil.copy(p, folder)
    table[['Id', *CHANNELS]].to_csv(tmp_path/'some.csv', index=False)
    files = [p for row in table[list(CHANNELS)].to_numpy() for p in row]
    pixels = [decided.dls.reader.array(r) for r in table.to_dict('records')]
    def said(items):
        with decided.no_bar(): return decided.get_preds(dl=decided.dls.test_dl(items, num_workers=0))[0].numpy()
    want = said(table)
    for items in (folder, str(folder), tmp_path/'some.csv', files, table.Id.tolist(), pixels, np.stack(pixels)): assert np.abs(said(items) - want).max() < 1e-5
    for items in (L(files), iter(files), get_image_files(folder).sorted(), table.Id, pd.Index(table.Id), L(*table.Id)): assert np.abs(said(items) - want).max() < 1e-5
    for items in (files[::-1], table[['Id', *CHANNELS]].iloc[::-1], table.Id.tolist()[::-1], pixels[::-1]): assert np.abs(said(items)[::-1] - want).max() < 1e-5


def test_export_holds_no_images(trained, tmp_path):
    learn, _ = trained
    learn.export((tmp_path/'export.pkl').absolute())
    weights = sum(v.numel()*v.element_size() for v in learn.model.state_dict().values())
    assert (tmp_path/'export.pkl').stat().st_size < weights*1.1 + 200_000


def test_published_weights_get_a_head_and_gentle_rates_for_the_body(small_atlas, tmp_path):
    import timm
    torch.save(timm.create_model('resnet10t').state_dict(), tmp_path/'w.pth')
    dls = HPADataLoaders.from_csv(small_atlas, size=32, bs=16, cache=tmp_path, progress=False)
    steps = FirstSteps()
    learn = hpa_learner(dls, 'resnet10t', pretrained=tmp_path/'w.pth', cbs=steps)
    as_made = {k: v.clone() for k, v in learn.model.state_dict().items()}
    with learn.no_bar(), learn.no_logging(): learn.fit_progressive(sizes=(32,), epochs=2, best=False, verbose=False)
    assert all(torch.equal(v, steps.met[0][k]) for k, v in as_made.items() if k.startswith('0.')) and not torch.equal(as_made['1.4.weight'], steps.met[0]['1.4.weight'])
    assert len({h['lr'] for h in learn.opt.hypers}) > 1 and learn.opt.hypers[0]['lr'] < learn.opt.hypers[-1]['lr']
    statistics = [k for k in as_made if k.startswith('0.') and k.endswith('running_mean')]
    assert statistics and not any(torch.equal(as_made[k], learn.model.state_dict()[k]) for k in statistics), 'photographs are not cells'


def test_thresholds_and_evaluation_use_validation(trained):
    learn, _ = trained
    ev = learn.evaluate()
    with learn.no_bar(): probs, targets = learn.get_preds()
    from hpa_fastai.evaluate.metrics import macro_f1
    assert np.isclose(ev.macro_f1, macro_f1(learn.thresholds.predict(probs.numpy()), targets.numpy()))
    assert len(learn.thresholds.values) == 28


def test_unknown_antibodies_are_groups_of_their_own(small_atlas, tmp_path):
    "Half of the images name no antibody: evaluation and saving take each of them for itself"
    df = read_labels(small_atlas/'train.csv')
    df.loc[::2, 'antibody'] = None
    dls = HPADataLoaders.from_df(df, small_atlas/'train', size=32, bs=16, group='antibody', cache=tmp_path/'cache', progress=False)
    learn = hpa_learner(dls, 'lenet5', pretrained=False)
    known = dls.valid_ds.items.antibody
    assert learn.evaluate().n_groups == known.isna().sum() + known.dropna().nunique()
    assert (learn.save_bundle(tmp_path/'model')/'model.safetensors').is_file()


def test_going_back_towards_the_start_is_no_training_to_other_callbacks(loaders, tmp_path):
    from fastai.callback.all import CSVLogger, SaveModelCallback
    learn = hpa_learner(loaders, 'smallresnet', path=tmp_path, cbs=[SaveModelCallback(monitor='mean_ap'), CSVLogger()])
    with learn.no_bar(): learn.fit_progressive(sizes=(48,), epochs=2, verbose=False)
    assert 0 <= learn.history['kept_of_start'] <= 1 and len(learn.recorder.values[-1]) == 3 and learn.recorder.losses
    assert (tmp_path/'history.csv').read_text().count('\n') == 3, 'a heading and two epochs'


def test_what_interrupts_going_back_leaves_the_trained_weights(loaders, monkeypatch):
    import sys
    from hpa_fastai.train.fine_tuning import average_with_start
    learn = hpa_learner(loaders, 'smallresnet')
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    trained, losses = [t.clone() for t in learn.model.state_dict().values()], iter([torch.ones(3)])
    monkeypatch.setattr(sys.modules['hpa_fastai.train.fine_tuning'], 'validation_losses', lambda learn: next(losses))
    with pytest.raises(StopIteration): average_with_start(learn, learn.start_weights)
    assert all(torch.equal(a, b) for a, b in zip(trained, learn.model.state_dict().values()))


def test_a_second_training_keeps_the_head(loaders):
    steps = FirstSteps()
    learn = hpa_learner(loaders, 'smallresnet')
    with learn.no_bar(), learn.no_logging():
        learn.fit_progressive(sizes=(48,), epochs=1, verbose=False)
        before = {k: v.clone() for k, v in learn.model.state_dict().items()}
        with learn.added_cbs(steps): learn.fit_progressive(sizes=(48,), epochs=1, verbose=False)
    assert all(torch.equal(v, steps.met[0][k]) for k, v in before.items())


def test_training_without_a_validation_set(small_atlas):
    df = attach_images(read_labels(small_atlas/'train.csv'), small_atlas/'train')
    from fastai.data.all import IndexSplitter
    dls = HPADataBlock(size=48, splitter=IndexSplitter([])).dataloaders(df.head(32), bs=8)
    learn = hpa_learner(dls, 'smallresnet', metrics=[])
    with learn.no_bar(), learn.no_logging(): learn.fit_progressive(sizes=(48,), epochs=1, verbose=False)
    assert 'kept_of_start' not in learn.history


def test_the_head_alone_leaves_the_body_as_it_came(loaders):
    learn = hpa_learner(loaders, 'smallresnet')
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    learn.fit_progressive(minutes=30, fine_tune=False)
    after = learn.model.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items() if k.startswith('0.')) and not torch.equal(before['1.4.weight'], after['1.4.weight'])
    assert learn.history['minutes'] < 1 and learn.history['stages'] == ['48 px: the head alone'] and learn.size == 48
    with learn.no_bar(): probs, targets = learn.get_preds()
    from hpa_fastai.train.callbacks import mean_ap
    assert learn.training_log[0]['mean_ap'] == pytest.approx(mean_ap(probs.numpy(), targets.numpy()), abs=1e-4)
    assert len(learn.evaluate().table) == 28


def test_what_is_worth_fine_tuning(loaders, monkeypatch):
    from hpa_fastai.train import fine_tuning as training
    learn = hpa_learner(loaders, 'smallresnet')
    assert not training.worth_fine_tuning(learn) and training.worth_fine_tuning(hpa_learner(loaders, 'smallresnet', pretrained=False))
    monkeypatch.setattr(training, 'FEW', len(loaders.train_ds))
    assert training.worth_fine_tuning(learn), 'there are enough'
