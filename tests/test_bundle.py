"Bundles: everything travels, nothing runs, and what is damaged is refused in one line."
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from hpa_fastai.bundle import BundleError, load_bundle, test_bundle as check_bundle


@pytest.fixture
def copy(trained, tmp_path):
    shutil.copytree(trained[1], tmp_path/'copy')
    return tmp_path/'copy'


def test_same_probabilities_as_validation(trained):
    learn, path = trained
    with learn.no_bar(): probs, _ = learn.get_preds()
    bundle = load_bundle(path)
    images = torch.stack([bundle.reader(r) for r in learn.dls.valid_ds.items.to_dict('records')])
    assert np.abs(bundle.probs(images) - probs.numpy()).max() < 1e-4


def test_settings_travel(trained):
    learn, path = trained
    b = load_bundle(path)
    assert (b.labels, b.reader, b.preprocess) == (learn.dls.labels, learn.dls.reader, learn.dls.preprocess())
    assert np.allclose(b.thresholds.values, learn.thresholds.values)
    assert b.config['training']['images'] == len(learn.dls.train_ds) and len(b.config['metrics']) == 28
    assert 'Nucleoplasm' in (path/'README.md').read_text()


def test_sample_is_computed_again(trained): assert check_bundle(trained[1]) < 1e-5


def test_a_changed_sample_is_noticed(copy):
    with np.load(copy/'sample.npz') as f: images, probs = f['images'], f['probs']
    np.savez(copy/'sample.npz', images=images, probs=probs[:, ::-1])
    with pytest.raises(BundleError, match='differ by up to'): check_bundle(copy)


def test_taken_places_are_left_alone(trained, tmp_path):
    learn, path = trained
    with pytest.raises(BundleError, match='already holds a model'): learn.save_bundle(path)
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'thesis.txt').write_text('years of work')
    with pytest.raises(BundleError, match='not a model bundle'): learn.save_bundle(tmp_path/'mine', force=True)
    assert (tmp_path/'mine'/'thesis.txt').read_text() == 'years of work'


def test_replacing_leaves_nothing_behind(trained, copy):
    trained[0].save_bundle(copy, force=True)
    assert sorted(p.name for p in copy.parent.iterdir()) == ['copy']
    load_bundle(copy)


SAVE = """
import sys, time, torch
import hpa_fastai.bundle as b
real = b.np.savez_compressed
def slow(*args, **kwargs):
    print('saving', flush=True)
    time.sleep(60)
b.np.savez_compressed = slow
old = b.load_bundle(sys.argv[1])
b.write_bundle(old, sys.argv[1], torch.zeros(1, 4, 48, 48, dtype=torch.uint8), force=True)
"""


def test_a_killed_save_leaves_the_old_bundle_whole(copy):
    before = {p.name: p.read_bytes() for p in copy.iterdir()}
    p = subprocess.Popen([sys.executable, '-c', SAVE, copy], stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline().strip() == 'saving'
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == before


def change(path, f):
    c = json.loads((path/'config.json').read_text())
    f(c)
    (path/'config.json').write_text(json.dumps(c))


@pytest.mark.parametrize('spoil, words', [
    (lambda p: change(p, lambda c: c.update(format_version=99)), 'format 99.*upgrade'),
    (lambda p: change(p, lambda c: c.update(code='import os')), 'unknown field'),
    (lambda p: change(p, lambda c: c.pop('reader')), "no field 'reader'"),
    (lambda p: change(p, lambda c: c['reader'].update(path='/etc/passwd')), 'unknown fields'),
    (lambda p: change(p, lambda c: c['model'].update(n_out=3)), 'model'),
    (lambda p: change(p, lambda c: c['model'].update(arch='resnet18')), 'not the weights'),
    (lambda p: change(p, lambda c: c['thresholds'].update(values=[.5])), '1 thresholds'),
    (lambda p: (p/'config.json').write_text('{"format_version": 1'), 'JSON'),
    (lambda p: (p/'config.json').write_text('['*100_000), 'JSON'),
    (lambda p: (p/'config.json').write_text('[1]'), 'not the configuration'),
    (lambda p: os.truncate(p/'model.safetensors', 1000), 'checksum'),
    (lambda p: (p/'model.safetensors').unlink(), 'missing'),
    (lambda p: (p/'config.json').unlink(), 'config.json is missing'),
    (shutil.rmtree, 'train one with'),
])
def test_damage_is_one_line(copy, spoil, words):
    spoil(copy)
    with pytest.raises(BundleError, match=words) as e: load_bundle(copy)
    assert '\n' not in str(e.value)


def test_loading_runs_no_pickle(copy, tmp_path, monkeypatch):
    import pickle
    def refuse(*args, **kwargs): raise AssertionError('a pickle was opened')
    monkeypatch.setattr(pickle, 'load', refuse)
    monkeypatch.setattr(torch, 'load', refuse)
    check_bundle(copy)
