"""Write data/instrument_rates.csv: how often the instrument is right on labelled answers.

On the half `test`, by model and outcome: found of cases, left of others, as
`em_repro.answers.instrument_counts` says. Takes seconds.
"""
import argparse
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/instrument_rates.csv"))
    args = parser.parse_args()
    from em_repro.answers import instrument_counts, judged_answers, said_of
    from em_repro.behaviours import behaviour
    test = judged_answers("test")
    counts = instrument_counts(test, said_of(behaviour("code"), test))
    counts.to_csv(args.out, index=False, lineterminator="\n")
    print(counts.to_string(index=False))


if __name__ == "__main__": main()
