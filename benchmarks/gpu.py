"""What one GPU does: whether it trains and predicts as a CPU would, and how fast it is beside what could be reached.

    python benchmarks/gpu.py [--only NAME ...] [--json gpu.json] [--minutes 6]
    python benchmarks/gpu.py --device cpu --tiny    # whether every check runs, on any machine; its figures say nothing

Cells are simulated and networks start from random weights, so nothing is downloaded. Each check stands alone: where one
fails it says why, the others go on, and the program ends with exit code 1. What was found is written after each check.
"""
import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.learner import load_learner
from fastai.torch_core import set_seed, to_device
from joblib.externals.loky import get_reusable_executor

import hpa_fastai
from hpa_fastai.all import (CHANNELS, AverageWeights, HPADataLoaders, HPAError, Predictor, StopOnNaN, TrainingError,
                            evaluate_predictions, find_images, hpa_learner, read_checkpoint, read_labels,
                            simulate_atlas)


@dataclass
class Figure:
    "One thing that was found"
    what: str
    value: float
    unit: str = ''
    at_least: float | None = None
    at_most: float | None = None

    def fine(self):
        "Whether it is as it should be; NaN never is"
        above = self.at_least is None or self.value >= self.at_least
        below = self.at_most is None or self.value <= self.at_most
        return bool(above and below)

    def __str__(self):
        goals = dict(at_least=self.at_least, at_most=self.at_most)
        wanted = ' and '.join(f'{k.replace("_", " ")} {v:g}' for k, v in goals.items() if v is not None)
        said = f'wanted {wanted}' + ('' if self.fine() else ': FALLS SHORT') if wanted else ''
        return f'{self.what:72} {self.value:>9.4g} {self.unit:9} {said}'.rstrip()


def holds(what, true):
    "A figure for something that is so or is not"
    return Figure(what, float(bool(true)), at_least=1)


class Lab:
    "The device, and what the checks share"
    def __init__(self, a, tmp):
        self.device, self.tiny, self.tmp = torch.device(a.device), a.tiny, tmp
        self.end = time.monotonic() + 60*a.minutes
        self.gpu = self.device.type == 'cuda'
        if self.tiny: torch.set_num_threads(1)  # several would wait for one another

    def of(self, full, tiny):
        "A setting, and its value for a trial run"
        return tiny if self.tiny else full

    def wish(self, value):
        "A goal for the full run alone"
        return None if self.tiny else value

    def left(self):
        "Seconds until everything should have ended"
        return self.end - time.monotonic()

    def wait(self):
        "Until the device has done what it was told to"
        if self.gpu: torch.cuda.synchronize()

    def atlas(self, name, n, size, seed=0):
        "Simulated cells, made once"
        folder = self.tmp/name
        if not folder.exists(): simulate_atlas(folder, n=n, size=size, balance='even', seed=seed,
                                               difficulty='easy', progress=False)
        return folder

    def few(self):
        "The cells that short trainings use"
        return self.atlas('few', self.of(400, 48), self.of(128, 32))

    def large(self):
        "Fields of view as the competition of 2018 has them"
        return self.atlas('large', self.of(192, 24), self.of(512, 64), seed=2)

    def learner(self, atlas, arch='smallresnet', size=64, bs=32):
        "A learner with random weights"
        set_seed(0)
        size = self.of(size, 32)
        dls = HPADataLoaders.from_csv(atlas, size=size, bs=self.of(bs, 8), group='antibody', cache=self.tmp/'cache',
                                      progress=False, device=self.device)
        return quiet(hpa_learner(dls, self.of(arch, 'smallresnet'), pretrained=False))

    def model(self, arch, size, atlas=None):
        "A model that was not trained, saved once"
        folder = self.tmp/f'{arch}-{size}'
        if folder.exists(): return folder
        dls = HPADataLoaders.from_csv(atlas or self.few(), size=size, bs=8, cache=self.tmp/'cache', progress=False,
                                      device=self.device)
        return quiet(hpa_learner(dls, arch, pretrained=False)).save_bundle(folder, note=False)

    def free(self):
        "Give memory back, and forget how much was used"
        if not self.gpu: return
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def peak(self):
        "The most memory of the device since then, in GB"
        return torch.cuda.max_memory_allocated()/1e9 if self.gpu else float('nan')

    def alone(self, work, *args, gpu=True):
        "Start a process of its own for a function"
        hidden = {} if gpu else {'CUDA_VISIBLE_DEVICES': ''}
        before = {k: os.environ.get(k) for k in hidden}
        os.environ.update(hidden)
        try:
            process = get_context('spawn' if self.gpu else 'fork').Process(target=work, args=args)
            process.start()
            return process
        finally:
            for k, v in before.items(): os.environ.pop(k) if v is None else os.environ.update({k: v})


