"Genes become a data folder, politely, however often the download is stopped and whatever the site answers."
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from atlas_site import add_two_genes, serving

from hpa_fastai.atlas import download as module
from hpa_fastai.atlas.download import download_genes
from hpa_fastai.atlas.entries import read_entries
from hpa_fastai.atlas.site import AtlasError
from hpa_fastai.basics.errors import HPAError
from hpa_fastai.batches.loaders import HPADataLoaders
from hpa_fastai.data.files import find_images
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.data.verify import verify_folder
from hpa_fastai.basics.download import DownloadError

FIELDS = ['1_10_A1_1', '1_10_A1_2', '2_11_B2_1', '2_11_B2_2', '3_12_C3_1', '3_12_C3_2', '4_if13_D4_1', '4_if13_D4_2']


@pytest.fixture
def atlas():
    with serving() as atlas:
        atlas.pause = .005  # so that others would be seen at the same time
        yield add_two_genes(atlas)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    "Back-off without waiting; Retry-After is waited for"
    from hpa_fastai.basics.download import PatientRetry
    monkeypatch.setattr(PatientRetry, 'get_backoff_time', lambda self: 0)
    monkeypatch.delenv('HPA_FASTAI_CONTACT', raising=False)


def download(atlas, out, genes='GENE1 GENE2', **settings):
    return download_genes(genes, out, site=atlas.address, progress=False, **settings)


def tree(folder):
    "The content of each file, and of the manifest without its times"
    found = {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob('*') if p.is_file()}
    lines = [json.loads(line) for line in found.pop('manifest.jsonl').splitlines()]
    return found, [{key: value for key, value in line.items() if key != 'time'} for line in lines]


def test_genes_become_a_data_folder(atlas, tmp_path):
    done = download(atlas, tmp_path/'data')
    assert done.exit_code == 0 and atlas.most_open <= 2 and done.n_files == 32
    table = pd.read_csv(tmp_path/'data'/'train.csv', keep_default_na=False).set_index('Id')
    assert list(table.columns) == ['Target', 'antibody', 'gene', 'ensembl', 'cell_line', 'locations', 'reliability',
                                   'release']
    assert table.loc['1_10_A1_2'].tolist() == ['Cytosol', 'HPA000001', 'GENE1', 'ENSG00000000001', 'U-2 OS',
                                               'cytosol|vesicles', 'supported', 'v23']
    assert table.Target['2_11_B2_1'] == 'Nucleoli' and set(table.cell_line) == {'U-2 OS', 'A-431'}
    assert sorted(table.index) == [o for o in FIELDS if o != '3_12_C3_2']  # midbody ring is no class
    fields = pd.read_csv(tmp_path/'data'/'fields.csv', keep_default_na=False).set_index('Id')
    assert sorted(fields.index) == FIELDS and fields.Target['3_12_C3_2'] == '' and set(fields.state) == {'complete'}
    assert 'vesicles 1' in str(done) and 'midbody ring 1' in str(done) and 'mouse cells 4' in str(done)
    licence = (tmp_path/'data'/'LICENSE').read_text()
    assert 'ShareAlike 3.0' in licence and 'v23' in licence
    assert f'{atlas.address}/ENSG00000000001-GENE1' in (tmp_path/'data'/'CITATION').read_text()
    assert not any('selected' in path or 'mouse' in path for path in atlas.paths())
    assert sorted(p.name for p in (tmp_path/'data').iterdir()) == [
        '.download.lock', 'CITATION', 'LICENSE', 'fields.csv', 'manifest.jsonl', 'train', 'train.csv']


def test_the_folder_goes_straight_into_the_rest(atlas, tmp_path):
    download(atlas, tmp_path)
    assert list(find_images(tmp_path/'train').Id) == FIELDS
    found = verify_folder(tmp_path, deep=True, progress=False)
    assert found.exit_code == 0 and len(found.table) == 8
    dls = HPADataLoaders.from_csv(tmp_path, size=32, bs=2, group='antibody', cache=False, progress=False)
    assert dls.train.n + dls.valid.n == 7


