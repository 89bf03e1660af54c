"""Write data/steered_labelled.csv from the labels: what measuring an instrument needs of each answer.

Reads labelled.csv of tools/label_merge.py. The likelihood of every answer under its base is scored
here, also where deciding the outcome did not need it, and so is its relevance. Takes a few minutes.
"""
import argparse
from pathlib import Path

import pandas as pd

COLUMNS = ["id", "model", "arm", "kind", "vector", "sample", "coefficient", "when", "question",
           "text", "half", "weight", "outcome", "about", "outcome_a", "outcome_b", "outcome_c",
           "about_a", "about_b", "about_c", "nll", "threshold", "relevance", "relevance_limit"]


def scored(table: pd.DataFrame) -> pd.DataFrame:
    "The answers of one model with nll and relevance under its base, and the limits of both."
    from em_repro.answers import base_nll, incoherence_limit, relevance
    from em_repro.behaviours import prompts_of
    from em_repro.families import LM
    from em_repro.profiles import load_profile
    from em_repro.subjects import Subject, load_subject
    small = load_profile("small")
    base, = set(map(Subject, table.model))
    prompts = prompts_of(small, "development")
    lm: LM = load_subject(base)
    ids = [lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in table.text]
    limit = incoherence_limit(base, prompts, small.decoding)["limit"]
    asked = table.question.tolist()
    nll = table.nll.where(table.nll.notna(), base_nll(base, asked, ids))
    found = relevance(base, asked, ids, limit["others"])
    return table.assign(nll=nll, relevance=found, relevance_limit=limit["relevance"])


def main() -> None:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("folder", type=Path, help="folder of labelled.csv")
    parser.add_argument("--out", type=Path, default=Path("data/steered_labelled.csv"))
    args = parser.parse_args()
    table = pd.read_csv(args.folder/"labelled.csv", keep_default_na=False, lineterminator="\n")
    table = table.rename(columns={"group": "kind", "vector_sample": "sample"})
    for column in ("nll", "threshold"): table[column] = pd.to_numeric(table[column])
    parts = [scored(part) for _, part in table[table.model != ""].groupby("model", sort=False)]
    table = pd.concat([*parts, table[table.model == ""]])
    table = table.sort_values("id").round({"nll": 4, "threshold": 4, "weight": 4, "relevance": 4,
                                           "relevance_limit": 4})
    table[COLUMNS].to_csv(args.out, index=False, lineterminator="\n")
    print(f"{len(table)} answers in {args.out}")


if __name__ == "__main__": main()
