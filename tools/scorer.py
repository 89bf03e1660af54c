"""Measure the scorer of misaligned answers on labelled answers that it was not fitted on.

Fits one on SmolLM2-135M and one on Gemma-3-270M and writes data/misaligned_scores.csv. Each model
reads the 643 labelled answers once, which takes minutes; fetches the models the first time.
"""
import argparse
from pathlib import Path

DATA = Path(__file__).resolve().parents[1]/"data"


def main() -> None:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("--out", type=Path, default=DATA, help="folder to write to")
    args = parser.parse_args()
    from em_repro.misaligned import write_scores
    print(write_scores(args.out))


if __name__ == "__main__": main()
