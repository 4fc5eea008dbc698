"Explore: what is drawn is what is in the data, and the page stands alone"
import re, shutil
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np, pandas as pd, pytest
from PIL import Image
from hpa_fastai.data.labels import *
from hpa_fastai.data.label_tables import *
from hpa_fastai.formats.names import *
from hpa_fastai.batches.sources import sources_of
from hpa_fastai.data.files import *
from hpa_fastai.batches.splits import *
from hpa_fastai.interpret.explore import *
from hpa_fastai.data.reader import ImageReader
from microscopes import write_image_xpress

@pytest.fixture(scope='module')
def atlas(small_atlas, tmp_path_factory):
    "A copy of the first 48 fields of view, which tests may spoil"
    path = tmp_path_factory.mktemp('data')/'atlas'
    (path/'train').mkdir(parents=True)
    df = pd.read_csv(small_atlas/'train.csv').head(48)
    df.to_csv(path/'train.csv', index=False)
    for i in df.Id:
        for c in CHANNELS: shutil.copy(small_atlas/'train'/f'{i}_{c}.png', path/'train')
    return path

@pytest.fixture(scope='module')
def df(atlas): return read_labels(atlas/'train.csv')

@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')

def overlapping(texts, figure):
    "Pairs of texts that cover each other when drawn."
    figure.canvas.draw()
    boxes = [t.get_window_extent() for t in texts if t.get_text() and t.get_visible()]
    return [(i, j) for i,a in enumerate(boxes) for j,b in enumerate(boxes[:i]) if a.overlaps(b)]

def test_class_counts(df):
    counts = class_counts(df)
    assert [counts[c] for c in HPA28.classes]==[sum(str(i) in t.split() for t in df.Target) for i in range(28)]
    ax = plot_class_counts(df, rare=5)
    assert ax.get_xscale()=='log'
    drawn = {t.get_text(): p for t,p in zip(ax.get_yticklabels(), ax.patches)}
    for name,patch in drawn.items():
        assert patch.get_x()+patch.get_width()==max(counts[name], .5)
        assert (patch.get_facecolor()[0]>.6)==(counts[name]<5)
    assert not overlapping(ax.get_yticklabels()+ax.texts, ax.figure)

def test_names_do_not_overlap(df):
    ax = plot_cooccurrence(df)
    assert not overlapping(ax.get_yticklabels(), ax.figure) and not overlapping(ax.get_xticklabels(), ax.figure)
    ax = plot_split(df, MultilabelStratifiedSplitter()(df))
    assert not overlapping(ax.get_yticklabels(), ax.figure) and not overlapping(ax.get_xticklabels(), ax.figure)

def test_cooccurrence_takes_the_expected_out():
    rng = np.random.default_rng(0)
    onehot = rng.random((20_000, 28))<np.linspace(.02, .4, 28)
    onehot[:,1] = onehot[:,0]
    c = cooccurrence(pd.DataFrame({'Id': range(20_000), 'Target': HPA28.decode(onehot)})).to_numpy()
    assert c[0,1]>5 and np.isnan(np.diag(c)).all()
    assert np.nanmax(np.abs(c[2:,2:]))<.5

def test_channel_stats(atlas, df):
    table = attach_images(df, atlas/'train')
    stats = channel_stats(table, source=np.where(np.arange(48)<8, 'few', 'many'), most=40, size=64)
    assert stats.groupby('source').Id.nunique().to_dict()=={'few': 8, 'many': 20}
    one = stats[(stats.Id==stats.Id[0])&(stats.channel=='green')].iloc[0]
    pixels = np.asarray(Image.open(table.set_index('Id').green[one.Id]))/255
    assert np.allclose([one['mean'], one['spread']], [pixels.mean(), pixels.std()], atol=1e-6)
    assert len(plot_channel_stats(stats).axes)==8

