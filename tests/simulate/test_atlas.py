"Simulated fields of view and atlases: what is drawn and written, and that it is the same every time."
import json, subprocess, sys
from pathlib import Path
import loky, numpy as np, pandas as pd, pytest
from PIL import Image
from scipy.ndimage import distance_transform_edt
from hpa_fastai.data.labels import HPA28, HPA19, ZTG10, HPAError, LabelSet
from hpa_fastai.data.label_tables import read_labels
from hpa_fastai.data.files import find_images
from hpa_fastai.simulate.atlas import simulate_atlas, simulate_fov
from hpa_fastai.simulate.cells import Cells
from hpa_fastai.simulate.field import SimulateError
from hpa_fastai.simulate.lines import ATLAS_LINES
from hpa_fastai.simulate.patterns import ATLAS_PATTERNS, PATTERNS, pattern
from hpa_fastai.simulate.plan import plan_atlas

def number(name): return HPA28.classes.index(name)

def quick(path, **kw): return simulate_atlas(path, **dict(n=5, size=48, difficulty='easy', progress=False) | kw)

def easy_fov(targets, size=256, seed=0, **kw):
    return simulate_fov(targets, size, seed, **dict(difficulty='easy') | kw)

def files(path):
    "The contents of all files of a folder, but for the one that says how it was made"
    found = [f for f in sorted(Path(path).rglob('*')) if f.is_file() and f.name != 'simulated.json']
    return {f.relative_to(path).as_posix(): f.read_bytes() for f in found}

# ---- one field

@pytest.mark.parametrize('size', [32, 100, 256])
def test_fov_contract(size):
    img, mask = easy_fov([0, 25], size=size, seed=3)
    assert img.shape == (4, size, size) and img.dtype == np.uint8
    assert mask.shape == (size, size) and np.issubdtype(mask.dtype, np.integer)
    assert np.array_equal(np.unique(mask), np.arange(mask.max() + 1))

def test_channels_are_what_they_are_called():
    "Blue is in the middle of cells, red and yellow around it, and nothing between the cells"
    img, mask = easy_fov([0], seed=12)
    red, green, blue, yellow = img.astype(float)
    nucleus = blue > 60
    assert .05 < nucleus.mean() < .4
    assert red[~nucleus & (mask > 0)].mean() > 2*red[nucleus].mean()
    assert yellow[~nucleus & (mask > 0)].mean() > 2*yellow[nucleus].mean()
    assert green[nucleus].mean() > 5*green[~nucleus].mean()
    assert (img[:, mask == 0].mean(1) < 20).all() and (mask == 0).any()

@pytest.mark.parametrize('seed', range(3))
def test_a_larger_field_shows_the_same_cells(seed):
    small, large = easy_fov([0], 128, seed)[1], easy_fov([0], 384, seed)[1]
    assert (small == large[1::3, 1::3]).mean() > .95

def test_cells_touch_and_leave_gaps():
    masks = [easy_fov([], 128, s)[1] for s in range(8)]
    def border(m): return ((m[:, 1:] != m[:, :-1]) & (m[:, 1:] > 0) & (m[:, :-1] > 0)).sum()
    assert np.median([border(m) for m in masks]) > 40
    assert np.mean([(m == 0).mean() for m in masks]) > .05

def test_no_protein_without_targets():
    assert easy_fov([], seed=2)[0][1].mean() < 12
    assert easy_fov([HPA19.negative], labels=HPA19, seed=1)[0][1].mean() < 10

def test_same_seed_same_field():
    a, b, other = easy_fov([7], seed=5), easy_fov([7], seed=5), easy_fov([7], seed=6)
    assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])
    assert not np.array_equal(a[1], other[1])

@pytest.mark.parametrize('targets, seed, brightness', [
    ([0, 25], 3, (40.09, 50.57, 20.63, 30.92)), ([7], 4, (24.02, 8.52, 16.97, 49.25)),
    ([17], 5, (26.72, 9.85, 16.57, 24.98)), ([6, 21], 6, (39.71, 46.02, 25.59, 38.58))])
def test_easy_fields_stay_as_they_were(targets, seed, brightness):
    img, _ = easy_fov(targets, 96, seed)
    assert img.mean((1, 2)).tolist() == pytest.approx(brightness, abs=.03)

