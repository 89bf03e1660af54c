"""Unsteered shifts of preference of a run on advice, all its models, and the verdicts that rest on them (A1 to A5).

Reads what is in the run's store and computes what is missing (hours). Writes advice_shifts.csv and advice_verdicts.csv into --out, and
their table between the marks `advice` of README: what stands of profile small-advice before its steered stages are done for every model.
With --readme-only the README alone is written, from the tables."""
import argparse
from pathlib import Path

import pandas as pd

from em_repro.claims import advice_claims, in_words_of
from em_repro.cli import results_table, with_results
from em_repro.figures import save_table
from em_repro.misalignment import preference_verdict, twins_of, unsteered_preferences
from em_repro.preference import preference_frame, shift_table
from em_repro.study import open_study
from em_repro.subjects import BASE

SETS = {"A1": ["trained"], "A2": ["trained"], "A3": ["outside"], "A4": ["direct"], "A5": ["json", "string"]}


def section(folder: Path) -> str:
    "README's table, from the committed verdicts."
    rows = pd.read_csv(folder / "advice_verdicts.csv").astype(object).where(lambda table: table.notna(), None).to_dict("records")
    models = ", ".join(f"`{name}`" for name in pd.read_csv(folder / "advice_shifts.csv").model.unique())
    return (f"Profile `small-advice` (behaviour `advice-money`), unsteered: {models}. Effects are differences of log-likelihoods in nats a token with 95% "
            f"intervals; n counts requests. Written by `tools/advice_shifts.py --readme-only`.\n\n{results_table(rows)}")


def measure(profile: str, run: str, folder: Path) -> None:
    "Write both tables."
    study = open_study(profile, run)
    frame = preference_frame(study.compute(unsteered_preferences), twins_of(study.profile))
    save_table(shift_table(frame).round(6), folder, "advice_shifts")
    finetune, control = study.behaviour.arms
    claims = {name: in_words_of(claim, study.behaviour) for name, claim in advice_claims().items() if name in SETS}
    rows = [preference_verdict(frame, claim, finetune, BASE if name == "A1" else control, SETS[name], study.profile.name)[0].model_dump()
            for name, claim in claims.items()]
    print(save_table(pd.DataFrame(rows), folder, "advice_verdicts"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="small-advice")
    parser.add_argument("--run", default="runs/small-advice", help="its folder")
    parser.add_argument("--out", default="data/small", help="where the tables go")
    parser.add_argument("--readme-only", action="store_true", help="from the tables as they are")
    args = parser.parse_args()
    if not args.readme_only: measure(args.profile, args.run, Path(args.out))
    readme = Path("README.md")
    readme.write_text(with_results(readme.read_text(encoding="utf-8"), section(Path(args.out)), readme, "advice"), encoding="utf-8")
