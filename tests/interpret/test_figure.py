"A figure for a paper: what is chosen, what is said of it, and what survives in the file"
import warnings
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np, pandas as pd, pytest
from PIL import Image
from hpa_fastai.basics.errors import HPAError
from hpa_fastai.cli.main import main
from hpa_fastai.data.labels import HPA28
from hpa_fastai.data.files import find_images
from hpa_fastai.formats.names import CHANNELS
from hpa_fastai.interpret.fields import FINE, grey_ranges, read_results, typical_fields
from hpa_fastai.interpret.figure import figure
from hpa_fastai.interpret.drawing import FONT_SIZE, text_width

@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')

@pytest.fixture
def images(small_atlas): return find_images(small_atlas/'train')

def table_of(ids, names, probability=.9, flags=''):
    "Predictions as `predict` writes them; `names`: one text a row, names with | between them"
    truth = np.array([[c in text.split('|') for c in HPA28.classes] for text in names])
    p = np.where(truth, np.broadcast_to(probability, len(ids))[:, None], .05)
    return pd.DataFrame({'Id': list(ids), 'Predicted': HPA28.decode(truth), 'Names': names,
                         **dict(zip(HPA28.classes, p.T)), 'flags': flags, 'error': ''})

def texts(fig): return [t.get_text() for t in fig.texts]

def test_the_most_typical_field_has_no_flag_no_other_location_and_the_highest_probability():
    t = table_of(list('abcde'), ['Cytosol', 'Cytosol', 'Cytosol|Nucleoli', 'Nucleoli', 'Cytosol'],
                 [.8, .9, .99, .7, .999], ['', '', '', '', 'out-of-focus'])
    order = typical_fields(read_results(t), 'Cytosol')
    assert [t.Id[i] for i in order]==['b', 'a', 'c', 'e']

def test_the_same_table_gives_the_same_file(images, tmp_path):
    t = table_of(images.Id[:8], ['Cytosol', 'Nucleoli']*4)
    for name in ('a', 'b'):
        t = t.sample(frac=1, random_state=ord(name))
        for kind in ('svg', 'pdf', 'png'): figure(t, images, tmp_path/f'{name}.{kind}', n=2)
    for kind in ('svg', 'pdf', 'png', 'txt'):
        assert (tmp_path/f'a.{kind}').read_bytes()==(tmp_path/f'b.{kind}').read_bytes(), kind

def test_text_stays_text_and_fonts_are_whole(images, tmp_path):
    t = table_of(images.Id[:2], ['Cytosol', 'Nucleoli'])
    figure(t, images, tmp_path/'fig.svg')
    figure(t, images, tmp_path/'fig.pdf')
    svg = (tmp_path/'fig.svg').read_text()
    assert '>Cytosol 0.90</text>' in svg and f'>{images.Id[0]}</text>' in svg
    pdf = (tmp_path/'fig.pdf').read_bytes()
    assert b'/FontFile2' in pdf and b'/Type3' not in pdf

def test_a_picture_has_the_printed_size(images, tmp_path):
    figure(table_of(images.Id[:1], ['Cytosol']), images, tmp_path/'fig.png', width=85, dpi=300)
    with Image.open(tmp_path/'fig.png') as im:
        assert im.width==pytest.approx(85/25.4*300, abs=1)
        assert im.info['dpi'][0]==pytest.approx(300, abs=1)

