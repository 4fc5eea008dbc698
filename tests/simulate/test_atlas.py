"The simulator: what is drawn where, what is written, and that it is the same every time."
import subprocess, sys
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image
from hpa_fastai.data.labels import HPA28, HPA19, ZTG10, HPAError, LabelSet, read_labels
from hpa_fastai.data.files import find_images
from hpa_fastai.simulate.atlas import CLASS_FREQUENCY, simulate_atlas, simulate_fov, _number, _plan, _plan_even
from hpa_fastai.simulate.cells import Cells
from hpa_fastai.simulate.field import SimulateError
from hpa_fastai.simulate.patterns import PATTERNS, pattern

def number(name): return HPA28.classes.index(name)

def drawing(name, seed=1, size=128, divide=(), n=6):
    "The map of a class and the cells it was drawn on"
    c = Cells(np.random.default_rng(seed), size, n, divide)
    return PATTERNS[name.casefold()](c), c

def inside(drawn, where): return float((drawn*where).sum()/drawn.sum())

def quick(path, **kw): return simulate_atlas(path, **dict(n=5, size=48, progress=False) | kw)

def files(path): return {f.relative_to(path).as_posix(): f.read_bytes() for f in sorted(Path(path).rglob('*')) if f.is_file() and f.name != 'simulated.json'}

# ---- one field

@pytest.mark.parametrize('size', [32, 100, 256])
def test_fov_contract(size):
    img, mask = simulate_fov([0, 25], size=size, seed=3)
    assert img.shape == (4, size, size) and img.dtype == np.uint8
    assert mask.shape == (size, size) and np.issubdtype(mask.dtype, np.integer)
    assert np.array_equal(np.unique(mask), np.arange(mask.max() + 1))

def test_channels_are_what_they_are_called():
    "Blue is in the middle of cells, red and yellow around it, and nothing between the cells"
    img, mask = simulate_fov([0], seed=12)
    red, green, blue, yellow = img.astype(float)
    nucleus = blue > 60
    assert .05 < nucleus.mean() < .4
    assert red[~nucleus & (mask > 0)].mean() > 2*red[nucleus].mean()
    assert yellow[~nucleus & (mask > 0)].mean() > 2*yellow[nucleus].mean()
    assert green[nucleus].mean() > 5*green[~nucleus].mean()
    assert (img[:, mask == 0].mean(1) < 20).all() and (mask == 0).any()

def test_n_cells_have_their_nucleus_in_the_field():
    for n in (1, 4, 12):
        c = Cells(np.random.default_rng(0), 64, n)
        assert ((c.centres.real > 0) & (c.centres.real < 82) & (c.centres.imag > 0) & (c.centres.imag < 82)).sum() == n

def test_same_seed_same_field():
    a, b, other = simulate_fov([7], seed=5), simulate_fov([7], seed=5), simulate_fov([7], seed=6)
    assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])
    assert not np.array_equal(a[1], other[1])

@pytest.mark.parametrize('seed', range(3))
def test_a_larger_field_shows_the_same_cells(seed):
    small, large = simulate_fov([0], 128, seed)[1], simulate_fov([0], 384, seed)[1]
    assert (small == large[1::3, 1::3]).mean() > .95

def test_the_mask_has_no_gaps_in_its_numbers():
    assert _number(np.array([[0, 3], [3, 7]])).tolist() == [[0, 1], [1, 2]]
    assert _number(np.array([[2, 2]])).tolist() == [[1, 1]]

def test_cells_touch_and_leave_gaps():
    masks = [simulate_fov([], 128, s)[1] for s in range(8)]
    def border(m): return ((m[:, 1:] != m[:, :-1]) & (m[:, 1:] > 0) & (m[:, :-1] > 0)).sum()
    assert np.median([border(m) for m in masks]) > 40
    assert np.mean([(m == 0).mean() for m in masks]) > .05

def test_no_protein_without_targets(): assert simulate_fov([], seed=2)[0][1].mean() < 12

# ---- the patterns

