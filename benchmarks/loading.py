"""Loading: batches a second beside plain fastai, while the cache is built and after; memory as the data grows;
how long training waits for images, and what else it does beside computing; what it gains on a processor by keeping
the memory of dropped arrays; whether a head needs a cache."""
import argparse, os, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np

MEMORY = '''
import sys, warnings
warnings.simplefilter('ignore')
import ctypes, gc, torch
from hpa_fastai.all import *
def memory():
    gc.collect()
    ctypes.CDLL('libc.so.6').malloc_trim(0)  # what was freed goes back to the system
    return read_memory()
def read_memory():
    rows = [line.split() for line in open('/proc/self/smaps_rollup')]
    return {row[0].strip(':'): int(row[1])/1024 for row in rows if row[0] in ('Anonymous:', 'Rss:')}
rows, cache = read_labels(sys.argv[1]), sys.argv[3]
dls = HPADataLoaders.from_df(rows, sys.argv[2], size=128, bs=64, cache=cache, progress=False,
                              device=torch.device('cpu'), num_workers=0)
before = memory()['Anonymous']
for dl in dls:
    for x,_ in dl: pass
m = memory()
print(before, m['Anonymous'], m['Rss']-m['Anonymous'], dls.train.cache.images.nbytes/2**20)'''


def clone(source, folder, n):
    "n fields of view as hard links to those of `source`, with a table of labels"
    import pandas as pd
    from hpa_fastai.formats.names import CHANNELS
    from hpa_fastai.data.files import find_images
    from hpa_fastai.data.label_tables import read_labels

    rows, target = (
        find_images(source / 'train').to_dict('records'),
        read_labels(source / 'train.csv').set_index('Id').Target,
    )
    (folder/'train').mkdir(parents=True)
    ids = [f'fov{i:06}' for i in range(n)]
    for i,name in enumerate(ids):
        for c in CHANNELS: os.link(rows[i % len(rows)][c], folder/'train'/f'{name}_{c}.png')
    pd.DataFrame(dict(Id=ids, Target=[target[rows[i % len(rows)]['Id']] for i in range(n)])).to_csv(
        folder / 'train.csv', index=False
    )
    return folder


def plain_loaders(folder, size, bs, augment):
    "What a fastai user writes: a DataBlock that opens four PNG with Pillow; with augmentation of the same kind or none"
    from fastai.vision.all import (
        DataBlock,
        IndexSplitter,
        MultiCategoryBlock,
        Normalize,
        TensorImage,
        TransformBlock,
        IntToFloatTensor,
        aug_transforms,
    )
    from PIL import Image
    import pandas as pd
    df = pd.read_csv(folder/'train.csv')

    def opened(row):
        return TensorImage(
            np.stack(
                [
                    np.asarray(
                        Image.open(folder / 'train' / f'{row.Id}_{c}.png')
                        .convert('L')
                        .resize((size, size), Image.BILINEAR)
                    )
                    for c in ('red', 'green', 'blue', 'yellow')
                ]
            )
        )

    changes = aug_transforms(flip_vert=True, max_rotate=0, max_warp=0, min_zoom=1/1.25, max_zoom=1.25,
                             max_lighting=.25, p_affine=1, p_lighting=1) if augment else []
    block = DataBlock(
        blocks=(TransformBlock(batch_tfms=IntToFloatTensor), MultiCategoryBlock),
        get_x=opened,
        get_y=lambda row: str(row.Target).split(),
        splitter=IndexSplitter(list(range(8))),
        batch_tfms=[*changes, Normalize.from_stats([0.08] * 4, [0.14] * 4, cuda=False)],
    )
    return block.dataloaders(df, bs=bs, device='cpu')


def seconds(f):
    t = time.perf_counter()
    f()
    return time.perf_counter()-t


def processor_seconds():
    "Of this process, and of its processes that have ended"
    return sum(os.times()[:4])


def look(dl):
    "Read every batch; how many images there were"
    return sum(len(x) for x,_ in dl)


