"Pictures: the colours, the names beside them, the scale bar."

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest, torch
from hpa_fastai.data.files import *
from hpa_fastai.data.reader import *
from hpa_fastai.batches.tensors import *
from hpa_fastai.data.labels import HPA28
from hpa_fastai.batches.show import *
from hpa_fastai.simulate.atlas import simulate_atlas


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close('all')


@pytest.fixture(scope='module')
def df(tmp_path_factory):
    folder = tmp_path_factory.mktemp('show') / 'atlas'
    return attach_images(simulate_atlas(folder, n=8, size=64, seed=1, progress=False, num_workers=1,
                                        difficulty='easy'), folder / 'train')


@pytest.fixture(scope='module')
def dls(df):
    from fastai.vision.all import ColReader, DataBlock, MultiCategoryBlock, Normalize, RandomSplitter

    block = DataBlock(
        blocks=(RGBYBlock(64), MultiCategoryBlock),
        get_y=ColReader('Target', label_delim=' '),
        splitter=RandomSplitter(0.5, seed=0),
        batch_tfms=Normalize.from_stats([0.1] * 4, [0.2] * 4, cuda=False),
    )
    return block.dataloaders(df, bs=4, num_workers=0)


def test_colours_of_the_atlas():
    x = np.zeros((4, 32, 32), np.uint8)
    for i in range(4):
        x[i, :, 8 * i : 8 * i + 8] = 200
    c = composite(x)
    assert c.dtype == np.uint8 and c.shape == (32, 32, 3)
    (r, g, b, y) = c[0, [4, 12, 20, 28]].astype(int)
    assert r.argmax() == 0 and g.argmax() == 1 and b.argmax() == 2 and y[0] == y[1] > 0 == y[2]


def test_contrast_is_of_each_channel_and_noise_stays_dark():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 20, (4, 64, 64)).astype(np.uint8)
    x[1] = rng.integers(0, 255, (64, 64))
    x[0], x[3] = 3, 0
    c = composite(x)
    assert c[..., 1].max() == 255 and c[..., 0].max() == 0
    assert np.array_equal(composite(torch.from_numpy(x).float() / 255), c) and np.array_equal(
        composite(torch.from_numpy(x).long()), c
    )


def test_show_draws_on_the_given_axes():
    _, ax = plt.subplots()
    x = TensorRGBY(torch.randint(0, 255, (4, 40, 40), dtype=torch.uint8))
    assert (
        x.show(ctx=ax, title='a field') is ax
        and ax.get_title() == 'a field'
        and ax.images[0].get_array().shape == (40, 40, 3)
    )


@pytest.mark.parametrize('side', [32, 128, 2048])
def test_channels_have_names_and_a_scale_bar(side):
    axs = show_channels(
        np.random.default_rng(0).integers(0, 255, (4, side, side), dtype=np.uint8), pixel_size=163.84 / side
    )
    assert [a.get_title() for a in axs] == ['Microtubules (red)', 'Protein (green)', 'Nucleus (blue)', 'ER (yellow)']
    (bar,) = axs[0].lines
    assert axs[0].texts[0].get_text() == '20 µm' and abs(np.ptp(bar.get_xdata()) - 20 * side / 163.84) < 1e-6


def test_batch_has_names(dls, df):
    dls.show_batch(max_n=4, labels=HPA28)
    titles = [a.get_title() for a in plt.gcf().axes]
    assert len(titles) == 4 and all(set(t.split('\n')) <= set(HPA28.classes) for t in titles)
    dls.show_batch(max_n=2)
    assert all(t.replace('\n', '').isdigit() for t in [a.get_title() for a in plt.gcf().axes])


def test_results_mark_what_is_wrong(dls):
    b = dls.valid.one_batch()
    dls.valid.show_results(b, b[1].clone(), max_n=4, labels=HPA28)
    assert not any(m in a.get_title() for a in plt.gcf().axes for m in '+−')
    dls.valid.show_results(b, 1 - b[1], max_n=4, labels=HPA28)
    assert all('+ ' in a.get_title() and '− ' in a.get_title() for a in plt.gcf().axes)


def test_learner_shows_results(dls):
    from fastai.vision.all import BCEWithLogitsLossFlat, Learner

    class Net(torch.nn.Module):
        def __init__(self, c):
            super().__init__()
            self.head = torch.nn.Linear(4, c)

        def forward(self, x):
            return self.head(x.mean((2, 3)))

    Learner(dls, Net(dls.c), loss_func=BCEWithLogitsLossFlat(thresh=0.5)).show_results(max_n=2, labels=HPA28)
    assert len(plt.gcf().axes) == 2


@pytest.mark.parametrize('asked, shape, drawn', [
    (dict(nrows=2, ncols=3), (2, 3), 6), ({}, (3, 3), 9), (dict(max_n=4), (2, 2), 4), (dict(nrows=2), (2, 5), 9),
    (dict(ncols=2), (5, 2), 9), (dict(max_n=1), (1, 1), 1), (dict(max_n=5), (2, 3), 5)])
def test_pictures_stand_in_the_grid_of_fastai(dls, asked, shape, drawn):
    x, y = dls.valid.one_batch()
    batch = x.repeat(3, 1, 1, 1)[:9], y.repeat(3, 1)[:9]
    for show, of in ((dls.valid.show_batch, [batch]), (dls.valid.show_results, [batch, batch[1]])):
        plt.close('all')
        show(*of, **asked)
        axes = plt.gcf().axes
        assert axes[0].get_gridspec().get_geometry() == shape and sum(bool(ax.images) for ax in axes) == drawn


def test_gallery(df):
    fig = gallery(df, n=3, reader=ImageReader(32))
    classes = np.flatnonzero(HPA28.encode(df.Target).sum(0))
    assert len(fig.axes) == 4 * len(classes)
    assert [a.texts[0].get_text().split('(')[0].replace('\n', ' ').strip() for a in fig.axes[::4]] == [
        HPA28.classes[c] for c in classes
    ]


def test_gallery_passes_over_what_cannot_be_read(df):
    bad = df.assign(green='nowhere.png')
    fig = gallery(pd.concat([bad, df]), n=2, reader=ImageReader(32), classes=[HPA28.parse(df.Target[0])[0]])
    assert len(fig.axes[1].images) == 1