@pytest.mark.parametrize('name', ['Nucleoplasm', 'Nuclear membrane', 'Nucleoli', 'Nucleoli fibrillar center', 'Nuclear speckles', 'Nuclear bodies'])
def test_nuclear_patterns_are_in_the_nucleus(name):
    drawn, c = drawing(name)
    assert drawn.max() > .5 and inside(drawn, c.nucleus_distance < .8) > .95

@pytest.mark.parametrize('name', ['Endoplasmic reticulum', 'Golgi apparatus', 'Peroxisomes', 'Endosomes', 'Lysosomes', 'Intermediate filaments',
    'Focal adhesion sites', 'Microtubules', 'Microtubule ends', 'Lipid droplets', 'Mitochondria', 'Cytosol', 'Cytoplasmic bodies', 'Rods & rings'])
def test_cytoplasmic_patterns_spare_the_nucleus(name):
    drawn, c = drawing(name)
    assert drawn.max() > .5 and inside(drawn, (c.relative_radius < .85)) < .1 and inside(drawn, c.label > 0) > .9

def test_nucleoplasm_spares_nucleoli_and_nucleoli_fill_them():
    full, c = drawing('Nucleoplasm'); core, deep = c.nucleoli > .8, (c.nucleoli < .1) & (c.relative_radius < .8)
    assert full[deep].mean() > 2*full[core].mean()
    dots, c = drawing('Nucleoli'); assert dots[c.nucleoli > .8].mean() > 5*dots[(c.nucleoli < .1) & (c.relative_radius < .8)].mean()
    centers, c = drawing('Nucleoli fibrillar center'); assert inside(centers, c.draw_bodies(c.nucleolus_centres, c.nucleolus_radii + 1) > .3) > .9

def test_the_nuclear_membrane_is_a_rim():
    drawn, c = drawing('Nuclear membrane', size=256)
    assert drawn[np.abs(c.nucleus_distance) < .3].mean() > 4*drawn[c.relative_radius < .8].mean()

@pytest.mark.parametrize('name', ['Golgi apparatus', 'Aggresome', 'Centrosome', 'Microtubule organizing center'])
def test_what_gathers_at_the_mtoc(name):
    drawn, c = drawing(name)
    drawn = np.maximum(drawn - .1, 0)
    near = np.abs(c.grid - c.cell_map(c.mtoc)) < 8
    assert inside(drawn, near) > .75 and near[c.label > 0].mean() < .6

def test_edge_patterns():
    drawn, c = drawing('Plasma membrane', size=256)
    assert drawn[(c.label > 0) & (c.edge_distance < .5)].mean() > 4*drawn[c.edge_distance > 4].mean()
    drawn, c = drawing('Cell junctions', size=256)
    assert inside(np.maximum(drawn - .05, 0), c.contact & (c.edge_distance < 1.5)) > .95
    drawn, c = drawing('Focal adhesion sites', size=256)
    assert inside(np.maximum(drawn - .1, 0), (c.edge_distance < 7) & (c.relative_radius > 1)) > .9

def test_contact_is_where_a_neighbour_is():
    from scipy.ndimage import maximum_filter, minimum_filter
    c = Cells(np.random.default_rng(3), 256, 9)
    high, low = maximum_filter(c.label, 13), minimum_filter(np.where(c.label > 0, c.label, 999), 13)      # within 2 µm
    neighbour = (high != c.label) | (low != c.label)
    assert inside(c.contact & (c.edge_distance < 1), neighbour) > .9
    assert .2 < (c.contact & (c.edge_distance < 1)).sum()/((c.label > 0) & (c.edge_distance < 1)).sum() < .95

def test_bodies_differ_in_number_and_size():
    def count(name):
        from scipy.ndimage import label
        drawn, c = drawing(name, size=512); parts, n = label(drawn > .45)
        return n, (parts > 0).sum()/n
    number, area = zip(*map(count, ['Peroxisomes', 'Endosomes', 'Lysosomes', 'Cytoplasmic bodies', 'Aggresome']))
    assert number[0] > 1.5*number[1] > 1.5*number[3] > 3*number[4]
    assert area[0] < area[1] < area[2] and area[4] > 3*area[3]

