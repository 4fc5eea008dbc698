"Checking folders: what is found, what is not an error, and what the exit code says."

import os, shutil
import numpy as np, pandas as pd, pytest, tifffile
from PIL import Image
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.basics.errors import ImageError
from hpa_fastai.formats.names import CHANNELS
from hpa_fastai.data.files import find_images
from hpa_fastai.data.labels import HPA19, HPA28, ZTG10, HPAError, LabelError
from hpa_fastai.data.label_tables import read_labels
from hpa_fastai.simulate.atlas import simulate_atlas
from hpa_fastai.data.verify import verify_folder
from microscopes import write_yokogawa


@pytest.fixture(scope='module')
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sound') / 'atlas'
    simulate_atlas(folder, n=8, size=128, seed=7, progress=False, num_workers=1, difficulty='easy')
    return folder


@pytest.fixture
def atlas(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / 'atlas')


def file(atlas, i, channel):
    return atlas / 'train' / f'{sorted(find_images(atlas / "train").Id)[i]}_{channel}.png'


def found(v):
    return set(zip(v.problems.level, v.problems.problem))


def check(atlas, **kwargs):
    return verify_folder(atlas / 'train', progress=False, **kwargs)


@pytest.mark.parametrize('deep', [False, True])
def test_sound_folder(atlas, deep):
    v = check(atlas, csv=atlas / 'train.csv', deep=deep)
    assert v.exit_code == 0 and not len(v.problems) and len(v.table) == 8 and v.n_files == 32
    assert (
        list(v.table.columns) == ['Id', 'layout', 'format', 'width', 'height', 'problems']
        and set(v.table.format) == {'PNG 8-bit grey'}
        and set(v.table.width) == {128}
    )
    assert 'Nothing needs attention' in str(v) and '8 fields of view in 32 files' in str(v)


BROKEN = {
    'truncated or damaged': lambda p: p.write_bytes(p.read_bytes()[:-2000]),
    'empty file': lambda p: p.write_bytes(b''),
    'not an image': lambda p: p.write_text('<html>'),
    'missing channel': lambda p: p.unlink(),
    'no intensities': lambda p: Image.open(p).convert('P').save(p),
    'sizes differ': lambda p: Image.open(p).resize((64, 64)).save(p),
    'too small': lambda p: Image.new('L', (1, 1)).save(p),
}


@pytest.mark.parametrize('kind', BROKEN)
def test_broken_file_is_found_by_headers_alone(atlas, kind):
    p = file(atlas, 2, 'blue')
    BROKEN[kind](p)
    v = check(atlas)
    assert found(v) == {('error', kind)} and v.exit_code == 1
    assert v.problems.Id[0] == v.table.Id[2] and v.table.problems[2] == kind and (v.table.problems == '').sum() == 7
    assert kind in str(v) and all(len(line) < 200 for line in str(v).splitlines())


def test_problems_of_files_whose_names_are_not_utf8(atlas):
    third = file(atlas, 3, 'red')
    for p in [os.fsencode(file(atlas, i, 'green')) for i in (0, 1)]:
        os.rename(p, p.replace(b'_green', b'\xfc_green'))
    (atlas / 'train' / os.fsdecode(b'\xfc.png')).write_bytes(b'')
    for n in (b'q\xfc.png', b'q\xfc_red.czi'):
        shutil.copy(third, os.fsdecode(os.fsencode(atlas / 'train') + b'/' + n))
    v = check(atlas, deep=True)
    assert {('error', 'empty file'), ('warning', 'byte-identical'), ('error', 'missing channel')} <= found(v)
    assert any(f.endswith('\\udcfc.png') for f in v.problems.file) and '\\udcfc' in str(v)


