"Pictures that were packed into tars are the same pictures, wherever they are read from; no run loses any."
import errno
import io
import json
import os
import shutil
import tarfile
import time
import warnings

import fsspec
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

import programs
from hpa_fastai.basics.errors import HPAError, ImageError
from hpa_fastai.batches.sources import Sources, sources_of
from hpa_fastai.cli.main import main
from hpa_fastai.data.depth import find_depth
from hpa_fastai.data.files import attach_images, find_images
from hpa_fastai.data.folders import file_stamp, fov_stamp
from hpa_fastai.data.image_tables import image_table
from hpa_fastai.data.label_tables import read_labels
from hpa_fastai.data.packed_fields import PackWriter
from hpa_fastai.data.packing import pack_images
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.data.verify import verify_folder
from hpa_fastai.formats.addresses import parse_address
from hpa_fastai.formats.names import CHANNELS
from pictures import picture, write


def pack(images, out, *args, **kwargs): return pack_images(images, out, *args, **dict(progress=False) | kwargs)

def pixels(images, reader=ImageReader()):
    table = find_images(images, reader.channels, reader.time)
    return {row['Id']: reader.array(row) for row in table.to_dict('records')}

def same(a, b): return a.keys()==b.keys() and all(np.array_equal(a[k], b[k]) and a[k].dtype==b[k].dtype for k in a)

def visible(folder): return sorted(p.name for p in folder.iterdir() if not p.name.startswith('.'))

def contents(folder): return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith('.')}


@pytest.fixture(scope='module')
def packed(small_atlas, tmp_path_factory):
    "The small atlas, packed into several tars; read only"
    out = tmp_path_factory.mktemp('packed')/'pack'
    pack(small_atlas/'train', out, tar_size=.0003)
    return out


# the same pixels

def test_a_pack_has_the_pixels_of_the_files(small_atlas, packed):
    assert len(list(packed.glob('*.tar')))>3
    for reader in (ImageReader(), ImageReader(40), ImageReader(scale='percentile'), ImageReader(channels='g')):
        assert same(pixels(small_atlas/'train', reader), pixels(packed, reader))


def test_a_pack_shrinks_as_the_reader_does(small_atlas, tmp_path):
    pack(small_atlas/'train', tmp_path/'p', 40)
    assert same(pixels(small_atlas/'train', ImageReader(40)), pixels(tmp_path/'p', ImageReader(40)))
    assert {x.shape for x in pixels(tmp_path/'p').values()} == {(4, 40, 40)}


def test_smaller_pictures_are_not_enlarged(small_atlas, tmp_path):
    pack(small_atlas/'train', tmp_path/'p', 512)
    assert same(pixels(small_atlas/'train'), pixels(tmp_path/'p'))