@pytest.mark.parametrize('width, n', [(180, 1), (180, 6), (180, 12), (180, 28), (85, 3), (40, 2)])
def test_words_stand_beside_the_pictures_and_on_nothing(images, width, n):
    names = ['|'.join(HPA28.classes[i%28:i%28+9]) for i in range(n)]
    ids = list(images.Id[:n])+[f'{images.Id[i%10]}-a-very-long-name-of-a-field-{i}' for i in range(len(images), n)]
    table = pd.concat([images]*(1+n//len(images)), ignore_index=True).head(n).assign(Id=ids[:n])
    t = table_of(ids[:n], names, flags='out-of-focus unlike-training')
    fig = figure(t, table, ids=ids[:n], width=width)
    renderer = fig.canvas.get_renderer()
    words = [text.get_window_extent(renderer) for text in fig.texts]
    pictures = [ax.get_window_extent(renderer) for ax in fig.axes]
    whole = fig.bbox
    for i,a in enumerate(words):
        assert a.x0>=whole.x0-1 and a.x1<=whole.x1+1 and a.y0>=whole.y0-1
        for b in words[i+1:]+pictures:
            over = min(a.x1, b.x1)-max(a.x0, b.x0), min(a.y1, b.y1)-max(a.y0, b.y0)
            assert min(over)<1.5, (fig.texts[i].get_text(), over)

def test_one_range_for_a_channel_or_one_for_a_field(images):
    t = table_of(images.Id[:2], ['Cytosol', 'Nucleoli'])
    shared, each = (figure(t, images, brightness=way).caption for way in ('shared', 'each'))
    assert 'a channel has the same range in all rows' in shared and 'grey levels, of 255' in shared
    assert 'cannot be compared between rows' in each

def test_a_field_twice_as_bright_is_drawn_twice_as_bright(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 100, (4, 64, 64)).astype(np.uint8)
    for id_,k in (('dim', 1), ('bright', 2)):
        for c,plane in zip(CHANNELS, pixels): Image.fromarray(plane*k).save(tmp_path/f'{id_}_{c}.png')
    t = table_of(['dim', 'bright'], ['Cytosol', 'Cytosol'])
    fig = figure(t, tmp_path, ids=['dim', 'bright'], panels=['protein'])
    dim, bright = (ax.images[0].get_array() for ax in fig.axes)
    inside = (bright>0) & (bright<1)
    assert np.median(bright[inside]/dim[inside].clip(1e-6))==pytest.approx(2, rel=.05)

@pytest.mark.parametrize('colours, panels', [('rgby', 5), ('green-magenta', 5), ('grey', 4)])
def test_colours(images, colours, panels):
    fig = figure(table_of(images.Id[:1], ['Cytosol']), images, colours=colours)
    assert len(fig.axes)==panels
    if colours!='green-magenta': return
    assert 'protein green, nucleus magenta' in fig.caption and 'the ER is not in it' in fig.caption
    picture = np.asarray(fig.axes[0].images[0].get_array()).astype(int)
    assert np.abs(picture[..., 0]-picture[..., 2]).max()<=1   # red and blue are always equal: no red beside green

def test_the_scale_is_stated_by_the_user_the_file_or_nobody(images, tmp_path):
    t = table_of(images.Id[:1], ['Cytosol'])
    unknown, given = figure(t, images), figure(t, images, pixel_size=.64)
    assert 'No scale bar' in unknown.caption and not unknown.axes[0].texts
    assert '0.64 µm a pixel, as given' in given.caption
    assert [o.get_text() for o in given.axes[0].texts]==['10 µm']
    import tifffile
    tifffile.imwrite(tmp_path/'f1.ome.tif', np.random.default_rng(0).integers(0, 999, (4, 64, 64)).astype(np.uint16),
                     metadata=dict(axes='CYX', PhysicalSizeX=.2, Channel=dict(Name=['red', 'green', 'blue', 'yellow'])))
    assert '0.2 µm a pixel, as the files state' in figure(table_of(['f1'], ['Cytosol']), tmp_path).caption

def test_a_bar_is_as_long_as_it_says(images):
    fig = figure(table_of(images.Id[:1], ['Cytosol']), images, pixel_size=.64, dpi=1200)
    x0, x1 = fig.axes[0].lines[0].get_xdata()
    assert (x1-x0)*.64==pytest.approx(float(fig.axes[0].texts[0].get_text().split()[0]))

def test_names_of_the_folder_and_of_the_table_that_do_not_meet(images, tmp_path, capsys):
    t = table_of(images.Id[:3], ['Cytosol']*3)
    t.to_csv(tmp_path/'p.csv', index=False)
    folder = str(images.green[0]).rsplit('/', 1)[0]
    to = ['--images', folder, '--out', str(tmp_path/'f.png')]
    def run(*more): return main(['figure', str(tmp_path/'p.csv'), *to, *more])
    assert run('--ids', images.Id[0][:-1])==2
    said = capsys.readouterr().err
    assert 'did you mean' in said and said.count('\n')==1
    assert run('--ids', images.Id[0], '--out', str(tmp_path/'f.doc'))==2
    assert 'give a name that ends in .pdf or .svg or .png' in capsys.readouterr().err
    table_of(['x', 'y'], ['Cytosol']*2).to_csv(tmp_path/'q.csv', index=False)
    assert main(['figure', str(tmp_path/'q.csv'), *to])==2
    assert 'none of the 2 Ids has an image' in capsys.readouterr().err
    t.head(0).to_csv(tmp_path/'r.csv', index=False)
    assert main(['figure', str(tmp_path/'r.csv'), *to])==2
    assert 'has no rows' in capsys.readouterr().err
    assert not list(tmp_path.glob('f.*'))

def test_nothing_is_overwritten(images, tmp_path, capsys):
    t = table_of(images.Id[:1], ['Cytosol'])
    (tmp_path/'fig.txt').write_text('my notes')
    figure(t, images, tmp_path/'fig.png')
    assert (tmp_path/'fig.txt').read_text()=='my notes'
    assert (tmp_path/'fig.png.txt').read_text().startswith('Predicted subcellular locations')
    with pytest.raises(HPAError, match='fig.png exists'): figure(t, images, tmp_path/'fig.png')
    (tmp_path/'fig.png').unlink()
    with pytest.raises(HPAError, match='fig.png.txt exists'): figure(t, images, tmp_path/'fig.png')
    figure(t, images, tmp_path/'fig.png', force=True)
    assert (tmp_path/'fig.txt').read_text().startswith('Predicted subcellular locations')

def test_a_broken_picture_gives_its_place_to_the_next(images, tmp_path):
    (tmp_path/'broken.png').write_bytes(b'no picture')
    table = images.head(3).copy()
    table.loc[0, 'green'] = str(tmp_path/'broken.png')
    t = table_of(table.Id, ['Cytosol']*3, [.99, .9, .8])
    with pytest.warns(UserWarning, match='the next typical field is shown'): fig = figure(t, table)
    assert table.Id[1] in texts(fig) and table.Id[0] not in texts(fig)

def test_flagged_fields_are_shown_with_their_flag_where_there_are_no_others(images):
    fig = figure(table_of(images.Id[:2], ['Cytosol']*2, flags='unlike-training'), images)
    assert 'flag: unlike-training' in ' '.join(texts(fig)) and 'every example has a flag' in fig.caption

def test_the_caption_names_model_version_and_thresholds(images, trained):
    from hpa_fastai.deploy.loading import load_bundle
    from hpa_fastai.interpret.prediction import predict
    bundle = load_bundle(trained[1])
    t = predict(images.head(4), bundle, at_least_one=True, progress=False)
    caption = figure(t, images, reference=bundle).caption
    assert bundle.config['model']['arch'] in caption and 'Thresholds: ' in caption
    assert bundle.config['versions']['hpa_fastai'] in caption

def test_a_file_of_a_spreadsheet_will_do(images, tmp_path):
    t = table_of(images.Id[:2], ['Cytosol', ''])
    t.to_csv(tmp_path/'p.csv', sep=';', index=False)
    fig = figure(str(tmp_path/'p.csv'), images, ids=list(images.Id[:2]))
    assert 'no location' in texts(fig)

def test_single_cells(images):
    from hpa_fastai.cells.masks import encode_masks
    from hpa_fastai.data.reader import ImageReader
    side = ImageReader().array(images.iloc[0]).shape[1]
    mask = np.zeros((side, side), int)
    mask[5:15, 8:20] = 1
    t = table_of(images.Id[:1], ['Cytosol']).assign(cell=1, width=side, height=side, mask=encode_masks(mask)[1])
    fig = figure(t, images, pixel_size=.64)
    assert f'{images.Id[0]} cell 1' in texts(fig)
    assert fig.axes[0].images[0].get_array().shape[:2]==(14, 14)   # 12 pixels and some room

def test_text_is_measured_as_it_is_printed():
    assert text_width('Mitochondria', FONT_SIZE)==pytest.approx(text_width('Mitochondria', 2*FONT_SIZE)/2, rel=.05)

def test_grey_levels_of_noise_are_not_stretched():
    class Dim: counts = np.array([np.bincount([FINE*3, FINE*4], minlength=FINE*256)]*4)
    with warnings.catch_warnings(): assert (np.diff(grey_ranges([Dim]))==16).all()

def test_faint_deep_pictures_keep_their_grey_levels(tmp_path):
    import tifffile
    rng = np.random.default_rng(0)
    for c in CHANNELS:  # 12 bits of 16, and of these the lowest part
        top = 160 if c=='green' else 4095
        tifffile.imwrite(tmp_path/f'f_{c}.tif', rng.integers(0, top, (64, 64)).astype(np.uint16))
    fig = figure(table_of(['f'], ['Cytosol']), tmp_path, panels=['protein'], brightness='each')
    shown = np.asarray(fig.axes[0].images[0].get_array())
    assert len(np.unique(shown.round(3)))>60 and shown.max()>.95
