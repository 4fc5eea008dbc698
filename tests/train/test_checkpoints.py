"Files of checkpoints: whole or not there, and harmless."
import pickle
import resource
import signal

import pytest

from hpa_fastai.all import SaveEpochs, TrainingError, read_checkpoint
from hpa_fastai.train.checkpoints import write_checkpoint


def test_a_full_disk_costs_the_checkpoints_only(make_learner, tmp_path):
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    learn = make_learner(size=32)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
        with pytest.warns(UserWarning, match='no checkpoint could be written'):
            learn.fit(1, cbs=SaveEpochs(tmp_path/'checkpoint.pt'))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.glob('checkpoint.pt*')) and len(learn.recorder.values) == 1


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path):
    write_checkpoint(tmp_path/'c.pt', dict(epoch=1))
    with pytest.raises(Exception): write_checkpoint(tmp_path/'c.pt', dict(epoch=lambda: 2))
    assert read_checkpoint(tmp_path/'c.pt') == dict(epoch=1) and len(list(tmp_path.glob('c.pt*'))) == 1


def test_checkpoints_run_no_code(tmp_path):
    class Evil:
        def __reduce__(self): return (open, (str(tmp_path/'was_here'), 'w'))
    (tmp_path/'c.pt').write_bytes(pickle.dumps(Evil()))
    with pytest.raises(TrainingError, match='delete it to start again'): read_checkpoint(tmp_path/'c.pt')
    assert not (tmp_path/'was_here').exists()
