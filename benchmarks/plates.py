"""Plates. `effects`: how often faulty wells and effects of the edge are named rightly and wrongly, from simulated
figures of fields of view; with --pictures also from simulated pictures, a small model and the page that it writes."""
import argparse, tempfile, time
from pathlib import Path
import numpy as np
import pandas as pd
from PIL import Image, ImageFilter
from hpa_fastai.plates.wells import PLATE_FORMATS, well_name
from hpa_fastai.wells.effects import plate_effects, simulate_fields

FAULTS = {  # dim: stains at a half, nuclei at a third
    'dim': dict(red=-.7, yellow=-.7, blue=-1.2), 'no cells': dict(blue=-3., red=-2.), 'blurred': dict(focus=-1.2),
    'all flagged': dict(flagged=1.), 'all unread': dict(failed=1.)}


def kinds(found):
    "Which effects of the place were named"
    return set(found.effects.kind[found.effects.named])


def count_plates(n_wells, fields, n_seeds):
    "Name what is odd on plates where nothing is, and on plates with an edge and one faulty well"
    rows, columns = PLATE_FORMATS[n_wells]
    count, found_faults = dict.fromkeys(('quiet', 'edge', 'well', 'other effects', 'other wells'), 0), {}
    start = time.perf_counter()
    for seed in range(n_seeds):
        nothing = plate_effects(simulate_fields(n_wells, fields, seed))
        count['quiet'] += not kinds(nothing) and not len(nothing.wells)
        rng, (name, fault) = np.random.default_rng(seed), list(FAULTS.items())[seed % len(FAULTS)]
        place = int(rng.integers(1, rows+1)), int(rng.integers(1, columns+1))
        found = plate_effects(simulate_fields(n_wells, fields, 1000+seed, edge=-.3, bad={place: fault}))
        is_found = well_name(*place) in found.faulty
        count['edge'] += 'edge' in kinds(found)
        count['well'] += is_found
        count['other effects'] += len(kinds(found)-{'edge'})
        count['other wells'] += len(set(found.wells.well)-{well_name(*place)})
        found_faults.setdefault(name, []).append(is_found)
    seconds = (time.perf_counter()-start)/n_seeds/2
    return count, {name: f'{sum(o)}/{len(o)}' for name, o in found_faults.items()}, seconds


def from_figures(n_seeds):
    "A line for each format and number of fields"
    print(f'{n_seeds} plates without faults; as many whose outer wells are 26% darker, with one faulty well')
    faults = {}
    print(f'{"wells":>6} {"fields":>6}  {"nothing named":>14}  {"edge named":>10}  {"well named":>10}  '
          f'{"other wells":>11}  {"other effects":>13}  {"s a plate":>9}')
    for n_wells, fields in ((24, 4), (96, 4), (96, 9), (384, 4), (384, 1), (1536, 4)):
        count, by_fault, seconds = count_plates(n_wells, fields, n_seeds)
        print(f'{n_wells:>6} {fields:>6}  {count["quiet"]:>11}/{n_seeds}  {count["edge"]:>7}/{n_seeds}  '
              f'{count["well"]:>7}/{n_seeds}  {count["other wells"]:>11}  {count["other effects"]:>13}  '
              f'{seconds:>9.2f}')
        faults[f'{n_wells} wells, {fields} fields'] = by_fault
    print('\nfaulty wells that are named, by fault')
    print(pd.DataFrame(faults).T.to_string())


def spoil(path, darker=1., blurred=0.):
    "Change a picture as a microscope or a dispenser would"
    picture = Image.open(path)
    if blurred: picture = picture.filter(ImageFilter.GaussianBlur(blurred))
    Image.fromarray((np.asarray(picture)*darker).round().astype(np.uint8)).save(path)


def from_pictures(n_wells, fields, seeds, size=128):
    "Simulate plates of one cell line, predict them with a small model, and compare what their pages say"
    from hpa_fastai.data.files import find_images
    from hpa_fastai.data.labels import HPA28
    from hpa_fastai.data.reader import ImageReader
    from hpa_fastai.experiments.training import train_model
    from hpa_fastai.interpret.prediction import predict
    from hpa_fastai.simulate.atlas import simulate_atlas
    from hpa_fastai.wells.view import view_plates
    rows, columns = PLATE_FORMATS[n_wells]
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        simulate_atlas(d/'train', n=400, size=size, balance='even', progress=False)
        train_model(d/'train', d/'model', arch='smallresnet', size=96, minutes=.7, group='antibody', cache=d/'cache',
                    progress=False)
        for seed in seeds:
            for planted in (False, True):
                folder = d/f'plate_{seed}_{planted}'
                start = time.perf_counter()
                simulate_atlas(folder, n=n_wells*fields, size=size, seed=100+seed, per_protein=(1, 1, fields),
                               progress=False)
                table = find_images(folder/'train')
                number = table.groupby(table.Id.str.split('_').str[0], sort=False).ngroup().to_numpy()
                table = table.assign(plate=f'P{seed}', well=[well_name(i//columns+1, i%columns+1) for i in number])
                rng = np.random.default_rng(seed)
                bad = well_name(int(rng.integers(1, rows+1)), int(rng.integers(1, columns+1)))
                for row, i in zip(table.to_dict('records'), number) if planted else ():
                    is_outer = i//columns in (0, rows-1) or i%columns in (0, columns-1)
                    for channel in ('red', 'green', 'blue', 'yellow'):
                        if is_outer: spoil(row[channel], .74)
                        if row['well']==bad: spoil(row[channel], .25 if seed%2 else 1., 0. if seed%2 else 2.5)
                predictions = predict(table, d/'model', report=folder/'page.html', progress=False)
                view, = view_plates(predictions, HPA28, table, ImageReader(size=size))
                on_page = (folder/'page.html').read_text(encoding='utf-8')
                said = view.effects.sentences()
                what = f'edge 26% darker, {bad} {"dark" if seed%2 else "blurred"}' if planted else 'nothing'
                print(f'\n{n_wells} wells, {fields} fields, seed {seed}; planted: {what}; '
                      f'{time.perf_counter()-start:.0f} s, page of {len(on_page)/1e6:.1f} MB')
                print('\n'.join(f'  {line}' for line in said) or '  nothing is named')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = p.add_subparsers(dest='command', required=True)
    effects = commands.add_parser('effects', help='faulty wells and effects of the edge')
    effects.add_argument('--seeds', type=int, default=20, help='plates of each kind')
    effects.add_argument('--pictures', type=int, nargs='*', metavar='SEED', help='also simulate pictures: some minutes')
    effects.add_argument('--wells', type=int, default=96, choices=PLATE_FORMATS, help='of the plates with pictures')
    effects.add_argument('--fields', type=int, default=4, help='of a well of the plates with pictures')
    a = p.parse_args()
    if a.command=='effects':
        from_figures(a.seeds)
        if a.pictures is not None: from_pictures(a.wells, a.fields, a.pictures or [0, 1])


if __name__ == '__main__': main()