def speed(tmp, a):
    import torch
    from hpa_fastai.all import HPADataLoaders, ImageReader, attach_images, build_cache, read_labels, simulate_atlas
    simulate_atlas(tmp/'large', n=48, size=512, balance='even', difficulty='easy', progress=False)
    folder = clone(tmp/'large', tmp/'many', a.n)
    df = read_labels(folder/'train.csv')
    table = attach_images(df, folder/'train')
    plain = {augment: plain_loaders(folder, 128, 64, augment).train for augment in (False, True)}
    def rates(f, n):  # a second, and a second of a processor
        start = processor_seconds()
        took = seconds(f)
        return n/took, n/(processor_seconds()-start)
    def epochs(dl, n): return rates(lambda: [look(dl) for _ in range(n)], n*len(dl)*64)
    found = []
    for k in range(a.repeat):  # all in turn, because another program may be running
        cache = tmp / f'cache{k}'
        build = rates(lambda: build_cache(table, ImageReader(size=128), cache, progress=False), len(table))
        ours = {}
        for augment in (False, True):
            dls = HPADataLoaders.from_df(df, folder/'train', size=128, bs=64, cache=cache, augment=augment,
                                         progress=False, device=torch.device('cpu'))
            look(dls.train)
            ours[augment] = dls.train
        found.append([build, *(epochs(*o) for augment in (False, True) for o in ((plain[augment], 1),
                                                                                 (ours[augment], 4)))])
    found = np.array(found)
    build, b, r, ba, g = np.median(found[..., 0], 0)
    (builds, _), (without, without_cpu), (augmented, augmented_cpu) = (
        np.median(found[:, i]/found[:, j], 0) for i, j in ((0, 1), (2, 1), (4, 3)))
    print(
        f'speed ({a.n} FOVs, 512 px PNG, batches of 64 at 128 px, normalised, {os.cpu_count()} cores, medians of '
        f'{a.repeat} runs in turn): fastai DataBlock with Pillow {b:.0f} FOVs/s, and {ba:.0f} with its own '
        f'augmentation; ours while the cache is built {build:.0f} ({builds:.2f} times, wanted 1.5); with the cache '
        f'{r:.0f} ({without:.1f} times, wanted 10; {without_cpu:.1f} for the same time of processors), and {g:.0f} '
        f'with augmentation ({augmented:.1f} times, wanted 15; {augmented_cpu:.1f} for the same time of processors)',
        flush=True,
    )


def memory(tmp, a):
    from hpa_fastai.all import simulate_atlas
    simulate_atlas(tmp/'little', n=48, size=64, balance='even', difficulty='easy', progress=False)
    found = []
    for n in (500, a.many):
        folder = clone(tmp/'little', tmp/f'memory{n}', n)
        args = [folder/'train.csv', folder/'train', tmp/f'memory{n}-cache']
        runs = [
            subprocess.run(
                [sys.executable, '-c', MEMORY, *map(str, args)], capture_output=True, text=True, check=True
            ).stdout.split()
            for _ in range(2)
        ]
        before, own, mapped, size = map(float, runs[-1])  # the second run: the cache is there already
        found.append((own, own-before))
        print(
            f'memory, {n} FOVs (cache of {size:.0f} MB): {own:.0f} MB of the process\'s own after an epoch, '
            f'{own - before:+.0f} by reading it ({float(runs[0][1]):.0f} MB when it built the cache too); '
            f'{mapped:.0f} MB mapped from files, which the system takes back',
            flush=True,
        )
    (all0, read0), (all1, read1) = found
    print(
        f'memory: {100 * (all1 / all0 - 1):+.1f} % ({read1 - read0:+.0f} MB by reading, '
        f'{all1 - all0 - (read1 - read0):+.0f} MB by table, labels and split) for {a.many / 500:.0f} times the images '
        '(wanted: no growth with their number)',
        flush=True,
    )


def starvation(tmp, a):
    import torch
    from hpa_fastai.all import HPADataLoaders, hpa_learner, simulate_atlas
    if not (tmp/'few').exists(): simulate_atlas(tmp/'few', n=64, size=a.size, balance='even',
                                                difficulty='easy', progress=False)
    dls = HPADataLoaders.from_csv(
        tmp / 'few', size=a.size, bs=32, cache=tmp / 'few-cache', progress=False, device=torch.device(a.device)
    )
    learn = hpa_learner(dls, a.arch, pretrained=False)
    opt, dl = torch.optim.Adam(learn.model.parameters()), dls.train
    dl.draw = a.steps*dl.bs
    raw = next(iter(dl.create_batches(iter(range(dl.bs)))))
    raw = tuple(o.to(dls.device) for o in raw)
    done = dl.after_batch(raw)
    def epoch(batches):
        learn.model.train()
        for x,y in batches:
            learn.loss_func(learn.model(x), y).backward()
            opt.step()
            opt.zero_grad()
        if dls.device.type=='cuda': torch.cuda.synchronize()

    kinds = dict(
        loader=lambda: dl,
        same=lambda: (dl.after_batch(raw) for _ in range(a.steps)),
        still=lambda: (done for _ in range(a.steps)),
    )
    epoch(kinds['loader']())
    t = np.array([[seconds(lambda: epoch(k())) for k in kinds.values()] for _ in range(a.repeat)])
    loader, same, still = np.median(t, 0)
    print(
        f'starvation ({a.arch}, {a.size} px, {a.steps} steps of {dl.bs} on {dls.device}, median of {a.repeat}): an '
        f'epoch {loader:.2f} s, {a.steps * dl.bs / loader:.0f} images/s; one batch held in memory, augmented anew '
        f'each step, {same:.2f} s: '
        f'{np.median(t[:, 0] / t[:, 1]):.3f} times (wanted at most 1.10); one batch already augmented {still:.2f} s: '
        f'{np.median(t[:, 0] / t[:, 2]):.3f} times',
        flush=True,
    )


