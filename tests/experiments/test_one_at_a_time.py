"Of two trainings to one place the second is refused at once, and a killed one blocks nobody."
import pytest

import programs
from hpa_fastai.basics.errors import HPAError
from hpa_fastai.basics.processes import only_writer
from hpa_fastai.experiments.compare import compare
from hpa_fastai.experiments.folds import train_folds
from hpa_fastai.experiments.training import train_model, training_folder

OPTIONS = dict(arch='lenet5', pretrained=False, size=32, cache=False, progress=False)
WRITE = '''
import sys, time
from hpa_fastai.basics.processes import only_writer
with only_writer(sys.argv[1], 'training'):
    print('writing', flush=True)
    time.sleep(60)
'''


@pytest.mark.parametrize('write,place', [
    (lambda atlas, out: train_model(atlas, out, force=True, **OPTIONS), training_folder),
    (lambda atlas, out: train_folds(atlas/'train.csv', atlas/'train', out, 2, force=True, **OPTIONS), lambda out: out),
    (lambda atlas, out: compare(atlas/'train.csv', atlas/'train', out, archs=['lenet5'], **OPTIONS), lambda out: out),
], ids=['model', 'folds', 'comparison'])
def test_the_second_to_write_to_a_place_is_refused_at_once(small_atlas, tmp_path, write, place):
    first = programs.Program(WRITE, place(tmp_path/'out'))
    try:
        assert first.stdout.readline() == 'writing\n'
        with pytest.raises(HPAError, match='is writing there; wait for its end'): write(small_atlas, tmp_path/'out')
    finally:
        first.kill()
        first.communicate()
    with only_writer(place(tmp_path/'out'), 'test'): pass
    assert not list(tmp_path.glob('.*'))
