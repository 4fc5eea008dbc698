"Drift: each change is called by its name, an unchanged run raises no alarm, and too little proves nothing."
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from hpa_fastai.deploy.bundle import BundleError
from hpa_fastai.deploy.loading import load_bundle
from hpa_fastai.data.files import find_images
from hpa_fastai.batches.tensors import read_image
from hpa_fastai.deploy.predictor import Predictor
from hpa_fastai.basics.errors import HPAError
from hpa_fastai.formats.names import CHANNELS
from hpa_fastai.interpret.drift import compare_run, monitor, plot_names, plot_traits, run_traits
from hpa_fastai.evaluate.reference import *
from hpa_fastai.batches.splits import antibody_of


@pytest.fixture(scope='module')
def fields(small_atlas):
    "Fields of view: Ids, and n×4×64×64"
    table = find_images(small_atlas/'train')
    return table.Id.tolist(), np.stack([read_image(r).numpy() for r in table.to_dict('records')])


@pytest.fixture(scope='module')
def model(trained, fields):
    "The bundle, which remembers every second image: eighteen validation images are too few to tell much"
    ids, pixels = fields
    bundle = load_bundle(trained[1])
    run, table = run_of(bundle, pixels[::2])
    decisions = bundle.labels.encode(run.Predicted) > 0
    reference = Reference.fit(run_traits(table, bundle)[1], decisions, [antibody_of(i) for i in ids[::2]])
    bundle.config['reference'] = json.loads(json.dumps(vars(reference)))
    return bundle


@pytest.fixture(scope='module')
def pixels(fields): return fields[1][1::2]


def run_of(model, pixels):
    "Predictions and the table of their pictures, from pixels"
    planes = np.empty(len(pixels), object)
    for i, p in enumerate(pixels): planes[i] = p
    ids = [f'fov {i}' for i in range(len(pixels))]
    table = pd.DataFrame(dict(Id=ids, layout='array', **dict.fromkeys(CHANNELS, planes)))
    return Predictor(model)(table), table


def soften(x):
    small = F.avg_pool2d(torch.from_numpy(x).float(), 4)
    return F.interpolate(small, scale_factor=4, mode='bilinear').round().byte().numpy()


def dim(x):
    x = x.copy()
    x[:, 1] = np.round(x[:, 1]*.4)
    return x


@pytest.mark.parametrize('change, kind, words', [
    (dim, 'brightness', 'The protein channel is 2.'),
    (lambda x: np.minimum(x*2.5, 255).astype(np.uint8), 'brightness', 'brighter than in training'),
    (soften, 'sharpness', 'less fine detail than in training'),
    (lambda x: x[:, [0, 2, 1, 3]], 'unlikeness', 'farther from the training pictures'),
])
def test_changes_are_called_by_their_names(model, pixels, change, kind, words):
    run, table = run_of(model, change(pixels))
    found = monitor(run, model, table)
    assert kind in found.kinds and words in ' '.join(found.findings)
    if kind != 'unlikeness': assert found.kinds[0] == kind
    assert found.table[found.table.differs].kind.isin(found.kinds).all() and words in repr(found)


def test_an_unchanged_run_raises_no_alarm(model, pixels):
    run, table = run_of(model, pixels)
    found = monitor(run, model, table)
    assert found.findings == [] and 'No difference' in repr(found) and found.n_pictures == len(pixels)
    assert plot_traits(found, Reference(**model.config['reference'])).axes
    assert len(plot_names(found).get_yticklabels()) == 28


def test_other_proportions_of_names(model, pixels):
    run, _ = run_of(model, pixels)
    run.loc[:30, ['Predicted', 'Names']] = ['15', 'Microtubule ends']
    found = monitor(run.assign(flags=''), model)
    assert found.kinds == ['names'] and 'other proportions' in found.findings[0] and found.n_pictures == 0
    different, names = found.table[found.table.differs], run.Names.str.split('|')
    shares = [names.map(lambda given: name in given).mean() for name in different.what]
    assert different.run.tolist() == pytest.approx(shares)


def test_flags_speak_where_there_are_no_pictures(model, pixels):
    run, _ = run_of(model, pixels)
    found = monitor(run.assign(flags='out-of-focus uncertain'), model)
    assert 'sharpness' in found.kinds and '100% of the pictures are out of focus' in ' '.join(found.findings)


def test_too_little_proves_nothing(model, pixels):
    run, table = run_of(model, dim(pixels[:1]))
    assert monitor(run, model, table).findings == []
    assert monitor(run[:0], model, table).findings == []
    failed = run.assign(error='no file')
    assert monitor(failed, model, table).findings == [] and monitor(failed, model, table).n == 0