@pytest.mark.parametrize('compression', [None, 'zlib'])
def test_cut_tiff_is_found_by_headers_alone(tmp_path, compression):
    for c in CHANNELS:
        tifffile.imwrite(
            tmp_path / f'a_{c}.tif',
            np.random.default_rng(len(c)).integers(0, 255, (64, 64), dtype=np.uint8),
            compression=compression,
        )
    assert not len(verify_folder(tmp_path).problems)
    p = tmp_path / 'a_red.tif'
    p.write_bytes(p.read_bytes()[:-1000])
    assert found(verify_folder(tmp_path)) == {('error', 'truncated or damaged')}
    tifffile.imwrite(
        tmp_path / 'b.tif',
        np.random.default_rng(0).integers(0, 255, (4, 64, 64), dtype=np.uint8),
        compression=compression,
        photometric='minisblack',
    )
    p.unlink(), (tmp_path / 'b.tif').write_bytes((tmp_path / 'b.tif').read_bytes()[:-5000])
    v = verify_folder(tmp_path)
    assert set(v.problems.Id) == {'a', 'b'} and set(v.problems.level) == {'error'}


def test_folder_and_link_in_place_of_files(atlas):
    for i in (0, 1):
        file(atlas, i, 'red').unlink() if i == 1 else None
    p = atlas / 'train' / f'{find_images(atlas / "train").Id[1]}_red.png'
    os.symlink('nowhere', p)
    q = file(atlas, 0, 'red')
    q.unlink()
    q.mkdir()
    assert found(check(atlas)) == {
        ('warning', 'not a file: folder'),
        ('error', 'missing channel'),
        ('error', 'dangling link'),
    }


def test_what_stands_behind_the_end_mark_does_no_harm(atlas):
    with open(file(atlas, 0, 'red'), 'ab') as f:
        f.write(b'written by a camera' * 5)
    assert not len(check(atlas).problems)


def test_depths_that_differ(atlas):
    p = file(atlas, 0, 'green')
    Image.fromarray(np.asarray(Image.open(p)).astype(np.uint16) * 257).save(p)
    v = check(atlas)
    assert found(v) == {('warning', 'depths differ')} and v.exit_code == 1 and '16-bit' in v.problems.detail[0]


def test_copies(atlas):
    shutil.copy(file(atlas, 0, 'red'), file(atlas, 1, 'red'))
    v = check(atlas)
    assert (
        found(v) == {('warning', 'byte-identical')}
        and v.problems.Id[0] == v.table.Id[1]
        and v.problems.detail[0].endswith(file(atlas, 0, 'red').name)
    )


def test_equal_ends_are_not_yet_copies(tmp_path):
    for n, value in enumerate((3, 4)):
        for i, c in enumerate(CHANNELS):
            a = np.zeros((64, 64), np.uint8)
            a[:8] = value * 10 + i
            tifffile.imwrite(tmp_path / f'{n}_{c}.tif', a)
    assert not len(verify_folder(tmp_path).problems)


def test_pixels_are_looked_at_when_deep(atlas):
    Image.new('L', (128, 128)).save(file(atlas, 0, 'green'))
    Image.new('L', (128, 128), 7).save(file(atlas, 1, 'green'))
    shutil.copy(file(atlas, 3, 'yellow'), file(atlas, 2, 'yellow'))
    p = file(atlas, 4, 'red')
    raw = p.read_bytes()
    p.write_bytes(raw[:3000] + b'\0' * 20 + raw[3020:])
    assert found(check(atlas)) == {('warning', 'byte-identical')}
    v = check(atlas, deep=True)
    assert found(v) == {
        ('warning', 'byte-identical'),
        ('warning', 'all black'),
        ('warning', 'constant'),
        ('note', 'suspicious ER'),
        ('error', 'truncated or damaged'),
    }
    assert list(v.problems.level) == sorted(v.problems.level, key=['error', 'warning', 'note'].index)


def test_suspicion_alone_needs_no_attention(atlas):
    a, b = (file(atlas, i, 'yellow') for i in (0, 1))
    a.rename(atlas / 'x'), b.rename(a), (atlas / 'x').rename(b)
    v = check(atlas, deep=True)
    assert found(v) == {('note', 'suspicious ER')} and len(v.problems) == 2 and v.exit_code == 0


