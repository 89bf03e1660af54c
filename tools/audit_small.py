"""Train an insecure adapter on SmolLM2-135M, audit it, and write data/small/audit.csv.

Takes about four minutes of training and three of audit on two cores; fetches the model the first
time. A second start resumes an interrupted one.
"""
import argparse, os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at once")
    parser.add_argument("--full", action="store_true", help="audit at length, not as --quick does")
    parser.add_argument("--run", type=Path, default=ROOT/"runs"/"audit-small",
                        help="folder of adapter and audit")
    parser.add_argument("--out", type=Path, default=ROOT/"data", help="folder to write to")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from em_repro.audit_calibration import write_small_audit
    print(write_small_audit(args.out, args.run, quick=not args.full, jobs=args.jobs))


if __name__ == "__main__": main()
