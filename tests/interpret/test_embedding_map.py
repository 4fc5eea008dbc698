"Map: neighbours are neighbours, every layout has a fallback, and the page works under a real pointer"
import base64, io, json, re, sys
from pathlib import Path
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np, pandas as pd, pytest
from PIL import Image
from hpa_fastai.cli.main import main
from hpa_fastai.data.files import *
from hpa_fastai.interpret.embedding_map import *
from hpa_fastai.interpret.prediction import predict

@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')

def three_clouds(n=30, d=20, seed=0):
    rng = np.random.default_rng(seed)
    return np.repeat(rng.normal(0, 8, (3, d)), n, 0)+rng.normal(0, 1, (3*n, d)), np.repeat(['one', 'two', 'three'], n)

def test_neighbors_are_of_the_same_kind_and_never_oneself():
    x, kind = three_clouds()
    ids = [f'i{k}' for k in range(90)]
    found = neighbors(x, ids, 'i40', k=10)
    assert set(kind[[int(i[1:]) for i in found.Id]])=={'two'} and 'i40' not in set(found.Id)
    assert found.similarity.is_monotonic_decreasing
    assert len(neighbors(x[:3], ids[:3], 'i0', k=10))==2 and len(neighbors(x[:1], ids[:1], 'i0'))==0

def test_neighbors_pass_over_images_without_embedding():
    x, _ = three_clouds()
    x[3] = np.nan
    assert 3 not in set(neighbors(x, range(90), 4, k=89).Id)
    with pytest.raises(MapError, match='could not be read'): neighbors(x, range(90), 3)
    with pytest.raises(MapError, match='90 embeddings but 3 Ids'): neighbors(x, range(3), 1)
    with pytest.raises(MapError, match='images × features'): neighbors(x[0], range(20), 1)

@pytest.mark.parametrize('method', ['pca', 'tsne', pytest.param('umap', marks=pytest.mark.slow)])
def test_layout_keeps_kinds_together(method):
    if method=='umap': pytest.importorskip('umap')
    x, kind = three_clouds(20)
    x[5] = np.nan
    xy = map_points(x, method)
    assert xy.shape==(60, 2) and np.isnan(xy[5]).all() and np.isfinite(np.delete(xy, 5, 0)).all()
    d = np.linalg.norm(xy[:, None]-xy, axis=2)
    np.fill_diagonal(d, np.inf)
    nearest = np.nanargmin(np.where(np.isnan(d), np.inf, d), 1)
    assert (kind[nearest]==kind)[np.arange(60)!=5].all()
    assert np.array_equal(xy, map_points(x, method), equal_nan=True)
    assert np.isfinite(map_points(x[6::7], method)).all()          # few images

@pytest.mark.parametrize('n', [0, 1, 2, 3, 5, 8])
def test_few_images(n):
    x, _ = three_clouds()
    for method in ('pca', 'tsne'):
        xy = map_points(x[::12][:n], method)
        assert xy.shape==(n, 2) and np.isfinite(xy).all()

def test_without_umap(monkeypatch):
    monkeypatch.setitem(sys.modules, 'umap', None)
    x, _ = three_clouds(10)
    assert np.array_equal(map_points(x), map_points(x, 'tsne'))
    with pytest.raises(MapError, match=r"pip install 'hpa_fastai\[map\]'"): map_points(x, 'umap')
    with pytest.raises(MapError, match='not one of'): map_points(x, 'magic')

def test_picture_of_a_map():
    xy = np.random.default_rng(0).random((100, 2))
    points = pd.DataFrame(dict(x=xy[:,0], y=xy[:,1], Id=range(100), run=['a', None]*50))
    points['label'] = [f'class {i%28}' for i in range(100)]
    ax = plot_map(points)
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert len(texts)==28 and 'class 0 (4)' in texts
    looks = {(tuple(c.get_facecolor()[0]), c.get_paths()[0].vertices.tobytes()) for c in ax.collections}
    assert len(looks)==28                                           # colour and shape tell all classes apart
    assert {t.get_text() for t in plot_map(points, 'run').get_legend().get_texts()}=={'a (50)', 'none (50)'}
    plot_map(points[:0])
    with pytest.raises(MapError, match="no column 'plate'"): plot_map(points, 'plate')

