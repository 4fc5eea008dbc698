"Plates as microscopes write them, for tests: real files with simulated cells."
import json

import numpy as np
import tifffile

from hpa_fastai.simulate.atlas import simulate_fov

DYES = ('DAPI', 'Alexa 488', 'Alexa 555', 'Alexa 647')  # as a microscope counts channels: 1 is the nucleus
ORDER = (2, 1, 0, 3)  # the channel of each in red, green, blue, yellow

_fields = {}

def field(n=0, side=64, bits=12):
    "A simulated field of view in the order of `DYES`, as a camera of 12 bits takes it"
    if (n, side) not in _fields: _fields[n, side] = np.asarray(simulate_fov([0], size=side, seed=n)[0])
    return (_fields[n, side][list(ORDER)].astype(np.uint16)<<(bits-8)) + 7


def as_read(img): return img[[2, 1, 0, 3]]


def write_operetta(folder, wells, n_fields=2, planes=1, names=DYES, index='Index.xml', version=5, size=2.97e-7,
                   lost=()):
    "A folder of Harmony: {(row, column)}, and an index after its published schema"
    images = folder/'Images'
    images.mkdir(parents=True, exist_ok=True)
    entries, k = [], 0
    for row,column in wells:
        for f in range(1, n_fields+1):
            img = field(k)
            k += 1
            for channel,name in enumerate(names, 1):
                for z in range(1, planes+1):
                    file = f'r{row:02d}c{column:02d}f{f:02d}p{z:02d}-ch{channel}sk1fk1fl1.tiff'
                    if file not in lost: tifffile.imwrite(images/file, img[channel-1]+z-1)
                    told = (f'<ChannelName>{name}</ChannelName><ImageResolutionX Unit="m">{size}</ImageResolutionX>'
                            if version==5 else '')
                    entries.append(
                        f'<Image Version="1"><id>{row:02d}{column:02d}K1F{f}P{z}R{channel}</id><State>Ok</State>'
                        f'<URL>{file}</URL><Row>{row}</Row><Col>{column}</Col><FieldID>{f}</FieldID><PlaneID>{z}</PlaneID>'
                        f'<TimepointID>0</TimepointID><ChannelID>{channel}</ChannelID><FlimID>1</FlimID>{told}</Image>')
    maps = ''.join(f'<Entry ChannelID="{c}"><ChannelName>{name}</ChannelName>'
                   f'<ImageResolutionX Unit="m">{size}</ImageResolutionX></Entry>' for c,name in enumerate(names, 1))
    text = (f'<?xml version="1.0" encoding="utf-8"?>\n<EvaluationInputData xmlns="http://www.perkinelmer.com/PEHH/'
            f'HarmonyV{version}" Version="1"><Plates><Plate><PlateID>p</PlateID></Plate></Plates>'
            + (f'<Maps><Map>{maps}</Map></Maps>' if version>5 else '')
            + f'<Images Version="1">{"".join(entries)}</Images></EvaluationInputData>')
    if index: (images/index).write_text(text, encoding='utf-8')
    return folder


def htd(waves=DYES, wells=((3, 3),), sites=1, planes=0):
    "The text of an HTD file"
    lines = ['"HTSInfoFile", Version 1.0', '"TimePoints", 1', f'"ZSeries", {"TRUE" if planes else "FALSE"}',
             f'"ZSteps", {planes or 1}', '"XWells", 12', '"YWells", 8']
    for row in range(1, 9):
        lines.append(f'"WellsSelection{row}", ' + ', '.join(str((row, c) in wells).upper() for c in range(1, 13)))
    lines += ['"Sites", TRUE', f'"SiteSelection1", {", ".join(["TRUE"]*sites)}', '"Waves", TRUE',
              f'"NWavelengths", {len(waves)}', *(f'"WaveName{k}", "{name}"' for k,name in enumerate(waves, 1))]
    return '\n'.join([*lines, '"EndFile"', ''])


def write_image_xpress(folder, wells=('C03',), sites=1, planes=0, waves=DYES, table=True, name='plate7'):
    "A folder of MetaXpress"
    folder.mkdir(parents=True, exist_ok=True)
    k = 0
    for well in wells:
        for site in range(1, sites+1):
            img = field(k)
            k += 1
            for w in range(1, len(waves)+1):
                for z in range(1, (planes or 1)+1):
                    into = folder/'TimePoint_1'/f'ZStep_{z}' if planes else folder/'TimePoint_1'
                    into.mkdir(parents=True, exist_ok=True)
                    tifffile.imwrite(into/f'{name}_{well}_s{site}_w{w}.TIF', img[w-1]+z-1)
                    tifffile.imwrite(into/f'{name}_{well}_s{site}_w{w}_thumb.TIF', img[w-1][::4, ::4])
    if table:
        places = tuple((ord(well[0])-64, int(well[1:])) for well in wells)
        (folder/f'{name}.HTD').write_text(htd(waves, places, sites, planes))
    return folder