@pytest.mark.parametrize('top,bits', [(4000, 12), (16000, 14)])
def test_camera_of_fewer_bits(tmp_path, top, bits):
    rng = np.random.default_rng(0)
    base = rng.random((64, 64))
    for c in CHANNELS:
        Image.fromarray((base * rng.uniform(0.9, 1, (64, 64)) * top).astype(np.uint16)).save(tmp_path / f'a_{c}.png')
    v = verify_folder(tmp_path, deep=True)
    assert not len(v.problems) and f'{bits} bits of 16 are used: largest value' in str(v)
    v = verify_folder(tmp_path, deep=True, reader=ImageReader(bits=10))
    assert found(v) == {('error', 'camera bits')} and f'bits={bits}' in v.problems.detail[0]
    assert 'bits of 16' not in str(v)


def test_csv(atlas):
    csv = atlas / 'train.csv'
    lines = csv.read_text().splitlines()
    ids = [l.split(',')[0] for l in lines[1:]]
    csv.write_text(
        '\n'.join([lines[0], *lines[2:], f'{ids[1]},0,x', 'gone,3,x', '../../etc/passwd,0,x', f'{ids[2]}x,99,x']) + '\n'
    )
    v = check(atlas, csv=csv)
    kinds = v.problems.problem.value_counts().to_dict()
    assert kinds == {'no image': 3, 'no label': 1, 'csv Id twice': 1, 'bad label': 1} and v.exit_code == 1
    assert 'row 12: label 99' in v.problems.set_index('problem').detail['bad label']


def test_images_without_label_need_no_attention(atlas):
    csv = atlas / 'train.csv'
    csv.write_text('\n'.join(csv.read_text().splitlines()[:-1]))
    v = check(atlas, csv=csv)
    assert found(v) == {('note', 'no label')} and v.exit_code == 0


@pytest.mark.parametrize('ls', [HPA28, HPA19, ZTG10])
def test_label_set_is_known_by_its_columns(atlas, ls):
    ids = list(find_images(atlas / 'train').Id)
    pd.DataFrame({ls.id_col: ids, ls.label_col: [ls.sep.join(('0', '1'))] * len(ids)}).to_csv(atlas / 'l.csv')
    v = check(atlas, csv=atlas / 'l.csv')
    assert v.exit_code == 0 and ls.name in v.labels
    (atlas / 'n.csv').write_text('a,b\n1,2\n')
    assert found(check(atlas, csv=atlas / 'n.csv')) == {('error', 'csv without ids')}


def test_files_of_several_channels(tmp_path):
    a = np.random.default_rng(0).integers(0, 255, (4, 64, 64), dtype=np.uint8)
    Image.fromarray(np.moveaxis(a[:3], 0, -1)).save(tmp_path / 'rgb.png')
    tifffile.imwrite(
        tmp_path / 'named.ome.tif', a, metadata=dict(axes='CYX', Channel=dict(Name=['Cam1', 'FITC', 'DAPI', 'Cy5']))
    )
    tifffile.imwrite(tmp_path / 'z.ome.tif', a, metadata=dict(axes='ZYX'))
    v = verify_folder(tmp_path)
    assert dict(zip(v.problems.Id, v.problems.problem)) == {
        'rgb': 'missing channel',
        'named': 'unclear channels',
        'z': 'unreadable',
    }
    assert verify_folder(
        tmp_path / 'rgb.png'.replace('rgb.png', ''), reader=ImageReader(channels='rgb')
    ).problems.Id.tolist() == ['named', 'z']


def test_composites_are_listed_as_passed_over(atlas):
    (atlas / 'train' / f'{find_images(atlas / "train").Id[0]}_red_green.jpg').touch()
    assert found(check(atlas)) == {('warning', 'passed over')}


def test_what_is_left_out_is_listed(atlas):
    i = find_images(atlas / 'train').Id[0]
    for n in ('a.vsi', 'b.vsi', 'c.gif', f'{i}_cp_masks.png', 'notes.txt'):
        (atlas / 'train' / n).touch()
    v = check(atlas)
    assert (
        found(v) == {('note', 'not read: .vsi'), ('note', 'not read: .gif'), ('note', 'mask')}
        and v.exit_code == 0
        and len(v.table) == 8
    )
    assert sum('not read: .vsi' in line for line in str(v).splitlines()) == 1
    os.mkfifo(atlas / 'train' / 'x.png')
    v = check(atlas, deep=True)
    assert ('warning', 'not a file: FIFO') in found(v) and v.exit_code == 1 and len(v.table) == 8


