"""Unsteered shifts of preference of a run on advice, and the verdicts that rest on them (A1 to A5).

Reads what is in the run's store and computes what is missing (hours). Writes advice_shifts.csv and
advice_verdicts.csv into --out, and their table between the marks `advice` of README: what stands of
profile small-advice before its steered stages are done for every model. With --readme-only the
README alone is written, from the tables."""
import argparse
from pathlib import Path

import pandas as pd

from em_repro.claims import advice_claims, in_words_of
from em_repro.cli import results_table, with_results
from em_repro.figures import save_table
from em_repro.misalignment import preference_verdict, twins_of, unsteered_preferences
from em_repro.preference import preference_frame, shift_table
from em_repro.study import Study, open_study
from em_repro.subjects import BASE

SETS = {"A1": ["trained"], "A2": ["trained"], "A3": ["outside"], "A4": ["direct"],
        "A5": ["json", "string"]}


def section(folder: Path) -> str:
    "README's table, from the committed verdicts."
    table = pd.read_csv(folder / "advice_verdicts.csv").astype(object)
    rows = table.where(table.notna(), None).to_dict("records")
    names = pd.read_csv(folder / "advice_shifts.csv").model.unique()
    models = ", ".join(f"`{name}`" for name in names)
    return (f"Profile `small-advice` (behaviour `advice-money`), unsteered: {models}. Effects are "
            "differences of log-likelihoods in nats a token with 95% intervals; n counts requests. "
            f"Written by `tools/advice_shifts.py --readme-only`.\n\n{results_table(rows)}")


def verdicts(study: Study, frame: pd.DataFrame) -> pd.DataFrame:
    "A line a claim: the fine-tune against its control, for A1 against the base."
    finetune, control = study.behaviour.arms
    rows = []
    for name, sets in SETS.items():
        claim = in_words_of(advice_claims()[name], study.behaviour)
        against = BASE if name == "A1" else control
        ruled, _ = preference_verdict(frame, claim, finetune, against, sets, study.profile.name)
        rows.append(ruled.model_dump())
    return pd.DataFrame(rows)


def measure(profile: str, run: str, folder: Path) -> None:
    "Write both tables, and what the run's stages took."
    study = open_study(profile, run)
    frame = preference_frame(study.compute(unsteered_preferences), twins_of(study.profile))
    save_table(shift_table(frame).round(6), folder, "advice_shifts")
    save_table(study.store.computed()[["stage", "label", "seconds"]], folder, "advice_stages")
    print(save_table(verdicts(study, frame), folder, "advice_verdicts"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="small-advice")
    parser.add_argument("--run", default="runs/small-advice", help="its folder")
    parser.add_argument("--out", default="data/small", help="where the tables go")
    parser.add_argument("--readme-only", action="store_true", help="from the tables as they are")
    args = parser.parse_args()
    folder, readme = Path(args.out), Path("README.md")
    if not args.readme_only: measure(args.profile, args.run, folder)
    text = with_results(readme.read_text(encoding="utf-8"), section(folder), readme, "advice")
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__": main()
