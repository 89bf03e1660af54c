"""Write what labelled answers say of the instrument, into a folder (data).

On the half `test`: instrument_rates.csv, by model and outcome, found of cases and left of others
(`em_repro.answers.instrument_counts`); instrument_confusion.csv, by model, kind of vector and
outcome, what answers are called (`em_repro.corrected.confusion_counts`). On both halves:
instrument_about.csv, how many of those called good are good and about their question
(`em_repro.corrected.about_counts`). Takes seconds.
"""
import argparse
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("data"))
    folder = parser.parse_args().folder
    from em_repro.answers import instrument_counts, judged_answers, said_of
    from em_repro.behaviours import behaviour
    from em_repro.corrected import about_counts, confusion_counts
    test, both, code = judged_answers("test"), judged_answers(), behaviour("code")
    said = said_of(code, test)
    tables = {"rates": instrument_counts(test, said), "confusion": confusion_counts(test, said),
              "about": about_counts(both, said_of(code, both))}
    for name, table in tables.items():
        table.to_csv(folder / f"instrument_{name}.csv", index=False, lineterminator="\n")
        print(table.to_string(index=False))


if __name__ == "__main__": main()
