"Short forms of benchmarks/campaign.py: changed files, killed runs and other mishaps; all inputs follow from a seed."
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent/'benchmarks'


# What only a strict reader looks at: the sum of all pixels, where those of the parts are right, what follows the last
# pixel, a second header, and how a plane would be compressed that lies in a row with uncompressed ones.
BEHIND_THE_PIXELS = ('broken data stream when reading image file', 'image file is truncated (# bytes not processed)',
                     'Truncated IHDR chunk', 'inflate returned Z_DATA_ERROR', 'returned IMCD_LZW_CORRUPT',
                     'returned IMCD_LZW_INVALID')


def campaign(code):
    "What a program finds in a process of its own, which may make copies of itself"
    program = f'import json, sys\nfrom pathlib import Path\nsys.path.insert(0, {str(BENCHMARKS)!r})\n{code}'
    run = [sys.executable, '-W', 'ignore', '-c', program]
    done = subprocess.run(run, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'JPG', 'OME-Zarr', 'LIF', 'CZI', 'ND2', 'plates', 'npy', 'tables'])
def test_changed_files_are_read_or_refused_in_one_line(kind):
    figures, found = campaign(f'from campaign_fuzz import fuzz\n'
                              f'print(json.dumps(fuzz([{kind!r}], inputs=1000, seed=3)[:2]))')
    assert figures['tried'] == 1000 and figures['read'] > 100 and figures['refused'] > 100
    lenient = found.get('lenient', {})
    found['lenient'] = {group: n for group, n in lenient.items() if not group.endswith(BEHIND_THE_PIXELS)}
    if kind == 'OME-Zarr': found.pop('slow', None)  # ten thousand absent chunks take two seconds
    assert {what: groups for what, groups in found.items() if groups and what != 'unexplained'} == {}


@pytest.mark.slow
@pytest.mark.parametrize('run', ['predict csv', 'predict parquet, parquet', 'cells', 'watch', 'train', 'train again',
                                 'train folds', 'compare', 'save_bundle', 'cache', 'report'])
def test_killed_runs_come_to_the_same(run):
    (name, seconds, kills, survived, lost, faults), = campaign(
        f'from campaign_kills import kill_runs\nprint(json.dumps(list(kill_runs(25, 4, [{run!r}]))))')
    assert kills > 0 and survived == kills and lost == 0 and not faults


@pytest.mark.slow
@pytest.mark.parametrize('which', ['clock', 'two_at_once', 'changed_sources', 'little_memory'])
def test_mishaps_end_well(which, tmp_path):
    found = campaign(f'from campaign_mishaps import try_all\n'
                     f'print(json.dumps(list(try_all(Path({str(tmp_path)!r}), [{which!r}]))))')
    assert found and [line for line in found if not line[1]] == []
