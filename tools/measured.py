"""Count what `em-repro plan` is fitted to anew from the committed runs, into data/measured.csv.

To be run when a reference run has been made anew; takes 20 seconds.
"""
import argparse
from pathlib import Path

REFERENCE = Path(__file__).resolve().parents[1]/"data"/"reference"


def main() -> None:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("--interrupted", nargs="*", default=[], metavar="LABEL",
                        help="stages to leave out, because an interruption is in their time")
    args = parser.parse_args()
    from em_repro.plan import write_measured
    print(write_measured(REFERENCE, args.interrupted))


if __name__ == "__main__": main()
