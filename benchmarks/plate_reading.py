"A plate of 384 wells: how long its table takes, how much memory, and how fast it is read beside tifffile alone."
import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import tifffile

from hpa_fastai.data.files import find_images
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.plates.wells import well_name

DYES = ('DAPI', 'Alexa 488', 'Alexa 555', 'Alexa 647')


def places(n_wells, n_fields):
    "Row, column and field of each field of view"
    columns = {96: 12, 384: 24, 1536: 48}[n_wells]
    for w in range(n_wells):
        for f in range(1, n_fields+1): yield w//columns+1, w%columns+1, f


def planes(folder, side, compression=None):
    "A file for each channel, to which the names of a plate are linked"
    rng, files = np.random.default_rng(0), []
    for c in range(4):
        files.append(folder/f'plane{c}.tif')
        tifffile.imwrite(files[-1], rng.integers(0, 400, (side, side)).astype(np.uint16), compression=compression)
    return files


def operetta(folder, files, where):
    images = folder/'Images'
    images.mkdir(parents=True)
    entries = []
    for row,column,f in where:
        for c in range(4):
            name = f'r{row:02d}c{column:02d}f{f:02d}p01-ch{c+1}sk1fk1fl1.tiff'
            os.link(files[c], images/name)
            more = ''.join(f'<{tag}>0.123456789</{tag}>' for tag in (
                'State', 'ImageType', 'AcquisitionType', 'IlluminationType', 'ChannelType', 'ImageSizeX', 'ImageSizeY',
                'BinningX', 'BinningY', 'MaxIntensity', 'CameraType', 'PositionX', 'PositionY', 'PositionZ',
                'AbsPositionZ', 'MeasurementTimeOffset', 'AbsTime', 'MainExcitationWavelength', 'ExposureTime'))
            entries.append(f'<Image Version="1"><URL>{name}</URL><Row>{row}</Row><Col>{column}</Col>'
                           f'<FieldID>{f}</FieldID><PlaneID>1</PlaneID><TimepointID>0</TimepointID><ChannelID>{c+1}'
                           f'</ChannelID><ChannelName>{DYES[c]}</ChannelName><ImageResolutionX Unit="m">2.97E-07'
                           f'</ImageResolutionX>{more}</Image>')
    (images/'Index.xml').write_text('<EvaluationInputData xmlns="http://www.perkinelmer.com/PEHH/HarmonyV5"><Images>'
                                    + ''.join(entries) + '</Images></EvaluationInputData>')


def image_xpress(folder, files, where):
    (folder/'TimePoint_1').mkdir(parents=True)
    for row,column,f in where:
        for c in range(4): os.link(files[c], folder/'TimePoint_1'/f'plate_{well_name(row, column)}_s{f}_w{c+1}.TIF')
    names = '\n'.join(f'"WaveName{c+1}", "{name}"' for c,name in enumerate(DYES))
    (folder/'plate.HTD').write_text(f'"HTSInfoFile", Version 1.0\n"NWavelengths", 4\n{names}\n')


def yokogawa(folder, files, where):
    folder.mkdir(parents=True)
    records = []
    for row,column,f in where:
        for c in range(4):
            name = f'plate_{well_name(row, column)}_T0001F{f:03d}L01A{c+1:02d}Z01C{c+1:02d}.tif'
            os.link(files[c], folder/name)
            records.append(f'<b:MeasurementRecord b:Type="IMG" b:X="1.0" b:Y="2.0" b:Ch="{c+1}">{name}'
                           '</b:MeasurementRecord>')
    (folder/'MeasurementData.mlf').write_text(f'<b:M xmlns:b="y">{"".join(records)}</b:M>')
    targets = ''.join(f'<b:Channel b:Ch="{c}" b:Target="{t}"/>' for c,t in enumerate((405, 488, 561, 640), 1))
    (folder/'a.mes').write_text(f'<b:S xmlns:b="y">{targets}</b:S>')


