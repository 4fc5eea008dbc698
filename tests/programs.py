"""Programs in processes of their own, to be killed or limited, without the seconds that the libraries take to import.

They are forked from one process that has imported the package. What is about a start, about an import, or about a
variable that a library reads when it is imported needs a fresh interpreter: `subprocess`.
"""
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

COMMAND = 'import sys; from hpa_fastai.cli.main import main; sys.exit(main())'
_forks = multiprocessing.get_context('forkserver')
_forks.set_forkserver_preload(['hpa_fastai.all', 'hpa_fastai.cells.cells', 'hpa_fastai.cli.main'])


def _execute(code, args, cwd, env, out, err, largest_file):
    "In the new process: run a program as `python -c CODE ARGS` does"
    for stream, number in ((out, 1), (err, 2)): os.dup2(stream.fileno(), number)
    sys.stdout, sys.stderr = open(1, 'w', closefd=False), open(2, 'w', 1, errors='backslashreplace', closefd=False)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None  # it is where the variables say
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if largest_file: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file,)*2)
    sys.argv = ['-c', *args]
    exec(compile(code, '<program>', 'exec'), {'__name__': '__main__'})


class Program:
    "A program that runs, with what a `subprocess.Popen` with pipes has"
    def __init__(self, code, *args, cwd=None, env=None, largest_file=None):
        pipes = [_forks.Pipe(duplex=False) for _ in range(2)]
        started = _forks.Process(target=_execute, args=(
            code, [str(arg) for arg in args], str(cwd or os.getcwd()), dict(os.environ if env is None else env),
            *(writer for _, writer in pipes), largest_file))
        started.start()
        self.pid, self.kill, self._process = started.pid, started.kill, started
        self.stdout, self.stderr = (open(os.dup(reader.fileno())) for reader, _ in pipes)
        for connection in sum(pipes, ()): connection.close()

    @property
    def returncode(self): return self._process.exitcode

    def poll(self): return self.returncode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None: raise TimeoutError(f'the program has not ended in {timeout} s')
        return self.returncode

    def send_signal(self, number): os.kill(self.pid, number)

    def communicate(self, timeout=None):
        "All that it says until its end"
        with ThreadPoolExecutor(2) as threads: said = *threads.map(lambda f: f.read(), (self.stdout, self.stderr)),
        self.wait(timeout)
        return said


def run(code, *args, **kwargs):
    "What a program came to, as `subprocess.run` says it"
    program = Program(code, *args, **kwargs)
    out, err = program.communicate()
    return subprocess.CompletedProcess([code, *args], program.returncode, out, err)