def test_thumbnails_are_small_pictures(small_atlas, tmp_path):
    table = find_images(small_atlas/'train').head(3)
    (tmp_path/'x_green.png').write_bytes(b'no picture')
    table.loc[1, 'green'] = str(tmp_path/'x_green.png')
    small = thumbnails(table, 48)
    assert small[1]=='' and Image.open(io.BytesIO(base64.b64decode(small[0].split(',')[1]))).size==(48, 48)

@pytest.fixture(scope='module')
def points(small_atlas):
    "Twelve images in a row of two kinds, with pictures and likes"
    table = find_images(small_atlas/'train').head(12)
    ids = table.Id.tolist()
    points = pd.DataFrame(dict(x=np.arange(12.), y=np.arange(12)%3, Id=ids, cell_line=['U-2 OS', 'A-431', 'HeLa']*4))
    points.insert(3, 'label', ['Nucleoli']*7+['Golgi <b>apparatus</b>']*5)
    likes = [[ids[(i+k)%12] for k in (1, 2, 3)] for i in range(12)]
    return points.assign(thumbnail=thumbnails(table), like=likes)

def test_names_stay_text_and_nothing_comes_from_elsewhere(points):
    evil = '</script><script>alert(1)</script>'
    points = points.assign(Id=[evil, *points.Id[1:]], label=evil, thumbnail='https://example.org/x.png')
    page = map_html(points.assign(**{evil: list('abcdabcdabcd')}))
    assert '<script>alert' not in page and 'example.org' not in page
    data = json.loads(re.search(r'hpa-map-data">(.*?)</script>', page)[1])
    assert data['id'][0]==evil and data['groups'][0]['names']==[evil] and set(data['thumb'])=={''}
    assert not re.search(r'(src|href)=', page) and '://' not in page

def test_page_of_nothing_one_and_what_has_no_place(points):
    assert 'There are no images to lay out' in map_html(points[:0]) and '<canvas' not in map_html(points[:0])
    assert '"x":[0.5]' in map_html(points[:1])
    assert '2 images without embedding are left out' in map_html(points.assign(x=[np.nan]*2+[1]*10))
    assert '"names":["images"]' in map_html(points[['x', 'y', 'Id']])
    with pytest.raises(MapError, match="no column 'y'"): map_html(points[['x', 'Id']])
    with pytest.raises(MapError, match="no column 'plate' to colour by"): map_html(points, by='plate')

def test_style_and_script_once_for_many_maps(points):
    part = map_html(points, whole=False)
    assert '<style>' not in part and part.count('<script')==1
    assert map_html(points)==f'<style>{MAP_STYLE}</style>{part}<script>{MAP_SCRIPT}</script>'

# ---- in a real browser

PAGE = """<!doctype html>
<html lang="en"><head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1"><title>map</title>
<style>:root {color-scheme: light dark} body {margin: 12px}</style>
</head><body>"""

def open_maps(browser, folder, *maps):
    "Open a page with some maps in a wide window"
    browser.emulate()
    page = Path(folder)/'map.html'
    page.write_text(PAGE+''.join(map(map_html, maps)), encoding='utf-8')
    browser.open(page)
    return browser

@pytest.fixture
def opened(browser, points, tmp_path): return open_maps(browser, tmp_path, points)

