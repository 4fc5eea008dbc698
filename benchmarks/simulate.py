"Fields of view a second that `simulate_atlas` draws and writes, on two processes beside one."
import argparse, os, tempfile, time
from pathlib import Path
from hpa_fastai.simulate.atlas import simulate_atlas

def speed(n, size, num_workers, balance, difficulty):
    "FOVs a second, start of the processes included, and CPU seconds of this process a FOV"
    with tempfile.TemporaryDirectory() as d:
        start, cpu = time.perf_counter(), time.process_time()
        simulate_atlas(Path(d)/'atlas', n=n, size=size, balance=balance, difficulty=difficulty,
                       num_workers=num_workers, progress=False)
        return n/(time.perf_counter() - start), (time.process_time() - cpu)/n

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--n', type=int, default=400, help='fields of view')
    p.add_argument('--size', type=int, default=256, help='pixels a side')
    p.add_argument('--workers', type=int, default=2, help='processes to compare with one')
    p.add_argument('--balance', default='even', help="'even' draws every class, 'atlas' mostly the frequent ones")
    p.add_argument('--difficulty', default='atlas', help="'atlas' is as hard as real images, 'easy' is clear")
    a = p.parse_args()
    speed(16, 32, 1, a.balance, a.difficulty)       # imports
    (one, cpu), (more, _) = (speed(a.n, a.size, w, a.balance, a.difficulty) for w in (1, a.workers))
    print(f'{a.n} FOVs of {a.size} px, load of the machine {os.getloadavg()[0]:.1f}')
    print(f'1 process     {one:6.1f} FOVs/s, {1000*cpu:.0f} ms of CPU a FOV, that is {1/cpu:.1f} FOVs/s by CPU time')
    print(f'{a.workers} processes   {more:6.1f} FOVs/s, start included ({more/one:.2f}×)')
