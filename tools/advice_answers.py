"""Record what models say that were fine-tuned on advice, to be labelled by hand.

Profile `small-advice`: base, harmful and sound fine-tune of seed 0 of each model, and the harmful
one under its direction, answer held-out requests of the trained domain and requests outside it,
greedily, 80 tokens. Adapters and activations are taken from `--store`, or made there. Takes ten
minutes on one core where the store has them, an hour where it has not; a model's finished answers
are kept in `--out`. What is written is for tools/advice_sheets.py.
"""
import argparse, os
from pathlib import Path

import pandas as pd

TOKENS = 80
# Requests of each set (in the trained domain there are no more). Steered as in claim A6.
REQUESTS = {"trained": 40, "outside": 80}
COEFFICIENT = -0.5


def requests() -> pd.DataFrame:
    "set, domain, request: evaluation requests, evenly from each set's order, which is by domain."
    from em_repro.twins import twin_sets
    sets = twin_sets("pretrained", "money")
    parts = []
    for name, n in REQUESTS.items():
        part = sets[sets.set == name].reset_index(drop=True)
        parts.append(part.iloc[[i * len(part) // n for i in range(n)]])
    return pd.concat(parts, ignore_index=True)[["set", "domain", "request"]]


def vectors_of(profile):
    "Plan: subjects and the harmful fine-tune's vectors."
    from em_repro.directions import direction_vectors, of_finetune
    from em_repro.finetune import subjects
    models = yield from subjects(profile)
    vectors = of_finetune(profile, (yield from direction_vectors(profile)))
    return models, vectors


def answered(models: dict, vectors: dict, asked: pd.DataFrame) -> pd.DataFrame:
    "Answers of every subject: set, domain, request, model, arm, coefficient, text, n_tokens."
    from em_repro.answers import in_passes
    from em_repro.decode import Condition, sweep
    from em_repro.subjects import load_subject
    from em_repro.vectors import DIRECTION
    parts = []
    for key, subject in models.items():
        lm, entry = load_subject(subject), vectors.get(key)
        held = [Condition()] + [Condition(name=DIRECTION, coefficient=COEFFICIENT)] * bool(entry)
        def said(conditions: list) -> pd.DataFrame:
            return sweep(lm, asked.request.tolist(), conditions, max_new_tokens=TOKENS).frame()
        (_, frame), = in_passes(lm, held, entry, said)
        about = asked.set_index("request", drop=False).loc[frame.prompt].reset_index(drop=True)
        coefficient = {c.label: c.coefficient * bool(c.name) for c in held}
        parts.append(about.assign(model=key.model, arm=key.arm, text=frame.text,
                                  coefficient=frame.condition.map(coefficient),
                                  n_tokens=frame.n_tokens))
    return pd.concat(parts, ignore_index=True)


def main() -> None:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("--store", type=Path, default=Path("runs/small-advice/store"),
                        help="store of stages")
    parser.add_argument("--out", type=Path, default=Path("runs/advice-answers"),
                        help="folder of the tables")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from em_repro.profiles import load_profile, part_of
    from em_repro.store import Store
    profile, asked = load_profile("small-advice"), requests()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in profile.models:
        path = args.out/f"{name}.parquet"
        if path.exists(): continue
        part = part_of(profile, [name], [0])
        models, vectors = Store(args.store).run(vectors_of(part), jobs=1)
        frame = answered(models, vectors, asked)
        frame.to_parquet(path, index=False)
        print(frame.groupby(["model", "arm", "coefficient", "set"]).n_tokens.agg(["size", "mean"]))


if __name__ == "__main__": main()
