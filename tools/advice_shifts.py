"""Unsteered shifts of preference of a run on advice, all its models, and the verdicts that rest on them (A1 to A5).

Reads what is in the run's store and computes what is missing (hours). Writes advice_shifts.csv and advice_verdicts.csv into --out:
what stands of profile small-advice before its steered stages are done for every model."""
import argparse
from pathlib import Path

import pandas as pd

from em_repro.claims import advice_claims
from em_repro.figures import save_table
from em_repro.misalignment import preference_verdict, twins_of, unsteered_preferences
from em_repro.preference import preference_frame, shift_table
from em_repro.study import SHOWN, open_study
from em_repro.subjects import BASE

SETS = {"A1": ["trained"], "A2": ["trained"], "A3": ["outside"], "A4": ["direct"], "A5": ["json", "string"]}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="small-advice")
    parser.add_argument("--run", default="runs/small-advice", help="its folder")
    parser.add_argument("--out", default="data/small", help="where the tables go")
    args = parser.parse_args()
    study = open_study(args.profile, args.run)
    frame = preference_frame(study.compute(unsteered_preferences), twins_of(study.profile))
    save_table(shift_table(frame).round(6), Path(args.out), "advice_shifts")
    finetune, control = study.behaviour.arms
    rows = [preference_verdict(frame, advice_claims()[name], finetune, BASE if name == "A1" else control, sets, study.profile.name)[0].model_dump()
            for name, sets in SETS.items()]
    print(save_table(pd.DataFrame(rows)[[*SHOWN, "unit"]], Path(args.out), "advice_verdicts"))
    print(pd.DataFrame(rows)[["claim", "verdict", "effect", "low", "high", "n"]].to_string(index=False))
