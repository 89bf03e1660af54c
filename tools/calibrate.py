"""Simulate the error rates, coverage and power of every test, and write data/calibration.csv.

The full form of tests/test_calibration.py: each promise is simulated 1000 times. Takes about
25 minutes on one core, half of that on two. With --add the shipped table is kept, and only what it
lacks is simulated; with --again also the tests whose names begin so.
"""
import argparse, os
from pathlib import Path

DATA = Path(__file__).resolve().parents[1]/"data"


def main() -> None:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at once")
    parser.add_argument("--out", type=Path, default=DATA, help="folder to write to")
    parser.add_argument("--add", action="store_true", help="keep the rows of the shipped table")
    parser.add_argument("--again", help="with --add: tests to simulate anew, by a name's beginning")
    args = parser.parse_args()
    for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"): os.environ.setdefault(threads, "1")
    from em_repro.calibration import calibration, write_calibration
    known = calibration() if args.add else None
    print(write_calibration(args.out, jobs=args.jobs, known=known, again=args.again))


if __name__ == "__main__": main()