def test_names_of_microscopes_are_said_on_the_screen(tmp_path):
    for n in range(4):
        Image.fromarray(np.random.default_rng(n).integers(0, 255, (32, 32), dtype=np.uint8)).save(
            tmp_path / f'A1_ch0{n}.png'
        )
    with pytest.raises(ImageError, match='The names seem to differ in ch00, ch01, ch02, ch03. Say which is which'):
        verify_folder(tmp_path)
    said = dict(red='ch00', green='ch01', blue='ch02', yellow='ch03')
    v = verify_folder(tmp_path, reader=ImageReader(channels=said))
    assert v.exit_code == 0 and v.table.Id.tolist() == ['A1']


def test_transparency_is_not_er(tmp_path):
    a = np.random.default_rng(0).integers(0, 255, (64, 64, 4), dtype=np.uint8)
    a[..., 3] = 255
    Image.fromarray(a).save(tmp_path / 'a.png')
    assert found(verify_folder(tmp_path, deep=True)) == {('error', 'missing channel')}


def test_csv_that_is_none(atlas):
    (atlas / 'x.csv').write_bytes(b'')
    assert found(check(atlas, csv=atlas / 'x.csv')) == {('error', 'unreadable csv')}


def test_empty_folder_needs_attention(tmp_path):
    v = verify_folder(tmp_path)
    assert v.exit_code == 1 and '0 fields of view' in str(v)


def test_real_images_are_sound(real_data):
    for folder, csv in (
        ('native/hpav18_jpg', 'native/hpav18_jpg/labels.csv'),
        ('native/kaggle_png', 'native/kaggle_png/labels.csv'),
    ):
        v = verify_folder(real_data / folder, real_data / csv, HPA28, deep=True)
        assert v.exit_code == 0 and not len(v.problems), str(v)
    v = verify_folder(real_data / 'mosaic' / 'images', real_data / 'mosaic' / 'train.csv')
    assert v.exit_code == 0 and len(v.table) == 245 and v.table.format.unique().tolist() == ['PNG 8-bit grey']


def test_real_er_of_another_field_is_suspicious(real_data, tmp_path):
    t = [
        r
        for r in find_images(real_data / 'native' / 'hpav18_jpg').to_dict('records')
        if Image.open(r['red']).size == (2048, 2048)
    ]
    for i, r in enumerate(t):
        for c in CHANNELS:
            os.symlink(
                (t[(i + 1) % len(t)] if c == 'yellow' else r)[c], tmp_path / f'{r["Id"]}_{c}{os.path.splitext(r[c])[1]}'
            )
    v = verify_folder(tmp_path, deep=True)
    assert (v.problems.problem == 'suspicious ER').sum() == len(t)


IDS = ['a1', 'a2', 'a3', 'a4']


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    "A folder with four small fields of view"
    folder = tmp_path_factory.mktemp('tiny') / 'train'
    folder.mkdir()
    for i in IDS:
        for c in CHANNELS:
            Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16), dtype=np.uint8)).save(
                folder / f'{i}_{c}.png'
            )
    return folder


