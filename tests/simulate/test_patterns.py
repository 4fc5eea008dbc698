"Cells and patterns: what is drawn where."
from functools import cache
import numpy as np, pandas as pd, pytest
from scipy.ndimage import label, maximum_filter, minimum_filter
from hpa_fastai.data.labels import HPA28
from hpa_fastai.simulate.cells import CYTOKINESIS, MITOSIS, Cells
from hpa_fastai.simulate.patterns import PATTERNS

@cache
def drawing(name, seed=1, size=128, divisions=(), n=6):
    "The map of a class and the cells it was drawn on"
    c = Cells(np.random.default_rng(seed), size, n, divisions)
    return PATTERNS[name.casefold()](c), c

def inside(drawn, where): return float((drawn*where).sum()/drawn.sum())

def test_n_cells_have_their_nucleus_in_the_field():
    for n in (1, 4, 12):
        c = Cells(np.random.default_rng(0), 64, n)
        assert ((c.centres.real > 0) & (c.centres.real < 82) & (c.centres.imag > 0) & (c.centres.imag < 82)).sum() == n

@pytest.mark.parametrize('name', HPA28.classes[:6])
def test_nuclear_patterns_are_in_the_nucleus(name):
    drawn, c = drawing(name)
    assert drawn.max() > .5 and inside(drawn, c.nucleus_distance < .8) > .95

@pytest.mark.parametrize('name', [
    'Endoplasmic reticulum', 'Golgi apparatus', 'Peroxisomes', 'Endosomes', 'Lysosomes', 'Intermediate filaments',
    'Focal adhesion sites', 'Microtubules', 'Microtubule ends', 'Lipid droplets', 'Mitochondria', 'Cytosol',
    'Cytoplasmic bodies', 'Rods & rings'])
def test_cytoplasmic_patterns_spare_the_nucleus(name):
    drawn, c = drawing(name)
    assert drawn.max() > .5 and inside(drawn, (c.relative_radius < .85)) < .1 and inside(drawn, c.label > 0) > .9

def test_nucleoplasm_spares_nucleoli_and_nucleoli_fill_them():
    nucleoplasm, c = drawing('Nucleoplasm')
    core, around = c.nucleoli > .8, (c.nucleoli < .1) & (c.relative_radius < .8)
    assert nucleoplasm[around].mean() > 2*nucleoplasm[core].mean()
    nucleoli, _ = drawing('Nucleoli')                           # on the same cells
    assert nucleoli[core].mean() > 5*nucleoli[around].mean()
    centers, c = drawing('Nucleoli fibrillar center')
    assert inside(centers, c.draw_bodies(c.nucleolus_centres, c.nucleolus_radii + 1) > .3) > .9

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
    c = Cells(np.random.default_rng(3), 256, 9)
    high, low = maximum_filter(c.label, 13), minimum_filter(np.where(c.label > 0, c.label, 999), 13)      # within 2 µm
    neighbour = (high != c.label) | (low != c.label)
    assert inside(c.contact & (c.edge_distance < 1), neighbour) > .9
    assert .2 < (c.contact & (c.edge_distance < 1)).sum()/((c.label > 0) & (c.edge_distance < 1)).sum() < .95

def test_bodies_differ_in_number_and_size():
    def count(name):
        drawn, _ = drawing(name, size=512)
        parts, n = label(drawn > .45)
        return n, (parts > 0).sum()/n
    number, area = zip(*map(count, ['Peroxisomes', 'Endosomes', 'Lysosomes', 'Cytoplasmic bodies', 'Aggresome']))
    assert number[0] > 1.5*number[1] > 1.5*number[3] > 3*number[4]
    assert area[0] < area[1] < area[2] and area[4] > 3*area[3]

@pytest.mark.parametrize('seed', range(4))
def test_spindles_and_bridges_are_where_cells_divide(seed):
    drawn, c = drawing('Mitotic spindle', seed, divisions=('spindle', 'bridge'))
    assert (drawn > .5).any() and inside(drawn > .5, c.cell_map(c.phase == MITOSIS)) > .95
    drawn, c = drawing('Cytokinetic bridge', seed, divisions=('spindle', 'bridge'))
    middle = c.centres[c.phase == CYTOKINESIS].mean()
    assert (drawn > .5).any() and np.abs(c.grid[drawn > .5].mean() - middle) < 4

def test_a_mitotic_cell_has_a_plate_and_no_nucleus():
    c = Cells(np.random.default_rng(1), 256, 6, ['spindle'])
    cell = c.cell_map(c.phase == MITOSIS) > 0
    assert (c.nucleus[cell] == 0).all() and .02 < (c.blue()[cell] > .4).mean() < .4

def test_no_two_classes_look_alike():
    "On the same cells, the maps of any two classes are different"
    maps = {n: drawing(n, divisions=('spindle', 'bridge'))[0].ravel() for n in HPA28.classes}
    corr = pd.DataFrame(maps).corr().to_numpy() - np.eye(28)
    worst = np.unravel_index(corr.argmax(), corr.shape)
    assert corr.max() < .9, [HPA28.classes[i] for i in worst]
