"Whether the program that judges a GPU runs: on the CPU, with a few small pictures, where its figures say nothing."
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent.parent/'benchmarks'/'gpu.py'


def judge(tmp_path, *checks):
    "What it found, by check"
    command = [
        sys.executable,
        '-W',
        'ignore',
        PROGRAM,
        '--device',
        'cpu',
        '--tiny',
        '--json',
        tmp_path / 'gpu.json',
        '--only',
        *checks,
    ]
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path/'gpu.json').read_text())
    assert found['tiny'] and found['device'] == 'cpu'
    assert [o['check'] for o in found['checks']] == list(checks)
    assert all(o['figures'] or o['check'] == 'scaler' for o in found['checks'])


@pytest.mark.slow
def test_every_check_runs(tmp_path):
    judge(tmp_path, 'answers', 'nan', 'memory', 'scaler', 'export', 'devices', 'prediction', 'training', 'recipe')


@pytest.mark.slow
def test_trainings_in_processes_of_their_own(tmp_path):
    judge(tmp_path, 'resume', 'processes')


def test_a_check_that_fails_stops_no_other(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(PROGRAM.parent)
    import gpu
    def broken(lab):
        "It is broken"
        yield gpu.Figure('before', 1.)
        raise ValueError('no such thing')
    def short(lab):
        "It falls short"
        yield gpu.Figure('share', .5, at_least=.9)
    monkeypatch.setattr(gpu, 'CHECKS', dict(broken=broken, short=short))
    assert gpu.main(['--device', 'cpu', '--json', str(tmp_path/'gpu.json')]) == 1
    found = json.loads((tmp_path/'gpu.json').read_text())['checks']
    assert [(o['fine'], o['reason'], o['short']) for o in found] == [
        (False, 'ValueError: no such thing', []),
        (False, '', ['share']),
    ]
    assert 'FALLS SHORT' in capsys.readouterr().out
