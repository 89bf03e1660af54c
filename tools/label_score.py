"""Write data/steered_labelled.csv: the labelled answers with what their bases say of them.

Asks each base what the instrument asks it, about the answers that their text does not decide: the
likelihood, where it is not known yet, and the relevance; and for its limits. Takes some minutes.
"""
import argparse
from pathlib import Path

import pandas as pd


def scored(table: pd.DataFrame) -> pd.DataFrame:
    "The answers of one model with nll, relevance and least (its limit), rounded."
    from em_repro.answers import Instrument, detected_outcomes, incoherence_limit
    from em_repro.behaviours import behaviour, prompts_of
    from em_repro.profiles import load_profile
    from em_repro.subjects import Subject, load_subject
    small, code = load_profile("small"), behaviour("code")
    base, = map(Subject, set(table.model))
    entry = incoherence_limit(base, prompts_of(small, "development"), small.decoding)
    print(table.model.iloc[0], entry["limit"], flush=True)
    tokenizer, frame = load_subject(base).tokenizer, table.rename(columns={"question": "prompt"})
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in table.text]
    nll, found, _ = detected_outcomes(Instrument(code, base, entry), frame, ids)
    return table.assign(nll=table.nll.fillna(pd.Series(nll, table.index)), relevance=found,
                        least=entry["limit"]["relevance"])


def main() -> None:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("labelled", type=Path, help="file of tools/label_merge.py")
    parser.add_argument("--out", type=Path, default=Path("data/steered_labelled.csv"))
    args = parser.parse_args()
    table = pd.read_csv(args.labelled, keep_default_na=False, lineterminator="\n")
    for name in ("nll", "threshold"): table[name] = pd.to_numeric(table[name])
    parts = [scored(part) for _, part in table[table.model != ""].groupby("model", sort=False)]
    table = pd.concat([*parts, table[table.model == ""]]).sort_values("id")
    table.round(4).to_csv(args.out, index=False, lineterminator="\n")
    print(f"{len(table)} answers in {args.out}")


if __name__ == "__main__": main()
