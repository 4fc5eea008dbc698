"""The published densenet beside the pipeline it was published with: reading, the whole prediction, and how far the two
are apart. Both take turns in one run, with the same random weights and the same fields of view of 2048 px."""
import argparse, copy, os, statistics, tempfile, time, warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
import numpy as np
from PIL import Image
from hpa_fastai.formats.names import CHANNELS

try: import cv2
except ImportError: cv2 = None

MEAN, STD = (.074598, .050630, .050891, .076287), (.122813, .085745, .129882, .119411)
PLANES = dict(red=(0,), green=(1,), blue=(2,), yellow=(0, 1))  # of a pseudo-coloured file
MIDDLE, SIZE, BATCH = 1536, 1024, 32  # pixels of the files between, pixels of the network's input, fields a batch


def write_field(source, to, turns, ending):
    "The four channels of a field at 2048 px: turned, enlarged, and written as the atlas publishes them"
    for colour in CHANNELS:
        drawn = np.rot90(np.asarray(Image.open(source[colour])), turns)
        grey = Image.fromarray(drawn).resize((2048, 2048), Image.BICUBIC)
        if ending == 'png': grey.save(f'{to}_{colour}.png')
        else:
            black = Image.new('L', grey.size)
            planes = [grey if i in PLANES[colour] else black for i in range(3)]
            Image.merge('RGB', planes).save(f'{to}_{colour}.jpg', quality=50, subsampling=2)