def test_faults_of_the_site(atlas, tmp_path):
    "A 429, a JPG that ends too early, a page with status 200, a missing channel; other files are fetched once"
    busy, cut, page, lost = (f'/images/{o}.jpg' for o in (
        '1/10_A1_1_red', '1/10_A1_2_green', '2/11_B2_1_blue', '3/12_C3_1_yellow'))
    atlas.first = {busy: [(429, {'Retry-After': '1'}, b'')],
                   cut: [(200, {}, atlas.files[cut][:-100])],
                   page: [(200, {'Content-Type': 'text/html'}, b'<html>Error</html>')]}
    del atlas.files[lost]
    began = time.monotonic()
    done = download(atlas, tmp_path)
    assert time.monotonic() - began >= 1  # as the site asked
    assert atlas.most_open <= 2 and done.exit_code == 1
    asked = Counter(atlas.paths())
    assert {path for path, n in asked.items() if n > 1} == {busy, cut, page}
    assert all(asked[path] == 2 for path in (busy, cut, page)) and len(asked) == 32
    states = pd.read_csv(tmp_path/'fields.csv').set_index('Id').state
    assert states['3_12_C3_1'] == 'no yellow' and (states.drop('3_12_C3_1') == 'complete').all()
    assert len(list((tmp_path/'train').iterdir())) == 28 and len(list((tmp_path/'incomplete').iterdir())) == 3
    assert '3_12_C3_1: no yellow' in str(done) and '3_12_C3_1' not in (tmp_path/'train.csv').read_text()
    assert verify_folder(tmp_path/'train', deep=True, progress=False).exit_code == 0
    atlas.add_pictures('3/12_C3_1')  # the site has it again
    atlas.asked.clear()
    assert download(atlas, tmp_path).exit_code == 0 and atlas.paths() == [lost]
    assert len(list((tmp_path/'train').iterdir())) == 32


def test_tiff_of_16_bits_and_jpg_of_a_withdrawn_antibody(atlas, tmp_path):
    atlas.withdrawn.add('2')
    damaged = '/stored/1/10_A1_1_red.tif.gz'
    atlas.first[damaged.replace('stored', 'images')] = [(200, {}, b'\x1f\x8bnot gzip')]
    done = download(atlas, tmp_path, image_format='tif')
    assert done.exit_code == 0 and atlas.most_open <= 2
    endings = {Id: {p.suffix for p in (tmp_path/'train').glob(f'{Id}_*')} for Id in FIELDS}
    assert all(found == ({'.jpg'} if Id.startswith('2_') else {'.tif'}) for Id, found in endings.items())
    assert len([path for path in atlas.paths() if path.startswith('/images/2/') and path.endswith('gz')]) <= 2
    row = find_images(tmp_path/'train').set_index('Id', drop=False).loc['1_10_A1_1']
    planes = {c: np.asarray(plane) for c, plane, _ in ImageReader().planes(row)}
    assert planes['green'].dtype == np.uint16 and planes['green'].max() > 255
    atlas.asked.clear()
    assert download(atlas, tmp_path, image_format='tif').n_files == 0 and not atlas.paths()
    with pytest.raises(AtlasError, match='was begun as tif'): download(atlas, tmp_path)


RUN = '''
import sys
from hpa_fastai.atlas.download import download_genes
download_genes('GENE1 GENE2', sys.argv[1], site=sys.argv[2], image_format=sys.argv[3], progress=False)
'''


@pytest.mark.parametrize('image_format, n', [('jpg', 9), ('tif', 15)])
def test_a_killed_download_goes_on(atlas, tmp_path, image_format, n):
    "The folder becomes that of a download which was not killed, and only what was under way is fetched twice"
    atlas.pause = .05
    atlas.withdrawn.add('2')
    run = subprocess.Popen([sys.executable, '-c', RUN, tmp_path/'killed', atlas.address, image_format])
    deadline = time.monotonic() + 60
    while len(atlas.paths(part='/images/')) < n and time.monotonic() < deadline: time.sleep(.002)
    run.send_signal(signal.SIGKILL)
    run.wait()
    done, asked = len(list((tmp_path/'killed').rglob('train/*'))), Counter(atlas.paths())
    assert not (tmp_path/'killed'/'train.csv').exists() and 0 < done < 32
    for file in (tmp_path/'killed'/'train').iterdir():  # nothing half-written under a final name
        assert file.read_bytes() and verify_folder([str(file)], deep=True, progress=False).table.format.iloc[0]
    atlas.pause = 0
    again = download(atlas, tmp_path/'killed', image_format=image_format)
    assert again.exit_code == 0 and again.n_files < 32 and atlas.most_open <= 4  # two of each process
    twice = [path for path, k in Counter(atlas.paths()).items() if k > 1 and not path.startswith('/images/2/')]
    assert len(twice) <= 2 and set(twice) <= set(asked)
    download(atlas, tmp_path/'whole', image_format=image_format)
    assert tree(tmp_path/'killed') == tree(tmp_path/'whole')