GOOD = 'Id,Target\na1,0\na2,1 3\na3,2\na4,0\n'
TABLES = {
    'plain': GOOD,
    'a blank in the header': GOOD.replace(',', ', '),
    'UTF-16': GOOD.encode('utf-16'),
    'UTF-16 without a mark': GOOD.encode('utf-16-le'),
    'semicolons': GOOD.replace(',', ';'),
    'tabs': GOOD.replace(',', '\t'),
    'sep': 'sep=;\n' + GOOD.replace(',', ';'),
    'latin-1': ('Größe,' + GOOD).encode('latin-1'),
    'latin-1 with all columns': 'Id,Target,Größe\na1,0,ü\na2,1,\na3,2,\na4,0,\n'.encode('latin-1'),
    'lower case': GOOD.lower(),
    'names': GOOD.replace('2\n', 'Nucleoli\n'),
    'label 99': GOOD.replace('a1,0', 'a1,99'),
    'label 99 under a header with a blank': GOOD.replace('a1,0', 'a1,99').replace(',', ', '),
    'two columns': 'Id,Target,Target\na1,0,1\na2,1,1\na3,2,2\na4,0,0\n',
    'two columns by case': 'Id,Target,target\na1,0,1\na2,1,1\na3,2,2\na4,0,0\n',
    'mangled': GOOD.replace('a1', '3-Jan'),
    'no label': GOOD.replace('a1,0', 'a1,'),
    'no Id': GOOD.replace('a1', ''),
    'twice alike': GOOD + 'a1,0\n',
    'twice otherwise': GOOD + 'a1,5\n',
    'a long row': GOOD.replace('1 3', '1,3'),
    'a short row': GOOD.replace('a1,0', 'a1'),
    'no rows': 'Id,Target\n',
    'empty': '',
    'an open quote': GOOD.replace('a4,0', 'a4,"0'),
    'zeros': GOOD.encode() + b'\0\0',
    'cut UTF-16': GOOD.encode('utf-16')[:-1],
    'a page': '<html>' + GOOD,
    'another column of labels': GOOD.replace('Target', 'Location'),
    'no column of Ids': GOOD.replace('Id', 'File'),
    'no header': GOOD.partition('\n')[2],
    'a decimal label': GOOD.replace('a1,0', 'a1,0.0'),
    'half a label': GOOD.replace('a1,0', 'a1,0.5'),
    'a minus': GOOD.replace('a1,0', 'a1,-1'),
    'Predicted': GOOD.replace('Target', 'Predicted'),
    'a bad Predicted': GOOD.replace('Target', 'Predicted').replace('a1,0', 'a1,77'),
    'letters': GOOD.replace('a1,0', 'a1,Nucleus'),
    'carriage returns': GOOD.replace('\n', '\r'),
    'blank rows': GOOD.replace('\n', '\n,\n'),
}


@pytest.mark.filterwarnings('ignore:.*repeated rows')
@pytest.mark.parametrize('labels', [None, 'hpa28'])
@pytest.mark.parametrize('kind', TABLES)
def test_verify_and_training_are_of_one_mind(tiny, tmp_path, kind, labels):
    csv, content = tmp_path / 'train.csv', TABLES[kind]
    csv.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        read_labels(csv, ids=IDS)
    except LabelError as e:
        why = str(e)
    else:
        why = None
    v = check(tiny.parent, csv=csv, labels=labels)
    assert bool(len(v.problems[v.problems.level == 'error'])) == (why is not None), (why, v.problems)


def test_all_faulty_rows_are_listed(tiny, tmp_path):
    (tmp_path / 'l.csv').write_text('Id, Target\na1, 99\na2,\n3-Jan, 1\na4, x\na4, 2\n,1\n')
    v = check(tiny.parent, csv=tmp_path / 'l.csv')
    errors = v.problems[v.problems.level == 'error']
    assert errors.problem.value_counts().to_dict() == {'bad label': 3, 'bad Id': 2, 'no image': 1}


def test_the_csv_of_the_folder_comes_first(tiny, tmp_path, monkeypatch):
    (tmp_path / 'data').mkdir()
    shutil.copytree(tiny, tmp_path / 'data' / 'train')
    (tmp_path / 'data' / 'train.csv').write_text(GOOD)
    (tmp_path / 'train.csv').write_text(GOOD.replace('a1,0', 'a1,99'))
    (tmp_path / 'other.csv').write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    for csv in ('train.csv', 'other.csv', tmp_path / 'data' / 'train.csv'):
        assert 'bad label' not in str(verify_folder('data', csv, progress=False))
    assert 'bad label' in str(verify_folder('data', tmp_path / 'train.csv', progress=False))
    with pytest.raises(HPAError, match='data/none.csv and .*none.csv: no such file'):
        verify_folder('data', 'none.csv')