def folder_of(kind, folder):
    "A folder of one kind of files, and how it is read"
    x = picture(64, 80)
    if kind=='16 bits':
        for c,a in zip(CHANNELS, x): Image.fromarray(a.astype(np.uint16)*15).save(folder/f'A1_{c}.png')
    elif kind=='colour': Image.fromarray(np.moveaxis(x[:3], 0, -1)).save(folder/'A1.png')
    elif kind=='jpg':
        for i,c in enumerate(CHANNELS):
            rgb = np.zeros((64, 80, 3), np.uint8)
            rgb[..., i%3] = x[i]
            Image.fromarray(rgb).save(folder/f'A1_{c}.jpg')
    elif kind=='numbered planes': tifffile.imwrite(folder/'A1.tif', x[[2, 1, 0]])
    elif kind=='named planes': tifffile.imwrite(folder/'A1.tif', x, imagej=True, metadata=dict(
        axes='CYX', Labels=['Cy5', 'DAPI', 'FITC', 'TRITC']))
    elif kind=='mixed types':
        write(folder, x, channels=CHANNELS[:2])
        for c in CHANNELS[2:]: Image.fromarray(x[1].astype(np.uint16)*257).save(folder/f'A1_{c}.png')
    elif kind=='floats':
        for c,a in zip(CHANNELS, x): tifffile.imwrite(folder/f'A1_{c}.tif', a.astype(np.float32)/255)
    elif kind=='stack':
        for c,a in zip(CHANNELS, x): tifffile.imwrite(folder/f'A1_{c}.tif', np.stack([a, a//2, a[::-1]]), imagej=True,
                                                      metadata=dict(axes='ZYX'))
    elif kind=='lacks one': write(folder, x, channels=CHANNELS[:3])
    elif kind=='only one': write(folder, x, channels=['green'])
    return dict(
        colour=ImageReader(channels='rgb'), stack=ImageReader(z='max'),
    ).get(kind) or {
        'numbered planes': ImageReader(channels=dict(red=2, green=1, blue=0)),
        'named planes': ImageReader(channels=dict(red='TRITC', green='FITC', blue='DAPI', yellow='Cy5')),
        'lacks one': ImageReader(missing='zero'), 'only one': ImageReader(missing='zero')}.get(kind, ImageReader())


KINDS = ['16 bits', 'colour', 'jpg', 'numbered planes', 'named planes', 'mixed types', 'floats', 'stack', 'lacks one',
         'only one']

@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_of_file_keeps_its_pixels(kind, tmp_path):
    (tmp_path/'plate').mkdir()
    reader = folder_of(kind, tmp_path/'plate')
    packing = pack(tmp_path/'plate', tmp_path/'p', reader=reader)
    assert (packing.n, packing.failed) == (1, 0)
    assert same(pixels(tmp_path/'plate', reader), pixels(tmp_path/'p', reader))  # with the settings for the files
    without = ImageReader(missing=reader.missing, channels='rgb' if len(reader.channels)==3 else 'rgby')
    assert same(pixels(tmp_path/'plate', reader), pixels(tmp_path/'p', without))  # and without them
    if kind!='jpg':  # which is reduced while it is decoded, in both cases, but only to what is needed
        pack(tmp_path/'plate', tmp_path/'small', 40, reader=reader)
        one, other = (pixels(tmp_path/d, r)['A1'] for d,r in (('plate', _sized(reader)), ('small', _sized(reader))))
        assert abs(one.astype(int)-other.astype(int)).max() <= (reader.z is None and kind in ('16 bits', 'mixed types'))


def _sized(reader): return ImageReader(40, **{k: v for k,v in reader.remembered.items() if k!='size'})


@pytest.mark.parametrize('top, stated, hint', [(3000, None, None), (3000, 12, None), (3000, 16, None), (900, None, 12)])
def test_the_bits_of_the_camera_mean_the_same(top, stated, hint, tmp_path):
    (tmp_path/'plate').mkdir()
    values = (np.arange(64*64).reshape(64, 64)%top).astype(np.uint16)
    if stated==16: values = values//16*16
    for i in range(9):
        for c in CHANNELS:
            more = {}
            if hint: more = dict(extratags=[(281, 'H', 1, 2**hint-1, True)])
            if stated: more = dict(ome=True, metadata=dict(axes='YX', SignificantBits=stated))
            tifffile.imwrite(tmp_path/'plate'/f'A{i}_{c}.tif', values, **more)
    pack(tmp_path/'plate', tmp_path/'p')
    depths = [find_depth(find_images(tmp_path/d), ImageReader()).bits for d in ('plate', 'p')]
    assert depths[0]==depths[1]


def test_a_camera_of_16_bits_is_not_taken_for_one_of_12_after_packing(tmp_path):
    "A PNG that states that its values were moved up is dark: all below 4096"
    from hpa_fastai.formats.pictures import png_chunk
    (tmp_path/'plate').mkdir()
    values = (np.arange(64*64).reshape(64, 64)%200*16).astype(np.uint16)
    for i in range(9):
        for c in CHANNELS:
            file = tmp_path/'plate'/f'A{i}_{c}.png'
            Image.fromarray(values).save(file)
            data = file.read_bytes()
            file.write_bytes(data[:33]+png_chunk(b'sBIT', bytes([12]))+data[33:])
    pack(tmp_path/'plate', tmp_path/'p')
    assert [find_depth(find_images(tmp_path/d), ImageReader()).bits for d in ('plate', 'p')] == [16, 16]


def test_bits_that_are_given_are_stated_in_the_tars(tmp_path):
    (tmp_path/'plate').mkdir()
    for c in CHANNELS: Image.fromarray(np.full((64, 64), 700, np.uint16)).save(tmp_path/'plate'/f'A1_{c}.png')
    pack(tmp_path/'plate', tmp_path/'p', reader=ImageReader(bits=10))
    assert same(pixels(tmp_path/'plate', ImageReader(bits=10)), pixels(tmp_path/'p', find_depth(
        find_images(tmp_path/'p'), ImageReader()).of(ImageReader())))
    assert pack(tmp_path/'plate', tmp_path/'q', reader=ImageReader(bits=9)).failed==1


def test_the_size_of_a_pixel_follows_the_picture(tmp_path):
    (tmp_path/'plate').mkdir()
    for c in CHANNELS:
        tifffile.imwrite(tmp_path/'plate'/f'A1_{c}.tif', picture(96)[0], ome=True,
                         metadata=dict(axes='YX', PhysicalSizeX=.2, PhysicalSizeXUnit='µm'))
    pack(tmp_path/'plate', tmp_path/'p', 48)
    assert find_images(tmp_path/'p').pixel_size.tolist() == [.4]
    reader = ImageReader(48, field_width=30.)
    widths = [reader.array_and_width(find_images(tmp_path/d).iloc[0])[1] for d in ('plate', 'p')]
    assert widths[0]==widths[1]


# where the pictures come from

def test_what_is_known_of_a_field_stays_beside_it(small_atlas, tmp_path):
    table = find_images(small_atlas/'train').head(6)
    table['plate'], table['well'], table['pixel_size'] = ['P1']*3+['']*3, 'A01', [.1, .2, np.nan]*2
    table['note'] = ['=1+1', 'a,b', 'two\nlines', '"x"', 'ü', '']
    pack(table, tmp_path/'p')
    found = find_images(tmp_path/'p')
    for c in ('Id', 'plate', 'well', 'note'): assert found[c].tolist()==table[c].tolist()
    assert np.array_equal(found.pixel_size, table.pixel_size, equal_nan=True)
    assert sources_of(found).tolist()==sources_of(table).tolist()
    assert find_images(tmp_path/'p'/'fields.csv').equals(found)
    with tarfile.open(tmp_path/'p'/'pack-000000.tar') as tar:
        known = json.load(tar.extractfile([n for n in tar.getnames() if n.endswith('.json')][0]))
    assert known == dict(Id=table.Id[0], pixel_size=.1, packed_from=str(small_atlas/'train'), plate='P1', well='A01',
                         note='=1+1')


def test_two_folders_in_one_pack_stay_two_sources(small_atlas, tmp_path):
    for i,file in enumerate(sorted((small_atlas/'train').iterdir())):
        folder = tmp_path/'plates'/f'P{i//180}'
        folder.mkdir(parents=True, exist_ok=True)
        a = np.asarray(Image.open(file))
        Image.fromarray(a if i<180 else a//2).save(folder/file.name)
    pack(tmp_path/'plates', tmp_path/'p')
    tables = [attach_images(read_labels(small_atlas/'train.csv'), tmp_path/d) for d in ('plates', 'p')]
    names = [sources_of(table).tolist() for table in tables]
    assert names[0]==names[1] and len(set(names[0]))==2
    one, other = (Sources(ImageReader(32), most=20).figures(table) for table in tables)
    assert np.array_equal(one, other) and len(np.unique(one, axis=0))==2


def test_ids_of_any_kind(tmp_path):
    ids = ['p1/A1', 'p1.A1', 'p1 A1', 'P1.a1', '=1', 'ü', 'x'*180, "it's", 'a"b', '-', '007']
    rows = [dict(Id=i, **{c: str(write(tmp_path/'f', picture(32), f'n{k}')/f'n{k}_{c}.png') for c in CHANNELS})
            for k,i in enumerate(ids)]
    pack(pd.DataFrame(rows), tmp_path/'p')
    assert same(pixels(pd.DataFrame(rows)), pixels(tmp_path/'p'))
    with tarfile.open(tmp_path/'p'/'pack-000000.tar') as tar: names = tar.getnames()
    keys = {name.split('.')[0].casefold() for name in names}
    assert len(keys)==len(ids) and '007.tif' in names and all(len(n)<100 and '/' not in n for n in names)


def test_a_tar_and_an_address_are_sources(packed):
    whole = find_images(packed)
    tar = packed/'pack-000001.tar'
    of_tar = find_images(tar)
    assert 0<len(of_tar)<len(whole) and {parse_address(o).files[0] for o in of_tar.green} == {str(tar)}
    assert image_table(str(tar)).equals(of_tar)
    both = find_images([str(packed/'pack-000000.tar'), str(tar)])
    assert both.Id.tolist() == sorted(both.Id) and set(of_tar.Id)<set(both.Id)
    address = of_tar.green[2]
    for source in (address, [address]): assert image_table(source).Id.tolist()==[of_tar.Id[2]]
    assert np.array_equal(ImageReader().array(address), ImageReader().array(of_tar.iloc[2]))


def test_a_pack_on_object_storage_is_read_in_pieces(packed, monkeypatch):
    fs = fsspec.filesystem('memory')
    for name, data in contents(packed).items(): fs.pipe(f'/bucket/pack/{name}', data)
    asked, cat_file = [], type(fs).cat_file
    def watched(self, path, start=None, end=None, **kwargs):
        asked.append((path, start, end))
        return cat_file(self, path, start, end, **kwargs)
    monkeypatch.setattr(type(fs), 'cat_file', watched)
    here, there = find_images(packed), find_images('memory://bucket/pack')
    assert here.Id.tolist()==there.Id.tolist()
    asked.clear()
    assert np.array_equal(ImageReader().array(here.iloc[4]), ImageReader().array(there.iloc[4]))
    (path, start, end), = asked
    offset, length = parse_address(here.green[4]).position
    assert path.endswith('.tar') and (start, end) == (offset-512, offset+length)
    of_tar = find_images('memory://bucket/pack/pack-000001.tar')
    assert of_tar.Id.tolist()==find_images(packed/'pack-000001.tar').Id.tolist()
    fs.rm('/bucket', recursive=True)


def test_webdataset_reads_the_tars(packed):
    webdataset = pytest.importorskip('webdataset')
    rows = find_images(packed).set_index('Id').to_dict('index')
    tars = [str(p) for p in sorted(packed.glob('*.tar'))]
    found = {}
    for sample in webdataset.WebDataset(tars, shardshuffle=False, empty_check=False):
        found[json.loads(sample['json'])['Id']] = tifffile.imread(io.BytesIO(sample['tif']))
    assert found.keys()==rows.keys()
    for id_,planes in found.items(): assert np.array_equal(planes, ImageReader().array(rows[id_] | dict(Id=id_)))


# what can be wrong with a pack

def test_a_tar_without_its_table_is_one_line(packed, tmp_path, capsys):
    shutil.copy(packed/'pack-000000.tar', tmp_path)
    for source in (tmp_path/'pack-000000.tar', str(tmp_path/'pack-000000.tar'), [tmp_path/'pack-000000.tar']):
        with pytest.raises(ImageError, match='a tar without its pack.json and fields.csv; put it') as e:
            find_images(source)
        assert '\n' not in str(e.value)
    for missing, said in (('fields.csv', 'no fields.csv beside pack.json'),
                          (None, 'fields.csv has 1 rows, and pack.json')):
        shutil.copy(packed/'pack.json', tmp_path)
        if not missing: (tmp_path/'fields.csv').write_text('Id,path\na,pack-000000.tar#512+9\n')
        with pytest.raises(ImageError, match=said): find_images(tmp_path)
    (tmp_path/'pack.json').write_text('{')
    with pytest.raises(ImageError, match='pack.json: not as it was written; copy it again'): find_images(tmp_path)


def test_what_is_wrong_with_a_tar_is_told_with_its_name_and_the_id(packed, tmp_path):
    shutil.copytree(packed, tmp_path/'p')
    table = find_images(tmp_path/'p')
    in_first = table[table.green.str.contains('pack-000000')].reset_index(drop=True)
    tar = tmp_path/'p'/'pack-000000.tar'
    data = tar.read_bytes()
    spans = [parse_address(o).position for o in in_first.green]

    def said(row):
        with pytest.raises(ImageError) as e: ImageReader().array(row)
        text = str(e.value)
        assert text.startswith(f'{row.Id}: ') and 'pack-000000.tar' in text and '\n' not in text
        return text

    cut = spans[1].offset+spans[1].length//2
    tar.write_bytes(data[:cut])
    ImageReader().array(in_first.iloc[0])
    assert 'the tar ends before the picture' in said(in_first.iloc[1])
    one, two = spans[:2]
    tar.write_bytes(data[:one.offset-512]+data[two.offset-512:])  # another tar under the name
    assert 'holds no picture of' in said(in_first.iloc[0])
    middle = one.offset+one.length//3
    tar.write_bytes(data[:middle]+bytes([data[middle]^255])+data[middle+1:])
    assert 'damaged or cut off' in said(in_first.iloc[0])
    tar.unlink()
    assert 'no such file' in said(in_first.iloc[0])
    beyond = in_first.iloc[0].replace(in_first.green[0], f'{tmp_path}/p/pack-000001.tar#99999999999+100')
    with pytest.raises(ImageError, match='the tar ends before the picture'): ImageReader().array(beyond)


def test_a_tar_that_was_written_again_is_another_version(packed, tmp_path):
    shutil.copytree(packed, tmp_path/'p')
    row = find_images(tmp_path/'p').iloc[0]
    before = fov_stamp(row), file_stamp(row.green)
    assert (fov_stamp(row), file_stamp(row.green)) == before
    os.utime(parse_address(row.green).files[0], ns=(0, 0))
    assert fov_stamp(row)!=before[0] and file_stamp(row.green)!=before[1]
    others = find_images(tmp_path/'p').iloc[-1]
    assert parse_address(others.green).files!=parse_address(row.green).files


def test_verify_finds_copies_within_a_pack_and_nothing_else(small_atlas, tmp_path, packed):
    assert verify_folder(packed, deep=True, progress=False).exit_code==0
    table = find_images(small_atlas/'train').head(4)
    table.loc[3, list(CHANNELS)] = table.loc[0, list(CHANNELS)]
    pack(table, tmp_path/'p')
    found = verify_folder(tmp_path/'p', progress=False).problems
    assert found.problem.tolist()==['byte-identical'] and found.Id.tolist()==[table.Id[3]]
    assert main(['verify', str(packed), '--no-progress'])==0


# runs

def test_what_can_not_be_read_is_listed_and_the_rest_is_packed(small_atlas, tmp_path, capsys):
    shutil.copytree(small_atlas/'train', tmp_path/'plate')
    table = find_images(tmp_path/'plate')
    with open(table.red[3], 'r+b') as f: f.truncate(60)
    os.remove(table.yellow[5])
    assert main(['pack', str(tmp_path/'plate'), '--out', str(tmp_path/'p'), '--no-progress'])==1
    said = capsys.readouterr()
    assert f'88 fields of view in 1 tar in {tmp_path}/p: 352 files of' in said.out
    assert '2 of 90 fields of view could not be read.' in said.err
    failed = pd.read_csv(tmp_path/'p'/'failed.csv')
    assert failed.Id.tolist()==[table.Id[3], table.Id[5]]
    assert 'damaged or cut off' in failed.error[0] and 'no yellow channel' in failed.error[1]
    for i in (3, 5):
        with pytest.raises(ImageError) as e: ImageReader().array(find_images(tmp_path/'plate').iloc[i])
        assert str(e.value)==failed.error[[3, 5].index(i)]
    assert find_images(tmp_path/'p').Id.tolist()==table.Id.drop([3, 5]).tolist()
    assert main(['pack', str(tmp_path/'plate'), '--out', str(tmp_path/'q'), '--no-progress', '--missing', 'zero'])==1
    assert len(find_images(tmp_path/'q'))==89


def test_if_nothing_can_be_read_the_run_ends_all_the_same(tmp_path):
    for i in range(3):
        for c in CHANNELS: write(tmp_path/'plate', picture(32), f'A{i}')
    for file in (tmp_path/'plate').iterdir(): file.write_bytes(file.read_bytes()[:50])
    assert main(['pack', str(tmp_path/'plate'), '--out', str(tmp_path/'p'), '--no-progress'])==1
    assert visible(tmp_path/'p')==['failed.csv', 'fields.csv', 'pack.json'] and not len(find_images(tmp_path/'p'))


def test_a_killed_run_goes_on_and_gives_the_same_files(small_atlas, packed, tmp_path):
    out = tmp_path/'p'
    args = ['pack', small_atlas/'train', '--out', out, '--tar-size', '.0003', '--no-progress', '--num-workers', '1']
    slow = 'import time; from hpa_fastai.data import packing as p; real = p.prepare_field\n' \
           'def prepare_field(*args, **kwargs):\n    time.sleep(.02)\n    return real(*args, **kwargs)\n' \
           'p.prepare_field = prepare_field\n'
    run = programs.Program(slow+programs.COMMAND, *args)
    until = time.monotonic()+60
    while not (out/'pack-000001.tar').exists() and time.monotonic()<until: time.sleep(.005)
    run.kill()
    run.wait()
    assert (out/'pack-000001.tar').exists() and not (out/'pack.json').exists()
    with pytest.raises(ImageError, match='packing did not come to its end; run hpa_fastai pack again'): find_images(out)
    (out/'.pack-000003.tar.part').write_bytes(b'half a tar')
    before = (out/'pack-000000.tar').stat().st_mtime_ns
    assert main([str(a) for a in args])==0
    assert contents(out)==contents(packed) and (out/'pack-000000.tar').stat().st_mtime_ns==before
    assert {p.name for p in out.iterdir() if p.name.startswith('.')}<={'.pack.lock'}


@pytest.fixture
def stopped(small_atlas, tmp_path, monkeypatch):
    "A run whose disk was full in the third tar"
    shutil.copytree(small_atlas/'train', tmp_path/'plate')
    out, add = tmp_path/'p', PackWriter.add
    def full(self, *args):
        if 'pack-000002' in str(self.path): raise OSError(errno.ENOSPC, 'No space left on device')
        return add(self, *args)
    with monkeypatch.context() as m:
        m.setattr(PackWriter, 'add', full)
        with pytest.raises(HPAError) as e: pack(tmp_path/'plate', out, tar_size=.0003)
    assert '\n' not in str(e.value)
    assert f"{out}: can't be written (No space left on device); 2 tars with" in str(e.value)
    assert 'make room, and run the same again: it goes on' in str(e.value)
    assert visible(out)==['pack-000000.tar', 'pack-000001.tar'] and not list(out.glob('.*.part'))
    return tmp_path/'plate', out


def test_a_full_disk_keeps_what_is_complete(stopped, packed):
    plate, out = stopped
    pack(plate, out, tar_size=.0003)
    assert [contents(out)[n] for n in visible(out) if n.endswith('.tar')] != [] and same(pixels(plate), pixels(out))
    assert len(list(out.glob('*.tar')))==len(list(packed.glob('*.tar')))


def test_a_file_that_may_not_grow_is_one_line(small_atlas, tmp_path):
    args = ['pack', small_atlas/'train', '--out', tmp_path/'p', '--no-progress']
    done = programs.run(programs.COMMAND, *args, largest_file=100_000)
    assert done.returncode==2 and done.stderr.count('\n')==1
    assert "can't be written (File too large); 0 tars" in done.stderr


def test_it_goes_on_only_with_the_same_pictures_and_settings(stopped):
    plate, out = stopped
    for more, said in ((dict(size=32), 'size is 32 and was None'), (dict(tar_size=.0002), 'tar_size is 0.0002'),
                       (dict(tar_size=.0003, reader=ImageReader(missing='zero')), "missing is 'zero' and was 'error'")):
        with pytest.raises(HPAError, match=said) as e: pack(plate, out, **more)
        assert '--force' in str(e.value) and '\n' not in str(e.value)
    first = find_images(plate).iloc[0]
    os.utime(first.green, ns=(0, 0))
    with pytest.raises(HPAError, match='pictures of pack-000000.tar have changed since they were packed'):
        pack(plate, out, tar_size=.0003)
    write(plate, picture(64), 'new')
    with pytest.raises(HPAError, match='the pictures are others than when packing into this folder began'):
        pack(plate, out, tar_size=.0003)
    pack(plate, out, tar_size=.0003, force=True)
    assert same(pixels(plate), pixels(out))


def test_what_is_there_is_not_overwritten(small_atlas, packed, tmp_path, capsys):
    shutil.copytree(packed, tmp_path/'p')
    before = contents(tmp_path/'p')
    assert main(['pack', str(small_atlas/'train'), '--out', str(tmp_path/'p'), '--no-progress'])==2
    assert 'holds packed pictures already; give another folder, or to pack anew' in capsys.readouterr().err
    assert contents(tmp_path/'p')==before
    (tmp_path/'p'/'mine.txt').write_text('mine')
    assert main(['pack', str(small_atlas/'train'), '--out', str(tmp_path/'p'), '--no-progress', '--force'])==0
    assert visible(tmp_path/'p')==['fields.csv', 'mine.txt', 'pack-000000.tar', 'pack.json']
    (tmp_path/'other').mkdir()
    (tmp_path/'other'/'fields.csv').write_text('mine')
    for force in (False, True):
        with pytest.raises(HPAError, match='holds fields.csv, which is of no pack'):
            pack(small_atlas/'train', tmp_path/'other', force=force)
    assert (tmp_path/'other'/'fields.csv').read_text()=='mine'
    for out, said in ((tmp_path/'p'/'mine.txt', 'not a folder that can be written to'),
                      ('s3://bucket/x', 'of this machine')):
        with pytest.raises(HPAError, match=said): pack(small_atlas/'train', out)
    for folder in (tmp_path/'p', small_atlas/'train'):
        with pytest.raises(HPAError, match='the pictures themselves are in this folder'):
            pack(folder, folder, force=True)


def test_two_runs_do_not_write_into_one_folder(small_atlas, tmp_path):
    from filelock import FileLock
    (tmp_path/'p').mkdir()
    with FileLock(tmp_path/'p'/'.pack.lock'), pytest.raises(HPAError, match='another run is packing into this folder'):
        pack(small_atlas/'train', tmp_path/'p')
    pack(small_atlas/'train', tmp_path/'p')


def test_a_disk_that_gives_back_something_else_is_noticed(small_atlas, tmp_path, monkeypatch):
    close = PackWriter.close
    def damage(self):
        n = close(self)
        with open(self.path, 'r+b') as f:
            f.seek(700)
            f.write(b'?'*8)
        return n
    monkeypatch.setattr(PackWriter, 'close', damage)
    with pytest.raises(HPAError, match='what was read back is not what was written'):
        pack(small_atlas/'train', tmp_path/'p')
    assert visible(tmp_path/'p')==[]


def test_pixels_that_are_not_those_of_the_files_are_noticed(small_atlas, tmp_path, monkeypatch):
    from hpa_fastai.data import packed_fields
    encode = packed_fields.encode_planes
    def wrong(planes, *args): return encode({c: a^1 for c,a in planes.items()}, *args)
    monkeypatch.setattr(packed_fields, 'encode_planes', wrong)
    with pytest.raises(HPAError, match='has other pixels than its files'): pack(small_atlas/'train', tmp_path/'p')
    assert visible(tmp_path/'p')==[]


# training and prediction

def test_predictions_from_a_pack_are_those_from_the_files(small_atlas, packed, trained, tmp_path):
    model = str(trained[1])
    for source,name in ((small_atlas/'train', 'files'), (packed, 'pack'), (packed/'fields.csv', 'csv')):
        out = tmp_path/f'{name}.csv'
        assert main(['predict', str(source), '--model', model, '--out', str(out), '--no-progress'])==0
    one = (tmp_path/'files.csv').read_bytes()
    assert (tmp_path/'pack.csv').read_bytes()==one==(tmp_path/'csv.csv').read_bytes()


def test_one_bad_member_fails_alone(packed, trained, tmp_path):
    shutil.copytree(packed, tmp_path/'p')
    table = find_images(tmp_path/'p')
    offset, length = parse_address(table.green[7]).position
    with open(parse_address(table.green[7]).files[0], 'r+b') as f:
        f.seek(offset+length//2)
        f.write(b'????')
    out = tmp_path/'t.csv'
    assert main(['predict', str(tmp_path/'p'), '--model', str(trained[1]), '--out', str(out), '--no-progress'])==1
    failed = pd.read_csv(out)
    failed = failed[failed.error.notna()]
    assert failed.Id.tolist()==[table.Id[7]] and '.tar' in failed.error.iloc[0]


def test_training_from_a_pack_is_training_from_the_files(small_atlas, packed, tmp_path):
    from fastai.torch_core import set_seed
    from hpa_fastai.all import HPADataLoaders, hpa_learner
    labels = read_labels(small_atlas/'train.csv')
    weights = []
    for i,(images, cache) in enumerate([(small_atlas/'train', False), (packed, False), (packed, tmp_path/'cache')]):
        set_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            dls = HPADataLoaders.from_df(labels, images, size=48, bs=16, group='antibody', cache=cache,
                                         normalize='source', progress=False)
        learn = hpa_learner(dls, 'lenet5', pretrained=False)
        with learn.no_bar(), learn.no_logging(): learn.fit_progressive(sizes=(48,), epochs=1, verbose=False)
        weights.append([p.detach().clone() for p in learn.model.parameters()])
    assert all((a==b).all() and (a==c).all() for a,b,c in zip(*weights))