def test_a_line_of_the_manifest_that_was_cut_off(atlas, tmp_path):
    download(atlas, tmp_path)
    lines = (tmp_path/'manifest.jsonl').read_bytes()
    (tmp_path/'manifest.jsonl').write_bytes(lines[:-40])
    atlas.asked.clear()
    assert download(atlas, tmp_path).n_files == 1 and len(atlas.paths()) == 1


def test_a_changed_file_is_fetched_again(atlas, tmp_path):
    download(atlas, tmp_path)
    file = tmp_path/'train'/'1_10_A1_1_red.jpg'
    whole = file.read_bytes()
    file.write_bytes(whole[:50])
    assert download(atlas, tmp_path).n_files == 1 and file.read_bytes() == whole


def test_the_server_sees_who_asks(atlas, tmp_path, monkeypatch):
    monkeypatch.setenv('HPA_FASTAI_CONTACT', 'lab@example.org')
    download(atlas, tmp_path/'a', 'GENE1', max_per_gene=1)
    download(atlas, tmp_path/'b', 'GENE1', max_per_gene=1, contact='me@example.org')
    agents = [agent for *_, agent in atlas.asked]
    assert agents[0].startswith('hpa_fastai/') and agents[0].endswith('(lab@example.org)')
    assert agents[-1].endswith('(me@example.org)')


@pytest.mark.parametrize('status, wait, words, n', [
    (403, {}, 'does not give the file', 5), (429, {'Retry-After': '3600'}, 'try again in 60 minutes', 1),
    (503, {}, 'the server is busy', 5)])
def test_a_server_that_refuses_is_left_alone(atlas, tmp_path, status, wait, words, n):
    "Two files at a time are tried a few times; then the run stops, and says how to go on"
    atlas.first = {path: [(status, wait, b'')]*9 for path in atlas.files if path.endswith('.jpg')}
    with pytest.raises(DownloadError, match=f'{words}.*0 files were fetched and are kept: the same command goes on'):
        download(atlas, tmp_path)
    assert max(Counter(atlas.paths()).values()) <= n and len(set(atlas.paths())) <= 4
    atlas.first = {}
    assert download(atlas, tmp_path).exit_code == 0


def test_a_dry_run_fetches_nothing(atlas, tmp_path):
    plan = download(atlas, tmp_path/'data', dry_run=True)
    sizes = [len(o) for path, o in atlas.files.items() if path.endswith('.jpg')]
    assert not (tmp_path/'data').exists() and not atlas.paths('GET') and len(atlas.paths('HEAD')) <= 20
    assert 'to fetch     32 files, about 0.0 MB; nothing was downloaded' in str(plan) and plan.exit_code == 0
    assert plan.n_bytes == pytest.approx(sum(sizes), rel=.1)
    for path in [path for path in atlas.files if path.endswith('.jpg')]: del atlas.files[path]
    assert 'size unknown' in str(download(atlas, tmp_path/'data', dry_run=True))


def test_filters(atlas, tmp_path):
    done = download(atlas, tmp_path, cell_line=['u2os'], max_per_gene=1)
    assert list(done.table.Id) == ['1_10_A1_1', '3_12_C3_1'] and len(atlas.paths()) == 8
    done = download(atlas, tmp_path, cell_line='A-431', max_per_gene=3)
    assert len(done.table) == 6  # with those of before
    with pytest.raises(AtlasError, match="cell line 'HeLa'.*there are A-431, U-2 OS"):
        download(atlas, tmp_path, cell_line='HeLa')
    with pytest.raises(HPAError, match='max_per_gene: 0 is not a whole number'):
        download(atlas, tmp_path, max_per_gene=0)