def test_the_atlas_level_draws_other_pictures_and_says_so(tmp_path):
    assert not np.array_equal(easy_fov([7], seed=5)[0], simulate_fov([7], seed=5)[0])
    for name, kw in dict(easy={}, atlas=dict(difficulty='atlas')).items():
        quick(tmp_path/name, **kw)
        assert json.loads((tmp_path/name/'simulated.json').read_text())['difficulty'] == name

def test_mixtures_show_every_part():
    both, c = easy_fov([number('Nucleoplasm'), number('Plasma membrane')], seed=4)
    alone, _ = easy_fov([number('Nucleoplasm')], seed=4)
    nucleus = alone[2] > 60
    assert both[1][nucleus].mean() > 30 and both[1][~nucleus].mean() > 2*alone[1][~nucleus].mean()

@pytest.mark.parametrize('name', ['Mitotic spindle', 'Cytokinetic bridge'])
def test_classes_of_division_have_dividing_cells(name):
    for seed in range(4): assert (easy_fov([number(name)], seed=seed)[0][1] > 100).sum() > 20

# ---- an atlas

def test_atlas_files_and_table(tmp_path):
    df = quick(tmp_path/'a', masks=True)
    assert list(df.columns) == ['Id', 'Target', 'antibody'] and df.Id.is_unique
    table = find_images(tmp_path/'a'/'train')
    assert sorted(table.Id) == sorted(df.Id) and table[['red', 'green', 'blue', 'yellow']].notna().all(axis=None)
    assert read_labels(tmp_path/'a'/'train.csv').Target.tolist() == df.Target.tolist()
    for fov in df.Id:
        assert Image.open(tmp_path/'a'/'train'/f'{fov}_green.png').mode == 'L'
        assert Image.open(tmp_path/'a'/'masks'/f'{fov}.png').size == (48, 48)

def test_written_pixels_are_those_drawn(tmp_path):
    df = quick(tmp_path/'a', n=1, masks=True)
    mask = np.asarray(Image.open(tmp_path/'a'/'masks'/f'{df.Id[0]}.png'))
    blue = np.asarray(Image.open(tmp_path/'a'/'train'/f'{df.Id[0]}_blue.png'))
    assert blue[mask > 0].mean() > 3*blue[mask == 0].mean()

@pytest.mark.parametrize('balance', ['atlas', 'even'])
def test_a_longer_atlas_begins_with_a_shorter_one(tmp_path, balance):
    short, long = quick(tmp_path/'7', n=7, balance=balance), quick(tmp_path/'12', n=12, balance=balance)
    assert short.equals(long.head(7))
    written = files(tmp_path/'12')
    assert all(written[name] == content for name, content in files(tmp_path/'7').items() if name != 'train.csv')

def test_processes_change_nothing_and_a_script_needs_no_main_guard(tmp_path):
    "Sixteen fields are enough to start processes"
    script = tmp_path/'make.py'
    script.write_text(f'''
from hpa_fastai.simulate.atlas import simulate_atlas
df = simulate_atlas({str(tmp_path/'2')!r}, n=16, size=48, difficulty='easy', num_workers=2, progress=False)
print('fields', len(df))''')
    out = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert out.stdout.split() == ['fields', '16'], out.stderr[-500:]
    quick(tmp_path/'1', n=16, num_workers=1)
    assert files(tmp_path/'1') == files(tmp_path/'2')

def test_another_seed_gives_other_cells(tmp_path):
    a, b = quick(tmp_path/'a', n=3), quick(tmp_path/'b', n=3, seed=1)
    assert not set(a.antibody) & set(b.antibody)
    assert not set(files(tmp_path/'a').values()) & set(files(tmp_path/'b').values())

def test_no_two_fields_of_an_atlas_are_the_same(tmp_path):
    df = quick(tmp_path/'a', n=12, masks=True)
    assert len({(tmp_path/'a'/'masks'/f'{i}.png').read_bytes() for i in df.Id}) == 12

@pytest.mark.parametrize('labels, header', [(HPA19, 'ID,Label,antibody'), (ZTG10, 'Image,Label,antibody')])
def test_other_label_sets(tmp_path, labels, header):
    df = quick(tmp_path/'a', n=len(labels), labels=labels, balance='even', num_workers=1)
    assert (tmp_path/'a'/'train.csv').read_text().splitlines()[0] == header
    assert read_labels(tmp_path/'a'/'train.csv', labels).Target.tolist() == df.Target.tolist()

