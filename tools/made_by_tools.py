"""Load, sweep and audit what other people's tools leave, into data/robustness/made_by_tools.csv.

The files are made here by the tools themselves (tests/made_by_tools.py), on a tiny model. Takes two
minutes.
"""
import argparse, csv, logging, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT/"data"/"robustness"/"made_by_tools.csv"
FIELDS = ("tool", "what it leaves", "loaded", "same answers", "logits apart", "audit")


def row(name: str, work: Path) -> tuple:
    "What became of a tool's files."
    from em_repro.audit import quietly_audited
    from em_repro.profiles import UserError
    from made_by_tools import MADE, make
    from test_made_by_tools import FEW, QUESTIONS, apart, loaded, plain_generate, swept
    folder, model, base = make(name, work/name)
    about = " ".join(MADE[name].__doc__.split())
    try: lm = loaded(folder, base)
    except UserError as error:
        return name, about, f"refused: {error}".replace(str(folder), "FOLDER"), "", "", ""
    same = sum(a == b for a, b in zip(swept(lm), plain_generate(model, lm), strict=True))
    report = quietly_audited(str(base), str(folder), work/f"{name}-store", FEW)
    return (name, about, "yes", f"{same} of {len(QUESTIONS)}", f"{apart(lm, model):.1e} spreads",
            f"{len(report.cards)} findings")


def main() -> None:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT/"tests"))
    from made_by_tools import MADE
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as place: found = [row(name, Path(place)) for name in MADE]
    with args.out.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(FIELDS)
        table.writerows(found)
    for line in found: print(*line[::2], sep="; ")


if __name__ == "__main__": main()
