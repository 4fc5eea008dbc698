"Reports: one page each for a data set, a model and a run, which opens in a browser and says what is missing."
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from published_starts import draw_network, save_weights

from hpa_fastai.basics.errors import HPAError
from hpa_fastai.batches.loaders import HPADataLoaders
from hpa_fastai.cli.main import main
from hpa_fastai.data.files import find_images
from hpa_fastai.data.label_tables import read_labels
from hpa_fastai.deploy.loading import load_bundle
from hpa_fastai.deploy.predictor import Predictor
from hpa_fastai.interpret.activation import activation_maps
from hpa_fastai.interpret.model_report import ModelReport
from hpa_fastai.interpret.prediction import predict
from hpa_fastai.interpret.report import report
from hpa_fastai.interpret.run_report import RunReport, explain_thresholds
from hpa_fastai.train.learner import hpa_learner

EVIL = '<img src=x onerror="document.title=\'taken\'">'


@pytest.fixture(scope='module')
def run(trained, small_atlas):
    "Predictions for some of the small atlas, and where the pictures are; one Id tries to be HTML, one image failed"
    table = find_images(small_atlas/'train').head(50)
    table.loc[0, 'Id'] = EVIL
    run = Predictor(trained[1])(table)
    run.loc[3, [c for c in run if c not in ('Id', 'error')]] = ['', '', *[np.nan]*28, '']
    run.loc[3, 'error'] = f'{EVIL}: cut off'
    return run, table


@pytest.fixture(scope='module')
def page(run, trained, tmp_path_factory):
    "The page of the run, with its model and its pictures"
    out = tmp_path_factory.mktemp('report')/'run.html'
    return report(run[0], out, trained[1], run[1], seconds=5, per_class=2)


def headings(page): return re.findall(r'<h2>(.*?)</h2>', page.read_text(encoding='utf-8'))


def test_the_page_of_a_run(page, run, browser):
    browser.emulate()
    browser.open(page)
    assert browser.errors() == [] and page.stat().st_size < 10e6
    assert headings(page) == ['Locations', 'Beside training', 'Pictures', 'Map', 'Flagged', 'Failures', 'Predictions']
    facts = dict(zip(browser.texts('dt'), browser.texts('dd')))
    assert (facts['fields of view'], facts['failed'], facts['throughput']) == ('50', '1', '10.0 images/s')
    assert browser.count('[onerror]') == 0 and browser.count('#s3 .over') > 0
    assert f'{EVIL}: cut off' in browser.texts('#s6 td') and EVIL in browser.texts('#s7 td:first-child')
    named = run[0].Names.str.split('|').explode()
    counts = dict(zip(browser.texts('#s1 td:first-child'), map(int, browser.texts('#s1 td:nth-child(2)'))))
    assert counts == {c: (named == c).sum() for c in counts} and len(counts) == 28


def test_its_tables_sort_and_filter(page, run, browser):
    browser.emulate()
    browser.open(page)
    browser.click('#s7 th:nth-child(4) button')
    probabilities = list(map(float, browser.texts('#s7 td:nth-child(4)')))
    assert probabilities == sorted(probabilities, reverse=True) and len(probabilities) == 49
    one = run[0][run[0].Names != ''].iloc[-1]
    browser.type('#s7 input', f'{one.Id} {one.Names.split("|")[0]}')
    assert browser.texts('#s7 td:first-child') == [one.Id]


def test_it_fits_a_phone(page, browser):
    browser.emulate(390, 800, phone=True)
    browser.open(page)
    assert browser.run('return document.documentElement.scrollWidth') <= 390
    browser.emulate()


def test_what_is_missing_is_said(run, trained, tmp_path):
    run, table = run
    alone = report(run, tmp_path/'alone.html').read_text(encoding='utf-8')
    said = ('made without the pictures', 'Name the model (--reference MODEL)', 'not recorded')
    assert [words for words in said if words not in alone] == []
    cleared = RunReport(run.assign(Names=run.Names.str.replace('Nucleoli', '', regex=False)))
    never = [c for c in cleared.classes if not cleared.read.Names.str.split('|').map(lambda names: c in names).any()]
    assert 'Nucleoli' in never and cleared.location_section().text.endswith(f'Never named: {", ".join(never)}.')
    other = RunReport(run[1:2], table=table[5:9])
    assert 'None of the pictures' in other.picture_section(other.examples(), {}).text


@pytest.mark.parametrize('rows, words', [
    (slice(0, 0), 'The run has no fields of view'),
    (slice(1, 2), 'Predictions'),
    (slice(3, 4), 'No field of view could be read'),
], ids=['none', 'one', 'failed'])
def test_little_is_no_error(run, trained, tmp_path, browser, rows, words):
    page = report(run[0][rows], tmp_path/'a.html', trained[1], run[1])
    browser.open(page)
    assert browser.errors() == [] and words in page.read_text(encoding='utf-8')