def test_processes_are_started_where_that_is_faster(tmp_path, monkeypatch):
    class Started(Exception): "Processes were started."
    def start(*args): raise Started
    monkeypatch.setattr(loky, 'cpu_count', lambda: 4)
    monkeypatch.setattr(loky, 'ProcessPoolExecutor', start)
    assert len(quick(tmp_path/'small', n=40)) == 40
    with pytest.raises(Started): quick(tmp_path/'large', n=60, size=256)
    with pytest.raises(Started): quick(tmp_path/'asked', n=40, num_workers=2)

def test_your_own_class_is_drawn_in_other_processes_too(tmp_path):
    @pattern('Ghost')
    def ghost(c): return 3*np.ones((c.size, c.size), np.float32)
    try:
        df = quick(tmp_path/'a', n=16, labels=LabelSet('mine', ('Ghost',)), num_workers=2)
        assert np.asarray(Image.open(tmp_path/'a'/'train'/f'{df.Id[9]}_green.png')).min() > 100
    finally: del PATTERNS['ghost']

# ---- as hard as the real atlas

def atlas_fovs(name, n=6, size=128): return [simulate_fov([number(name)], size, seed)[0] for seed in range(n)]

@pytest.mark.parametrize('line', ATLAS_LINES)
def test_every_line_grows_and_has_nuclei(line):
    for seed in range(3):
        cells = Cells(np.random.default_rng(seed), 128, line=ATLAS_LINES[line])
        from_middle = cells.centres - (41 + 41j)
        in_field = np.maximum(np.abs(from_middle.real), np.abs(from_middle.imag)) < 41
        fewest, most = ATLAS_LINES[line].cells
        assert fewest <= in_field.sum() <= most
        assert .02 < cells.nucleus.mean() < .7 and (cells.label > 0).mean() > .12

def test_lines_differ_in_shape_and_packing():
    def share_of_glass(line):
        fields = [Cells(np.random.default_rng(seed), 96, line=ATLAS_LINES[line]) for seed in range(6)]
        return np.mean([(cells.label == 0).mean() for cells in fields])
    assert share_of_glass('HaCaT') < .1 < share_of_glass('MCF7') < share_of_glass('THP-1')
    round_cells, spindles = (Cells(np.random.default_rng(0), 64, line=ATLAS_LINES[o]) for o in ('K-562', 'BJ'))
    assert round_cells.elongation.mean() < 1.2 < spindles.elongation.mean()

def test_a_plasma_membrane_stands_out_less_in_hard_fields():
    def outline(difficulty):
        "How much brighter than its cell the outline of a cell is"
        ratios = []
        for seed in range(8):
            img, mask = simulate_fov([number('Plasma membrane')], 128, seed, difficulty=difficulty)
            depth = sum(distance_transform_edt(mask == k) for k in range(1, mask.max() + 1))     # in its own cell
            ratios.append(img[1][(depth > 0) & (depth < 2)].mean()/img[1][depth > 4].mean())
        return np.mean(ratios)
    hard, easy = outline('atlas'), outline('easy')
    assert hard < .8*easy

def test_an_antibody_stains_all_its_fields_in_the_same_way(tmp_path):
    "The fields of an antibody differ less in brightness than those of different ones"
    df = quick(tmp_path/'a', n=60, difficulty='atlas', balance='even', num_workers=1)
    green = {i: np.asarray(Image.open(tmp_path/'a'/'train'/f'{i}_green.png')).astype(float) for i in df.Id}
    level = np.log(df.Id.map(lambda i: np.quantile(green[i], .95) + 1))
    assert level.groupby(df.antibody).std().mean() < .7*level.std()

def test_your_own_drawing_of_a_class_is_used_at_both_levels():
    mine, hard = PATTERNS['nucleoplasm'], ATLAS_PATTERNS['nucleoplasm']
    pattern('Nucleoplasm')(lambda c: np.ones((c.size, c.size), np.float32))
    try:
        for level in ('easy', 'atlas'):
            img, mask = simulate_fov([0], 96, seed=3, difficulty=level)
            assert np.median(img[1][mask == 0]) > 20, level       # on the glass, too
    finally: PATTERNS['nucleoplasm'], ATLAS_PATTERNS['nucleoplasm'] = mine, hard

def test_companions_are_those_of_real_images():
    targets = HPA28.encode(plan_atlas(2800, HPA28, 0, 'even').Target)
    alone = (targets.sum(1) == 1)
    er, bridge = number('Endoplasmic reticulum'), number('Cytokinetic bridge')
    assert alone[targets[:, er] > 0].mean() > 3*alone[targets[:, bridge] > 0].mean()
    assert targets.sum(0).argmax() == number('Nucleoplasm') and targets.sum(0).min() >= 100
    assert (targets[:, number('Endosomes')] >= targets[:, number('Lysosomes')]).all()