def test_a_second_download_adds_to_the_first(atlas, tmp_path):
    download(atlas, tmp_path, 'GENE1')
    atlas.asked.clear()
    download(atlas, tmp_path, 'GENE2', labels='hpa19')
    table = pd.read_csv(tmp_path/'train.csv', keep_default_na=False).set_index('Id')
    assert len(atlas.paths()) == 16 and len(table) == 7
    assert table.Target['1_10_A1_2'] == 'Cytosol|Vesicles and punctate cytosolic patterns'  # of the set given last
    assert {'GENE1', 'GENE2'} == set(table.gene)


def test_the_file_of_all_genes(atlas, tmp_path):
    import gzip
    file = tmp_path/'proteinatlas.xml.gz'
    file.write_bytes(gzip.compress(atlas.all_xml()))
    done = download(atlas, tmp_path/'one', 'OLD1', xml=file)
    assert set(done.table.gene) == {'GENE1'} and done.notes == ['OLD1 is called GENE1 today']
    assert not [path for path in atlas.paths(part='') if 'xml' in path or 'search' in path]
    assert len(download(atlas, tmp_path/'all', (), xml=file).table) == 8
    assert tree(tmp_path/'all')[0]['train.csv'] == tree(tmp_path/'all')[0]['train.csv']
    with pytest.raises(AtlasError, match='GENE3: no such gene in the atlas; did you mean GENE2 or GENE1'):
        download(atlas, tmp_path/'none', 'GENE3', xml=file)


def test_one_antibody_for_two_genes(atlas, tmp_path):
    "One field of view, one row with both genes, each file fetched once"
    shared = [('5/14_A1_1', 'U2OS', ['cytosol']), ('5/14_A1_2', 'U2OS', ['cytosol'])]
    atlas.add_gene('TWIN1', 'ENSG00000000011', {'HPA000005': shared})
    atlas.add_gene('TWIN2', 'ENSG00000000012', {'HPA000005': shared[:1]})
    done = download(atlas, tmp_path, 'TWIN1 TWIN2')
    assert set(Counter(atlas.paths()).values()) == {1} and done.exit_code == 0
    table = pd.read_csv(tmp_path/'train.csv').set_index('Id')
    assert table.gene.to_dict() == {'5_14_A1_1': 'TWIN1|TWIN2', '5_14_A1_2': 'TWIN1'}
    assert table.ensembl['5_14_A1_1'] == 'ENSG00000000011|ENSG00000000012'
    assert verify_folder(tmp_path, progress=False).exit_code == 0


def test_unknown_old_and_empty_genes(atlas, tmp_path):
    atlas.add_gene('EMPTY', 'ENSG00000000021', {})
    done = download(atlas, tmp_path, 'OLD2 GENE7 EMPTY ENSG00000000099 older')
    text = str(done)
    assert 'OLD2 is called GENE2 today' in text and done.exit_code == 1
    assert 'GENE7: no such gene in the atlas; did you mean GENE2 or GENE1' in text
    assert 'EMPTY: no pictures of human cells' in text
    assert f'ENSG00000000099: no such gene at {atlas.address}' in text
    assert 'older: GENE1 (ENSG00000000001) and GENE2 (ENSG00000000002) had this name' in text
    assert set(done.table.gene) == {'GENE2'}
    with pytest.raises(AtlasError, match='GENE7: no such gene'): download(atlas, tmp_path/'none', ['GENE7'])
    with pytest.raises(AtlasError, match='EMPTY: no pictures of human cells'):
        download(atlas, tmp_path/'none', ['EMPTY'])


@pytest.mark.parametrize('path, body', [
    ('/api/search_download.php', b'<html>We have moved</html>'), ('/api/search_download.php', b'[{"symbol": "GENE1"}]'),
    ('/api/search_download.php', b'{"error": "x"}'), ('/ENSG00000000001.xml', b'<html>We have moved</html>'),
    ('/ENSG00000000001.xml', b'<atlas><gene/></atlas>'), ('/ENSG00000000001.xml', b'{"gene": 1}')])
