"""The app: seconds from the command to the first prediction, twenty predictions at once from four clients, memory over
many predictions, and a table of many rows; beside `predict` on the same pictures, in the same run."""
import argparse, re, shutil, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
import pandas as pd
from gradio_client import Client, handle_file
import hpa_fastai
from hpa_fastai.app.runs import ANY, RowOrder, filter_rows, open_run
from hpa_fastai.data.files import find_images
from hpa_fastai.data.labels import HPA28
from hpa_fastai.deploy.tables import with_labels
from hpa_fastai.experiments.training import train_model
from hpa_fastai.simulate.atlas import simulate_atlas

COLOURS = ['red', 'green', 'blue', 'yellow']


def memory(pid):
    "Megabytes that a process has in memory"
    return int(re.search(r'VmRSS:\s+(\d+)', Path(f'/proc/{pid}/status').read_text())[1])/1024


def serve(model, folder):
    "Start the command; the process, its address, and the seconds until it said so"
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, '-m', 'hpa_fastai', 'app', '--model', str(model), '--no-browser'],
                               cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    url = next(line for line in process.stdout if 'The app is at' in line).split()[4]
    return process, url, start


def predictions(folder, n, n_memory):
    "Time, compare and weigh predictions"
    images = find_images(folder/'atlas'/'train')
    (folder/'one').mkdir()
    for file in images.iloc[0][COLOURS]: shutil.copy(file, folder/'one')
    start = time.perf_counter()
    subprocess.run([sys.executable, '-m', 'hpa_fastai', 'predict', str(folder/'one'), '--model', str(folder/'model'),
                    '--out', str(folder/'one.csv'), '--no-progress'], check=True, capture_output=True)
    alone = time.perf_counter()-start
    process, url, start = serve(folder/'model', folder)
    try:
        served = time.perf_counter()-start
        clients = [Client(url, verbose=False, download_files=False, analytics_enabled=False) for _ in range(4)]
        def ask(i):
            files = [handle_file(file) for file in images.iloc[i % len(images)][COLOURS]]
            return clients[i % 4].predict(files, '', api_name='/predict')[0]
        ask(0)
        print(f'first prediction {time.perf_counter()-start:.1f} s after the start (the page after {served:.1f} s); '
              f'hpa_fastai predict on one field of view: {alone:.1f} s')
        same = hpa_fastai.predict(images, folder/'model', progress=False)
        classes = list(HPA28.classes)
        start = time.perf_counter()
        with ThreadPoolExecutor(n) as pool: found = list(pool.map(ask, range(n)))
        seconds = time.perf_counter()-start
        start = time.perf_counter()
        hpa_fastai.predict(images.head(n), folder/'model', progress=False)
        baseline = time.perf_counter()-start
        gap = max(abs(row[c]-same[c][i]) for i, row in enumerate(found) for c in classes)
        right = sum(row['Id'] == same.Id[i] and row['Names'] == same.Names[i] for i, row in enumerate(found))
        print(f'{n} predictions at once from four clients: {right} right, largest difference from predict '
              f'{gap:.1e}, {seconds:.1f} s; one call of predict: {baseline:.1f} s')
        seen = []
        for part in range(10):
            for i in range(n_memory//10): ask(part*n_memory//10+i)
            seen.append(memory(process.pid))
        left = Path(tempfile.gettempdir()).glob(f'hpa_fastai-app-{process.pid}-*/drop-*')
        files = sum(1 for _ in left)
        each = ', '.join(f'{mb:.0f}' for mb in seen)
        print(f'{n_memory} predictions: {each} MB after each tenth; {files} drops left')
    finally:
        process.terminate()
        process.wait()


def table(n):
    "Filter and sort a table of many rows"
    rng = np.random.default_rng(0)
    probs = rng.random((n, len(HPA28.classes)))**4
    names = ['|'.join(np.array(HPA28.classes)[row > .6]) for row in probs]
    rows = pd.DataFrame({'Id': [f'field_{i}' for i in range(n)], 'Predicted': '', 'Names': names,
                         **dict(zip(HPA28.classes, probs.T)), 'flags': np.where(probs[:, 0] > .9, 'uncertain', ''),
                         'error': '', 'gene': [f'GENE{i % 500}' for i in range(n)]})
    start = time.perf_counter()
    run = open_run(with_labels(rows, HPA28), HPA28)
    print(f'{n:,} rows: opened in {time.perf_counter()-start:.2f} s')
    order = RowOrder(run)
    steps = dict(all=(ANY, ANY, 0, ''), location=('Nucleoplasm', ANY, 0, ''), flag=(ANY, 'uncertain', 0, ''),
                 search=(ANY, ANY, 0, 'gene77'), everything=('Nucleoplasm', 'uncertain', .9, 'gene7'))
    for name, by in steps.items():
        times = []
        for _ in range(2):
            start = time.perf_counter()
            found = order(filter_rows(run, *by), 'uncertain')
            times.append(time.perf_counter()-start)
        print(f'  {name:>10}, uncertain first: {len(found):>7,} rows; {times[0]:.2f} s, then {times[1]:.3f} s')


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--predictions', type=int, default=1000, help='for the memory')
    parser.add_argument('--rows', type=int, default=100_000)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    simulate_atlas(folder/'atlas', n=120, size=512, seed=0, progress=False)
    train_model(folder/'atlas', folder/'model', arch='smallresnet', size=256, group='antibody', cache=False,
                progress=False)
    table(args.rows)
    predictions(folder, 20, args.predictions)


if __name__ == '__main__': main()