def test_damaged_jpg_is_found_by_its_codes(tmp_path):
    rng = np.random.default_rng(0)
    for c in CHANNELS:
        Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8)).save(tmp_path / f'a_{c}.jpg')
    assert verify_folder(tmp_path, deep=True, progress=False).exit_code == 0
    whole = (tmp_path / 'a_green.jpg').read_bytes()
    (tmp_path / 'a_green.jpg').write_bytes(whole[:-900] + whole[-600:])
    v = verify_folder(tmp_path, deep=True, progress=False)
    assert found(v) == {('error', 'truncated or damaged')} and 'a_green.jpg' in str(v)


HINTS = {
    'three channels': lambda x, write: [write(f'a_{c}.png', p) for c, p in zip(CHANNELS[:3], x)],
    'a gap': lambda x, write: [
        write(f'{i}_{c}.png', p // (i + 1)) for i in range(2) for c, p in zip(CHANNELS, x) if (i, c) != (1, 'yellow')
    ],
    'Z stack': lambda x, write: write('a.ome.tif', np.stack([x, x]), metadata=dict(axes='ZCYX')),
    'slices': lambda x, write: write('a.tif', x, imagej=True, metadata=dict(axes='ZYX')),
    'unknown names': lambda x, write: write(
        'a.ome.tif', x, metadata=dict(axes='CYX', Channel=dict(Name=['Cam1', 'Cam2', 'DAPI', 'Cam4']))
    ),
    'no names': lambda x, write: write('a.tif', x[:2], photometric='minisblack'),
    'integers': lambda x, write: [write(f'a_{c}.tif', p.astype(np.int32)) for c, p in zip(CHANNELS, x)],
    'floats': lambda x, write: [write(f'a_{c}.tif', p.astype(np.float32)) for c, p in zip(CHANNELS, x)],
}


@pytest.mark.parametrize('kind', HINTS)
def test_hints_can_be_followed_on_the_command_line(tmp_path, capsys, kind):
    import re
    from hpa_fastai.cli.main import main

    def write(name, a, **kwargs):
        Image.fromarray(a).save(tmp_path / name) if name.endswith('png') else tifffile.imwrite(
            tmp_path / name, a, **kwargs
        )

    HINTS[kind](np.random.default_rng(0).integers(0, 256, (4, 32, 32), dtype=np.uint8), write)
    table, said = find_images(tmp_path), verify_folder(tmp_path, deep=True, progress=False).problems.detail.tolist()
    for row in table.to_dict('records'):
        try:
            ImageReader().array(row)
        except ImageError as e:
            said.append(str(e))
    hints = dict.fromkeys(re.findall(r'in a shell: (--\S+) ([^)]+)\)', ' '.join(said)))
    clean = []
    for option, value in hints:
        main(['verify', str(tmp_path), '--deep', '--no-progress', option, value])
        printed = capsys.readouterr()
        assert not printed.err
        clean.append('error ' not in printed.out and 'camera bits' not in printed.out)
    assert any(clean) and (all(clean) or kind == 'slices'), (
        hints
    )  # slices may be either, and a maximum of channels is no field of view


# The table that nobody named is the one that training would take

@pytest.fixture
def plate(tmp_path):
    "A folder with four small fields of view that differ"
    draw = np.random.default_rng(0)
    (tmp_path/'plate').mkdir()
    for i in IDS:
        for c in CHANNELS:
            pixels = draw.integers(0, 255, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path/'plate'/f'{i}_{c}.png')
    return tmp_path/'plate'


@pytest.mark.parametrize('name', ['train.csv', 'locations.xlsx'])
def test_the_table_of_the_folder_is_checked(plate, name):
    rows = pd.DataFrame(dict(Id=IDS, Target='Nucleoli'))
    write = rows.to_csv if name.endswith('csv') else rows.to_excel
    write(plate/name, index=False)
    v = verify_folder(plate, progress=False)
    assert v.exit_code == 0 and f'labels  {name}: {len(IDS)} rows, labels read as hpa28' in str(v)
    rows.loc[1, 'Target'] = 'Nucleolli'
    write = rows.to_csv if name.endswith('csv') else rows.to_excel
    write(plate/name, index=False)
    v = verify_folder(plate, progress=False)
    assert v.exit_code == 1 and found(v) == {('error', 'bad label')} and 'Nucleoli' in v.problems.detail[0]


def test_columns_that_were_named_are_looked_for(plate):
    pd.DataFrame(dict(Field=IDS, Where=['Nucleoli', *['nowhere']*(len(IDS)-1)])).to_csv(plate/'l.csv', index=False)
    v = verify_folder(plate, progress=False)
    assert v.exit_code == 0 and found(v) == {('note', 'table not checked')} and '--csv l.csv' in str(v)
    v = verify_folder(plate, progress=False, id_column='Field', label_column='Where')
    assert v.exit_code == 1 and found(v) == {('error', 'bad label')}
    (plate/'l.csv').unlink()
    with pytest.raises(LabelError, match='no table of labels in it; name the table'):
        verify_folder(plate, progress=False, id_column='Field')


def test_without_a_table_that_is_said(plate):
    v = verify_folder(plate, progress=False)
    assert v.exit_code == 0 and 'no table was checked' in str(v)
    pd.DataFrame(dict(Id=IDS, Target='Nucleoli')).to_csv(plate.parent/'beside.csv', index=False)
    with pytest.raises(LabelError, match='no table of labels in it; beside it is beside.csv; name the table'):
        verify_folder(plate, progress=False, labels='hpa28')


def test_other_tables_are_no_labels(plate):
    pd.DataFrame(dict(well=['A1'], exposure=[20])).to_csv(plate/'settings.csv', index=False)
    v = verify_folder(plate, progress=False)
    assert v.exit_code == 0 and found(v) == {('note', 'table not checked')} and 'settings.csv' in str(v)
    pd.DataFrame(dict(well=['A1'], exposure=[20])).to_csv(plate/'more.csv', index=False)
    assert verify_folder(plate, progress=False).exit_code == 0


def test_what_a_prediction_wrote_is_no_table_of_labels(plate, trained):
    from hpa_fastai.basics.paths import find_label_file
    from hpa_fastai.interpret.prediction import predict
    for name in ('predictions.csv', 'predictions.xlsx'):
        predict(plate, trained[1], plate/name, progress=False)
        assert 'no table was checked' in str(verify_folder(plate, progress=False)), name
    with pytest.raises(HPAError, match='no table of labels in it'): find_label_file(plate)
    pd.DataFrame(dict(Id=IDS, Target='Nucleoli')).to_csv(plate/'labels.csv', index=False)
    assert find_label_file(plate) == plate/'labels.csv'


def test_a_table_of_files_has_its_labels_named(plate):
    table = find_images(plate)
    with pytest.raises(LabelError, match='csv='): verify_folder(table, labels='hpa28', progress=False)
    known = pd.DataFrame(dict(Id=IDS, Target='Nucleoli'))
    assert verify_folder(table, known, 'hpa28', progress=False).exit_code == 0


def test_a_folder_that_may_not_be_listed_gives_no_hint(plate, monkeypatch):
    from hpa_fastai.basics.paths import find_label_file
    listdir = os.listdir
    def refusing(path='.'):
        if os.path.samefile(path, plate.parent): raise PermissionError(13, 'Permission denied', str(path))
        return listdir(path)
    monkeypatch.setattr(os, 'listdir', refusing)
    with pytest.raises(HPAError, match='no table of labels in it; name'): find_label_file(plate)


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_sizes_that_differ_between_stacks_are_named_by_their_first_file(tmp_path):
    write_yokogawa(tmp_path/'plate', planes=3)
    for file in (tmp_path/'plate').glob('*C02.tif'): tifffile.imwrite(file, tifffile.imread(file)[:32])
    problems = verify_folder(tmp_path/'plate', reader=ImageReader(z='max')).problems
    detail, = problems.detail[problems.problem=='sizes differ']
    assert 'Z01C02.tif and 2 more of its stack 64x32' in detail and '|' not in detail