def test_pages_of_a_model_that_began_with_published_weights(small_atlas, tmp_path):
    "Both pages, maps and the map of the run, and in the card where the weights came from"
    file = save_weights(draw_network('hpa-densenet121'), tmp_path, 'hpa-densenet121')
    few = read_labels(small_atlas/'train.csv').head(40)
    dls = HPADataLoaders.from_df(few, small_atlas/'train', size=64, bs=16, cache=tmp_path/'cache', progress=False)
    learn = hpa_learner(dls, 'hpa-densenet121', file)
    with learn.no_bar(), learn.no_logging(): learn.fit_progressive(fine_tune=False, verbose=False)
    learn.fit_thresholds(), learn.evaluate()
    model, table = learn.save_bundle(tmp_path/'model'), find_images(small_atlas/'train').head(20)
    run = Predictor(model)(table)
    assert (run['error'] == '').all()
    page = report(run, tmp_path/'run.html', model, table, per_class=1)
    assert {'Locations', 'Beside training', 'Map', 'Predictions'} <= set(headings(page))
    assert 'Started from: hpa-densenet121 (MIT; ' in report(model, tmp_path/'model.html').read_text(encoding='utf-8')
    maps = activation_maps(model, table.head(2))
    assert maps.shape == (2, 64, 64) and np.isfinite(maps).all()


def test_the_page_of_a_model(trained, small_atlas, tmp_path, browser):
    learn, model = trained
    table = find_images(small_atlas/'train')
    validated = table[table.Id.isin(learn.dls.valid_ds.items.Id)]
    page = report(model, tmp_path/'model.html', images=validated, per_class=1)
    browser.open(page)
    assert browser.errors() == [] and page.stat().st_size < 10e6
    assert headings(page) == ['By class', 'Training', 'Reliability', 'Confusions', 'Hardest images',
                              'Mistakes by class', 'What it takes for each location', 'Card']
    shown = dict(zip(browser.texts('#s1 td:first-child'), browser.texts('#s1 td:nth-child(4)')))
    f1 = learn.evaluation.table.f1.dropna()
    assert len(f1) and {c: float(v) for c, v in shown.items() if v != '–'} == pytest.approx(f1.to_dict(), abs=6e-4)
    stored = load_bundle(model).config['validation']
    assert browser.count('#s5 figure') == len(stored['hardest'])
    assert browser.count('#s6 figure') == len(stored['mistakes']) > 0


def test_curves_where_there_is_a_log(trained):
    bundle = load_bundle(trained[1])
    epoch = dict(train_loss=.2, valid_loss=.3, mean_ap=.4, lr=1e-3, seconds=2.)
    log = [dict(stage=s, size=z, epoch=e, **epoch) for s, z in enumerate((32, 48)) for e in range(2)]
    for kept, curves in ((log, True), ([], False), (None, False), (['odd'], False)):
        bundle.config['training']['log'] = kept
        section = ModelReport(bundle).training_section()
        assert (len(section.parts), 'there are no curves' in section.text) == (curves, not curves)


def test_a_model_without_an_evaluation(trained, tmp_path):
    bundle = load_bundle(trained[1])
    bundle.config |= dict(metrics=None, validation=None, reference=None, training={})
    text = report(bundle, tmp_path/'m.html').read_text(encoding='utf-8')
    assert 'saved without an evaluation' in text and 'Nothing is stored about the training' in text


def test_the_page_of_a_data_set(small_atlas, tmp_path):
    assert 'The split, checked' in headings(report(small_atlas, tmp_path/'data.html', per_class=1))


def test_from_the_command_line(trained, small_atlas, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model, few = str(trained[1]), tmp_path/'few'
    few.mkdir()
    for row in find_images(small_atlas/'train').head(6).itertuples():
        for file in map(Path, (row.red, row.green, row.blue, row.yellow)): (few/file.name).symlink_to(file)
    assert main(['predict', 'few', '--model', model, '--out', 'p.csv', '--report', 'p.html', '--no-progress']) == 0
    assert 'Page: p.html' in capsys.readouterr().out
    assert re.search(r'\d images/s', (tmp_path/'p.html').read_text(encoding='utf-8'))
    assert main(['report', 'p.csv', '--reference', model, '--out', 'q.html']) == 0
    for args, words in (
        (['nowhere'], 'nothing there'),
        (['p.csv', '--out', 'p.html'], '--force'),
        ([str(small_atlas/'train.csv')], 'not a table of predictions'),
        (['p.csv', '--reference', 'nowhere', '--out', 'r.html'], 'nowhere'),
        (['p.csv', '--images', 'nowhere', '--out', 'r.html'], 'nowhere'),
    ):
        capsys.readouterr()
        assert main(['report', *args]) == 2
        error = capsys.readouterr().err
        assert words in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path/'r.html').exists()