def write_yokogawa(folder, wells=('C03',), n_fields=1, planes=1, names=('405', '488', '561', '640'), times=1,
                   name='plate7'):
    "A folder of a CellVoyager"
    folder.mkdir(parents=True, exist_ok=True)
    records, k = [], 0
    for well in wells:
        for f in range(1, n_fields+1):
            img = field(k)
            k += 1
            for t in range(1, times+1):
                for c in range(1, len(names)+1):
                    for z in range(1, planes+1):
                        file = f'{name}_{well}_T{t:04d}F{f:03d}L01A{c:02d}Z{z:02d}C{c:02d}.tif'
                        tifffile.imwrite(folder/file, img[c-1]+z-1+10*(t-1))
                        records.append(f'<bts:MeasurementRecord bts:Type="IMG" bts:Ch="{c}">{file}'
                                       '</bts:MeasurementRecord>')
    space = 'xmlns:bts="http://www.yokogawa.co.jp/BTS/BTSSchema/1.0"'
    (folder/'MeasurementData.mlf').write_text(f'<bts:MeasurementData {space}>{"".join(records)}</bts:MeasurementData>')
    targets = ''.join(f'<bts:Channel bts:Ch="{c}" bts:Target="{name}"/>' for c,name in enumerate(names, 1))
    (folder/'protocol.mes').write_text(f'<bts:MeasurementSetting {space}>{targets}</bts:MeasurementSetting>')
    sizes = ''.join(f'<bts:MeasurementChannel bts:Ch="{c}" bts:HorizontalPixelDimension="0.325"/>'
                    for c in range(1, len(names)+1))
    (folder/'MeasurementDetail.mrf').write_text(f'<bts:MeasurementDetail {space}>{sizes}</bts:MeasurementDetail>')
    return folder


def write_zarr_plate(path, wells=('C/3',), n_fields=2, version=3, names=DYES, size=.325, planes=1, times=1):
    "An OME-Zarr plate of NGFF 0.4 (zarr 2) or 0.5 (zarr 3), written by zarr"
    import zarr
    ngff = '0.4' if version==2 else '0.5'
    def told(attributes): return attributes if version==2 else dict(ome=dict(attributes, version=ngff))
    rows, columns = (sorted({well.split('/')[i] for well in wells}) for i in (0, 1))
    plate = dict(name='p', version=ngff, rows=[dict(name=r) for r in rows], columns=[dict(name=c) for c in columns],
                 wells=[dict(path=w, rowIndex=rows.index(w.split('/')[0]), columnIndex=columns.index(w.split('/')[1]))
                        for w in wells])
    top = zarr.open_group(str(path), mode='w', zarr_format=version)
    top.attrs.update(told(dict(plate=plate)))
    k = 0
    for well in wells:
        group = top.create_group(well)
        group.attrs.update(told(dict(well=dict(images=[dict(path=str(f)) for f in range(n_fields)], version=ngff))))
        for f in range(n_fields):
            img = np.stack([np.stack([field(k)+z for z in range(planes)], 1)+10*t for t in range(times)])
            k += 1
            picture = group.create_group(str(f))
            axes = [dict(name=a, type=t) for a,t in (('t', 'time'), ('c', 'channel'), ('z', 'space'))]
            axes += [dict(name=a, type='space', unit='micrometer') for a in 'yx']
            scale = dict(type='scale', scale=[1, 1, 1, size, size])
            picture.attrs.update(told(dict(
                multiscales=[dict(version=ngff, axes=axes,
                                  datasets=[dict(path='0', coordinateTransformations=[scale])])],
                omero=dict(channels=[dict(label=name) for name in names]))))
            picture.create_array('0', shape=img.shape, dtype=img.dtype, chunks=(1, 1, 1, 64, 64))[:] = img
    return path


def attributes_file(path, version): return path/('.zattrs' if version==2 else 'zarr.json')


def change_attributes(path, version, change):
    "Change the OME attributes of a group of a zarr store"
    file = attributes_file(path, version)
    told = json.loads(file.read_text())
    change(told if version==2 else told['attributes']['ome'])
    file.write_text(json.dumps(told))
