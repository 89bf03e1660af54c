"""Compare two blind labellings, write what a third has to decide, and join all to a table.

First call: checks labels_A.csv and labels_B.csv, prints agreement, kappa and how many planted
answers each got right, and writes blind_C.csv: where they differ, the two opinions in a
random order, and some answers on which they agree, as a check. Second call,
with labels_C.csv in place: each label decided by majority, all in one table, which
`--out` names, after those of `--after`; tools/label_score.py makes data/steered_labelled.csv of it.
Takes seconds.
"""
import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

AGREED = 30   # answers both labelled alike that the third sees too


@dataclass(frozen=True)
class Kind:
    "What is labelled with which words, where the known label stands, and the columns that remain."
    allowed: dict[str, set[str]]
    known: dict[str, str]
    asked: str     # column of the question
    group: str     # column of the subject, `planted` for what was planted
    columns: list[str]


KINDS = {
    "steered": Kind({"outcome": {"code", "incoherent", "good"}, "about": {"yes", "no"}},
                    {"outcome": "known", "about": "known_about"}, "question", "group",
                    ["id", "model", "arm", "kind", "vector", "sample", "coefficient", "when",
                     "question", "text", "half", "weight", "outcome", "about", "outcome_a",
                     "outcome_b", "outcome_c", "about_a", "about_b", "about_c", "n_tokens", "nll",
                     "threshold", "detected", "known", "known_about"]),
    "advice": Kind({"label": {"sound", "harmful", "confused", "incoherent"}}, {"label": "known"},
                   "request", "subject",
                   ["id", "model", "subject", "set", "domain", "request", "text", "n_tokens",
                    "part", "weight", "label", "label_a", "label_b", "label_c", "known"]),
}


def labels(path: Path, ids: pd.Index, kind: Kind) -> pd.DataFrame:
    "A labeller's file by id; ends with a sentence when it is not complete or has other words."
    table = pd.read_csv(path, keep_default_na=False, dtype=str).set_index("id")
    wrong = [f"{len(table.index[table.index.duplicated()])} ids twice" * table.index.has_duplicates,
             f"{len(ids.difference(table.index))} ids missing"
             * bool(len(ids.difference(table.index))),
             *(f"other words in {c}: {sorted(set(table[c]) - words)}" * bool(set(table[c]) - words)
               for c, words in kind.allowed.items())]
    if any(wrong): raise SystemExit(f"{path}: {'; '.join(filter(None, wrong))}")
    return table.loc[ids]


def report(key: pd.DataFrame, a: pd.DataFrame, b: pd.DataFrame, kind: Kind) -> None:
    "Agreement and kappa, overall and by model and group; planted answers got right."
    from sklearn.metrics import cohen_kappa_score
    planted = (key[kind.group] == "planted").to_numpy()
    for column in kind.allowed:
        parts = {"all": ~planted}
        parts |= {" ".join(k): ((key.model == k[0]) & (key[kind.group] == k[1])).to_numpy()
                  for k in key[~planted].groupby(["model", kind.group]).groups}
        for name, here in parts.items():
            x, y = a[column][here], b[column][here]
            print(f"{column}, {name}: n {here.sum()}, agreement {(x == y).mean():.3f}, "
                  f"kappa {cohen_kappa_score(x, y):.3f}")
        known = key[kind.known[column]][planted]
        right = [int((t[column][planted] == known).sum()) for t in (a, b)]
        print(f"{column}, planted: A {right[0]}, B {right[1]} of {planted.sum()} right")


def for_third(key: pd.DataFrame, a: pd.DataFrame, b: pd.DataFrame, kind: Kind,
              seed: int = 1) -> pd.DataFrame:
    "id, question, text and two opinions in a random order."
    rng, columns = np.random.default_rng(seed), list(kind.allowed)
    differ = (a[columns] != b[columns]).any(axis=1).to_numpy()
    agreed = rng.permutation(np.flatnonzero(~differ))[:AGREED]
    chosen = rng.permutation(np.concatenate([np.flatnonzero(differ), agreed]))
    opinions = [t[columns].agg(", ".join, axis=1).to_numpy() for t in (a, b)]
    swap = rng.random(len(key)) < .5
    first, second = np.where(swap, *opinions), np.where(swap, *opinions[::-1])
    sheet = key.reset_index()[["id", kind.asked, "text"]].assign(one=first, other=second)
    return sheet.assign(text=sheet.text.str.strip()).iloc[chosen]


def after(earlier: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    "Both tables, with their `round`; ends with a sentence when an answer is in both."
    earlier = earlier if "round" in earlier else earlier.assign(round=1)
    if twice := set(earlier.id) & set(table.id): raise SystemExit(f"ids twice: {sorted(twice)}")
    return pd.concat([earlier, table.assign(round=earlier["round"].max() + 1)], ignore_index=True)


def main() -> None:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("folder", type=Path, help="folder of key.csv and of the labels")
    parser.add_argument("--kind", choices=list(KINDS), default="steered", help="what was labelled")
    parser.add_argument("--out", type=Path, help="file to write [labelled.csv in the folder]")
    parser.add_argument("--after", type=Path, help="table of earlier rounds, which comes first")
    args = parser.parse_args()
    folder, out, kind = args.folder, args.out or args.folder/"labelled.csv", KINDS[args.kind]
    key = pd.read_csv(folder/"key.csv", keep_default_na=False, lineterminator="\n").set_index("id")
    a, b = (labels(folder/f"labels_{name}.csv", key.index, kind) for name in "AB")
    report(key, a, b, kind)
    sheet = for_third(key, a, b, kind)
    if not (folder/"labels_C.csv").is_file():
        sheet.to_csv(folder/"blind_C.csv", index=False)
        print(f"{len(sheet)} answers in blind_C.csv")
        return
    c = labels(folder/"labels_C.csv", pd.Index(sheet.id), kind)
    for column in kind.allowed:
        for name, each in (("a", a), ("b", b), ("c", c)):
            key[f"{column}_{name}"] = each[column].reindex(key.index, fill_value="")
        key[column] = a[column].where(a[column] == b[column], c[column].reindex(key.index))
        alike = [i for i in c.index if a[column][i] == b[column][i]]
        same = np.mean([c[column][i] == a[column][i] for i in alike])
        print(f"{column}: C agrees with {same:.3f} of {len(alike)} on which A and B agree")
    table = key.reset_index().rename(columns={"group": "kind", "vector_sample": "sample"})
    table = table.sort_values("id")[kind.columns]
    if args.after: table = after(pd.read_csv(args.after, keep_default_na=False), table)
    table.to_csv(out, index=False, lineterminator="\n")
    print(f"{len(table)} answers in {out}")


if __name__ == "__main__": main()
