"The memory of dropped arrays stays in the process for as long as somebody asked for it, and goes back afterwards."
import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only the GNU C library is set')

BEGIN = '''
import os, threading
import numpy as np, torch
from hpa_fastai.basics.memory import keep_freed_memory
cpu = torch.device('cpu')
def returned():
    "Whether most of 256 MB goes back to the system when it is dropped"
    def occupied(): return int(open('/proc/self/statm').read().split()[1])*os.sysconf('SC_PAGE_SIZE')/2**20
    array = np.ones(2**25)
    full = occupied()
    del array
    return full-occupied() > 128
'''


def said(code, **settings):
    "What a fresh process prints"
    done = subprocess.run([sys.executable, '-c', BEGIN+code], env={**os.environ, **settings}, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_memory_is_kept_inside_and_returned_afterwards_even_after_an_error():
    assert said('''
print(returned())
try:
    with keep_freed_memory(cpu):
        print(returned())
        raise KeyboardInterrupt
except KeyboardInterrupt: print(returned())
''') == ['True', 'False', 'True']


def test_what_was_kept_goes_back_at_the_end():
    assert said('''
def occupied(): return int(open('/proc/self/statm').read().split()[1])*os.sysconf('SC_PAGE_SIZE')/2**20
before = occupied()
with keep_freed_memory(cpu):
    many = [np.ones(2**22) for _ in range(8)]
    between = bytearray(1000)
    del many
    print(occupied()-before > 200)
print(occupied()-before < 50)
''') == ['True', 'True']


def test_the_end_of_the_last_of_several_counts():
    assert said('''
began, end = threading.Event(), threading.Event()
def other():
    with keep_freed_memory(cpu):
        began.set()
        end.wait()
thread = threading.Thread(target=other)
with keep_freed_memory(cpu):
    thread.start()
    began.wait()
    with keep_freed_memory(cpu): pass
    print(returned())
print(returned())
end.set()
thread.join()
print(returned())
''') == ['False', 'False', 'True']


def test_on_a_gpu_nothing_changes():
    assert said('''
with keep_freed_memory(torch.device('cuda')): print(returned())
''') == ['True']


@pytest.mark.parametrize('settings', [dict(MALLOC_TRIM_THRESHOLD_='1000000'),
                                      dict(GLIBC_TUNABLES='glibc.malloc.mmap_threshold=1000000')])
def test_settings_of_the_user_stay(settings):
    assert said('''
with keep_freed_memory(cpu): print(returned())
''', **settings) == ['True']
