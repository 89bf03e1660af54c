"""Bring run folders of an older layout, or with an older release's names, into the present form.

    python tools/convert_run.py runs/tiny runs/small

tables/x.csv becomes tables/code/x.csv, and tables, figures and verdicts get the present names
(model for family, coefficient for dose, good and incoherent for clean and broken, ...). Numbers
are never changed. A folder that has the present form is left as it is. Takes seconds.
"""
import argparse, csv, json, sys
from io import StringIO
from pathlib import Path

from em_repro.claims import claims
from em_repro.folders import KINDS, RunFolder, files_in
from em_repro.profiles import UserError

FILES = {
    "spillover-forms": "spillover-formats", "spillover-tests-secure": "spillover-tests-control",
    "steering-doses": "steering-coefficients",
    "steering-doses-every-step": "steering-coefficients-every-step",
    "steering-doses-prefill": "steering-coefficients-prefill",
    "secure-crossed": "control-crossed", "secure-crossed-shown": "control-crossed-shown",
    "secure-direction": "control-direction", "secure-tests": "control-tests",
    "maps-rivals": "maps-comparison", "choices": "robustness",
    "choices-by-axis": "robustness-by-axis", "rivals": "baselines",
    "rivals-numbers": "baselines-numbers", "rivals-reads": "baselines-reads"}
COLUMNS = {
    "family": "model", "dose": "coefficient", "kind": "vector", "draws": "samples",
    "draw": "sample", "form": "format", "broken": "incoherent", "broken low": "incoherent low",
    "broken high": "incoherent high", "clean": "good", "clean low": "good low",
    "clean high": "good high"}
OF_FILE = {"direction-curve": {"draws": "choices"}}
VALUES = {"broken": "incoherent", "clean": "good"}


def moves(run: RunFolder) -> list[tuple[Path, Path]]:
    "What has to be moved, from where to where. Raises `UserError` when another file stands there."
    found = []
    for path in [path for kind in KINDS for path in files_in(run.root / kind)]:
        target = path.parent / "code" / path.name
        if target.exists() and target.read_bytes() != path.read_bytes():
            raise UserError(f"{path} and {target} differ: delete the one that is out of date")
        found.append((path, target))
    return found


def translated(path: Path) -> str:
    "A table with the present names; every other cell is left as it is written."
    names = COLUMNS | OF_FILE.get(path.stem, {})
    with open(path, newline="", encoding="utf-8") as file: rows = list(csv.reader(file))
    if not rows: return ""
    head = [names.get(column, column) for column in rows[0]]
    def value(column: str, cell: str) -> str:
        if column == "vector" and cell == "target": return "direction"
        return VALUES.get(cell, cell)
    lines = [head, *([value(column, cell) for column, cell in zip(head, row)] for row in rows[1:])]
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def renamed(run: RunFolder) -> int:
    "Give tables, figures and verdicts the present names; returns how many files changed."
    tables, changed = run.tables("code"), 0
    if not (tables / "steering-doses.csv").is_file(): return 0
    for path in files_in(tables):
        text = translated(path)
        target = path.with_name(FILES.get(path.stem, path.stem) + path.suffix)
        path.unlink()
        target.write_text(text, encoding="utf-8")
        changed += 1
    for path in files_in(run.figures("code")):
        if path.stem not in FILES: continue
        path.replace(path.with_name(FILES[path.stem] + path.suffix))
        changed += 1
    files = [*files_in(run.claims("code")), *([run.ledger] if run.ledger.is_file() else [])]
    for path in files:
        held = json.loads(path.read_text(encoding="utf-8"))
        for row in held if isinstance(held, list) else [held]: _in_present_words(row)
        text = json.dumps(held, indent=1, ensure_ascii=path != run.ledger)
        path.write_text(text + "\n" * (path == run.ledger), encoding="utf-8")
        changed += 1
    return changed


def _in_present_words(row: dict) -> None:
    "A verdict's texts: the declaration's as it reads now, and the words of the protocol."
    row["statement"] = claims()[row["claim"]].statement
    row["protocol"] = row["protocol"].replace("dose ", "coefficient ").replace("draws", "samples")
    row["detail"] = row["detail"].replace("among draws", "among samples")
    secondary = row.get("secondary") or ""
    if secondary.startswith("code "): row["secondary"] = f"target answers {secondary[5:]}"


def convert(folder: Path) -> int:
    "Convert a run's folder and return how many files changed; nothing is moved unless all can be."
    run = RunFolder(folder)
    if not folder.is_dir(): raise UserError(f"there is no run in {folder}: give the folder of one")
    found = moves(run)
    for path, target in found:
        target.parent.mkdir(exist_ok=True)
        path.replace(target)
    changed = len(found) + renamed(run)
    if changed: run.made.unlink(missing_ok=True)     # it names files by their old places
    return changed


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    try:
        for folder in parser.parse_args(words).folders:
            print(f"{folder}: {convert(folder)} files changed")
    except UserError as error:
        print(f"convert_run: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__": sys.exit(main())
