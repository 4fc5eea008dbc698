"The whole way through the page, in a real browser."
import re
import shutil
import time
from pathlib import Path

import gradio as gr
import numpy as np
import pandas as pd
import pytest
import tifffile

import hpa_fastai
from visitor import Visitor
from hpa_fastai.app.correct_tab import Desk, add_correct_tab
from hpa_fastai.data.corrections import Corrections
from hpa_fastai.data.files import find_images
from hpa_fastai.data.reader import ImageReader

FIELD = ('red', 'green', 'blue', 'yellow')
@pytest.fixture
def visitor(browser, page): return Visitor(browser, page.url)


@pytest.fixture
def four(small_atlas): return find_images(small_atlas/'train').iloc[4][list(FIELD)].tolist()


def test_four_files_give_the_names_that_predict_gives(visitor, four, trained):
    same = hpa_fastai.predict(four, trained[1], progress=False).iloc[0]
    visitor.drop(*four)
    visitor.wait('#predict-words .names')
    names = ', '.join(sorted(filter(None, same.Names.split('|')), key=lambda c: -same[c])) or 'no location'
    assert visitor.said('#predict-words .names') == names and visitor.said('#predict-words h3') == same.Id
    shown = visitor.bars()
    assert shown == {c: f'{same[c]:.2f}' for c in shown} and len(shown) == 28
    assert '1 field of view predicted' in visitor.said('#predict-message')
    before = visitor.browser.run('return document.querySelector("#predict-picture img").src')
    visitor.browser.run('document.querySelector("#predict-channels input").click()')
    for _ in range(50):
        if visitor.browser.run('return document.querySelector("#predict-picture img").src') != before: break
        time.sleep(.1)
    else: raise AssertionError('the picture is as before')
    loaded = visitor.browser.run('return performance.getEntriesByType("resource").map(e => e.name)')
    assert loaded and all(re.match(r'(http://127\.0\.0\.1:\d+/|data:|blob:)', name) for name in loaded)
    assert visitor.faults() == []


def test_where_the_network_looked(visitor, four):
    visitor.drop(*four)
    visitor.wait('#predict-words .names')
    visitor.browser.run('[...document.querySelectorAll("#predict-view button")]'
                        '.find(e => e.textContent.includes("Where the network looked")).click()')
    before = visitor.browser.run('return document.querySelector("#predict-picture img").src')
    visitor.choose('#predict-location', 'Cytosol')
    for _ in range(100):
        if visitor.browser.run('return document.querySelector("#predict-picture img").src') != before: break
        time.sleep(.1)
    else: raise AssertionError('the picture is as before')
    assert visitor.faults() == []


def test_a_tiff_with_four_planes(visitor, four, trained, tmp_path):
    planes = ImageReader().array(find_images(four).iloc[0])
    tifffile.imwrite(tmp_path/'stack.tif', planes, photometric='minisblack')
    visitor.drop(tmp_path/'stack.tif')
    visitor.wait('#predict-words .names')
    same = hpa_fastai.predict(tmp_path/'stack.tif', trained[1], progress=False).iloc[0]
    value = visitor.bars()
    assert value == {c: f'{same[c]:.2f}' for c in value}


def test_many_fields_and_a_broken_one(visitor, small_atlas, tmp_path):
    table = find_images(small_atlas/'train').head(30)
    files = [shutil.copy(f, tmp_path) for f in table[list(FIELD)].to_numpy().ravel()]
    broken = Path(files[13])
    broken.write_bytes(broken.read_bytes()[:60])
    (tmp_path/'<img src=x onerror=alert(1)>.txt').write_text('no picture')
    visitor.drop(*files, tmp_path/'<img src=x onerror=alert(1)>.txt')
    visitor.wait('#predict-message', '29 fields of view predicted')
    said = visitor.said('#predict-message')
    assert table.Id[3] in said and broken.name in said and 'not a picture' in said
    assert visitor.browser.count('#predict-message img') == 0
    visitor.wait('#predict-count', '30 fields of view; page 1 of 2')
    assert visitor.browser.count('#predict-grid button.thumbnail-lg') == 24
    visitor.browser.click('#predict-next')
    visitor.wait('#predict-count', 'page 2 of 2')
    visitor.browser.run('document.querySelectorAll("#predict-grid button.thumbnail-lg")[2].click()')
    visitor.wait('#predict-words h3', str(table.Id[26]))
    file = visitor.browser.download('#predict-download', tmp_path_of(tmp_path))
    assert pd.read_csv(file, dtype={'Id': str}).Id.tolist() == table.Id.tolist()
    assert visitor.faults() == []


def tmp_path_of(folder):
    "A new folder within another one"
    (folder/'new').mkdir()
    return folder/'new'