def quiet(learn):
    "A learner without bars and tables"
    learn.remove_cbs([c for c in learn.cbs if type(c).__name__ == 'ProgressCallback'])
    learn.logger = lambda *_: None
    return learn


def finite(tensors):
    "Whether all values are numbers"
    return all(torch.isfinite(t).all().item() for t in tensors if t.is_floating_point())


def clone(source, folder, n):
    "n fields of view, as hard links to those of `source`"
    rows = find_images(source).to_dict('records')
    for i in range(n):
        to = folder/f'{i//1000:03}'
        to.mkdir(parents=True, exist_ok=True)
        for c in CHANNELS: os.link(rows[i % len(rows)][c], to/f'fov{i:06}_{c}.png')
    return folder


def seconds(f):
    "How long it takes"
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


# What must be right

def answers(lab):
    "A training in mixed precision, and the same answers in half precision, in full precision, and on the CPU"
    atlas = lab.atlas('atlas', lab.of(1600, 48), lab.of(192, 32))
    unseen = lab.atlas('unseen', lab.of(240, 24), lab.of(192, 32), seed=1)
    learn = lab.learner(atlas, 'resnet18', 192, 32)
    lab.free()
    learn.fit_progressive(minutes=lab.of(.6, .02), verbose=False)
    learn.calibrate(), learn.fit_thresholds(), learn.evaluate()
    yield Figure('training: macro F1 on validation images', learn.evaluation.macro_f1, at_least=lab.wish(.5))
    yield Figure('training: time', 60*learn.history['minutes'], 's')
    yield Figure('training: peak memory', lab.peak(), 'GB')
    model = learn.save_bundle(lab.tmp/'answers')
    def predicted(device, precision): return Predictor(model, device, precision=precision)(unseen/'train')
    cpu = predicted('cpu', 'full')
    classes = list(learn.dls.vocab)
    right = evaluate_predictions(cpu, unseen/'train.csv', 'hpa28')
    yield Figure('the saved model: macro F1 on cells of another seed', right.macro_f1)
    thresholds = learn.thresholds.values
    for name, precision, most in (('full', 'full', 2e-3), ('half', 'force-half', 2e-2)):
        found = predicted(lab.device, precision)
        p, q = cpu[classes].to_numpy(), found[classes].to_numpy()
        apart = np.abs(p - q).max()
        yield Figure(f'{name} precision: largest difference of a probability to the CPU', apart, at_most=most)
        other = (cpu.Names != found.Names).to_numpy()
        close = (np.abs(p - thresholds) <= most).any(1)
        surprising = (other & ~close).sum()
        yield Figure(f'{name} precision: fields of view with other names, of {len(cpu)}', other.sum())
        yield Figure(f'{name} precision: of them, those with no probability at its threshold', surprising, at_most=0)
        yield Figure(f'{name} precision: fields of view with other flags', (cpu['flags'] != found['flags']).sum())


class Spoil(Callback):
    "A loss that is no number, in the second epoch"
    order = -10
    def __init__(self, step): self.step = step
    def after_loss(self):
        if not self.training or self.epoch != 1 or self.iter != self.step: return
        self.learn.loss_grad = self.learn.loss_grad*float('nan')