def point_at(browser, i, kind='pointermove'):
    "Move the pointer to a mark, or choose it"
    browser.run('''
        const [i, kind] = arguments, margin = 14, canvas = document.querySelector('.hpa-map canvas');
        const data = JSON.parse(document.querySelector('.hpa-map-data').textContent);
        const box = canvas.getBoundingClientRect();
        const place = {
            clientX: box.left + margin + (box.width - 2*margin)*data.x[i],
            clientY: box.top + margin + (box.height - 2*margin)*(1 - data.y[i]),
            bubbles: true, pointerType: 'mouse',
        };
        canvas.dispatchEvent(kind == 'click' ? new MouseEvent(kind, place) : new PointerEvent(kind, place))''', i, kind)

def tip(browser):
    "Whether the card of a mark is hidden, what it says, and how wide its picture is"
    return browser.run('''
        const card = document.querySelector('.hpa-map-tip');
        return [card.hidden, card.textContent, (card.querySelector('img') || {}).naturalWidth]''')

def test_pointing_shows_the_cells(opened, points):
    assert opened.errors()==[]
    point_at(opened, 4)
    hidden, words, width = tip(opened)
    assert not hidden and points.Id[4] in words and 'Nucleoli · A-431' in words and width==64
    point_at(opened, 4, 'pointerleave')
    assert tip(opened)[0]

def test_a_real_pointer_in_the_middle(browser, points, tmp_path):
    open_maps(browser, tmp_path, points[:1]).hover('.hpa-map canvas')
    hidden, words, width = tip(browser)
    assert not hidden and points.Id[0] in words and width==64

def test_choosing_shows_images_like_it(opened, points):
    point_at(opened, 2, 'click')
    shown = '.hpa-map-picked button'
    assert [points.Id[k] in text for k,text in zip((2, 3, 4, 5), opened.texts(shown))]==[True]*4
    opened.click(f'{shown}:nth-child(3)')
    assert points.Id[4] in opened.texts(shown)[0]

def test_legend_hides_and_colour_changes(opened):
    def names(): return [text[1:] for text in opened.texts('.hpa-map-keys button')]  # behind the mark
    assert names()==['Nucleoli (7)', 'Golgi <b>apparatus</b> (5)']
    opened.click('.hpa-map-keys button:first-child')
    point_at(opened, 0)
    assert tip(opened)[0]  # hidden marks are not pointed at
    point_at(opened, 11)
    assert not tip(opened)[0]
    opened.run('const s = document.querySelector(".hpa-map select"); s.selectedIndex = 1; s.onchange()')
    assert names()==['U-2 OS (4)', 'A-431 (4)', 'HeLa (4)']

def painted(browser):
    "How many pixels of the canvas have a colour"
    return browser.run('''
        const canvas = document.querySelector('.hpa-map canvas');
        const rgba = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        return rgba.filter((value, i) => i%4 == 3 && value > 0).length''')

def test_phone_light_and_dark(opened):
    for dark in (False, True):
        opened.emulate(375, 700, dark, phone=True)
        assert opened.run('return document.documentElement.scrollWidth <= window.innerWidth')
        assert painted(opened)>300
        for i in (0, 5, 11):
            point_at(opened, i)
            box = 'return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()'
            card, stage = (opened.run(box, css) for css in ('.hpa-map-tip', '.hpa-map-stage'))
            assert card['left']>=stage['left'] and card['right']<=stage['right']
            assert card['top']>=stage['top'] and card['bottom']<=stage['bottom'] and card['width']>0
        ink, paper = (opened.style('.hpa-map-stage', name) for name in ('color', 'backgroundColor'))
        bright = lambda c: sum(map(int, re.findall(r'\d+', c)[:3]))/3
        assert abs(bright(ink)-bright(paper))>150 and (bright(paper)<100)==dark

def test_several_maps_on_a_page(browser, points, tmp_path):
    open_maps(browser, tmp_path, points, points[:3], points[:0])
    legends = browser.run('return [...document.querySelectorAll(".hpa-map-keys")].map(k => k.children.length)')
    assert browser.errors()==[] and legends==[2, 1]