def test_many_images_of_one_antibody_count_little(model):
    values = np.repeat(np.random.default_rng(0).normal(size=8), 40)
    groups = np.repeat(np.arange(8), 40)
    assert intraclass(values, groups) > .99 and effective_size(groups, intraclass(values, groups)) < 9
    few, many = (shift_test(np.zeros(N_QUANTILES), values+.5, (300, n)) for n in (effective_size(groups, 1), 320))
    assert few > .001 > many


def test_what_cannot_be_compared_is_said(model, pixels, trained):
    run, table = run_of(model, pixels[:3])
    with pytest.raises(HPAError, match="no column 'Nucleoli'"): monitor(run.drop(columns='Nucleoli'), model)
    with pytest.raises(HPAError, match='none of the 3 predictions has a picture'):
        monitor(run.assign(Id=['x', 'y', 'z']), model, table)
    old = load_bundle(trained[1])
    old.config['reference'] = None
    with pytest.raises(BundleError, match='save it again'): monitor(run, old)


def test_figures_travel_with_the_model_and_are_checked(trained, tmp_path):
    learn, path = trained
    shutil.copytree(path, tmp_path/'m')
    config = json.loads((tmp_path/'m'/'config.json').read_text(encoding='utf-8'))
    n = len(learn.dls.valid_ds)
    assert config['reference']['n'] == n
    assert sum(r['decisions'] for r in config['validation']['reliability']) == 28*n
    assert config['validation']['scores']['macro_f1'] == pytest.approx(learn.evaluation.macro_f1)
    for change, words in (
        (lambda c: c['reference']['quantiles'].pop('green'), "no field 'green'"),
        (lambda c: c['reference']['named'].pop(), 'named'),
        (lambda c: c['validation']['hardest'].append('x'), 'hardest'),
    ):
        bad = json.loads(json.dumps(config))
        change(bad)
        (tmp_path/'m'/'config.json').write_text(json.dumps(bad))
        with pytest.raises(BundleError, match=words): load_bundle(tmp_path/'m')
    for part in ('reference', 'validation'): del config[part]  # as it was before these were stored
    (tmp_path/'m'/'config.json').write_text(json.dumps(config))
    assert load_bundle(tmp_path/'m').config['reference'] is None


def test_few_pictures_say_what_they_could_have_shown(model, pixels):
    "Before 'no difference' is believed: a run of few pictures says that it could not have seen much, one of more less"
    share = {}
    for n in (3, len(pixels)):
        run, table = run_of(model, pixels[:n])
        found = monitor(run, model, table)
        assert f'{n} of the run' in found.noticed and found.noticed in repr(found)
        share[n] = [int(o) for o in re.findall(r'(\d+)% in the', found.noticed)]
    assert sum(share[3]) < sum(share[len(pixels)]) and len(share[len(pixels)]) == 4
    assert max(share[len(pixels)]) < 80  # the least change that matters is seen in half of the cases alone
    nothing = monitor(run[:1], model, table)
    assert 'no difference would have been noticed' in nothing.noticed or 'no change at all' in nothing.noticed