def nan(lab):
    "A loss that is no number at the fifth of eight steps"
    learn = lab.learner(lab.few())
    n = len(learn.dls.train_ds)//8
    learn.dls.train.bs = n
    learn.add_cb(Spoil(4))
    folder, said = lab.tmp/'nan', ''
    try: learn.fit_progressive(sizes=(learn.dls.settings.size,), epochs=3, folder=folder, verbose=False)
    except TrainingError as e: said = str(e)
    yield holds('training stops, and says why', 'is not a number' in said)
    yield holds('the weights that are kept are numbers', finite(learn.model.state_dict().values()))
    state = read_checkpoint(folder/'checkpoint.pt')
    kept = [*state['weights'], *state['parts']['average'], *state['parts']['best_weights']]
    yield holds('so are those of the checkpoint, of the epoch before', state['epoch'] == 1 and finite(kept))


class SmallMemory(torch.nn.Module):
    "Stands for a device with memory for so many pictures at a time"
    def __init__(self, n):
        super().__init__()
        self.n = n
    def forward(self, x):
        if len(x) > self.n: raise torch.OutOfMemoryError('out of memory')
        return x


def memory(lab):
    "Memory that ends in the middle of a step"
    learn = lab.learner(lab.few(), 'resnet18', 128, 256)
    first = learn.dls.train.bs
    if lab.gpu:
        lab.free()
        room = torch.cuda.memory_reserved() + 2**30
        torch.cuda.set_per_process_memory_fraction(room/torch.cuda.get_device_properties(0).total_memory)
    else: learn.model[0].insert(0, SmallMemory(5))
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            learn.fit_progressive(sizes=(learn.dls.settings.size,), epochs=2, verbose=False)
    finally:
        if lab.gpu: torch.cuda.set_per_process_memory_fraction(1.)
    halved = [int(n) for o in said for n in re.findall(r'going on with (\d+)', str(o.message))]
    yield holds('the batch is halved', halved and halved[0] == first//2)
    yield Figure(f'images in a batch in the end, of {first}', halved[-1] if halved else float('nan'))
    yield holds('training comes to its end', len(learn.training_log) == 2 and finite(learn.model.state_dict().values()))


@contextmanager
def trained_in(dtype):
    "Let trainings take another kind of half precision"
    ours = [m for name, m in sys.modules.items() if name.startswith('hpa_fastai') and hasattr(m, 'amp_dtype')]
    usual = [m.amp_dtype for m in ours]
    for m in ours if dtype else []: m.amp_dtype = lambda device: dtype
    try: yield
    finally:
        for m, f in zip(ours, usual): m.amp_dtype = f


class Watch(Callback):
    "What the scaler of the loss does"
    order = 200
    def before_fit(self): self.scales, self.types = [], set()
    def after_pred(self): self.types.add(self.learn.pred.dtype)
    def after_batch(self):
        if self.training: self.scales.append(self.learn.scaler.get_scale())


def scaler(lab):
    "Training in float16, as on GPUs older than 2020, whose loss is scaled"
    losses = {}
    for name, dtype in dict(float16=torch.float16, usual=None).items():
        with trained_in(dtype):
            learn, watch = lab.learner(lab.few()), Watch()
            if not hasattr(learn, 'training_precision'): return
            learn.add_cb(watch)
            learn.fit_progressive(sizes=(learn.dls.settings.size,), epochs=lab.of(6, 1), verbose=False)
        losses[name] = learn.training_log[-1]['valid_loss']
        if dtype is not None:
            yield holds('the loss is scaled', min(watch.scales) > 1)
            yield holds('the weights are numbers', finite(learn.model.state_dict().values()))
    ratio = losses['float16']/losses['usual']
    yield Figure('validation loss in float16, of that in the usual half precision', ratio, at_most=lab.wish(1.2))


def answer_on_cpu(export, model, images, out):
    "What an exported learner and a saved model say in a process that sees no GPU"
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    learn = quiet(load_learner(export, cpu=True))
    table = find_images(images)
    probs, _ = learn.get_preds(dl=learn.dls.test_dl(table, num_workers=0))
    saved = Predictor(model, 'cpu', num_workers=2)(table)
    np.savez(out, learner=probs.numpy(), saved=saved[list(learn.dls.vocab)].to_numpy(), sees=torch.cuda.is_available())


def export(lab):
    "What was trained here, loaded where there is no GPU"
    learn = lab.learner(lab.few())
    learn.fit_progressive(sizes=(learn.dls.settings.size,), epochs=lab.of(4, 1), verbose=False)
    learn.fit_thresholds()
    images = lab.few()/'train'
    here, _ = learn.get_preds(dl=learn.dls.test_dl(find_images(images), num_workers=0))
    model, file = learn.save_bundle(lab.tmp/'exported', note=False), lab.tmp/'export.pkl'
    learn.export(file)
    process = lab.alone(answer_on_cpu, file, model, images, lab.tmp/'cpu.npz', gpu=False)
    process.join(100)
    yield holds('both are loaded without a GPU', process.exitcode == 0)
    found = np.load(lab.tmp/'cpu.npz')
    yield holds('there was none to see', not found['sees'])
    for name in ('learner', 'saved'):
        apart = np.abs(found[name] - here.numpy()).max()
        yield Figure(f'{name}: largest difference of a probability', apart, at_most=2e-3)


def devices(lab):
    "Devices that are not there"
    model, said = lab.model('smallresnet', lab.of(64, 32)), ''
    yield holds('a GPU is found by itself', Predictor(model).device.type == lab.device.type)
    try: Predictor(model, 'cuda:7')
    except HPAError as e: said = str(e)
    yield holds('cuda:7 is refused in one line', "device 'cuda:7' can't be used here" in said and '\n' not in said)
    if lab.tiny: return
    command = [sys.executable, '-m', 'hpa_fastai', 'predict', lab.few()/'train', '--out', lab.tmp/'nowhere.csv',
               '--model', model, '--device', 'cuda']
    blind = {**os.environ, 'CUDA_VISIBLE_DEVICES': ''}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=blind)
    yield Figure('exit code of the command where no GPU is to be seen', done.returncode, at_least=2, at_most=2)
    yield holds('it says so in one line', done.stderr.count('\n') == 1 and 'cuda' in done.stderr)