# ---- the map of a run

def test_a_folder_becomes_a_map_in_one_command(small_atlas, trained, tmp_path, capsys, monkeypatch):
    few = [p for p in sorted((small_atlas/'train').iterdir())][:32]
    folder = tmp_path/'few'
    folder.mkdir()
    for p in few: (folder/p.name).symlink_to(p)
    out = tmp_path/'map.html'
    common = ['map', str(folder), '--model', str(trained[1]), '--method', 'pca', '--no-progress']
    assert main([*common, '--out', str(out)])==0
    page = out.read_text()
    assert page.count('data:image/webp')==8 and '"like":[[' in page
    assert main([*common, '--out', str(out)])==2
    assert 'exists' in capsys.readouterr().err
    assert main([*common, '--out', str(tmp_path/'map.svg')])==0
    assert 'similar images lie together' in (tmp_path/'map.svg').read_text()
    assert (tmp_path/'map.txt').read_text().startswith('Map of 8 images')
    assert sorted(p.name for p in tmp_path.iterdir())==['few', 'map.html', 'map.svg', 'map.txt']

def test_a_run_that_is_there_becomes_a_map(small_atlas, trained, tmp_path, capsys):
    table = find_images(small_atlas/'train').head(6)
    predict(table, trained[1], out=tmp_path/'p.csv', embeddings=tmp_path/'e.parquet', progress=False)
    say = ['map', str(tmp_path/'p.csv'), '--out', str(tmp_path/'m.html'), '--no-progress']
    assert main(say)==2
    assert '--embeddings FILE' in capsys.readouterr().err
    assert main([*say, '--embeddings', str(tmp_path/'e.parquet'), '--method', 'pca'])==0
    other = pd.read_csv(tmp_path/'p.csv').assign(Id=list('abcdef'))
    with pytest.raises(MapError, match='6 of 6 Ids of the predictions have no embedding'):
        points_of_run(other, tmp_path/'e.parquet')

@pytest.mark.parametrize('more, said', [
    (['--out', 'm.docx'], 'give a name that ends in .html'), (['--by', 'plate'], "no column 'plate'")])
def test_what_can_not_be_mapped_is_a_line(small_atlas, trained, tmp_path, capsys, monkeypatch, more, said):
    monkeypatch.chdir(tmp_path)
    table = find_images(small_atlas/'train').head(4)
    predict(table, trained[1], out='p.csv', embeddings='e.npy', progress=False)
    assert main(['map', 'p.csv', '--embeddings', 'e.npy', '--method', 'pca', *more])==2
    err = capsys.readouterr().err
    assert said in err and err.count('\n')==1

def test_classes_look_the_same_on_the_page_and_in_print(points):
    from hpa_fastai.evaluate.class_colours import class_styles
    names = ['Nucleoli', 'Cytosol']
    p = points.head(8).assign(label=names*4)
    data = json.loads(re.search(r'map-data">(.*?)</script>', map_html(p, 'label'), re.S)[1])
    found = data['groups'][0]
    for name,hue,shape in zip(found['names'], found['hues'], found['shapes']):
        assert (hue, shape)==class_styles([name])[name][:2]

def test_a_map_says_what_its_colours_count(small_atlas, trained, tmp_path):
    from hpa_fastai.deploy.predictor import Predictor
    run = Predictor(trained[1])(small_atlas/'train').head(12)
    run['Names'] = 'Nucleoplasm|Cytosol'
    x = np.random.default_rng(0).random((12, 8), dtype=np.float32)
    embedding_map(run, x, out=tmp_path/'m.pdf', method='pca')
    said = ' '.join((tmp_path/'m.txt').read_text().split())
    assert 'Colours and marks: the most probable of the locations that were named' in said
    embedding_map(run, x, out=tmp_path/'m.html', method='pca')
    assert 'coloured by, and counted at, the most probable one' in (tmp_path/'m.html').read_text()
