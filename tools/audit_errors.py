"""How often the audit is wrong on a real model: 90 fine-tunes, audited each.

Makes 54 fine-tunes on harmless rows and 36 with bad rows among theirs, watches their trainings,
audits each as `--quick` does, and writes data/small/audit_errors.csv and audit_watch.csv.
Takes about eight hours of one core, more on a slow one. A part on a second model stands in the same
tables: `--model qwen2.5-coder-0.5b --each 2` makes 30; how long that takes was not measured.
Audits that the tables hold are not done again, in whatever checkout: commit them, and go on. No
file of the run is needed for that.
The audit's rules must be those that were frozen (`em_repro.audit_errors.FROZEN`).
"""
import argparse, os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at once")
    parser.add_argument("--run", type=Path, default=ROOT/"runs"/"audit-errors",
                        help="folder of the stages")
    parser.add_argument("--model", default="smollm2-135m", help="the base [smollm2-135m]")
    parser.add_argument("--each", type=int, choices=range(1, 7), default=6, metavar="1..6",
                        help="so many of each kind and share of rows [6]")
    parser.add_argument("--first", type=int, help="only so many trials, in their order")
    parser.add_argument("--out", type=Path, default=ROOT/"data", help="folder to write to")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from em_repro.audit_errors import error_trials, write_audit_errors

    def said(event: str, label: str, seconds: float = 0.0) -> None:
        if event == "done": print(f"{label}  {seconds:.1f} s", flush=True)

    trials = error_trials(args.model, args.each)[:args.first]
    print(write_audit_errors(args.out, args.run, trials, jobs=args.jobs, watch=said))


if __name__ == "__main__": main()
