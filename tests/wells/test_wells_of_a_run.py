"Wells of a run: one row a well by every door, maps in the true format, and a page that names what is odd."
import re
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from hpa_fastai.cli.main import main
from hpa_fastai.data.files import find_images
from hpa_fastai.data.labels import LabelSet
from hpa_fastai.deploy.tables import ResultError, read_predictions, with_labels
from hpa_fastai.interpret.report import report
from hpa_fastai.interpret.run_report import RunReport
from hpa_fastai.plates.wells import PLATE_FORMATS, well_name
from hpa_fastai.wells.effects import simulate_fields
from hpa_fastai.wells.maps import WellMap, draw_wells
from hpa_fastai.wells.measures import choose_fields, measure_fields
from hpa_fastai.wells.summary import summarise_wells
from hpa_fastai.data.reader import ImageReader

TWO = LabelSet('two', ('Nucleoplasm', 'Cytosol'))


def predictions(figures, plate='P1'):
    "A table of predictions of simulated fields of view"
    n, flags = len(figures), np.where(figures.flagged, 'out-of-focus', '')
    table = pd.DataFrame(dict(Id=[f'{plate}_{i}' for i in range(n)], Predicted='0', Names='Nucleoplasm', Nucleoplasm=.9,
                              Cytosol=.1, flags=flags, error=np.where(figures.failed, 'damaged', ''), plate=plate,
                              well=[well_name(*o) for o in zip(figures.row, figures.column)]))
    table.loc[figures.failed.to_numpy(), ['Predicted', 'Names', 'flags']] = ''
    table.loc[figures.failed.to_numpy(), ['Nucleoplasm', 'Cytosol']] = np.nan
    return with_labels(table, TWO)


@pytest.fixture
def plate(): return predictions(simulate_fields(96, 4, seed=3, bad={(3, 5): dict(flagged=1.)}))


def test_a_row_for_each_well_of_each_plate(plate):
    both = with_labels(pd.concat([plate, predictions(simulate_fields(24, 2), 'P2')], ignore_index=True), TWO)
    found = summarise_wells(both)
    assert list(found)[:9] == ['plate', 'well', 'row', 'column', 'fields', 'failed', 'flagged', 'locations', 'flags']
    assert found.plate.value_counts().to_dict() == dict(P1=96, P2=24) and found.fields.sum() == len(both)
    assert found[found.well.eq('C05')]['flags'].iloc[0] == 'out-of-focus in 4 of 4'
    assert found.failed.sum() == both['error'].ne('').sum() and found.locations.eq('Nucleoplasm').all()


def test_a_well_is_decided_by_its_mean_and_the_thresholds_of_the_table():
    table = pd.DataFrame(dict(Id=list('abcd'), Predicted=['0', '0', '', '1'], Nucleoplasm=[.9, .31, .29, .1],
                              Cytosol=[.1, .1, .1, .8], error='', well=['A1', 'B1', 'A1', 'r02c01']))
    found = summarise_wells(with_labels(table, TWO))
    assert found.locations.tolist() == ['Nucleoplasm', ''] and np.allclose(found.Nucleoplasm, [.595, .205])
    assert summarise_wells(with_labels(table, TWO), thresholds=.6).locations.tolist() == ['', '']


def test_wells_nobody_can_read_are_refused_and_fields_without_one_are_counted(plate):
    with pytest.raises(ResultError, match='no column well'): summarise_wells(plate.drop(columns='well'))
    with pytest.raises(ResultError, match="P1_0: 'X99' is in no plate"): summarise_wells(plate.assign(well='X99'))
    plate.loc[3, 'well'] = ''
    with pytest.warns(UserWarning, match='1 of 384 fields of view have no well and are left out: P1_3'):
        assert summarise_wells(plate).fields.sum() == 383


def test_a_layout_goes_with_the_wells_into_every_format(plate, tmp_path):
    layout = pd.DataFrame(dict(well=[f'{r}{c}' for r in 'ABCDEFGH' for c in range(1, 13)], gene='TP53', dose=range(96)))
    for name in ('w.csv', 'w.xlsx', 'w.parquet'):
        found = summarise_wells(plate, layout=layout, out=tmp_path/name)
        assert found.gene.eq('TP53').all() and found.dose.tolist() == [str(i) for i in range(96)]
    assert len(pd.read_csv(tmp_path/'w.csv')) == len(pd.read_excel(tmp_path/'w.xlsx')) == 96
    with pytest.raises(ResultError, match='exists'): summarise_wells(plate, out=tmp_path/'w.csv')


def test_a_table_of_cells_has_wells_too():
    cells = pd.DataFrame(dict(Id=['a', 'a', 'b'], cell=[1, 2, 1], Predicted=['0', '0', '1'], Nucleoplasm=[.9, .7, .1],
                              Cytosol=[.1, .1, .8], mask='', error='', well=['A1', 'A1', 'A2']))
    found = summarise_wells(with_labels(cells, TWO))
    assert found.fields.tolist() == [1, 1] and found.cells.tolist() == ['2', '1'] and found.Nucleoplasm[0] == .8