def test_nothing_to_report_on(tmp_path):
    with pytest.raises(HPAError, match='nothing there'): report(tmp_path/'none', tmp_path/'a.html')


def test_what_the_page_warns_of_is_said_by_every_door(trained, small_atlas, tmp_path, monkeypatch, capsys):
    from hpa_fastai.interpret.prediction import predict
    from hpa_fastai.interpret import run_report
    images, found = find_images(small_atlas/'train').head(6), run_report.monitor
    changed = ['The pictures are darker than those of the training.', 'Perhaps they are blurred.']
    monkeypatch.setattr(run_report, 'monitor', lambda *args, **kw: replace(found(*args, **kw), findings=changed[:1],
                                                                           doubts=changed[1:]))
    predict(images, trained[1], report=tmp_path/'a.html', progress=False)
    assert f'2 warnings on the page: {changed[0]}' in capsys.readouterr().out
    table = tmp_path/'p.csv'
    Predictor(trained[1])(images).to_csv(table, index=False)
    assert main(['report', str(table), '--reference', str(trained[1]), '--out', str(tmp_path/'b.html')]) == 0
    assert f'2 warnings on the page: {changed[0]}' in capsys.readouterr().out
    monkeypatch.setattr(run_report, 'monitor', lambda *args, **kw: replace(found(*args, **kw), findings=[], doubts=[]))
    report(table, tmp_path/'c.html', trained[1])
    assert 'warning' not in capsys.readouterr().out


def test_the_page_says_whether_its_level_holds(trained, small_atlas, tmp_path, monkeypatch):
    "By the function, by predict and by the command: pictures with Ids of their own need a group"
    images = find_images(small_atlas/'train').head(12)
    images = images.assign(Id=[f'scan_{"ABCD"[i//3]}02_{i:02}' for i in range(12)], donor=np.arange(12)//3)
    said = 'holds for independent pictures only'
    run, out = Predictor(trained[1])(images), tmp_path/'p.html'
    for group, unsure in ((None, True), (lambda i: i[5], False), (False, False)):
        page = report(run, out, trained[1], group=group, force=True).read_text(encoding='utf-8')
        assert (said in page) == unsure
    predict(images, trained[1], report=out, group='donor', force=True, progress=False)
    assert said not in out.read_text(encoding='utf-8')
    with pytest.raises(HPAError, match='name the page with report=… .--report.'):
        predict(images, trained[1], group='donor')
    images.to_csv(tmp_path/'paths.csv', index=False)
    monkeypatch.chdir(tmp_path)
    command = ['predict', 'paths.csv', '--model', str(trained[1]), '--report', 'q.html', '--force', '--no-progress']
    for group, unsure in (([], True), (['--group', 'donor'], False)):
        assert main([*command, *group]) in (0, None)
        assert (said in Path('q.html').read_text(encoding='utf-8')) == unsure
    main(['report', 'predictions.csv', '--reference', str(trained[1]), '--out', 'r.html', '--group', 'Well'])
    assert said not in Path('r.html').read_text(encoding='utf-8')


def test_low_thresholds_are_not_praised_without_evidence():
    thresholds = dict(Nucleoli=.5, Centrosome=.09, Peroxisomes=.02)
    scores = [{'class': 'Centrosome', 'recall': .1, 'precision': .25, 'support': 10},
              {'class': 'Peroxisomes', 'recall': None, 'precision': 0., 'support': 0}]
    said = explain_thresholds(thresholds, scores)
    assert 'Centrosome above 0.09 (recall 0.10, precision 0.25)' in said and 'Peroxisomes above 0.02,' in said
    assert 'found most' not in said and 'ecall' not in explain_thresholds(thresholds)
    assert explain_thresholds(dict.fromkeys(thresholds, .1)) == ''


@pytest.mark.parametrize('kind, options, words', [
    ('model', ['--group', 'Well'], '--group is not for a page about a model'),
    ('model', ['--csv', 'labels.csv'], '--csv is not for a page about a model'),
    ('run', ['--group', 'Well'], '--group is not for a page about predictions without a model to compare with'),
    ('data', ['--reference', 'model'], '--reference is not for a page about a data set'),
])
def test_what_a_page_does_not_use_is_refused_in_one_line(trained, small_atlas, tmp_path, capsys, kind, options, words):
    (tmp_path/'p.csv').touch()
    what = dict(model=trained[1], run=tmp_path/'p.csv', data=small_atlas)[kind]
    assert main(['report', str(what), '--out', str(tmp_path/'r.html'), *options]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count('\n') == 1 and not (tmp_path/'r.html').exists()