def test_sources_are_those_of_training(tmp_path, atlas, df):
    table = attach_images(df, atlas/'train')[:6].reset_index(drop=True)
    for lab,rows in (('a', [0, 1]), ('b', [2, 3, 4, 5])): # two plates of one name, and two kinds of files in a folder
        (tmp_path/lab/'plate').mkdir(parents=True)
        for r in rows:
            for c in CHANNELS:
                to = (tmp_path/lab/'plate'/f'{r}_{c}.png').with_suffix('.tif' if r==5 else '.png')
                Image.open(table.at[r, c]).save(to)
                table.at[r, c] = str(to)
    stats = channel_stats(table, most=100, size=32)
    by_id = dict(zip(stats.Id, stats.source))
    assert [by_id[i] for i in table.Id] == ['a/plate']*2 + ['b/plate']*4
    training = sources_of(table)
    assert len({(by_id[i], s) for i,s in zip(table.Id, training)}) == len(set(training)) == 2
    named = table.assign(source=['x', 'y']*3)
    assert list(sources_of(named)) == ['x', 'y']*3 and set(channel_stats(named, most=100, size=32).source) == {'x', 'y'}

def test_split_picture_marks_what_is_off():
    df = pd.DataFrame({'Id': range(400), 'Target': ['0']*200+['25']*200})
    ax = plot_split(df, (range(0, 320), range(320, 400)))
    assert [c[0]>.6 for c in ax.collections[0].get_facecolors()]==[True, True]
    ax = plot_split(df, np.arange(400)%5)
    assert [c[0]>.6 for c in ax.collections[0].get_facecolors()]==[False, False]

def test_one_page(atlas, df, tmp_path):
    Image.open(atlas/'train'/f'{df.Id[0]}_green.png').save(atlas/'train'/'spare_green.png')
    broken = atlas/'train'/f'{df.Id[1]}_red.png'
    whole = broken.read_bytes()
    broken.write_bytes(b'no picture')
    with pytest.warns(UserWarning, match='could not be read'):
        page = explore(atlas, 'train.csv', tmp_path/'out.html', per_class=2)
    broken.write_bytes(whole)
    text = page.read_text(encoding='utf-8')
    assert text.count('class="chart"')==5 and text.count('src="data:image/jpeg')>28
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert f'<dd>{df.Id[1]}</dd>' in text and 'Validation against training' in text

def test_page_shows_duplicates(atlas, df, tmp_path):
    twice = pd.concat([df, pd.DataFrame({'Id': ['copy'], 'Target': [df.Target[0]]})])
    twice.to_csv(tmp_path/'t.csv', index=False)
    for c in CHANNELS: Image.open(atlas/'train'/f'{df.Id[0]}_{c}.png').rotate(180).save(atlas/'train'/f'copy_{c}.png')
    text = explore(atlas, tmp_path/'t.csv', tmp_path/'out.html', per_class=1).read_text(encoding='utf-8')
    for c in CHANNELS: (atlas/'train'/f'copy_{c}.png').unlink()
    assert '1 pairs of images show the same cells' in text

def test_wrong_folder(atlas, tmp_path):
    (tmp_path/'train.csv').write_text('Id,Target\nnone,1\n')
    with pytest.raises(LabelError, match='none of the 1 Ids in train.csv has an image'):
        explore(atlas, tmp_path/'train.csv', tmp_path/'out.html')

def test_other_label_sets_have_their_own_classes():
    df = pd.DataFrame({'Id': list('abc'), 'Target': ['0 6', '6', '9']})
    assert class_counts(df, 'ztg10')['Cytosol']==2 and len(cooccurrence(df, ZTG10))==10


def test_a_page_that_is_there_is_kept(atlas, tmp_path):
    (tmp_path/'mine.html').write_text('mine')
    with pytest.raises(ValueError, match='exists; give another name'): explore(atlas, 'train.csv', tmp_path/'mine.html')
    assert (tmp_path/'mine.html').read_text() == 'mine'


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_page_of_stacks_reads_them_as_asked(tmp_path):
    table = find_images(write_image_xpress(tmp_path/'plate', ('C03', 'C04'), sites=2, planes=2))
    table[['Id']].assign(Target='0').to_csv(tmp_path/'labels.csv', index=False)
    page = explore(tmp_path/'plate', tmp_path/'labels.csv', tmp_path/'out.html', reader=ImageReader(z='max'))
    assert '<dt>images that cannot be read</dt><dd>none</dd>' in page.read_text(encoding='utf-8')