# ---- labels with errors

def test_label_noise_keeps_the_truth_and_the_pictures(tmp_path):
    clean = quick(tmp_path/'clean', n=30, balance='even', num_workers=1)
    noisy = quick(tmp_path/'noisy', n=30, balance='even', num_workers=1, label_noise=.3)
    assert 'TrueTarget' not in clean and noisy.TrueTarget.tolist() == clean.Target.tolist()
    wrong = noisy.Target != noisy.TrueTarget
    assert .1 < wrong.mean() < .8
    assert (noisy.groupby('antibody').Target.nunique() == 1).all()        # an antibody is labelled as a whole
    written = files(tmp_path/'noisy')
    assert all(written[name] == content for name, content in files(tmp_path/'clean').items() if name != 'train.csv')
    table = pd.read_csv(tmp_path/'noisy'/'train.csv', dtype=str)
    assert table.TrueTarget.tolist() == clean.Target.tolist() and table.Target.tolist() == noisy.Target.tolist()
    about = json.loads((tmp_path/'noisy'/'simulated.json').read_text())
    noted, true = (HPA28.encode(table[name]) > 0 for name in ('Target', 'TrueTarget'))
    assert about['label_noise'] == .3
    assert about['wrong_locations'] == pytest.approx((true & ~noted).sum()/true.sum(), abs=1e-4)
    assert 'wrong_locations' not in json.loads((tmp_path/'clean'/'simulated.json').read_text())

@pytest.mark.parametrize('labels', [HPA28, HPA19, ZTG10])
def test_label_noise_errs_no_more_often_than_asked_and_leaves_a_label(labels):
    table = plan_atlas(3000, labels, 1, 'even', label_noise=.1)
    noted, true = (labels.encode(table[name]) > 0 for name in ('Target', 'TrueTarget'))
    kept = (noted & true).sum()/true.sum()
    assert .87 < kept < .93 and noted.any(1).all()

# ---- what goes wrong

@pytest.mark.parametrize('args, says', [
    (dict(n=0), 'n: 0'), (dict(size=16), 'size=16'), (dict(balance='fair'), "choose 'atlas'"),
    (dict(difficulty='hard'), "choose 'easy'"), (dict(label_noise=1.5), 'label_noise: 1.5'),
    (dict(labels=LabelSet('mine', ('Nucleoplasm', 'Fish'))), "no drawing for the class 'Fish'")])
def test_bad_arguments_write_nothing(tmp_path, args, says):
    with pytest.raises(HPAError, match=says) as e: quick(tmp_path/'a', **args)
    assert '\n' not in str(e.value) and not (tmp_path/'a').exists()

def test_an_atlas_is_kept_unless_forced(tmp_path):
    quick(tmp_path, n=4, masks=True)
    before = files(tmp_path)
    with pytest.raises(SimulateError, match='already holds an atlas'): quick(tmp_path, n=3, seed=1)
    assert files(tmp_path) == before
    df = quick(tmp_path, n=3, seed=1, force=True)
    assert len(list((tmp_path/'train').iterdir())) == 12 and not (tmp_path/'masks').exists()
    assert read_labels(tmp_path/'train.csv').Id.tolist() == df.Id.tolist()

def test_real_images_are_never_replaced(tmp_path):
    (tmp_path/'train').mkdir()
    (tmp_path/'train'/'real_red.png').write_bytes(b'precious')
    with pytest.raises(SimulateError, match='not of a simulated atlas'): quick(tmp_path, force=True)
    assert (tmp_path/'train'/'real_red.png').read_bytes() == b'precious'

def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(SimulateError, match='cannot write in'): quick(tmp_path/'file'/'atlas')

@pytest.mark.parametrize('targets, kw, says', [
    ([28], {}, r'label 28 is not one of the 28 classes \(0..27\)'), ([-1], {}, 'label -1'),
    ([0], dict(size=8), 'size=8'), ([0], dict(n_cells=0), 'n_cells=0')])
def test_bad_fields(targets, kw, says):
    with pytest.raises(SimulateError, match=says): easy_fov(targets, **kw)

def test_importing_needs_no_torch():
    heavy = ('torch', 'fastai', 'scipy', 'joblib', 'loky')
    code = f'import sys, hpa_fastai.simulate.atlas; print([m for m in {heavy} if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'
