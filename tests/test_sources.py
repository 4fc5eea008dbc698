"Normalising by source: a model sees the same cells whichever microscope is brighter, in training and in prediction."
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.torch_core import set_seed
from PIL import Image

from hpa_fastai.all import CHANNELS, HPADataLoaders, HPAError, export_onnx, find_images, hpa_learner, load_bundle, predict, read_labels, resize
from hpa_fastai.inference import Predictor
from hpa_fastai.interpret import activation_maps
from hpa_fastai.monitor import run_traits


@pytest.fixture(scope='module')
def two_microscopes(small_atlas, tmp_path_factory):
    "The same cells in two folders, half as bright in the second; and the table of labels"
    folder = tmp_path_factory.mktemp('microscopes')
    for name in ('bright', 'dim'): (folder/name).mkdir()
    df = read_labels(small_atlas/'train.csv')
    for i in df.Id:
        for c in CHANNELS:
            img = np.asarray(Image.open(small_atlas/'train'/f'{i}_{c}.png'))
            Image.fromarray(img - img % 2).save(folder/'bright'/f'{i}_{c}.png')
            Image.fromarray(img//2).save(folder/'dim'/f'd{i}_{c}.png')
    both = pd.concat([df, df.assign(Id='d' + df.Id)], ignore_index=True)
    return folder, both, folder/'cache'


def loaders(folder, df, cache, **kwargs):
    return HPADataLoaders.from_df(df, folder, size=48, bs=16, normalize='source', augment=False, cache=cache, progress=False, num_workers=0, **kwargs)


@pytest.mark.parametrize('cached', [True, False])
def test_sources_look_alike_and_pictures_keep_their_brightness(two_microscopes, cached):
    folder, df, cache = two_microscopes
    dls = loaders(folder, df, cache if cached else False)
    items, xs = dls.valid_ds.items, torch.cat([x for x, _ in dls.valid]).as_subclass(torch.Tensor)
    dim = items.Id.str.startswith('d').to_numpy()
    assert abs(xs[dim].std()/xs[~dim].std() - 1) < .2, 'twice as bright would be twice the deviation'
    assert xs.std((2, 3)).std() > .05, 'normalised picture by picture'
    assert not hasattr(dls.one_batch()[0], 'figures') and dls.preprocess().source


def test_the_model_predicts_what_it_validated(two_microscopes, tmp_path):
    folder, df, cache = two_microscopes
    set_seed(0)
    dls = loaders(folder, df, cache)
    learn = hpa_learner(dls, 'lenet5', pretrained=False)
    with learn.no_bar(), learn.no_logging():
        learn.fit_progressive(sizes=(48,), epochs=2, verbose=False)
        learn.fit_thresholds()
        learn.save_bundle(tmp_path/'model')
        probs, _ = learn.get_preds()
    found = predict(folder, model=tmp_path/'model', progress=False).set_index('Id')
    said = found.loc[dls.valid_ds.items.Id, list(dls.labels.classes)].to_numpy(float)
    assert np.abs(said - probs.numpy()).max() < .02  # the figures are measured on other pictures of the same source
    both = found.loc[df.Id[:90]], found.loc['d' + df.Id[:90]]
    assert np.abs(both[0][list(dls.labels.classes)].to_numpy(float) - both[1][list(dls.labels.classes)].to_numpy(float)).max() < .05
    # one picture alone is a source of its own, and a picture with others of its plate is not
    one = find_images(folder/'dim')[:1]
    alone, together = (Predictor(tmp_path/'model')(t).set_index('Id').loc[one.Id] for t in (one, find_images(folder/'dim')))
    assert np.abs(alone.iloc[0, 2:30].to_numpy(float) - together.iloc[0, 2:30].to_numpy(float)).max() > 1e-4
    assert np.isfinite(activation_maps(tmp_path/'model', find_images(folder/'dim')[:2])).all()
    ids, traits, embs = run_traits(find_images(folder/'dim')[:8], load_bundle(tmp_path/'model'))
    assert len(ids) == 8 and np.isfinite(embs).all()
    assert 'the figures of their source' in (tmp_path/'model'/'README.md').read_text()
    with pytest.raises(HPAError, match='an ONNX graph does not know'): export_onnx(tmp_path/'model', tmp_path/'m.onnx')
    with torch.no_grad(): assert np.isfinite(load_bundle(tmp_path/'model').probs(torch.zeros(2, 4, 48, 48, dtype=torch.uint8))).all()


def test_a_column_names_the_sources(two_microscopes):
    folder, df, cache = two_microscopes
    dls = loaders(folder, df.assign(plate=np.where(df.Id.str.startswith('d'), 'p1', 'p2')), cache, source='plate')
    assert set(dls.train.sources.known) == {'p1', 'p2'}
    with pytest.raises(HPAError, match="no column 'well'"): loaders(folder, df, cache, source='well')


def test_a_broken_picture_does_not_spoil_its_source(two_microscopes, tmp_path):
    from hpa_fastai.decode import ImageReader
    from hpa_fastai.preprocess import Sources
    shutil.copytree(two_microscopes[0]/'dim', tmp_path/'some')
    table = find_images(tmp_path/'some')
    (tmp_path/'some'/f'{table.Id[0]}_green.png').write_bytes(b'no picture')
    reader = ImageReader(size=48)
    assert np.allclose(Sources(reader).figures(table)[0], Sources(reader).figures(table[1:].reset_index(drop=True))[0])
    assert np.isnan(Sources(reader).figures(table[:1])).all()