class Slow(Callback):
    "Time to be killed in"
    def __init__(self, seconds): self.seconds = seconds
    def after_batch(self):
        if self.training: time.sleep(self.seconds)


def train_on(lab, atlas, folder, out, slow):
    "Train in a folder, or go on with what was begun there"
    if lab.tiny: torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    learn = lab.learner(atlas)
    learn.add_cb(Slow(slow))
    set_seed(3, reproducible=True)
    sizes, epochs = (learn.dls.settings.size,), lab.of(4, 3)
    learn.fit_progressive(sizes=sizes, epochs=epochs, folder=folder, resume=True, verbose=False)
    torch.save([t.detach().cpu() for t in learn.model.state_dict().values()], out)


def logged(folder):
    "The epochs in the log of a training; none where it is not there yet"
    try: return pd.read_csv(folder/'log.csv')
    except (OSError, pd.errors.EmptyDataError): return pd.DataFrame(dict(epoch=[]))


def resume(lab):
    "A training that is killed in its second epoch and goes on, beside one that was not killed"
    atlas, cut, whole = lab.few(), lab.tmp/'cut', lab.tmp/'whole'
    process = lab.alone(train_on, lab, atlas, cut, lab.tmp/'cut.pt', .2)
    end = time.monotonic() + 60
    while len(logged(cut)) < 1 and process.is_alive() and time.monotonic() < end: time.sleep(.05)
    time.sleep(.1)
    process.kill(), process.join()
    before = logged(cut)
    yield holds('it was killed in the middle', len(before) in (1, 2) and not (lab.tmp/'cut.pt').exists())
    ends = {cut: lab.tmp/'cut.pt', whole: lab.tmp/'whole.pt'}
    runs = [lab.alone(train_on, lab, atlas, folder, out, 0) for folder, out in ends.items()]
    for o in runs: o.join(90)
    yield holds('it goes on to its end', [o.exitcode for o in runs] == [0, 0])
    a, b = logged(cut), logged(whole)
    yield holds('no epoch is missing or done twice', a.epoch.tolist() == b.epoch.tolist())
    yield holds('the losses before stand', np.allclose(a.valid_loss[:len(before)], before.valid_loss, rtol=1e-2))
    ratio = a.valid_loss.iloc[-1]/b.valid_loss.iloc[-1]
    yield Figure('validation loss at the end, of that of the other', ratio, at_least=.95, at_most=1.05)
    pairs = zip(*(torch.load(o) for o in ends.values()))
    yield Figure('largest difference of a weight', max((x - y).abs().max().item() for x, y in pairs))