@pytest.mark.parametrize('name, kind', [('Mitotic spindle', 1), ('Cytokinetic bridge', 2)])
@pytest.mark.parametrize('seed', range(4))
def test_classes_of_division_have_dividing_cells(name, kind, seed):
    drawn, c = drawing(name, seed, divide=['spindle', 'bridge'])
    bright = drawn > .5
    cells = c.cell_map(c.phase == kind)
    assert bright.any() and np.isfinite(drawn).all()
    if kind == 1: assert inside(bright, cells) > .95
    if kind == 2: assert np.abs(c.grid[bright].mean() - c.centres[c.phase == 2].mean()) < 4
    img, _ = simulate_fov([number(name)], seed=seed)
    assert (img[1] > 100).sum() > 20

def test_a_mitotic_cell_has_a_plate_and_no_nucleus():
    c = Cells(np.random.default_rng(1), 256, 6, ['spindle'])
    cell = (c.cell_map(c.phase == 1) > 0)
    assert (c.nucleus[cell] == 0).all() and .02 < (c.blue()[cell] > .4).mean() < .4

def test_no_two_classes_look_alike():
    "On the same cells, the maps of any two classes are different"
    maps = {n: drawing(n, divide=['spindle', 'bridge'])[0].ravel() for n in HPA28.classes}
    corr = pd.DataFrame(maps).corr().to_numpy() - np.eye(28)
    worst = np.unravel_index(corr.argmax(), corr.shape)
    assert corr.max() < .9, [HPA28.classes[i] for i in worst]

def test_mixtures_show_every_part():
    both, c = simulate_fov([number('Nucleoplasm'), number('Plasma membrane')], seed=4)
    alone, _ = simulate_fov([number('Nucleoplasm')], seed=4)
    nucleus = alone[2] > 60
    assert both[1][nucleus].mean() > 30 and both[1][~nucleus].mean() > 2*alone[1][~nucleus].mean()

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
def test_workers_and_length_change_nothing(tmp_path, balance):
    "Sixteen fields are enough to start processes"
    one, two = quick(tmp_path/'1', n=16, n_workers=1, balance=balance), quick(tmp_path/'2', n=16, n_workers=2, balance=balance)
    short = quick(tmp_path/'3', n=7, balance=balance)
    assert files(tmp_path/'1') == files(tmp_path/'2') and one.equals(two)
    assert short.equals(one.head(7)) and files(tmp_path/'3').keys() - {'train.csv'} <= files(tmp_path/'1').keys()
    long = files(tmp_path/'1')
    assert all(long[k] == v for k, v in files(tmp_path/'3').items() if k != 'train.csv')

def test_another_seed_gives_other_cells(tmp_path):
    a, b = quick(tmp_path/'a', n=3), quick(tmp_path/'b', n=3, seed=1)
    assert not set(a.antibody) & set(b.antibody)
    assert not set(files(tmp_path/'a').values()) & set(files(tmp_path/'b').values())

def test_no_two_fields_of_an_atlas_are_the_same(tmp_path):
    df = quick(tmp_path/'a', n=12, masks=True)
    assert len({(tmp_path/'a'/'masks'/f'{i}.png').read_bytes() for i in df.Id}) == 12

def test_a_script_needs_no_main_guard(tmp_path):
    script = tmp_path/'make.py'
    script.write_text(f"from hpa_fastai.simulate.atlas import simulate_atlas\ndf = simulate_atlas({str(tmp_path/'a')!r}, n=16, size=32, n_workers=2, progress=False)\nprint('fields', len(df))")
    out = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert out.stdout.split() == ['fields', '16'], out.stderr[-500:]

@pytest.mark.parametrize('balance', ['atlas', 'even'])
def test_antibodies_have_a_few_fields_and_one_label_set(balance):
    df = _plan(2800, HPA28, 0, balance)
    assert (df.groupby('antibody').Target.nunique() == 1).all()
    sizes = df.groupby('antibody').size()
    assert sizes.max() <= 6 and 3.5 < sizes.mean() < 5.5
    assert (df.Id.str.split('_').str[0] == df.antibody).all() and df.Id.is_unique

