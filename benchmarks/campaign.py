"""What changed files, kills and other mishaps do to the package: inputs tried, refused and read, the slowest and the
largest; kills survived, rows lost. Needs no data: it simulates its pictures."""
import argparse
import sys
import tempfile
import time
from pathlib import Path
import campaign_fuzz
import campaign_kills
import campaign_mishaps


def fuzz(args):
    start = time.perf_counter()
    results = campaign_fuzz.fuzz(args.kinds, args.inputs, args.seed, args.workers, args.keep, args.first,
                                 progress=sys.stderr.isatty())
    print(f'seed {args.seed}, {", ".join(args.kinds)}, {time.perf_counter()-start:.0f} s')
    print('\n'.join(campaign_fuzz.describe(*results)))


def kills(args):
    total = [0, 0, 0]
    for name, seconds, *counts, faults in campaign_kills.kill_runs(args.kills, args.seed, args.runs, args.keep):
        total = [a+b for a, b in zip(total, counts)]
        print('{:26} {:5.1f} s; kills {:3}, survived {:3}; rows lost {}'.format(name, seconds, *counts), flush=True)
        for fault in faults: print(f'    {fault}', flush=True)
    print('seed {}: kills {}, survived {}; rows lost {}'.format(args.seed, *total))


def mishaps(args):
    with tempfile.TemporaryDirectory(prefix='campaign-') as tmp:
        for what, is_good, details in campaign_mishaps.try_all(Path(tmp), args.which):
            print(f'{"as it should be" if is_good else "FAULT":15} {what}: {details}', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(dest='part', required=True)
    p = parts.add_parser('fuzz', help='changed files, read by each reader in watched workers')
    p.add_argument('--inputs', type=int, default=200_000, help='of all kinds together')
    p.add_argument('--kinds', nargs='+', default=[*campaign_fuzz.KINDS], choices=[*campaign_fuzz.KINDS])
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--first', type=int, default=0, help='number of the first input of each kind')
    p.add_argument('--workers', type=int, default=2)
    p.add_argument('--keep', help='folder for the first input of each finding')
    p = parts.add_parser('kills', help='runs that are killed at random moments and go on')
    p.add_argument('--kills', type=int, default=100)
    p.add_argument('--runs', nargs='+', default=[*campaign_kills.RUNS], choices=[*campaign_kills.RUNS])
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--keep', help='folder for what runs with faults left')
    p = parts.add_parser('mishaps', help='a clock set back, two writers, changed sources, little memory')
    p.add_argument('--which', nargs='+', default=[*campaign_mishaps.MISHAPS], choices=[*campaign_mishaps.MISHAPS])
    args = parser.parse_args()
    dict(fuzz=fuzz, kills=kills, mishaps=mishaps)[args.part](args)


if __name__ == '__main__': main()