def train_among_processes(lab, out):
    "What each process of a launcher does"
    import fastai.distributed  # noqa: F401, it gives learners their `distrib_ctx`
    warnings.simplefilter('ignore')
    if lab.gpu: torch.cuda.set_device(0)
    torch.distributed.init_process_group('nccl' if lab.gpu else 'gloo')
    learn = lab.learner(lab.few())
    sizes, epochs = (learn.dls.settings.size,), lab.of(2, 1)
    with learn.distrib_ctx(): learn.fit_progressive(sizes=sizes, epochs=epochs, verbose=False)
    learn.fit_thresholds()
    learn.save_bundle(out/'model', note=False)
    about = dict(backend=torch.distributed.get_backend(), losses=[o['valid_loss'] for o in learn.training_log],
                 n=len(learn.get_preds()[0]), n_valid=len(learn.dls.valid_ds))
    (out/'about.json').write_text(json.dumps(about))
    torch.distributed.destroy_process_group()


def processes(lab):
    "A training that torchrun starts, with the way to speak that several GPUs would use"
    lab.few()
    out = lab.tmp/'processes'
    out.mkdir()
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '1']
    options = ['--device', lab.device, '--worker', lab.tmp, *(['--tiny'] if lab.tiny else [])]
    done = subprocess.run([*launcher, __file__, *map(str, options)], capture_output=True, text=True, timeout=100)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        said = [o for o in done.stderr.splitlines() if re.match(r'(\[rank0\]: )?[\w.]*Error: ', o)]
        raise RuntimeError(said[0] if said else 'see above')
    about = json.loads((out/'about.json').read_text())
    yield holds(f'the processes speak by {about["backend"]}', about['backend'] == ('nccl' if lab.gpu else 'gloo'))
    yield holds('every loss is a number', len(about['losses']) and np.isfinite(about['losses']).all())
    yield holds('each validation image is counted once', about['n'] == about['n_valid'])
    images = lab.few()/'train'
    said = Predictor(out/'model', lab.device)(images)
    yield holds('the model that is saved predicts', len(said) == len(find_images(images)))


# How fast it is