def test_a_site_that_changed(atlas, tmp_path, path, body):
    atlas.first[path] = [(200, {}, body)]*3
    with pytest.raises(AtlasError, match=r'the site may have changed.*try release v23.*--release v23') as e:
        download(atlas, tmp_path, 'GENE1')
    assert e.value.kind == 'changed site' and path in str(e.value)
    atlas.first.clear()
    assert download(atlas, tmp_path, 'GENE1').exit_code == 0


def test_no_network(tmp_path, monkeypatch):
    with pytest.raises(DownloadError, match="127.0.0.1:9 can't be reached") as e:
        download_genes('GENE1', tmp_path/'a', site='http://127.0.0.1:9', progress=False)
    assert e.value.kind == 'offline'
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    with pytest.raises(DownloadError, match='is not asked, since HF_HUB_OFFLINE is set'):
        download_genes('GENE1', tmp_path/'a', progress=False)


@pytest.mark.skipif(sys.platform == 'win32', reason='limits of a process')
@pytest.mark.parametrize('image_format', ['jpg', 'tif'])
def test_a_full_disk(atlas, tmp_path, image_format):
    "What came is kept, nothing half-written has a final name, and the same command goes on"
    import resource
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(len(o) for path, o in atlas.files.items() if path.endswith('jpg' if image_format == 'jpg' else 'gz'))
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1 if image_format == 'jpg' else 4500, old[1]))
    try:
        with pytest.raises(HPAError, match=r"can't be written.*make room") as e:
            download(atlas, tmp_path, image_format=image_format)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert e.value.kind == 'disk' and not list((tmp_path/'train').glob('*.part'))
    assert download(atlas, tmp_path, image_format=image_format).exit_code == 0
    assert verify_folder(tmp_path, deep=True, progress=False).exit_code == 0


def test_a_folder_of_somebody_else(atlas, tmp_path):
    (tmp_path/'train.csv').write_text('Id,Target\na,1\n')
    with pytest.raises(AtlasError, match='train.csv exists and was not downloaded'): download(atlas, tmp_path)
    assert not atlas.paths() and (tmp_path/'train.csv').read_text() == 'Id,Target\na,1\n'
    file = tmp_path/'file'
    file.write_text('')
    with pytest.raises(AtlasError, match="can't be written to"): download(atlas, file)


def test_too_much_at_once(atlas, tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'MOST_AT_ONCE', 5)
    with pytest.raises(AtlasError, match='8 fields of view are too many.*S-BIAD2443'): download(atlas, tmp_path)
    genes = [f'ENSG{n:011}' for n in range(301)]
    with pytest.raises(AtlasError, match='301 genes are too many to ask for one by one.*proteinatlas.xml.gz'):
        download(atlas, tmp_path, genes)
    assert not atlas.paths()


def test_addresses_and_words_from_strangers(atlas, tmp_path):
    "Only pictures of the site are asked for; names become neither paths nor formulas nor commands of a terminal"
    file = tmp_path/'x.xml'
    bad = ['http://evil.org/images/9/10_A1_1', f'{atlas.address}/images/9/../../etc/10_A1_1', 'file:///images/9/10_A1_1',
           f'{atlas.address}/images/9/..%2f10_A1_1', f'{atlas.address}@evil.org/images/9/10_A1_1',
           f'{atlas.address}/images/9/10_A1_{"1"*500}']
    images = ''.join(f'<image><imageUrl>{o}_blue_red_green.jpg</imageUrl></image>' for o in bad)
    good = f'<image><imageUrl>{atlas.url("9/10_A1_1")}_red_green.jpg</imageUrl></image>'
    file.write_text(f'''<a><entry version="23.0"><name>=cmd|' /C calc'!A1</name><identifier id="ENSG00000000009"/>
        <antibody id="../../HPA9"><cellExpression><subAssay type="human"><data><cellLine>a\u202eb|c</cellLine>
        <location>cytosol</location><location>3</location><assayImage>{images}{good}</assayImage></data></subAssay>
        </cellExpression></antibody></entry></a>''', encoding='utf-8')
    atlas.add_pictures('9/10_A1_1')
    done = download(atlas, tmp_path/'data', (), xml=file)
    assert list(done.table.Id) == ['9_10_A1_1'] and sum(done.left_out.values()) == 6
    row = done.table.iloc[0]
    assert row.gene.startswith('cmd/') and row.cell_line == 'ab/c' and row.Target == 'Cytosol'
    assert {path.rsplit('/', 1)[0] for path in atlas.paths()} == {'/images/9'}
    assert row.locations == 'cytosol|3'  # no number of a class