@pytest.mark.parametrize('n', PLATE_FORMATS)
def test_a_map_has_the_true_format_and_no_labels_that_touch(n):
    rows, columns = PLATE_FORMATS[n]
    wells = [well_name(r, c) for r in range(1, rows+1) for c in range(1, columns+1)]
    for kind in ('count', 'share', 'log'):
        for width in (3.6, 6.5):
            figure = draw_wells(WellMap('x', pd.Series(np.linspace(0, 1, n-1), wells[1:]), kind), n, wells[:1], width)
            figure.draw_without_rendering()
            ax = figure.axes[0]
            assert ax.images[0].get_array().shape == (rows, columns) and ax.images[0].get_array().mask.sum() == 1
            for labels in (ax.get_xticklabels(), ax.get_yticklabels(), figure.axes[1].get_yticklabels()):
                boxes = [o.get_window_extent() for o in labels if o.get_text()]
                assert not any(a.overlaps(b) for a, b in zip(boxes, boxes[1:])), (n, kind, width)
            plt.close(figure)


def test_each_well_has_its_share_of_the_pictures_that_are_measured():
    wells = pd.Series(np.repeat([f'A{i:02d}' for i in range(1, 25)], [9]*12+[1]*12))
    chosen = wells[choose_fields(wells)].value_counts()
    assert chosen[:12].eq(4).all() and chosen[12:].eq(1).all()


def test_a_channel_that_is_missing_is_no_trait(small_atlas):
    table = find_images(small_atlas/'train').head(4).assign(yellow=None)
    assert list(measure_fields(table, ImageReader(size=32))) == ['red', 'green', 'blue', 'focus']


def test_the_page_names_the_faulty_well_and_shows_its_plate(plate, tmp_path, capsys):
    plate.to_csv(tmp_path/'p.csv', index=False)
    layout = pd.DataFrame(dict(well=plate.well.unique(), drug='none'))
    layout.to_csv(tmp_path/'layout.csv', index=False)
    assert main(['report', str(tmp_path/'p.csv'), '--out', str(tmp_path/'r.html'), '--layout',
                 str(tmp_path/'layout.csv'), '--wells', str(tmp_path/'wells.csv')]) in (0, None)
    page = (tmp_path/'r.html').read_text(encoding='utf-8')
    assert 'Plate P1: 1 well differs from the middle of the plate: C05 (100% of the pictures flagged).' in page
    assert page.count('<figure data-name=') == 4 and '://' not in page
    wells = pd.read_csv(tmp_path/'wells.csv')
    assert len(wells) == 96 and wells.drug.eq('none').all() and 'drug' in page
    assert main(['report', str(tmp_path/'p.csv'), '--out', str(tmp_path/'r2.html'), '--wells',
                 str(tmp_path/'wells.csv')]) == 2
    assert 'wells.csv exists' in capsys.readouterr().err and not (tmp_path/'r2.html').exists()


def test_a_table_without_wells_or_with_others_words_for_wells_still_gets_its_page(plate, tmp_path):
    text = report(plate.drop(columns=['well']), tmp_path/'a.html').read_text(encoding='utf-8')
    assert 'class="maps' not in text
    text = report(plate.assign(well='sample 3'), tmp_path/'b.html').read_text(encoding='utf-8')
    assert 'Plates are not shown: P1_0: &#39;sample 3&#39; is not the name of a well' in text


def test_pictures_of_a_plate_are_measured(small_atlas, trained, tmp_path):
    shutil.copytree(small_atlas/'train', tmp_path/'plate')
    table = find_images(tmp_path/'plate').head(24)
    table = table.assign(plate='P1', well=[well_name(i//6+1, i%6+1) for i in range(24)])
    import hpa_fastai
    found = hpa_fastai.predict(table, trained[1], out=tmp_path/'p.csv', report=tmp_path/'r.html', progress=False)
    assert list(found)[-2:] == ['plate', 'well'] and read_predictions(tmp_path/'p.csv').well.nunique() == 24
    page = (tmp_path/'r.html').read_text(encoding='utf-8')
    assert '24 pictures were measured' in page and 'Pictures/fine detail' in page


def test_many_plates_are_few_pictures_those_with_findings_first(plate):
    tables = [predictions(simulate_fields(24, 1, seed=i), f'Q{i:02d}').head(12) for i in range(14)]
    run = RunReport(with_labels(pd.concat([*tables, plate], ignore_index=True), TWO))
    page = run.page()
    drawn = re.findall(r'<h2>Plate (.*?)</h2>', page)
    assert len(drawn) == 12 and 'P1' in drawn and '12 of 15 plates are drawn' in page


def test_the_maps_can_be_chosen_in_a_browser(plate, tmp_path, browser):
    browser.open(report(plate, tmp_path/'r.html'))
    shown = lambda: browser.texts('.maps figure b')
    assert shown() == ['fields of view', 'not read', 'out-of-focus', 'Nucleoplasm']
    choose = ('const s = document.querySelector(".maps select"); s.value = arguments[0]; '
              's.dispatchEvent(new Event("change"))')
    small = browser.run('return document.querySelector(".maps svg").getBoundingClientRect().width')
    browser.run(choose, 'Flags/out-of-focus')
    assert shown() == ['out-of-focus']
    large = browser.run('return document.querySelector(".maps figure:not([hidden]) svg").getBoundingClientRect().width')
    assert large > 1.5*small
    browser.run(choose, '')
    assert len(shown()) == 4 and browser.errors() == []
    assert browser.run('return document.documentElement.scrollWidth <= innerWidth')