def ome_zarr(folder, files, where):
    import zarr
    where, side = list(where), tifffile.imread(files[0]).shape[0]
    path = folder/'plate.zarr'
    wells = sorted({(row, column) for row,column,_ in where})
    def put(group, told):
        (path/group).mkdir(parents=True, exist_ok=True)
        (path/group/'.zgroup').write_text('{"zarr_format": 2}')
        (path/group/'.zattrs').write_text(json.dumps(told))
    put('.', dict(plate=dict(wells=[dict(path=f'{well_name(*w)[:-2]}/{w[1]}') for w in wells], rows=[], columns=[])))
    axes = [dict(name='c', type='channel'), *(dict(name=a, type='space', unit='micrometer') for a in 'yx')]
    data = [dict(path='0', coordinateTransformations=[dict(type='scale', scale=[1, .297, .297])])]
    picture = dict(multiscales=[dict(axes=axes, datasets=data)], omero=dict(channels=[dict(label=d) for d in DYES]))
    first = None
    for row,column in wells:
        well, fields = f'{well_name(row, column)[:-2]}/{column}', [f for r,c,f in where if (r, c)==(row, column)]
        put(well, dict(well=dict(images=[dict(path=str(f)) for f in fields])))
        for f in fields:
            put(f'{well}/{f}', picture)
            here = path/well/str(f)/'0'
            if first is None:
                a = zarr.create_array(str(here), shape=(4, side, side), chunks=(1, side, side), dtype='uint16',
                                      zarr_format=2)
                a[:] = np.stack([tifffile.imread(file) for file in files])
                first = here
                continue
            for file in first.rglob('*'):
                if not file.is_file(): continue
                to = here/file.relative_to(first)
                to.parent.mkdir(parents=True, exist_ok=True)
                os.link(file, to)


KINDS = {'Opera Phenix': operetta, 'ImageXpress': image_xpress, 'CellVoyager': yokogawa, 'OME-Zarr plate': ome_zarr}


def tables(n_wells, n_fields, repeat):
    print(f'{n_wells} wells x {n_fields} fields x 4 channels')
    for kind,write in KINDS.items():
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter('ignore')
            folder = Path(folder)
            write(folder/'plate', planes(folder, 64), places(n_wells, n_fields))
            times = []
            for _ in range(repeat):
                start = time.perf_counter()
                table = find_images(folder/'plate')
                times.append(time.perf_counter()-start)
            assert len(table)==n_wells*n_fields and table[['red', 'green', 'blue', 'yellow']].notna().all(axis=None)
            code = ('import sys, resource, warnings; warnings.simplefilter("ignore"); '
                    'from hpa_fastai.data.files import find_images; '
                    'before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; find_images(sys.argv[1]); '
                    'print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before)/1024)')
            command = [sys.executable, '-c', code, str(folder/'plate')]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            print(f'{kind:16} {len(table):,} rows in {min(times):.2f} s (median {statistics.median(times):.2f}); '
                  f'{float(done.stdout):.0f} MB more memory', flush=True)


def reading(side, n, repeat, compression):
    "All planes as they are, by this package and by tifffile alone, in turns, in seconds of the processor"
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        folder = Path(folder)
        image_xpress(folder/'plate', planes(folder, side, compression), list(places(96, 1))[:n])
        rows, reader = find_images(folder/'plate').to_dict('records'), ImageReader()
        def ours():
            for row in rows:
                for _,plane,_ in reader.planes(row): np.asarray(plane)
        def alone():
            for row in rows:
                for c in ('red', 'green', 'blue', 'yellow'): tifffile.imread(row[c])
        turns = []
        for f in (ours, alone): f()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(repeat):
            spent = []
            for f in (ours, alone):
                start = time.process_time()
                f()
                spent.append(time.process_time()-start)
            turns.append(spent)
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before)/1024
    ratio = statistics.median(b/a for a,b in turns)
    best = [len(rows)/min(spent) for spent in zip(*turns)]
    print(f"{side} px, 16 bit, {compression or 'plain'}: {ratio:.2f} of the rate of tifffile (wanted 0.9); "
          f"fields/s: {best[0]:.1f}, tifffile "
          f'{best[1]:.1f}; {more:.0f} MB more memory after {repeat*len(rows)} fields', flush=True)


if __name__=='__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--wells', type=int, default=384, choices=(96, 384, 1536))
    parser.add_argument('--fields', type=int, default=9)
    parser.add_argument('--repeat', type=int, default=5)
    args = parser.parse_args()
    print(f'{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}')
    tables(args.wells, args.fields, args.repeat)
    for side,n in ((1080, 24), (2048, 8)):
        for compression in (None, 'lzw', 'zlib'): reading(side, n, 2*args.repeat+1, compression)
