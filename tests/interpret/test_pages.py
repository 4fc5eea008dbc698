"Pages: they stand alone, show what users name as text, sort and filter, and can be read in the dark and on a phone."
import numpy as np
import pandas as pd
import pytest
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt

from hpa_fastai.basics.errors import HPAError
from hpa_fastai.interpret.pages import *

EVIL = '<img src=x onerror="document.title=\'taken\'"><b>Id</b>'


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    "A page with everything on it, and names that try to become HTML"
    rng = np.random.default_rng(0)
    table = pd.DataFrame({
        'Id': [EVIL, *(f'image {i}' for i in range(1, 29)), 'a special one'],
        'probability': [np.nan, .5, *rng.random(28)],
        'images': [3, 200, 1000, *range(27)],
    })
    with page_ink():
        fig, ax = plt.subplots(figsize=(6, 2))
        ax.bar([EVIL, 'b'], [1, 2])
    dark, bright = (np.full((32, 32, 3), v, np.uint8) for v in (40, 250))
    gallery = gallery_block({EVIL: [Picture(dark, EVIL, [EVIL], bright), Picture(dark, 'plain')]}, 'show all')
    sections = [
        Section('Table', EVIL, [table_block(table, {'probability': '.3f'}, bars=('probability',))]),
        Section('Pictures', '', [gallery]),
        Section('Chart', '', [fig]),
    ]
    out = tmp_path_factory.mktemp('page')/'page.html'
    return write_page(out, build_page(EVIL, sections, EVIL, {EVIL: EVIL}, [EVIL]))


def test_a_page_stands_alone_and_escapes(page, browser):
    browser.open(page)
    assert browser.errors() == []
    assert browser.run('return document.title') == EVIL and browser.count('[onerror]') == 0
    loaded = browser.run('return performance.getEntriesByType("resource").map(e => e.name)')
    assert [name for name in loaded if not name.startswith('data:')] == []
    assert browser.texts('td')[0] == EVIL
    assert '://' not in page.read_text(encoding='utf-8')


def test_smuggled_scripts_do_not_run(page, browser, tmp_path):
    smuggled = '<script>document.title="taken"</script><img src="x" onerror="document.title=\'taken\'"><h2>'
    bad = tmp_path/'bad.html'
    bad.write_text(page.read_text(encoding='utf-8').replace('<h2>', smuggled, 1), encoding='utf-8')
    browser.open(bad)
    assert browser.run('return document.title') != 'taken'
    assert browser.errors()


def column(browser, i): return browser.texts(f'tbody td:nth-child({i})')


def test_tables_sort(page, browser):
    browser.open(page)
    browser.click('th:nth-child(3) button')
    numbers = [int(v.replace(',', '')) for v in column(browser, 3)]
    assert numbers == sorted(numbers, reverse=True) and numbers[:2] == [1000, 200]
    browser.click('th:nth-child(3) button')
    assert [int(v.replace(',', '')) for v in column(browser, 3)] == sorted(numbers)
    assert browser.count('th:nth-child(3)[aria-sort=ascending]') == 1
    for _ in range(2):
        browser.click('th:nth-child(2) button')
        assert column(browser, 2)[-1] == '–'  # what is not known comes last, whichever way
    browser.click('th:nth-child(1) button')
    assert column(browser, 1)[2:5] == ['image 1', 'image 2', 'image 3']  # numbers in names in their order


def test_tables_filter(page, browser):
    browser.open(page)
    browser.type('input[type=search]', 'ONE special')
    assert column(browser, 1) == ['a special one'] and browser.texts('output') == ['1 of 30 rows']


def test_a_table_is_downloaded_as_it_is_shown(browser, tmp_path):
    names = ['=cmd|calc', '-1', '"quoted", with a comma', 'two\nlines', 'Zürich', "'=1", 'x;y', *'abcdefg', 'last one']
    table = pd.DataFrame({'Id': names, 'p, exact': [1/3, np.nan, *np.linspace(0, 1, len(names)-2)], 'n': 1234})
    page = build_page('Run', [Section('What was found', '', [table_block(table, {'p, exact': '.1f'})])])
    browser.open(write_page(tmp_path/'page.html', page))
    (tmp_path/'all').mkdir()
    file = browser.download('.download', tmp_path/'all')
    assert file.name == 'what-was-found-table.csv' and browser.errors() == []
    text = file.read_bytes().decode('utf-8-sig')
    assert text.startswith('Id,"p, exact",n\r\n\'=cmd|calc,0.333333') and "\r\n'-1,,1234" in text
    saved = pd.read_csv(file, encoding='utf-8-sig', keep_default_na=False)
    assert saved.Id.tolist() == ["'=cmd|calc", "'-1", *names[2:5], "''=1", *names[6:]]
    assert float(saved['p, exact'][0]) == 1/3 and saved.n.tolist() == [1234]*len(names)
    browser.type('input[type=search]', 'one')
    (tmp_path/'one').mkdir()
    assert pd.read_csv(browser.download('.download', tmp_path/'one')).Id.tolist() == ['last one']


def test_second_pictures_appear(page, browser):
    browser.emulate()
    browser.open(page)
    assert browser.style('.over', 'opacity') == '0'
    browser.hover('figure')
    assert browser.style('.over', 'opacity') == '1'
    browser.hover('h1')
    assert browser.style('.over', 'opacity') == '0'
    browser.click('.switch input')
    assert browser.style('.over', 'opacity') == '1'


def luminance(rgb):
    "Of a colour such as rgb(1, 2, 3), by the Web Content Accessibility Guidelines"
    v = [int(c)/255 for c in rgb[rgb.index('(')+1:-1].split(',')[:3]]
    return np.dot([.2126, .7152, .0722], [c/12.92 if c <= .04045 else ((c+.055)/1.055)**2.4 for c in v])


@pytest.mark.parametrize('dark', [False, True])
def test_text_stands_out_in_light_and_dark(page, browser, dark):
    browser.emulate(dark=dark)
    browser.open(page)
    paper = luminance(browser.style('body', 'backgroundColor'))
    assert (paper < .1) == dark
    for css, name in (('body', 'color'), ('p', 'color'), ('nav a', 'color'), ('figcaption span', 'color'),
                      ('.chart svg text', 'fill')):
        a, b = sorted((paper, luminance(browser.style(css, name))))
        assert (b+.05)/(a+.05) > 4.5, css
    browser.emulate()


def test_a_phone_is_wide_enough(page, browser):
    browser.emulate(390, 800, phone=True)
    browser.open(page)
    assert browser.run('return document.documentElement.scrollWidth') <= 390
    browser.emulate()


def test_places_that_are_taken(tmp_path):
    (tmp_path/'a.html').write_text('')
    for out, words in (('a.html', 'force'), ('', 'is a folder'), ('none/a.html', 'no folder')):
        with pytest.raises(HPAError, match=words): check_page(tmp_path/out)
    assert check_page(tmp_path/'a.html', force=True) == tmp_path/'a.html'