@pytest.mark.parametrize('name, content, words', [
    ('photo.png', 'rgb', 'channel'), ('empty_red.png', b'', 'empty'), ('bomb.zip', b'PK', 'not a picture'),
    ('half_red.png', b'\x89PNG\r\n\x1a\n', 'half')])
def test_what_is_no_field_of_view_is_told_in_one_line(visitor, tmp_path, name, content, words):
    from PIL import Image
    if content == 'rgb': Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path/name)
    else: (tmp_path/name).write_bytes(content)
    visitor.drop(tmp_path/name)
    visitor.wait('#predict-message .fault', words)
    assert visitor.browser.count('#predict-message .fault p') == 1
    assert visitor.browser.count('#predict-words .names') == 0
    assert visitor.faults() == []


def test_three_of_four_channels_and_two_fields_in_one_drop(visitor, small_atlas, four):
    visitor.drop(*four[:3])
    visitor.wait('#predict-message .fault', 'yellow')
    other = find_images(small_atlas/'train').iloc[9][list(FIELD)].tolist()
    visitor.drop(*four[:2], *other[2:])
    visitor.wait('#predict-message .fault', 'channel')
    assert visitor.browser.count('#predict-message .done p') == 0


def test_a_run_of_5000_rows_is_browsed(browser, open_page, predicted, small_atlas, tmp_path):
    run = hpa_fastai.deploy.tables.read_predictions(predicted[0])
    copies = [run.assign(Id=run.Id if k == 0 else run.Id+f'_{k}', gene=f'GENE{k}') for k in range(56)]
    table = pd.concat(copies, ignore_index=True).head(5000)
    table.to_csv(tmp_path/'large.csv', index=False)
    visitor = Visitor(browser, open_page(tmp_path/'large.csv', small_atlas/'train', out=tmp_path/'out').url)
    visitor.go_to('Browse')
    visitor.wait('#browse-count', '5,000 fields of view; page 1 of 209')
    visitor.browser.click('#browse-next')
    visitor.wait('#browse-count', 'page 2 of 209')
    visitor.browser.type('#browse-search textarea, #browse-search input', 'gene7\n')
    visitor.wait('#browse-count', '90 of 5,000')
    visitor.choose('#browse-location', 'Nucleoplasm')
    n = int((table.gene.eq('GENE7') & table.Names.str.split('|').map(lambda o: 'Nucleoplasm' in o)).sum())
    visitor.wait('#browse-count', f'{n} of 5,000')
    visitor.choose('#browse-location', 'any location')
    visitor.choose('#browse-order', 'uncertain')
    visitor.wait('#browse-count', '90 of 5,000')
    visitor.browser.run('document.querySelectorAll("#browse-grid button.thumbnail-lg")[1].click()')
    visitor.wait('#browse-words .bars')
    assert '_7' in visitor.said('#browse-words h3') and 'no picture' in visitor.said('#browse-words .facts')
    assert visitor.faults() == []


def test_ten_corrections_are_there_after_a_reload(browser, open_page, predicted, small_atlas, tmp_path):
    page = open_page(predicted[0], small_atlas/'train', embeddings=predicted[1], out=tmp_path)
    visitor = Visitor(browser, page.url)
    visitor.go_to('Correct')
    visitor.wait('#correct-title h3')
    corrected = []
    for k in range(10):
        corrected.append(visitor.said('#correct-title h3'))
        box = visitor.browser.run('const box = document.querySelectorAll("#correct-classes input")[27];'
                                  'if (!box.checked) box.click(); return box.checked')
        assert box
        if k % 2: visitor.browser.click('#correct-save')
        else: visitor.press('Enter')
        visitor.wait('#correct-progress', f'{k+1} corrected')
    visitor.press('u')
    visitor.wait('#correct-message', 'was taken back')
    assert visitor.said('#correct-title h3') == corrected[-1]
    visitor.press('Enter')
    visitor.wait('#correct-progress', '10 corrected')
    visitor = Visitor(browser, page.url)
    visitor.go_to('Correct')
    visitor.wait('#correct-progress', '10 corrected')
    kept = Corrections(tmp_path/'corrections.csv', 'hpa28').current()
    assert set(kept.Id) == set(corrected) and set(kept.user) == {'anna'} and kept.model.str.len().eq(16).all()
    assert visitor.said('#correct-title h3') not in corrected and visitor.faults() == []


def test_keys_choose_classes_and_go_on_and_back(visitor):
    visitor.go_to('Correct')
    visitor.wait('#correct-title h3')
    first = visitor.said('#correct-title h3')
    checked = 'return document.querySelectorAll("#correct-classes input")[4].checked'
    before = visitor.browser.run(checked)
    visitor.press('5')
    time.sleep(.3)
    assert visitor.browser.run(checked) != before
    visitor.press('ArrowRight')
    for _ in range(50):
        if visitor.said('#correct-title h3') != first: break
        time.sleep(.1)
    visitor.press('ArrowLeft')
    visitor.wait('#correct-title h3', first)
    visitor.go_to('Predict')  # the keys belong to the part that is shown
    visitor.press('ArrowRight')
    time.sleep(.5)
    visitor.go_to('Correct')
    assert visitor.said('#correct-title h3') == first


