"Reports: one page each for a data set, a model and a run, which opens in a browser and says what is missing."
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from hpa_fastai.deploy.loading import load_bundle
from hpa_fastai.cli.main import main
from hpa_fastai.data.files import find_images
from hpa_fastai.deploy.predictor import Predictor
from hpa_fastai.data.labels import HPAError
from hpa_fastai.interpret.report import report

EVIL = '<img src=x onerror="document.title=\'taken\'">'


@pytest.fixture(scope='module')
def run(trained, small_atlas):
    "Predictions for the small atlas; one Id tries to be HTML, one image failed"
    table = find_images(small_atlas/'train')
    table.loc[0, 'Id'] = EVIL
    run = Predictor(trained[1])(table)
    run.loc[3, [c for c in run if c not in ('Id', 'error')]] = ['', '', *[np.nan]*28, '']
    run.loc[3, 'error'] = f'{EVIL}: cut off'
    return run, table


@pytest.fixture(scope='module')
def page(run, trained, tmp_path_factory): return report(run[0], tmp_path_factory.mktemp('report')/'run.html', trained[1], run[1], seconds=9)


def headings(page): return re.findall(r'<h2>(.*?)</h2>', page.read_text(encoding='utf-8'))


def test_the_page_of_a_run(page, run, browser):
    browser.emulate()
    browser.open(page)
    assert browser.errors() == [] and page.stat().st_size < 10e6
    assert headings(page) == ['Locations', 'Beside training', 'Pictures', 'Map', 'Flagged', 'Failures', 'Predictions']
    facts = dict(zip(*[browser.run(f'return [...document.querySelectorAll("{t}")].map(e => e.textContent)') for t in ('dt', 'dd')]))
    assert facts['fields of view'] == '90' and facts['failed'] == '1' and facts['throughput'] == '10.0 images/s'
    assert browser.run('return document.querySelectorAll("[onerror]").length') == 0
    text = browser.run('return document.body.textContent')
    assert f'{EVIL}: cut off' in text and EVIL in browser.run('return [...document.querySelectorAll("#s7 td:first-child")].map(e => e.textContent)')
    named = run[0].Names.str.split('|').explode()
    rows = browser.run('return [...document.querySelectorAll("#s1 tbody tr")].map(r => [r.cells[0].textContent, +r.cells[1].dataset.v])')
    assert {k: v for k, v in rows} == {c: int((named == c).sum()) for c, _ in rows} and len(rows) == 28


def test_its_tables_sort_and_filter(page, run, browser):
    browser.emulate()
    browser.open(page)
    browser.click('#s7 th:nth-child(4) button')
    probs = browser.run('return [...document.querySelectorAll("#s7 tbody tr")].map(r => +r.cells[3].dataset.v)')
    assert probs == sorted(probs, reverse=True) and len(probs) == 89
    name = run[0].Names[run[0].Names != ''].iloc[0].split('|')[0]
    browser.type('#s7 input', name)
    left = browser.run('return [...document.querySelectorAll("#s7 tbody tr")].filter(r => !r.hidden).map(r => r.textContent)')
    assert 0 < len(left) < 90 and all(name in t for t in left)


def test_it_fits_a_phone(page, browser):
    browser.emulate(390, 800, phone=True)
    browser.open(page)
    assert browser.run('return document.documentElement.scrollWidth') <= 390
    browser.emulate()


def test_what_is_missing_is_said(run, trained, tmp_path):
    run, table = run
    alone = report(run, tmp_path/'alone.html').read_text(encoding='utf-8')
    assert 'made without the pictures' in alone and 'Name the model (--reference MODEL)' in alone and 'not recorded' in alone
    never = [c for c in load_bundle(trained[1]).labels.classes if not run.Names.str.split('|').map(lambda o: c in o).any()]
    cleared = run.assign(Names=run.Names.str.replace('Nucleoli', '', regex=False))
    text = report(cleared, tmp_path/'never.html').read_text(encoding='utf-8')
    assert 'Never named: ' in text and all(c.replace('&', '&amp;') in text for c in [*never, 'Nucleoli'])
    assert 'None of the pictures' in report(run[1:2], tmp_path/'other.html', images=table[5:9]).read_text(encoding='utf-8')