def test_the_imbalance_is_that_of_the_competition():
    y = HPA28.encode(_plan(12000, HPA28, 0, 'atlas').Target)
    f = np.array([CLASS_FREQUENCY[c.casefold()] for c in HPA28.classes])
    assert abs(y.sum(1).mean() - 1.634) < .06 and y.sum(1).min() == 1
    assert np.abs(y.mean(0) - f).max() < .03 and np.corrcoef(y.mean(0), f)[0, 1] > .99
    lysosomes, endosomes = y[:, number('Lysosomes')] > 0, y[:, number('Endosomes')] > 0
    assert (endosomes | ~lysosomes).all()

@pytest.mark.parametrize('labels', [HPA28, HPA19, ZTG10])
@pytest.mark.parametrize('seed', [0, 7])
def test_even_has_every_class(labels, seed):
    C = len(labels)
    assert {t for _, ts in _plan_even(C, labels, seed) for t in ts} == set(range(C))
    plan = _plan_even(C*80, labels, seed)
    counts = np.bincount([t for _, ts in plan for t in ts])
    if labels.negative is not None: counts = np.delete(counts, labels.negative)
    assert np.abs(counts/counts.mean() - 1).max() < .4
    lengths = np.bincount([len(ts) for _, ts in plan])
    assert len(lengths) == 4 and lengths[1] > lengths[2] > lengths[3] > 0

@pytest.mark.parametrize('labels, header', [(HPA19, 'ID,Label,antibody'), (ZTG10, 'Image,Label,antibody')])
def test_other_label_sets(tmp_path, labels, header):
    df = quick(tmp_path/'a', n=len(labels), labels=labels, balance='even')
    assert (tmp_path/'a'/'train.csv').read_text().splitlines()[0] == header
    assert read_labels(tmp_path/'a'/'train.csv', labels).Target.tolist() == df.Target.tolist()

def test_negative_is_dark_and_alone():
    assert simulate_fov([18], labels=HPA19, seed=1)[0][1].mean() < 10
    plan = _plan(3000, HPA19, 0, 'even')
    assert all(ts == [18] for ts in plan.targets if 18 in ts) and plan.targets.map(lambda ts: 18 in ts).any()

def test_your_own_class_is_drawn_in_other_processes_too(tmp_path):
    @pattern('Ghost')
    def ghost(c): return 3*np.ones((c.size, c.size), np.float32)
    try:
        df = quick(tmp_path/'a', n=16, labels=LabelSet('mine', ('Ghost',)), n_workers=2)
        assert np.asarray(Image.open(tmp_path/'a'/'train'/f'{df.Id[9]}_green.png')).min() > 100
    finally: del PATTERNS['ghost']

# ---- what goes wrong

@pytest.mark.parametrize('args, says', [
    (dict(n=0), 'n: 0'), (dict(size=16), 'size=16'), (dict(balance='fair'), "choose 'atlas'"),
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
    (tmp_path/'train').mkdir(); (tmp_path/'train'/'real_red.png').write_bytes(b'precious')
    with pytest.raises(SimulateError, match='not of a simulated atlas'): quick(tmp_path, force=True)
    assert (tmp_path/'train'/'real_red.png').read_bytes() == b'precious'

def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(SimulateError, match='cannot write in'): quick(tmp_path/'file'/'atlas')

@pytest.mark.parametrize('targets, kw, says', [([28], {}, r'label 28 is not one of the 28 classes \(0..27\)'), ([-1], {}, 'label -1'),
    ([0], dict(size=8), 'size=8'), ([0], dict(n_cells=0), 'n_cells=0')])
def test_bad_fields(targets, kw, says):
    with pytest.raises(SimulateError, match=says): simulate_fov(targets, **kw)

def test_importing_needs_no_torch():
    code = "import sys, hpa_fastai.simulate.atlas; print([m for m in ('torch', 'fastai', 'scipy', 'joblib') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'
