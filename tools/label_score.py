"""Write data/steered_labelled.csv: the labelled answers with what their bases say of them.

Asks each base what the instrument asks it, about the answers that their text does not decide: the
likelihood, where it is not known yet, and the relevance; and for its limits. Takes minutes.
"""
import argparse
from pathlib import Path

import pandas as pd


def scored(table: pd.DataFrame) -> pd.DataFrame:
    "One model's answers with nll and relevance of those good by their text, and least, its limit."
    import numpy as np
    from em_repro.answers import base_nll, others_among, relevance, relevance_limit
    from em_repro.behaviours import behaviour, prompts_of
    from em_repro.outcomes import classify
    from em_repro.profiles import load_profile
    from em_repro.subjects import Subject, load_subject
    small, code = load_profile("small"), behaviour("code")
    base, = map(Subject, set(table.model))
    prompts, tokenizer = prompts_of(small, "development"), load_subject(base).tokenizer
    asked = table[[classify(code, text) == code.good for text in table.text]]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in asked.text]
    nll = base_nll(base, asked.question, ids)
    found = relevance(base, asked.question, ids, others_among(prompts), nll)
    return table.assign(nll=table.nll.fillna(pd.Series(nll, asked.index)),
                        relevance=pd.Series(found, asked.index).reindex(table.index),
                        least=np.round(relevance_limit(base, prompts, small.decoding), 4))


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