def test_a_dark_plate_does_not_pass_as_the_same(tmp_path):
    "A head for 120 images, and 40 others at 40 % of the light: too few antibodies for a sure answer are said so"
    traits = {c: np.random.default_rng(k).normal(-3, .6, 120) for k, c in enumerate(CHANNELS)}
    reference = Reference.fit({c: v[:24] for c, v in traits.items()}, np.ones((24, 1), bool), np.arange(24)//5,
                              {c: v[24:] for c, v in traits.items()}, np.arange(24, 120)//5)
    assert reference.n == 24 and reference.pictures == 120
    dark = np.random.default_rng(9).normal(-3, .6, 40)+np.log(.4)
    p = shift_test(reference.quantiles['green'], dark, (reference.worth['green'], 40))
    alone = Reference.fit({c: v[:24] for c, v in traits.items()}, np.ones((24, 1), bool), np.arange(24)//5)
    assert p < 1e-5 and reference.worth['green'] > 3*alone.worth['green']


def drawn(groups, icc, n_classes=28, seed=0):
    "Traits and decisions of pictures, `icc` of whose variance lies between groups"
    rng = np.random.default_rng(seed)
    def numbers(k):
        return icc**.5*rng.normal(size=(groups.max()+1, k))[groups]+(1-icc)**.5*rng.normal(size=(len(groups), k))
    z = .5*numbers(6)
    traits = dict(zip((*CHANNELS, 'sharpness'), z.T)) | dict(unlikeness=np.exp(z[:, 5]))
    return traits, numbers(n_classes) > np.linspace(-1, 1.5, n_classes)


def compared(model, groups, group, n=30, ids='scan{g}x{i}', icc=.5, light=1.):
    "Comparisons of runs with a model that knows its antibodies; `light` of the usual in the protein channel"
    for seed in range(n):
        of_model = np.arange(180)//6
        model.config['reference'] = vars(Reference.fit(*drawn(of_model, icc, seed=2*seed), of_model))
        traits, decisions = drawn(groups, icc, seed=2*seed+1)
        traits['green'] = traits['green']+np.log(light)
        ids_ = [ids.format(g=g, i=i) for i, g in enumerate(groups)]
        table = pd.DataFrame(dict(Id=ids_, Predicted=[' '.join(map(str, np.flatnonzero(row))) for row in decisions],
                                  Names='', flags='', error='', plate=groups))
        table = table.join(pd.DataFrame(decisions.astype(float), columns=model.labels.classes))
        yield compare_run(table, ids_, traits, model, group=group)


@pytest.fixture
def any_model(trained): return load_bundle(trained[1])


@pytest.mark.slow
@pytest.mark.parametrize('groups', [np.repeat(np.arange(20), 6), np.repeat(np.arange(8), 30)], ids=['sixes', 'wells'])
def test_alike_pictures_raise_no_more_alarms_than_promised(any_model, groups):
    "Six images an antibody raised 30 %, eight wells of thirty 98 %, where the Ids do not name their groups"
    alarms = {group: np.mean([bool(found.kinds) for found in compared(any_model, groups, group)])
              for group in ('plate', None)}
    assert alarms['plate'] <= .17 < alarms[None]
    hpa = [bool(found.kinds) for found in compared(any_model, groups, None, ids='{g}_1_A1_{i}')]
    assert np.mean(hpa) == alarms['plate']


def test_a_dark_channel_is_found_in_groups_too(any_model):
    found = [next(iter(found.kinds), '') for found in compared(any_model, np.arange(120)//6, 'plate', 10, light=.4)]
    assert found.count('brightness') >= 9


def test_a_level_that_is_not_promised_says_so(any_model, model, pixels):
    def level(group, **kw): return next(compared(any_model, np.repeat(np.arange(20), 6), group, 1, **kw)).level
    assert 'holds for independent pictures only' in level(None) and 'group=… (--group)' in level(None)
    assert level('plate') == level(False) == level(None, ids='{g}_1_A1_{i}') == ''
    found = next(compared(any_model, np.arange(40), None, 1))
    assert found.level in repr(found) and 'at most 5% of cases' in found.level
    run, table = run_of(model, pixels)
    reference = model.config['reference'] | dict(icc=dict.fromkeys(model.config['reference']['icc'], 0.))
    alone = replace(model, config=model.config | dict(reference=reference))
    assert 'train it with group=' in monitor(run, alone, group=lambda Id: int(Id.split()[1])//6).level


@pytest.mark.parametrize('group', ['plate', 'Well', 'column of the images', 'function', 'array', 'series'])
def test_groups_by_every_door(model, pixels, group):
    run, table = run_of(model, pixels)
    n = len(run)
    ids = [f'scan_{"ABCDEFGH"[i//6]}02_{i:03}' for i in range(n)]
    run, table = run.assign(Id=ids, plate=np.arange(n)//6), table.assign(Id=ids, donor=np.arange(n)//6)
    run.loc[3, 'error'] = 'cut off'
    given = dict(plate='plate', Well='Well', function=lambda Id: Id[5], array=np.arange(n)//6,
                 series=pd.Series(np.arange(n)//6, pd.Index(ids, name='Id')))
    found = monitor(run, model, table, group=given.get(group, 'donor'))
    assert found.level == '' and found.n == n-1
    assert found.noticed == monitor(run, model, table, group='plate').noticed != monitor(run, model, table).noticed
    with pytest.raises(HPAError, match="no column 'plates'.*did you mean 'plate'"): monitor(run, model, group='plates')


def test_three_wells_prove_little_but_do_not_fail(any_model):
    for groups in (np.zeros(30, int), np.repeat(np.arange(3), 30)):
        assert [found.kinds for found in compared(any_model, groups, 'plate', 5)] == [[]]*5
