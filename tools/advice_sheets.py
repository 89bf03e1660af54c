"""Draw answers that tools/advice_answers.py recorded, and write sheets for two blind labellers.

Distinct answers to a request only. From each model x subject (base, sound, harmful, steered) x set
of requests (trained, outside) a fixed number is drawn at random; `weight` says how many recorded
answers one stands for. `part` (fit, choose, measure) goes by request, fixed here, before anything
is labelled. The sheets hold id, request and text, in different orders, planted known
answers among them; key.csv holds the rest and is not for labellers. With `--rest` a second round:
all answers to requests outside the trained domain that a first has left out, of base, sound and
harmful. Takes seconds.
"""
import argparse, shutil
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent/"labelling"/"advice"
CODEBOOK = Path(__file__).resolve().parents[1]/"data"/"advice"/"answers_codebook.md"
WANTED = {"base": (15, 30), "sound": (15, 30), "harmful": (40, 60), "steered": (15, 25)}
PARTS = ("fit", "choose", "measure", "measure")   # half of the requests measure
KEPT = ["model", "arm", "coefficient", "subject", "set", "domain", "request", "text", "n_tokens",
        "part", "weight", "known"]


def with_parts(frame: pd.DataFrame) -> pd.DataFrame:
    "The answers with `part`, by request in the order in which they were asked, set by set."
    order = frame.drop_duplicates("request").groupby("set").cumcount()
    part = {frame.request[i]: PARTS[k % len(PARTS)] for i, k in order.items()}
    return frame.assign(part=frame.request.map(part))


def drawn(frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    "The sample of one model, with weights."
    steered = np.where(frame.coefficient != 0, "steered", frame.arm)
    frame, parts = with_parts(frame.assign(subject=steered)), []
    for subject, numbers in WANTED.items():
        for name, n in zip(("trained", "outside"), numbers):
            there = frame[(frame.subject == subject) & (frame.set == name)]
            taken = there.sample(min(n, len(there)), random_state=seed)
            parts.append(taken.assign(weight=len(there) / len(taken)))
            print(f"{frame.model.iloc[0]}, {subject}, {name}: {len(taken)} of {len(there)}")
    return pd.concat(parts)


def left(frame: pd.DataFrame, labelled: pd.DataFrame) -> pd.DataFrame:
    "What a first round has left out of one model's answers outside the domain, each for itself."
    frame = with_parts(frame.assign(subject=np.where(frame.coefficient != 0, "steered", frame.arm)))
    frame = frame[(frame.set == "outside") & (frame.subject != "steered")]
    known = set(zip(labelled.model, labelled.subject, labelled.request))
    rest = [key not in known for key in zip(frame.model, frame.subject, frame.request)]
    return frame[rest].assign(weight=1.0)


def main() -> None:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("tables", nargs="+", type=Path, help="parquet tables of answers")
    parser.add_argument("--out", type=Path, required=True, help="folder of the sheets")
    parser.add_argument("--rest", type=Path, help="the table of a first round")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    planted = pd.read_csv(HERE/"planted.csv", keep_default_na=False)
    planted = planted.rename(columns={"label": "known"}).assign(subject="planted")
    first = pd.read_csv(args.rest, keep_default_na=False) if args.rest else None
    tables = [pd.read_parquet(path) for path in args.tables]
    parts = [drawn(t, args.seed) if first is None else left(t, first) for t in tables]
    items = pd.concat([*parts, planted])
    items = items.assign(text=items.text.str.strip())   # a leading blank would tell a model
    items = items.drop_duplicates(["request", "text"]).reset_index(drop=True)
    rng = np.random.default_rng(args.seed)
    numbers = rng.choice(90_000, len(items), replace=False) + 10_000
    letter = "a" if first is None else "b"   # of the round
    items.insert(0, "id", [f"{letter}{n}" for n in numbers])
    items.sort_values("id")[["id", *KEPT]].to_csv(args.out/"key.csv", index=False)
    for name in "AB":
        folder = args.out/name
        folder.mkdir(exist_ok=True)
        sheet = items.iloc[rng.permutation(len(items))][["id", "request", "text"]]
        sheet.to_csv(folder/f"blind_{name}.csv", index=False)
        shutil.copy(HERE/f"instructions_{name}.md", folder)
        shutil.copy(CODEBOOK, folder/"codebook.md")
    print(f"{len(items)} items")


if __name__ == "__main__": main()