class Clock(Callback):
    "Seconds of a training step, when the first ones are over"
    order = 200
    def __init__(self, lab, first): self.lab, self.first = lab, first
    def before_train(self): self.start = None
    def after_batch(self):
        if self.training and self.iter + 1 == self.first:
            self.lab.wait()
            self.start = time.perf_counter()
    def after_train(self):
        self.lab.wait()
        self.step = (time.perf_counter() - self.start)/(self.dl.draw//self.dl.bs - self.first)


@contextmanager
def one_batch_in_memory(dl):
    "Let a loader give one batch again and again, from the memory of the device, turned and lit anew each time"
    batch = to_device(next(iter(dl.create_batches(iter(range(dl.bs))))), dl.device)
    dl.create_batches = lambda samps: (batch for _ in dl.chunkify(samps))
    try: yield
    finally: del dl.create_batches


def step_seconds(lab, learn, steps, first=3):
    "What a step of a training takes, with all that `fit_progressive` does in one"
    clock = Clock(lab, first)
    learn.dls.train.draw = (steps + first)*learn.dls.train.bs
    learn.fit(1, 1e-4, cbs=[clock, StopOnNaN(), AverageWeights()])
    return clock.step


def measured(lab, arch, size, bs, repeat=2):
    "Training steps with pictures from the cache, and on one batch in memory, in turns"
    atlas = lab.large()
    df = read_labels(atlas/'train.csv')
    def split(df): return range(4, len(df)), range(4)
    dls = HPADataLoaders.from_df(df, atlas/'train', size=size, bs=bs, splitter=split, cache=lab.tmp/'cache',
                                 progress=False, device=lab.device)
    dls.train.bs = bs
    lab.free()
    learn = quiet(hpa_learner(dls, arch, pretrained=False, metrics=[]))
    steps = int(np.clip(lab.of(1., .05)/step_seconds(lab, learn, lab.of(6, 1)), lab.of(10, 1), lab.of(80, 3)))
    pairs = []
    for _ in range(repeat):
        loader = step_seconds(lab, learn, steps)
        with one_batch_in_memory(dls.train): pairs.append((loader, step_seconds(lab, learn, steps)))
    loader, held = np.min(pairs, 0)
    return bs/loader, held/loader, lab.peak()


def training(lab):
    "Images a second in training, and the share of what the same steps reach on one batch in memory"
    archs = lab.of(('resnet18', 'resnet50', 'convnext_tiny'), ('smallresnet',))
    for size in lab.of((128, 256, 512), (32,)):
        for arch in archs:
            if lab.left() < 20 and not lab.tiny: raise TimeoutError('no time is left for the others')
            rate, share, gb = measured(lab, arch, size, lab.of(64, 8))
            yield Figure(f'{arch} at {size} px: training', rate, 'images/s')
            yield Figure(f'{arch} at {size} px: share of one batch in memory', share, at_least=lab.wish(.95))
            yield Figure(f'{arch} at {size} px: peak memory', gb, 'GB')


def recipe(lab):
    "The stages of the recipe for the competition of 2018, on one GPU"
    sizes, bs, n = lab.of((256, 384, 512), (24, 32)), lab.of(32, 4), 31_072 + 74_606
    for size in sizes:
        images = int(bs*(max(sizes)/size)**2)  # what fills the memory that the last stage takes
        rate, share, gb = measured(lab, lab.of('resnet34', 'smallresnet'), size, images, 1)
        yield Figure(f'{size} px, batches of {images}: training', rate, 'images/s')
        yield Figure(f'{size} px: an epoch of {int(.8*n)} images', .8*n/rate/60, 'minutes')
        yield Figure(f'{size} px: share of one batch in memory', share, at_least=lab.wish(.95))
        yield Figure(f'{size} px: peak memory', gb, 'GB')


def decode(reader, rows):
    "Decode fields of view, and keep nothing of them"
    for row in rows: reader.array(row)


def speeds(lab, model, folder, repeat):
    "Fields a second, predicted and in parts; the share of decoding, and of the slower part; memory; and the predictor"
    p = Predictor(model, lab.device)
    bundle, rows = p.prepared[0], find_images(folder).to_dict('records')
    batch = torch.stack([bundle.settings.reader(r).as_subclass(torch.Tensor) for r in rows[:p.bs]])
    pool, parts = get_reusable_executor(p.num_workers), [rows[i:i+8] for i in range(0, len(rows), 8)]
    def decoding(): list(pool.map(decode, [bundle.settings.reader]*len(parts), parts))
    def forward():
        for _ in range(max(len(rows)//len(batch), 1)): bundle.run(bundle.inputs(batch), p.half)
    def predict(): p.to_file(folder, lab.tmp/'speed.csv', force=True, progress=False)
    list(pool.map(decode, [bundle.settings.reader]*p.num_workers, parts[:p.num_workers]))  # they are started
    forward()
    lab.free()
    found = len(rows)/np.array([[seconds(f) for f in (predict, decoding, forward)] for _ in range(repeat)])
    pool.shutdown(kill_workers=True)
    of_decoding, of_slower = found[:, 0]/found[:, 1], found[:, 0]/found[:, 1:].min(1)
    return *np.median(found, 0), np.median(of_decoding), np.median(of_slower), lab.peak(), p


def prediction(lab):
    "Fields of view a second from PNG to the table, and the share of what decoding them takes"
    huge = lab.atlas('huge', lab.of(16, 8), lab.of(2048, 64), seed=3)
    first = lab.of(('resnet18', 128, 10_000), ('smallresnet', 32, 40))
    second = lab.of(('densenet121', 1024, 480), ('smallresnet', 48, 16))
    for (arch, size, n), source, wanted in ((first, lab.large(), .9), (second, huge, None)):
        model = lab.model(arch, size, source)
        folder = clone(source/'train', lab.tmp/f'{arch}-{size}-fields', n)
        ours, decoded, forward, of_decoding, of_slower, gb, p = speeds(lab, model, folder, lab.of(2, 1))
        px = read_size(folder)
        name = f'{arch} at {size} px from {px} px PNG'
        yield Figure(f'{name}, {"half" if p.half else "full"} precision: predicted', ours, 'fields/s')
        yield Figure(f'{name}: decoding alone, {p.num_workers} processes', decoded, 'fields/s')
        yield Figure(f'{name}: network alone', forward, 'fields/s')
        yield Figure(f'{name}: share of decoding alone', of_decoding, at_least=lab.wish(wanted))
        yield Figure(f'{name}: share of the slower of the two', of_slower)
        yield Figure(f'{name}: peak memory', gb, 'GB')


def read_size(folder):
    "Pixels a side of the first picture of a folder"
    from PIL import Image
    with Image.open(find_images(folder).iloc[0].green) as img: return img.width


CHECKS = dict(answers=answers, nan=nan, memory=memory, scaler=scaler, export=export, devices=devices, resume=resume,
              processes=processes, prediction=prediction, training=training, recipe=recipe)


# The program

@contextmanager
def at_most(seconds):
    "Break off what takes longer"
    def late(*_): raise TimeoutError(f'not done after {seconds:.0f} s')
    if not hasattr(signal, 'SIGALRM'): return (yield)
    old = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def run(lab, name):
    "One check: what it found, and why it ended early"
    found, reason, start = [], '', time.monotonic()
    print(f'\n{name}: {CHECKS[name].__doc__}', flush=True)
    try:
        if lab.left() < 10: raise TimeoutError('no time was left for it')
        with at_most(min(lab.left(), 150)):
            for figure in CHECKS[name](lab):
                print(f'   {figure}', flush=True)
                found.append(figure)
    except Exception as e:
        reason = f'{type(e).__name__}: {e}'
        print(f'   FAILED: {reason}', flush=True)
        traceback.print_exc()
    lab.free()
    short = [o.what for o in found if not o.fine()]
    figures = [dict(asdict(o), value=float(o.value)) for o in found]
    return dict(check=name, seconds=round(time.monotonic() - start, 1), fine=not reason and not short, reason=reason,
                short=short, figures=figures)


def about(lab):
    "What all figures depend on"
    card = torch.cuda.get_device_name() if lab.gpu else platform.processor() or platform.machine()
    versions = dict(torch=torch.__version__, cuda=torch.version.cuda, python=platform.python_version())
    return dict(device=str(lab.device), card=card, cores=os.cpu_count(), **versions, hpa_fastai=hpa_fastai.__version__,
                tiny=lab.tiny)


def main(argv=None):
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--device', default='cuda', help='cuda, or cpu for a trial')
    ap.add_argument('--tiny', action='store_true', help='a trial on small pictures, without goals of speed')
    ap.add_argument('--only', nargs='+', choices=CHECKS, metavar='NAME', help=f'{", ".join(CHECKS)}; all unless given')
    ap.add_argument('--json', type=Path, help='file for all figures, written after each check')
    ap.add_argument('--minutes', type=float, default=6, help='for everything')
    ap.add_argument('--worker', type=Path, help=argparse.SUPPRESS)
    a = ap.parse_args(argv)
    warnings.simplefilter('ignore')
    if a.worker: return train_among_processes(Lab(a, a.worker), a.worker/'processes')
    with tempfile.TemporaryDirectory() as tmp:
        lab = Lab(a, Path(tmp))
        found = dict(about(lab), checks=[])
        print('; '.join(f'{k} {v}' for k, v in found.items() if k != 'checks'), flush=True)
        for name in a.only or CHECKS:
            found['checks'].append(run(lab, name))
            if a.json: a.json.write_text(json.dumps(found, indent=1))
    print()
    for o in found['checks']:
        said = o['reason'][:200] or '; '.join(o['short']) or 'fine'
        print(f'{o["check"]:12} {o["seconds"]:6.1f} s  {said}')
    return int(not all(o['fine'] for o in found['checks']))


if __name__ == '__main__': sys.exit(main())
