"The part of campaign.py with other mishaps: a clock set back, two writers, changed sources, little memory."
import datetime
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from campaign_kills import ARCH, RUNS, begin, command, end, get_ready, prepare, set_up, written

DAYS = 400


def set_clock_back():
    "From now on this process believes that it is more than a year ago"
    real_time, real_datetime = time.time, datetime.datetime

    class Earlier(real_datetime):
        @classmethod
        def now(cls, tz=None): return real_datetime.now(tz)-datetime.timedelta(days=DAYS)
    time.time, datetime.datetime = (lambda: real_time()-DAYS*86400), Earlier


def clock(shared, tmp):
    "A run that is killed in the middle goes on after the clock was set back; what it writes is the same"
    for name in ('predict csv', 'predict csv, npy', 'cells', 'watch', 'train', 'train folds', 'compare', 'cache'):
        run, out, log = RUNS[name][1], tmp/f'clock_{name.replace(" ", "_")}', tmp/'log'
        def earlier(*places):
            set_clock_back()
            run(*places)
        set_up(name, shared, out)
        start = time.perf_counter()
        code = end(begin(run, shared, out, log))
        seconds, whole = time.perf_counter()-start, written(out)
        set_up(name, shared, out)
        pid = begin(run, shared, out, log)
        time.sleep(seconds/2)
        os.kill(pid, signal.SIGKILL)
        end(pid)
        log.write_text('')
        codes, found = (code, end(begin(earlier, shared, out, log))), written(out)
        was_done = codes == (0, 2) and ' exists' in log.read_text()
        different = sorted(f for f in {*whole, *found} if whole.get(f) != found.get(f))
        yield (f'clock set back, {name}', not different and (codes == (0, 0) or was_done),
               ', '.join(different) or f'codes {codes}')


def two_at_once(shared, tmp):
    "watch and predict on one folder, into one table, and into two"
    watch, predict = RUNS['watch'][1], RUNS['predict csv'][1]
    out, other, log = tmp/'one', tmp/'two', tmp/'log'
    for name, places in dict(one=(out, out), two=(out, other)).items():
        for place in places: set_up('watch', shared, place)
        log.write_text('')
        pids = [begin(watch, shared, places[0], log), begin(predict, shared, places[1], log)]
        codes = [end(pid) for pid in pids]
        tables = [(place/'p.csv').read_bytes().splitlines() for place in dict.fromkeys(places)]
        whole = all(len(t) == 61 and len(set(t)) == 61 for t in tables)
        same = len({tuple(sorted(t)) for t in tables}) == 1
        said = [line for line in log.read_text().splitlines() if 'hpa_fastai:' in line]
        good = whole and same and (codes == [0, 0] or name == 'one' and sorted(codes) == [0, 2] and len(said) == 1)
        yield f'watch and predict, {name} table', good, f'codes {codes}, rows {[len(t)-1 for t in tables]}; {said}'


def changed_sources(shared, tmp):
    "Pictures deleted, cut and replaced while a model is trained, with and without a cache"
    from hpa_fastai.deploy.loading import load_bundle
    for where in ('cache', 'no cache'):
        atlas, out, log = tmp/'changing', tmp/'changed', tmp/'log'
        for place in (atlas, out): shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(shared/'atlas', atlas)
        out.mkdir()
        log.write_text('')
        place = ['--cache', out/'cache'] if where == 'cache' else ['--no-cache']
        def train(shared, out): command('train', atlas, '--out', out/'m', *place, *ARCH, '--epochs', 8)
        pid = begin(train, shared, out, log)
        time.sleep(3)
        files = sorted((atlas/'train').glob('*_green.png'))
        files[0].unlink()
        files[1].write_bytes(files[2].read_bytes()[:500])
        os.replace(files[3], files[4])
        code = end(pid)
        said = (log.read_text().strip().splitlines() or [''])[-1]
        if code == 0: load_bundle(out/'m')
        is_good = code == 0 or said.startswith('hpa_fastai: ')
        yield f'sources changed while training, {where}', is_good, f'{code}: {said}'


def limit_memory(pid, n_bytes):
    "Put a process into a group of its own with so much memory; how that was done, and the group"
    for root, file in (('/sys/fs/cgroup', 'memory.max'), ('/sys/fs/cgroup/memory', 'memory.limit_in_bytes')):
        group = Path(root)/f'campaign-{os.getpid()}'
        if not (Path(root)/'cgroup.procs').exists(): continue
        try:
            group.mkdir(exist_ok=True)
            (group/file).write_text(str(n_bytes))
            (group/'cgroup.procs').write_text(str(pid))
            return f'cgroup {file}', group
        except OSError:
            if group.is_dir(): group.rmdir()
    resource.prlimit(pid, resource.RLIMIT_DATA, (n_bytes, n_bytes))
    return 'RLIMIT_DATA', None


def leave_group(group):
    "Remove a group whose last process has just ended"
    for _ in range(100):
        try: return group.rmdir()
        except OSError: time.sleep(.1)


def little_memory(shared, tmp, n=300, gigabytes=4):
    "Train, predict and report some hundred fields as commands of their own, which may take so much memory"
    from hpa_fastai.all import simulate_atlas
    atlas, out = tmp/'many', tmp/'little'
    simulate_atlas(atlas, n=n, size=256, difficulty='easy', progress=False)
    out.mkdir()
    program = str(Path(sys.executable).parent/'hpa_fastai')
    runs = dict(train=['train', atlas, '--out', out/'m', '--cache', out/'cache', '--arch', 'resnet18',
                       '--pretrained', 'no', '--size', 128, '--epochs', 1],
                predict=['predict', atlas/'train', '--model', out/'m', '--out', out/'p.csv'],
                report=['report', out/'p.csv', '--images', atlas/'train', '--out', out/'r.html'])
    for name, args in runs.items():
        log = open(tmp/'log', 'w')
        process = subprocess.Popen([program, *map(str, args), '--no-progress'], stdout=log, stderr=log)
        how, group = limit_memory(process.pid, gigabytes*2**30)
        _, status, used = os.wait4(process.pid, 0)
        if group: leave_group(group)
        code, said = os.waitstatus_to_exitcode(status), ((tmp/'log').read_text().splitlines() or [''])[-1][:200]
        yield (f'{name} of {n} fields within {gigabytes} GB ({how})', code == 0,
               f'code {code}, largest {used.ru_maxrss/1e6:.2f} GB' + (f'; {said}' if code else ''))


MISHAPS = dict(clock=clock, two_at_once=two_at_once, changed_sources=changed_sources, little_memory=little_memory)


def try_all(tmp, names=tuple(MISHAPS)):
    "Try each; yields (what, whether it went as it should, details)"
    get_ready()
    shared = tmp/'shared'
    shared.mkdir()
    prepare(shared)
    for name in names: yield from MISHAPS[name](shared, tmp)