@pytest.mark.parametrize('rows, words', [(slice(0, 0), 'The run has no fields of view'), (slice(1, 2), 'Predictions'), (slice(3, 4), 'No field of view could be read')])
def test_little_is_no_error(run, trained, tmp_path, browser, rows, words):
    part, table = run[0][rows], run[1]
    page = report(part, tmp_path/'a.html', trained[1], table)
    browser.open(page)
    assert browser.errors() == [] and words in page.read_text(encoding='utf-8')


def test_the_page_of_a_model(trained, small_atlas, tmp_path, browser):
    page = report(trained[1], tmp_path/'model.html', images=small_atlas/'train')
    browser.open(page)
    assert browser.errors() == [] and page.stat().st_size < 10e6
    assert headings(page) == ['By class', 'Training', 'Reliability', 'Confusions', 'Hardest images', 'Mistakes by class', 'What it takes for each location', 'Card']
    f1 = {k: float(v) for k, v in browser.run('return [...document.querySelectorAll("#s1 tbody tr")].map(r => [r.cells[0].textContent, r.cells[3].dataset.v])') if v is not None}
    assert f1 == pytest.approx(trained[0].evaluation.table.f1.dropna().to_dict()) and f1
    assert browser.run('return document.querySelectorAll("#s5 figure").length') == len(load_bundle(trained[1]).config['validation']['hardest'])
    mistakes = load_bundle(trained[1]).config['validation']['mistakes']
    assert mistakes and browser.run('return document.querySelectorAll("#s6 figure").length') == len(mistakes)


def test_curves_where_there_is_a_log(trained, tmp_path):
    shutil.copytree(trained[1], tmp_path/'m')
    config = json.loads((tmp_path/'m'/'config.json').read_text(encoding='utf-8'))
    log = [dict(stage=s, size=z, epoch=e, train_loss=.2, valid_loss=.3, mean_ap=.4, lr=1e-3, seconds=2.) for s, z in enumerate((32, 48)) for e in range(2)]
    for kept, curves in ((log, True), ([], False), (None, False), (['odd'], False)):
        config['training']['log'] = kept
        (tmp_path/'m'/'config.json').write_text(json.dumps(config))
        text = report(tmp_path/'m', tmp_path/'m.html', force=True).read_text(encoding='utf-8')
        assert ('validation loss' in text, 'there are no curves' in text) == (curves, not curves)


def test_a_model_without_an_evaluation(trained, tmp_path):
    bundle = load_bundle(trained[1])
    bundle.config |= dict(metrics=None, validation=None, reference=None, training={})
    text = report(bundle, tmp_path/'m.html').read_text(encoding='utf-8')
    assert 'saved without an evaluation' in text and 'Nothing is stored about the training' in text


def test_the_page_of_a_data_set(small_atlas, tmp_path): assert 'The split, checked' in headings(report(small_atlas, tmp_path/'data.html'))


def test_from_the_command_line(trained, small_atlas, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(['predict', str(small_atlas/'train'), '--model', str(trained[1]), '--out', 'p.csv', '--report', 'p.html', '--no-progress']) == 0
    assert 'Page: p.html' in capsys.readouterr().out and re.search(r'\d images/s', (tmp_path/'p.html').read_text(encoding='utf-8'))
    assert main(['report', 'p.csv', '--reference', str(trained[1]), '--out', 'q.html']) == 0
    for args, words in ((['report', 'nowhere'], 'nothing there'), (['report', 'p.csv', '--out', 'p.html'], '--force'), (['report', str(small_atlas/'train.csv')], 'not a table of predictions'),
                        (['report', 'p.csv', '--reference', 'nowhere', '--out', 'r.html'], 'nowhere'), (['report', 'p.csv', '--images', 'nowhere', '--out', 'r.html'], 'nowhere')):
        capsys.readouterr()
        assert main(args) == 2
        err = capsys.readouterr().err
        assert words in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path/'r.html').exists()


def test_nothing_to_report_on(tmp_path):
    with pytest.raises(HPAError, match='nothing there'): report(tmp_path/'none', tmp_path/'a.html')