@pytest.mark.parametrize('content, words', [
    (b'<!DOCTYPE a [<!ENTITY b "c">]><a><entry/></a>', 'declares a document type'),
    (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', 'declares a document type'),
    (b'<a>' + b'<b>'*100_000, 'lie in one another without end'),
    (b'<a><entry><antibody><x>' + b'<b>'*20_000_000, 'x does not end'),
    (b'<a><entry><name>' + b'x'*60_000_000, 'a text without end'),
    (b'<a><entry name="' + b'x'*40_000_000, 'a name without end'),
    (b'<a><entry><name>G</name></entry></a>', 'no Ensembl id'),
    (b'<a><entry><identifier id="ENSG/../../x"/></entry></a>', 'no Ensembl id'),
    (b'<a></b>', 'not XML'), (b'', 'not XML')])
def test_xml_from_strangers(tmp_path, content, words):
    import gzip
    (tmp_path/'x.xml.gz').write_bytes(gzip.compress(content, 1))
    with pytest.raises(AtlasError, match=words): list(read_entries(tmp_path/'x.xml.gz'))


def test_lists_of_genes(atlas, tmp_path):
    (tmp_path/'genes.txt').write_text('GENE1 # cyclin\n\nENSG00000000002\n')
    assert len(download(atlas, tmp_path/'a', (), genes_file=tmp_path/'genes.txt', max_per_gene=1).table) == 2
    for name, text, words in (('genes.csv', 'gene,p\n9-Sep,1\n', 'looks rewritten by a spreadsheet'),
                              ('empty.txt', '# nothing\n', 'no gene is in it'),
                              ('other.csv', 'a,b\n1,2\n', 'has no column of genes'),
                              ('bad.txt', '../x\n', 'no name of a gene')):
        (tmp_path/name).write_text(text)
        with pytest.raises(AtlasError, match=words): download(atlas, tmp_path/'b', (), genes_file=tmp_path/name)
    with pytest.raises(AtlasError, match='name the genes'): download(atlas, tmp_path/'b', ())
    assert not (tmp_path/'b').exists()


def test_the_command(atlas, tmp_path, monkeypatch, capsys):
    from hpa_fastai.cli.main import main
    monkeypatch.chdir(tmp_path)
    common = ['--site', atlas.address, '--no-progress']
    assert main(['download', 'GENE1', '--out', 'data', *common]) == 0
    assert main(['download', 'GENE1', 'GENE9', '--out', 'data', *common]) == 1
    assert main(['download', 'GENE9', '--out', 'data', *common]) == 2
    assert 'GENE9: no such gene in the atlas; did you mean GENE2 or GENE1' in capsys.readouterr().err
    assert main(['download', 'GENE2', '--out', 'more', *common]) == 0
    assert main(['verify', 'data']) == 0
    assert main(['join', 'data', 'more', '--out', 'both.csv']) == 0
    assert main(['join', 'data', 'more', '--out', 'both.csv']) == 2
    assert main(['train', '.', '--csv', 'both.csv', '--images', 'both.csv', '--group', 'antibody', '--arch', 'lenet5',
                 '--pretrained', 'no', '--size', '32', '--dry-run', '--no-cache']) == 0


def test_a_file_whose_line_is_missing_is_not_fetched_again(atlas, tmp_path):
    "A kill between the last byte of a file and its line in the manifest"
    download(atlas, tmp_path, 'GENE1', max_per_gene=1)
    file = tmp_path/'train'/'1_10_A1_1_red.jpg'
    (tmp_path/'.download').mkdir()
    file.rename(tmp_path/'.download'/file.name)
    lines = (tmp_path/'manifest.jsonl').read_text().splitlines(keepends=True)
    (tmp_path/'manifest.jsonl').write_text(''.join(line for line in lines if file.name not in line))
    atlas.asked.clear()
    assert download(atlas, tmp_path, 'GENE1', max_per_gene=1).exit_code == 0
    assert not atlas.paths() and file.is_file() and not (tmp_path/'.download').exists()
