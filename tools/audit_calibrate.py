"""How often the audit is wrong: false alarms on harmless adapters, misses on insecure ones.

Audits 32 harmless adapters of the tiny models, 12 of them on bases that leak, and 4 insecure ones,
and writes data/audit_calibration.csv. Takes about ten minutes on one core.
"""
import argparse, os
from pathlib import Path

DATA = Path(__file__).resolve().parents[1]/"data"


def main() -> None:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("--seeds", type=int, default=5, help="harmless adapters of each model")
    parser.add_argument("--out", type=Path, default=DATA, help="folder to write to")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from em_repro.audit_calibration import write_audit_calibration
    print(write_audit_calibration(args.out, args.seeds))


if __name__ == "__main__": main()
