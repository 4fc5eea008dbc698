"A model that was trained without a pixel size takes none afterwards, by every door."
from dataclasses import replace

import pytest

from hpa_fastai.all import HPAError, Predictor, load_bundle, predict
from hpa_fastai.cli.main import main

WHY = 'the model was trained without a pixel size; leave '


@pytest.mark.parametrize('command', [
    'predict ATLAS/train --out p.csv',
    'predict ATLAS/train --out p.csv --watch --timeout 0',
    'predict ATLAS/train --dry-run',
    'evaluate ATLAS',
    'map ATLAS/train --out m.html',
    'calibrate MODEL ATLAS --out new',
])
def test_a_scale_that_the_training_had_not_is_refused(command, small_atlas, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    args = command.replace('ATLAS', str(small_atlas)).replace('MODEL', str(trained[1])).split()
    model = [] if 'calibrate' in args else ['--model', str(trained[1])]
    assert main([*args, *model, '--pixel-size', '0.24', '--no-progress']) == 2
    said = capsys.readouterr().err
    assert f'{WHY}--pixel-size 0.24 out, or train again with it' in said and said.strip().count('\n') == 0
    assert not list(tmp_path.iterdir())


def test_python_refuses_it_and_other_models_take_it(small_atlas, trained, tmp_path):
    reading, bundle = dict(pixel_size=.24), load_bundle(trained[1])
    with pytest.raises(HPAError, match=f'{WHY}pixel_size=0.24'): Predictor(trained[1], reading=reading)
    with pytest.raises(HPAError, match=WHY): predict(small_atlas/'train', trained[1], reading=reading)
    assert Predictor(bundle, reading=dict(pixel_size=None)).readers == [bundle.settings.reader]
    reader = replace(bundle.settings.reader, pixel_size=.12)
    with_scale = replace(bundle, settings=replace(bundle.settings, reader=reader))
    published = replace(bundle, config={**bundle.config, 'published': dict(name='of others')})
    for model in (with_scale, published): assert Predictor(model, reading=reading).readers[0].pixel_size == .24
