"""What runs a network fastest on this processor, PyTorch, ONNX Runtime or OpenVINO, and what that gives a prediction.

    python benchmarks/engines.py [PART ...]

networks   forward pass of each network by each way: images a second, largest difference from PyTorch in full precision
fields     a folder of PNG to a table: fields a second by each engine, its bound, and the largest difference
start      seconds of a new process until the first prediction, with and without engines
int8       whole numbers of eight bits: macro F1 on simulated cells, and the speed

Figures of one run are taken by turns, so that what else the machine does disturbs all of them alike.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from hpa_fastai.all import (HPA28, HPADataLoaders, ImageReader, Predictor, attach_images, find_images, hpa_learner,
                            read_labels, simulate_atlas)
from hpa_fastai.batches.settings import ImageSettings
from hpa_fastai.deploy.bundle import Bundle
from hpa_fastai.deploy.loading import load_bundle, read_sample
from hpa_fastai.models.architectures import create_model
from hpa_fastai.models.engine_choice import processor_name
from hpa_fastai.models.engines import Engine, installed_engines
from hpa_fastai.models.exported import EmbeddingAndLogits, write_graph
from predict import clone, make_model

FIRST = '''
import sys, time
t = time.perf_counter()
from hpa_fastai.deploy.predictor import Predictor
p = Predictor(sys.argv[2], device='cpu', **dict(o.split('=') for o in sys.argv[3:]))
p(sys.argv[1])
print(time.perf_counter()-t)'''


def by_turns(ways, turns):
    "The shortest time of each way, in seconds"
    best = dict.fromkeys(ways, np.inf)
    for run in ways.values(): run()  # the first time makes sessions and plans
    for _ in range(turns):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter()-start)
    return best


def random_bundle(arch, size):
    "A network with random weights, as a bundle"
    torch.manual_seed(0)
    model = create_model(arch, len(HPA28), pretrained=False, size=size).eval()
    return Bundle.assemble(model, HPA28, ImageSettings(ImageReader(size=size)))


def side_by_side(run, x, n):
    "A function that runs a batch in each of several threads, of one core each"
    def in_thread(_):
        torch.set_num_threads(1)
        return run(x)
    def all_of_them():
        with ThreadPoolExecutor(n) as pool: list(pool.map(in_thread, range(n)))
    return all_of_them


def networks(a, tmp):
    cores, rows = len(os.sched_getaffinity(0)), []
    for name in a.networks:
        arch, size, bs = name.split(':')
        size, bs = int(size), int(bs)
        bundle = random_bundle(arch, size)
        folded, eager = bundle.folded(), EmbeddingAndLogits(bundle.model)
        x = torch.rand(bs, 4, size, size)
        last = x.contiguous(memory_format=torch.channels_last)
        def plain(x, eager=eager):
            with torch.no_grad(): return torch.sigmoid(eager(x)[1]).numpy()
        ways = {'torch, plain': (plain, x), 'torch, channels last': (plain, last),
                'torch, folded': (lambda x, b=folded: b.run(x)[0], last),
                'torch, half': (lambda x, b=folded: b.run(x, True)[0], last)}
        graph = write_graph(eager, torch.zeros(2, 4, size, size), 'x', ['embeddings', 'logits'])
        for engine, half in (('onnxruntime', False), ('openvino', False), ('openvino', True)):
            quick = replace(bundle, engine=Engine(engine, graph, half))
            ways[f'{engine}{", half" if half else ""}'] = lambda x, b=quick: b.run(x)[0], x
        if a.compile:
            compiled, began = torch.compile(eager), time.perf_counter()
            ways['torch.compile'] = lambda x, c=compiled: plain(x, c), last
            ways['torch.compile'][0](last)
            print(f'{arch}: torch.compile took {time.perf_counter()-began:.0f} s to start', flush=True)
        expected = plain(x)
        times = by_turns({way: side_by_side(run, given, cores) for way, (run, given) in ways.items()}, a.turns)
        for way, (run, given) in ways.items():
            rows.append({'network': f'{arch} {size} px', 'way': way, 'images/s': cores*bs/times[way],
                         'times plain torch': times['torch, plain']/times[way],
                         'largest difference': float(np.abs(run(given)-expected).max())})
    print(pd.DataFrame(rows).to_string(index=False, float_format='{:.3g}'.format))


def fields(a, tmp):
    cores = len(os.sched_getaffinity(0))
    for arch, size, px, n in (('resnet18', 128, 512, a.n), ('hpa-densenet121', 1024, 2048, a.large_n)):
        source = tmp/f'cells{px}'
        simulate_atlas(source, n=8 if px > 512 else 48, size=px, balance='even', difficulty='easy', progress=False)
        folder, bundle = clone(source/'train', tmp/f'fields{px}', n), random_bundle(arch, size)
        ways = {'torch': dict(), 'onnxruntime': dict(engine='onnxruntime'), 'openvino': dict(engine='openvino'),
                'torch, half': dict(precision='half'), 'openvino, half': dict(engine='openvino', precision='half')}
        predictors = {name: Predictor(bundle, device='cpu', **settings) for name, settings in ways.items()}
        rows, reader = find_images(folder).to_dict('records'), bundle.settings.reader
        def decode():
            for row in rows: reader.array(row)
        def predict(name): predictors[name].to_file(folder, tmp/f'{name}.csv', force=True, progress=False)
        bs = predictors['torch'].bs
        x = torch.stack([reader(r).as_subclass(torch.Tensor) for r in rows[:bs]])
        def network(name):
            p = predictors[name]
            run = side_by_side(lambda x: p.prepared[0].run(p.prepared[0].inputs(x), p.half), x, cores)
            return lambda: [run() for _ in range(max(1, n//bs//cores))]
        eager = EmbeddingAndLogits(bundle.model)
        def plain():
            with torch.no_grad(): eager(bundle.settings(x).contiguous())
        work = {f'{name}, whole': lambda name=name: predict(name) for name in ways}
        work |= {f'{name}, network': network(name) for name in ways}
        work |= {'decoding': decode, 'plain': lambda: [plain() for _ in range(max(1, n//bs))]}
        took = by_turns(work, a.turns)
        networks_n = max(1, n//bs//cores)*cores*bs
        today, columns = n/took['torch, whole'], list(HPA28.classes)
        expected = pd.read_csv(tmp/'torch.csv')[columns].to_numpy()
        decoding = took['decoding']/n/cores  # seconds a field, if all cores decode
        plain_rate = 1/(decoding + took['plain']/(max(1, n//bs)*bs))
        print(f'\n{arch} at {size} px, {n} fields of four PNG of {px} px, {cores} cores; decoding takes a core '
              f'{1000*cores*decoding:.3g} ms a field; decoding, then plain PyTorch with the same batches: '
              f'{plain_rate:.3g} fields/s')
        for name in ways:
            rate, alone = n/took[f'{name}, whole'], networks_n/took[f'{name}, network']
            bound = 1/(decoding + 1/alone)
            apart = np.abs(pd.read_csv(tmp/f'{name}.csv')[columns].to_numpy()-expected).max()
            print(f'  {name:16} {rate:7.3g} fields/s: {rate/today:.2f} times torch, {rate/plain_rate:.2f} times plain; '
                  f'{rate/bound:.2f} of its bound {bound:.3g}; network alone {alone:.3g}; probabilities {apart:.1g} '
                  'apart', flush=True)


def start(a, tmp):
    _, model = make_model(tmp, 'resnet18', 128)
    folder, found = clone(tmp/'atlas', tmp/'one', 1), {}
    ways = {'torch': [], **{name: [f'engine={name}'] for name in ('onnxruntime', 'openvino', 'auto')}}
    for turn in range(1+a.turns):
        for name, settings in ways.items():
            done = subprocess.run([sys.executable, '-W', 'ignore', '-c', FIRST, folder, model, *settings],
                                  capture_output=True, text=True, check=True)
            found.setdefault((name, turn > 0), []).append(float(done.stdout.split()[-1]))
    for name in ways:
        print(f'{name:12} first start here {found[name, False][0]:.1f} s; then {min(found[name, True]):.2f} s '
              f'(median {np.median(found[name, True]):.2f})')


def int8(a, tmp):
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process
    from sklearn.metrics import f1_score
    class Pictures(CalibrationDataReader):
        def __init__(self, x): self.left = iter(x.split(1))
        def get_next(self): return next(({'x': o.numpy()} for o in self.left), None)
    for name, n, seed in (('train', a.train_n, 1), ('test', a.test_n, 2)):
        simulate_atlas(tmp/name, n=n, size=128, balance='even', seed=seed, difficulty='easy', progress=False)
    tables = {name: attach_images(read_labels(tmp/name/'train.csv'), tmp/name/'train') for name in ('train', 'test')}
    for arch, epochs in (('smallresnet', 4), ('resnet18', a.epochs)):
        dls = HPADataLoaders.from_csv(tmp/'train', size=128, bs=32, group='antibody', cache=tmp/'cache',
                                      progress=False, device=torch.device('cpu'))
        learn = hpa_learner(dls, arch, pretrained=arch == 'smallresnet')
        sizes = (128,) if arch == 'smallresnet' else (64, 128)
        with learn.no_bar(), learn.no_logging(): learn.fit_progressive(sizes=sizes, epochs=epochs, verbose=False)
        learn.calibrate()
        learn.fit_thresholds()
        bundle = load_bundle(learn.save_bundle(tmp/arch, force=True))
        def inputs(table):
            rows = [bundle.settings.reader(r).as_subclass(torch.Tensor) for r in table.to_dict('records')]
            return torch.cat([bundle.inputs(x) for x in torch.stack(rows).split(32)]).contiguous()
        test, truth = inputs(tables['test']), HPA28.encode(tables['test'].Target) > 0
        sample = bundle.inputs(torch.from_numpy(read_sample(tmp/arch, 28)[0]))
        turned = torch.cat([torch.rot90(o, k, (2, 3)) for k in range(4) for o in (sample, sample.flip(3))]).contiguous()
        pictures = {'sample of the bundle, turned': turned, '64 training pictures': inputs(tables['train'][:64])}
        network = EmbeddingAndLogits(bundle.model)
        graph = write_graph(network, torch.zeros(2, 4, 128, 128), 'x', ['embeddings', 'logits'])
        (tmp/'full.onnx').write_bytes(graph)
        quant_pre_process(str(tmp/'full.onnx'), str(tmp/'prepared.onnx'))
        convolutions = [o.name for o in read_nodes(tmp/'prepared.onnx') if o.op_type == 'Conv']
        engines = {'onnxruntime': Engine('onnxruntime', graph), 'openvino': Engine('openvino', graph),
                   'openvino, half': Engine('openvino', graph, True)}
        for what, x in pictures.items():
            for left, excluded in (('', []), (', first layer in full', convolutions[:1])):
                quantize_static(str(tmp/'prepared.onnx'), str(tmp/'int8.onnx'), Pictures(x), per_channel=True,
                                quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
                                weight_type=QuantType.QInt8, nodes_to_exclude=excluded,
                                op_types_to_quantize=['Conv', 'Add', 'MaxPool'])
                for engine in ('onnxruntime', 'openvino'):
                    engines[f'{engine}, int8, {what}{left}'] = Engine(engine, (tmp/'int8.onnx').read_bytes())
        took = by_turns({name: side_by_side(run, test[:32], 1) for name, run in engines.items()}, a.turns)
        base = None
        print(f'\n{arch} at 128 px, {len(test)} simulated fields of another seed')
        for name, run in engines.items():
            logits = torch.from_numpy(np.concatenate([run(x)[1] for x in test.split(32)]))
            probs = torch.sigmoid(logits).numpy()
            if bundle.calibration: probs = bundle.calibration(probs)
            f1 = f1_score(truth, bundle.thresholds.predict(probs), average='macro', zero_division=0)
            base = (f1, probs) if base is None else base
            print(f'  {name:70} macro F1 {f1:.4f} ({f1-base[0]:+.4f}); probabilities up to '
                  f'{np.abs(probs-base[1]).max():.3f} apart; {32/took[name]:.0f} images/s a core', flush=True)


def read_nodes(file):
    "The operations of an ONNX file"
    import onnx
    return onnx.load(str(file)).graph.node


if __name__ == '__main__':
    parts = dict(networks=networks, fields=fields, start=start, int8=int8)
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('parts', nargs='*', metavar='PART', help=f'{", ".join(parts)}; all unless given')
    ap.add_argument('--networks', nargs='+', metavar='ARCH:SIZE:BATCH', help='for networks', default=[
        'smallresnet:128:16', 'resnet18:128:16', 'resnet18:384:4', 'resnet50:128:8', 'convnext_tiny:128:8',
        'efficientnet_b0:128:16', 'hpa-densenet121:1024:1', 'hpa-inception-v3-cells:128:8', 'subcell-vit:448:1'])
    ap.add_argument('--compile', action='store_true', help='for networks: also torch.compile, which needs a compiler')
    ap.add_argument('--turns', type=int, default=5, help='runs of each way, of which the shortest counts')
    ap.add_argument('--n', type=int, default=384, help='for fields: those of 512 px')
    ap.add_argument('--large-n', type=int, default=32, help='for fields: those of 2048 px')
    ap.add_argument('--train-n', type=int, default=1200, help='for int8: simulated fields to train on')
    ap.add_argument('--test-n', type=int, default=600, help='for int8: simulated fields to judge by')
    ap.add_argument('--epochs', type=int, default=14, help='for int8: of each of two stages')
    a = ap.parse_args()
    warnings.simplefilter('ignore')
    print(f'{processor_name()}, {len(os.sched_getaffinity(0))} cores; '
          f'{", ".join(f"{k} {v}" for k, v in installed_engines().items())}')
    with tempfile.TemporaryDirectory() as tmp:
        os.environ['XDG_CACHE_HOME'] = f'{tmp}/caches'
        for name in a.parts or parts: parts[name](a, Path(tmp))