def overhead(tmp, a):
    "The share of an epoch of training and validation that is not forward, backward and optimiser"
    import torch
    from fastai.callback.core import Callback
    from fastai.learner import Learner
    from fastai.optimizer import Optimizer
    from hpa_fastai.all import HPADataLoaders, hpa_learner, simulate_atlas
    from hpa_fastai.batches.dataloader import HPADataLoader
    spent = {}
    def note(what, start): spent[what] = spent.get(what, 0)+time.perf_counter()-start
    def clocked(what, f):
        def call(*args, **kwargs):
            start = time.perf_counter()
            try: return f(*args, **kwargs)
            finally: note(what, start)
        return call

    def clocked_batches(f):
        def batches(dl):
            left = f(dl)
            while True:
                start = time.perf_counter()
                batch = next(left, None)
                note('batches', start)
                if batch is None: return
                yield batch
        return batches

    class Start(Callback):
        order = -1000
        def before_epoch(self):
            spent.clear()
            self.start = time.perf_counter()

    class End(Callback):
        order = 1000
        def after_epoch(self): note('all', self.learn.start.start)

    for owner, name, what in ((Learner, '_backward', 'backward'), (Optimizer, 'step', 'optimiser'),
                              (Optimizer, 'zero_grad', 'optimiser')):
        setattr(owner, name, clocked(what, getattr(owner, name)))
    HPADataLoader.__iter__ = clocked_batches(HPADataLoader.__iter__)
    for size, steps in ((128, a.steps), (384, max(a.steps//4, 2))):
        simulate_atlas(tmp/f'epoch{size}', n=40*steps, size=size, balance='even', difficulty='easy', progress=False)
        dls = HPADataLoaders.from_csv(tmp/f'epoch{size}', size=size, cache=tmp/'epoch-cache', progress=False,
                                      device=torch.device(a.device))
        learn = hpa_learner(dls, a.arch, pretrained=False, cbs=[Start(), End()])
        learn.model.forward = clocked('forward', learn.model.forward)
        found = []
        for _ in range(a.repeat+1):  # the first warms up
            with learn.no_bar(), learn.no_logging():
                learn.fit_progressive(sizes=(size,), epochs=1, verbose=False)
            found.append(dict(spent))
        names = 'forward', 'backward', 'optimiser', 'batches'
        shares = np.array([[f[name]/f['all'] for name in names] for f in found[1:]])
        shares = np.c_[shares, 1-shares.sum(1), 1-shares[:, :3].sum(1)]
        *parts, others = 100*np.median(shares, 0)
        print(
            f'overhead ({a.arch}, {size} px, {len(dls.train_ds)} images to train and {len(dls.valid_ds)} to validate, '
            f'batches of {dls.bs} on {dls.device}, median of {a.repeat} epochs): of {found[-1]["all"]:.1f} s '
            + ', '.join(f'{name} {share:.1f} %' for name, share in zip((*names, 'all else'), parts))
            + f'; not the network and its optimiser {others:.1f} % (wanted at most 5)', flush=True)


def kept(tmp, a):
    "Time and memory of steps of training, with the memory of dropped arrays kept and without, in turn"
    from contextlib import nullcontext
    import torch
    from hpa_fastai.basics.memory import keep_freed_memory
    from hpa_fastai.models.architectures import create_model
    bs, cpu = 16, torch.device('cpu')
    for size, n in ((128, a.steps), (384, max(a.steps//4, 2))):
        model = create_model(a.arch, 28, pretrained=False).to(memory_format=torch.channels_last).train()
        opt = torch.optim.AdamW(model.parameters())
        raw, y = torch.randint(0, 256, (bs, 4, size, size), dtype=torch.uint8), torch.zeros(bs, 28)
        def step():
            x = raw.float()/255
            torch.nn.functional.binary_cross_entropy_with_logits(model(x), y).backward()
            opt.step()
            opt.zero_grad()
        def measured(context):
            with context:
                step()
                Path('/proc/self/clear_refs').write_text('5')  # the highest memory is measured anew
                took = seconds(lambda: [step() for _ in range(n)])/n
                status = dict(line.split(':') for line in open('/proc/self/status'))
                return took, int(status['VmHWM'].split()[0])/2**20
        measured(nullcontext())
        t = np.array([[measured(c) for c in (nullcontext(), keep_freed_memory(cpu))] for _ in range(a.repeat)])
        (without, most), (with_kept, most_kept) = np.median(t, 0)
        print(
            f'kept ({a.arch}, {size} px, batches of {bs} on a processor, medians of {a.repeat} runs of {n} steps in '
            f'turn): a step {without:.3f} s, with the memory of dropped arrays kept {with_kept:.3f} s: '
            f'{np.median(t[:, 1, 0]/t[:, 0, 0]):.2f} times as long; highest memory {most:.2f} and {most_kept:.2f} GB',
            flush=True)


def head(tmp, a):
    "Features for a head: with a cache that is built first, and in one pass over the files"
    import torch
    from hpa_fastai.all import HPADataLoaders, ImageReader, ImageSettings, attach_images, build_cache, hpa_learner
    from hpa_fastai.all import read_labels, simulate_atlas
    from hpa_fastai.batches.tensors import read_images
    if not (tmp/'large').exists():
        simulate_atlas(tmp/'large', n=48, size=512, balance='even', difficulty='easy', progress=False)
    folder = clone(tmp/'large', tmp/'head', a.n)
    table, reader = attach_images(read_labels(folder/'train.csv'), folder/'train'), ImageReader(size=a.size)
    settings = ImageSettings(reader)
    small = HPADataLoaders.from_df(table[:64], table, size=a.size, cache=tmp/'small', progress=False,
                                   device=torch.device(a.device))
    model = hpa_learner(small, a.arch, pretrained=False).model.eval()

    @torch.no_grad()
    def features(batches): return [model[0](settings(x.to(small.device))).mean((2, 3)).cpu() for x in batches]
    def by_cache(k):
        cache = build_cache(table, reader, tmp/f'head{k}', progress=False)
        return features(cache.batch(np.arange(i, min(i+32, len(table)))) for i in range(0, len(table), 32))
    def one_pass():
        def batches():
            waiting = []
            for _, x in read_images(table, reader):
                waiting.append(x)
                if len(waiting)==32:
                    yield torch.stack(waiting)
                    waiting = []
            if waiting: yield torch.stack(waiting)
        return features(batches())
    one_pass()
    t = np.array([[seconds(lambda: by_cache(k)), seconds(one_pass)] for k in range(a.repeat)])
    print(
        f'head ({a.arch}, {a.n} FOVs of 512 px PNG, read at {a.size} px, on {a.device}, {os.cpu_count()} cores, '
        f'medians of {a.repeat} runs in turn): features by a cache {np.median(t[:, 0]):.1f} s, in one pass '
        f'{np.median(t[:, 1]):.1f} s: {np.median(t[:, 1]/t[:, 0]):.2f} times as long',
        flush=True)


if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__)
    parts = dict(speed=speed, memory=memory, starvation=starvation, overhead=overhead, kept=kept,
                 head=head)
    ap.add_argument('parts', nargs='*', metavar='PART', help=f'{", ".join(parts)}; all unless given')
    ap.add_argument('--n', type=int, default=768, help='fields of view for the speed')
    ap.add_argument('--many', type=int, default=5000, help='fields of view for the memory, beside 500')
    ap.add_argument('--repeat', type=int, default=3, help='runs of each measurement')
    ap.add_argument('--steps', type=int, default=10, help='steps of an epoch for starvation, overhead and kept')
    ap.add_argument('--arch', default='resnet10t', help='network for starvation, overhead and kept')
    ap.add_argument('--size', type=int, default=128, help='pixels for the starvation')
    ap.add_argument('--device', default='cpu', help='for starvation and overhead')
    a = ap.parse_args()
    import warnings
    warnings.simplefilter('ignore')
    with tempfile.TemporaryDirectory() as tmp:
        for name in a.parts or parts: parts[name](Path(tmp), a)
