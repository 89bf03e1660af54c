"""Draw answers that tools/steered_answers.py decoded, and write sheets for two blind labellers.

Distinct texts only. Strata are model x kind of vector (direction, control) x present outcome. Each
gives a fixed number, in turn from its conditions (vector, coefficient, when), so that those which
destroy all text do not crowd out the others; `weight` says how many answers one drawn stands for.
The sheets hold id, question and text, in different orders, planted known answers
among them; key.csv holds the rest and is not for labellers. Takes seconds.
"""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent/"labelling"
# More incoherent ones than chance would give, and the good ones among which it is missed.
WANTED = {("direction", "incoherent"): 65, ("direction", "code"): 20, ("direction", "good"): 45,
          ("control", "incoherent"): 65, ("control", "code"): 45, ("control", "good"): 30,
          ("none", "finetune"): 10, ("none", "base"): 10}
KEPT = ["model", "arm", "group", "vector", "vector_sample", "coefficient", "when", "question",
        "text", "n_tokens", "nll", "threshold", "detected", "half", "weight", "known",
        "known_about"]


def distinct(frame: pd.DataFrame) -> pd.DataFrame:
    "Answers with their group; of equal texts the first is kept: unsteered, direction, control."
    group = np.select([frame.vector == "", frame.vector == "direction"], ["none", "direction"],
                      "control")
    order = pd.Series(group).map({"none": 0, "direction": 1, "control": 2})
    frame = frame.assign(group=group, order=order.to_numpy()).sort_values("order", kind="stable")
    bare = frame.text.str.casefold().str.split().str.join(" ")
    return frame[~bare.duplicated()].drop(columns="order")


def in_turn(part: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    "At most n answers of a stratum, one of each condition in turn, with their weights."
    shuffled, by = part.sample(frac=1, random_state=seed), ["vector", "coefficient", "when"]
    turn = shuffled.groupby(by).cumcount().rename("turn")
    chosen = shuffled.loc[turn.sort_values(kind="stable").index[:n]]
    there, taken = (t.groupby(by).text.transform("size") for t in (shuffled, chosen))
    return chosen.assign(weight=there.loc[chosen.index] / taken)


def halves(questions: pd.Series) -> pd.Series:
    "tune or test, by question: three in turn, as questions were asked in thirds."
    from em_repro.data import questions as asked
    place = {text: i for i, text in enumerate(asked("development", "pretrained", 60))}
    return questions.map(place).floordiv(3).mod(2).map({0: "tune", 1: "test"})


def drawn(frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    "The sample of one model: as many of each stratum as are wanted, or all that there are."
    unsteered = np.where(frame.arm == "base", "base", "finetune")
    stratum = np.where(frame.group == "none", unsteered, frame.outcome)
    parts = []
    for (group, name), n in WANTED.items():
        part = frame[(frame.group == group) & (stratum == name)]
        parts.append(in_turn(part, n, seed))
        print(f"{frame.model.iloc[0]}, {group}, {name}: {len(parts[-1])} of {len(part)}")
    return pd.concat(parts)


def main() -> None:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("tables", nargs="+", type=Path, help="parquet tables of answers")
    parser.add_argument("--out", type=Path, required=True, help="folder of the sheets")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    parts = [drawn(distinct(pd.read_parquet(path)), args.seed) for path in args.tables]
    planted = pd.read_csv(HERE/"planted.csv", keep_default_na=False)
    planted = planted.rename(columns={"outcome": "known", "about": "known_about"})
    planted = planted.assign(group="planted")
    items = pd.concat([*parts, planted])
    # Two models may say the same
    items = items.drop_duplicates(["question", "text"]).reset_index(drop=True)
    items["half"] = halves(items.question)
    rng = np.random.default_rng(args.seed)
    numbers = rng.choice(90_000, len(items), replace=False) + 10_000
    items.insert(0, "id", [f"t{n}" for n in numbers])
    items.sort_values("id")[["id", *KEPT]].to_csv(args.out/"key.csv", index=False)
    for name in "AB":
        order = rng.permutation(len(items))
        sheet = items.iloc[order][["id", "question", "text"]]
        # A leading blank would tell one model's answers from the other's
        sheet = sheet.assign(text=sheet.text.str.strip())
        sheet.to_csv(args.out/f"blind_{name}.csv", index=False)
    print(f"{len(items)} items")


if __name__ == "__main__": main()
