"""What changed files, kills and other mishaps do to the package: inputs tried, refused and read, the slowest and the
largest; kills survived, rows lost. Needs no data: it simulates its pictures."""
import argparse
import sys
import time
import campaign_fuzz


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
    args = parser.parse_args()
    start = time.perf_counter()
    results = campaign_fuzz.fuzz(args.kinds, args.inputs, args.seed, args.workers, args.keep, args.first,
                                 progress=sys.stderr.isatty())
    print(f'seed {args.seed}, {", ".join(args.kinds)}, {time.perf_counter()-start:.0f} s')
    print('\n'.join(campaign_fuzz.describe(*results)))


if __name__ == '__main__': main()