def simulated_fields(tmp, n, ending):
    "Fields of 2048 px: one in four is drawn at 1024 px, and the others are it, turned"
    from hpa_fastai.all import find_images, simulate_atlas
    folder = tmp/'fields'
    folder.mkdir()
    simulate_atlas(tmp/'drawn', n=-(-n//4), size=1024, difficulty='easy', progress=False)
    drawn = find_images(tmp/'drawn'/'train').to_dict('records')
    with ProcessPoolExecutor(mp_context=get_context('forkserver')) as pool:
        jobs = [(drawn[i//4], folder/f'field{i:04}', i%4, ending) for i in range(n)]
        for job in [pool.submit(write_field, *job) for job in jobs]: job.result()
    return find_images(folder).to_dict('records')


def resized(pixels, size):
    "Bilinear, from the four nearest pixels: by OpenCV, or by Pillow"
    if cv2: return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR)
    place = Image.Transform.AFFINE, (pixels.shape[1]/size, 0, 0, 0, pixels.shape[0]/size, 0), Image.BILINEAR
    planes = pixels[..., None] if pixels.ndim == 2 else pixels
    out = [Image.fromarray(p).transform((size, size), *place) for p in np.moveaxis(planes, -1, 0)]
    return np.stack(out, -1).reshape(size, size, *pixels.shape[2:])


def write_middle(row, folder):
    "The reference's first step: the plane of each file's colour at 1536 px, as JPG of quality 85"
    for colour in CHANNELS:
        pixels = np.array(Image.open(row[colour]))
        if pixels.ndim == 3: pixels = pixels[..., PLANES[colour][0]]
        small, file = resized(pixels, MIDDLE), f'{folder}/{row["Id"]}_{colour}.jpg'
        if cv2: cv2.imwrite(file, small, [cv2.IMWRITE_JPEG_QUALITY, 85])
        else: Image.fromarray(small).save(file, quality=85)


def read_middle(row, folder):
    "The reference's second step: these files at 1024 px, from 0 to 1, 4×1024×1024"
    files = [f'{folder}/{row["Id"]}_{colour}.jpg' for colour in CHANNELS]
    planes = [cv2.imread(f, cv2.IMREAD_GRAYSCALE) if cv2 else np.asarray(Image.open(f)) for f in files]
    pixels = resized(np.stack(planes, -1), SIZE)/255.
    return np.ascontiguousarray(pixels.astype(np.float32).transpose(2, 0, 1))


def normalised(batch):
    "As the reference's network does it: one channel after the other"
    for i in range(4): batch[:, i] = (batch[:, i]-MEAN[i])/STD[i]
    return batch


def reference_inputs(rows, folder):
    "All that the reference does before its network"
    import torch
    for row in rows: write_middle(row, folder)
    return normalised(torch.stack([torch.from_numpy(read_middle(row, folder)) for row in rows]))


def reference_share(rows, folder):
    "The same in a process that gives nothing back"
    for row in rows: reference_inputs([row], folder)


def make_bundle():
    "The densenet with random weights, its normalisations as after training"
    import torch
    from hpa_fastai.all import HPA28, ImageReader, create_model
    from hpa_fastai.batches.settings import ImageSettings
    from hpa_fastai.deploy.bundle import Bundle
    torch.manual_seed(0)
    model = create_model('hpa-densenet121', len(HPA28), pretrained=False, size=SIZE).eval()
    for m in model[0].modules():
        if not isinstance(m, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)): continue
        for t, middle in ((m.weight, 1), (m.bias, 0), (m.running_mean, 0), (m.running_var, 1)):
            torch.nn.init.uniform_(t, middle-.3, middle+.3)
    return Bundle.assemble(model, HPA28, ImageSettings(ImageReader(SIZE), mean=MEAN, std=STD))


def plain_network(bundle):
    "The same network as plain PyTorch computes it"
    import torch
    return copy.deepcopy(bundle.model).to(memory_format=torch.contiguous_format).eval()


def seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter()-start


def our_input(bundle, row):
    import torch
    return bundle.inputs(torch.from_numpy(bundle.settings.reader.array(row))[None])


def compare_reading(name, bundle, rows, repeat, tmp):
    "Reading and preprocessing, in parts that take turns"
    import torch
    from hpa_fastai.formats.pictures import default_workers, reading_pool
    n, threads = default_workers(), torch.get_num_threads()
    folder = tmp/'middle'
    folder.mkdir(exist_ok=True)
    def by_one_thread(part):
        torch.set_num_threads(1)
        for row in part: our_input(bundle, row)
        torch.set_num_threads(threads)
    def by_threads(part):
        def read(row):
            torch.set_num_threads(1)
            our_input(bundle, row)
        with reading_pool(n) as pool: list(pool.map(read, part))
    with ProcessPoolExecutor(n, mp_context=get_context('forkserver')) as pool:
        def by_processes(part): list(pool.map(partial(reference_share, folder=folder), [part[i::n] for i in range(n)]))
        ways = [by_threads, by_one_thread, lambda part: reference_share(part, folder), by_processes]
        by_processes([rows[0]]*n)
        for way in ways: way(rows[:1])
        parts = [rows[i::repeat] for i in range(min(repeat, len(rows)))]
        runs = [[seconds(partial(way, part))/len(part) for way in ways] for part in parts]
    ours, alone, reference, processes = (1/statistics.mean(t) for t in zip(*runs))
    ratios = [statistics.median(r[j]/r[i] for r in runs) for i, j in ((0, 2), (1, 2), (0, 3))]
    print(
        f'{name}: reading and preprocessing {ours:.1f} FOVs/s in {n} threads, {alone:.1f} in one; the reference chain '
        f'{reference:.1f} in one process, {processes:.1f} in {n}: {ratios[0]:.2f} times the chain (wanted 5), '
        f'{ratios[1]:.2f} times with one thread, {ratios[2]:.2f} times the chain in {n} processes',
        flush=True,
    )


def compare_whole(name, bundle, network, rows, tmp):
    "Files to a table of predictions, in batches of the reference that take turns"
    import pandas as pd, torch
    from hpa_fastai.deploy.predictor import Predictor
    predictor, folder, runs, reference, inputs, found = Predictor(bundle, device='cpu'), tmp/'middle', [], [], [], []
    for k in range(0, len(rows), BATCH):
        part = rows[k:k+BATCH]
        def prepare(): inputs.append(reference_inputs(part, folder))
        def infer():
            with torch.no_grad(): reference.append(torch.sigmoid(network(inputs[-1])))
        def ours():
            out = predictor.to_file(pd.DataFrame(part), tmp/f'{name}{k}.csv', progress=False).out
            found.append(pd.read_csv(out).set_index('Id').loc[[r['Id'] for r in part], list(bundle.labels.classes)])
        runs.append([seconds(f)/len(part) for f in (ours, prepare, infer)])
        inputs[-1] = inputs[-1][:4].clone()  # enough to compare
    ours, prepare, infer = (statistics.mean(t) for t in zip(*runs))
    ratio = statistics.median((r[1]+r[2])/r[0] for r in runs)
    print(
        f'{name}: the whole on {len(rows)} fields {1/ours:.2f} FOVs/s; the reference {1/(prepare+infer):.2f} (chain '
        f'{1/prepare:.1f}, network alone {1/infer:.2f}): {ratio:.2f} times (wanted 1.5); beside its network alone, '
        f'without any reading, {infer/ours:.2f} times',
        flush=True,
    )
    compare_results(name, bundle, rows, inputs, torch.cat(reference).numpy(), np.concatenate(found), predictor, network)


def compare_results(name, bundle, rows, inputs, reference, found, predictor, network):
    "How far inputs and probabilities are apart"
    import torch
    apart = []
    for k, batch in enumerate(inputs):
        for row, theirs in zip(rows[k*BATCH:], batch):
            ours = our_input(bundle, row)[0]
            apart.append(((ours-theirs).square().mean((1, 2)).sqrt()/theirs.std((1, 2))).numpy())
    x = inputs[0][:1]
    with torch.no_grad(): logits = [m(x.contiguous()) for m in (network, predictor.prepared[0].model)]
    by_channel = ', '.join(f'{c} {100*np.median(a):.1f}' for c, a in zip(CHANNELS, zip(*apart)))
    print(
        f'{name}: inputs differ by {by_channel} % (rms, of the deviation of the channel; median of {len(apart)} '
        f'fields, {100*np.max(apart):.1f} % at most); probabilities of random weights by '
        f'{np.abs(reference-found).max():.4f} at most, {np.abs(reference-found).mean():.5f} on average; on the same '
        'input the logits of both networks differ by '
        f'{(logits[0]-logits[1]).abs().max():.1e}',
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--fields', type=int, default=100, help='simulated fields of 2048 px to read')
    parser.add_argument('--network', type=int, help='how many of them go through both networks; unless given, as many '
                        'as the reference network is done with in the time of --seconds')
    parser.add_argument('--seconds', type=float, default=150, help='for the reference network')
    parser.add_argument('--format', choices=('jpg', 'png'), default='jpg',
                        help='four pseudo-coloured JPG a field, as the atlas publishes them; or four grey PNG')
    parser.add_argument('--repeat', type=int, default=5, help='turns of reading; the median of the ratios counts')
    parser.add_argument('--real-data', type=Path, help='folder with native/: fields of the atlas, compared as well')
    args = parser.parse_args()
    import torch
    from hpa_fastai.all import find_images
    warnings.simplefilter('ignore')
    how = f'OpenCV {cv2.__version__}' if cv2 else 'Pillow, as OpenCV is not installed (opencv-python-headless)'
    print(f'reference chain by {how}; {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}, '
          f'{torch.get_num_threads()} threads of PyTorch {torch.__version__}', flush=True)
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        bundle = make_bundle()
        network, rows = plain_network(bundle), simulated_fields(tmp, args.fields, args.format)
        sets = {f'{len(rows)} simulated {args.format.upper()}': rows}
        if args.real_data:
            native = find_images(args.real_data/'native').to_dict('records')
            for ending in ('jpg', 'png'):
                sets[f'native {ending.upper()}'] = [r for r in native if r['red'].endswith(ending)]
        for name, rows in sets.items():
            compare_reading(name, bundle, rows, args.repeat, tmp)
            x = torch.randn(4, 4, SIZE, SIZE)
            with torch.no_grad(): took = min(seconds(lambda: network(x)) for _ in range(2))/4
            n = args.network or max(8, int(args.seconds/took)//BATCH*BATCH)
            compare_whole(name, bundle, network, rows[:n], tmp)


if __name__ == '__main__': main()