def test_train_again_stop_and_use(browser, open_page, predicted, small_atlas, tmp_path):
    page = open_page(predicted[0], small_atlas/'train', out=tmp_path)
    page.state.labelling.save(0, ['Cytosol'], 'anna')
    page.state.more = ('--group', 'antibody', '--sizes', '32', '--no-cache')
    visitor = Visitor(browser, page.url)
    visitor.go_to('Train')
    visitor.wait('#train-status', 'No training was started yet')
    visitor.choose('#train-part', 'the whole network')
    visitor.browser.run('document.querySelector("#train-minutes input").focus()')
    visitor.browser.run('const i = document.querySelector("#train-minutes input"); i.value = 5;'
                        'i.dispatchEvent(new Event("input", {bubbles: true}))')
    visitor.browser.click('#train-start-button')
    visitor.wait('#train-status', 'Training for')
    visitor.wait('#train-curve canvas, #train-curve svg', seconds=120)
    visitor.browser.click('#train-start-button')
    visitor.wait('#train-status', 'a training is running')
    visitor.browser.click('#train-stop')
    visitor.wait('#train-status', 'Stopped early, and saved', 120)
    visitor.wait('#train-result', 'macro F1')
    assert 'labels were changed' in visitor.said('#train-result')
    old = page.state.model.digest
    visitor.browser.click('#train-use')
    visitor.wait('#train-status', 'The page answers with')
    assert page.state.model.digest != old and visitor.faults() == []


@pytest.mark.parametrize('width, dark', [(1200, False), (400, True)])
def test_nothing_is_wider_than_the_window(visitor, four, width, dark, tmp_path_factory):
    browser = visitor.browser
    browser.emulate(width, 900, dark, width == 400)
    visitor.drop(*four)
    visitor.wait('#predict-words .names')
    for tab in ('Predict', 'Browse', 'Correct', 'Train'):
        visitor.go_to(tab)
        time.sleep(1)
        assert browser.run('return document.documentElement.scrollWidth') <= width
    colour = browser.run('return getComputedStyle(document.body).backgroundColor')
    assert (sum(map(int, re.findall(r'\d+', colour)[:3])) < 300) == dark
    browser.emulate()


def test_a_save_that_crosses_a_step_is_not_written_to_another_field(open_page, predicted, small_atlas, tmp_path):
    "Skip and Save in one moment: the boxes that were sent belong to the field before"
    page = open_page(predicted[0], small_atlas/'train', out=tmp_path)
    page.state.on_load.clear()
    with gr.Blocks(analytics_enabled=False) as blocks: add_correct_tab(page.state)
    keep = next(f.fn for f in blocks.fns.values() if f.name == 'keep')
    rows = page.state.labelling.order()
    Ids = page.state.run.predictions.Id
    wishes = [list(FIELD), 1, 1, 1, 1, '', .8, True]
    request = type('Request', (), {'username': None})()
    answer = keep(Desk(rows, 1), Ids[rows[0]], ['Cytosol'], 'anna', request, *wishes)
    assert 'Not saved' in answer[5] and not (tmp_path/'corrections.csv').exists()
    answer = keep(Desk(rows, 1), Ids[rows[1]], ['Cytosol'], 'anna', request, *wishes)
    assert Corrections(tmp_path/'corrections.csv', 'hpa28').current().Id.tolist() == [Ids[rows[1]]]
    assert answer[0].place == 2 and answer[0].done == [Ids[rows[1]]]


def test_a_folder_is_predicted_on_the_page_and_found_again(browser, open_page, small_atlas, trained, tmp_path):
    folder = tmp_path/'plate'
    shutil.copytree(small_atlas/'train', folder)
    page = open_page(folder, out=tmp_path/'out', data=None)
    visitor = Visitor(browser, page.url)
    visitor.go_to('Browse')
    visitor.wait('#browse-count', '90 fields of view')
    visitor.browser.click('#browse-predict')
    for _ in range(300):
        if not np.isnan(page.state.run.probabilities).any(): break
        time.sleep(.1)
    same = hpa_fastai.predict(folder, trained[1], progress=False)
    assert page.state.run.predictions.Predicted.tolist() == same.Predicted.tolist()
    time.sleep(1)
    visitor.wait('#predict-files input[type=file]')  # the page loads itself again
    visitor.go_to('Correct')
    visitor.wait('#correct-title h3')
    assert visitor.browser.run('return document.querySelector("#correct-offer input").value') == 'informative'
    again = open_page(folder, out=tmp_path/'out', data=None)
    assert again.state.run.predictions.Predicted.tolist() == same.Predicted.tolist()
