"""Decide committed runs again from their evidence, and keep what the ledger says in new words.

For ledgers that gained a column or read otherwise: nothing is computed but verdicts. What moves a
verdict or a number is listed, and then nothing of that run is written. A run takes minutes.
"""
import argparse, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORDS = {"detail"}   # columns that may read otherwise


def retold(run: Path) -> tuple[dict[tuple[str, str], dict], list[str]]:
    "The rows of a run's ledger in new words, by behaviour and claim; and what moved, in words."
    import pandas as pd
    from em_repro.claims import kept_row
    from em_repro.evidence import differences_from, read_evidence, verdicts_of
    from em_repro.folders import read_json
    rows, moved = {}, []
    for path in sorted(run.glob("evidence/*.parquet")):
        for claim, (verdict, _) in verdicts_of(read_evidence(path)).items():
            old, new = read_json(run/"claims"/path.stem/f"{claim}.json"), kept_row(verdict)
            apart = differences_from(pd.DataFrame([new]), pd.DataFrame([old]))[claim]
            moved += [f"{path.stem}, {claim}: {name}" for name in apart if name not in WORDS]
            # numbers stay as they were, to the last digit
            rows[path.stem, claim] = {k: v if k in WORDS else old.get(k, v) for k, v in new.items()}
    return rows, moved


def keep(run: Path, rows: dict[tuple[str, str], dict]) -> None:
    "Put rows into a run's verdicts, its ledger, and their digests into its card."
    from em_repro.claims import Verdict, ledger, record
    from em_repro.folders import read_json, run_folder
    from em_repro.run import write_json
    from em_repro.verify import file_digests
    for (behaviour, _), row in rows.items(): record(run, Verdict(**row), behaviour)
    folder = run_folder(run)
    told = [row for name in folder.behaviours() if folder.claims(name).is_dir()
            for row in ledger(run, name).to_dict("records")]
    write_json(folder.ledger, [{k: None if v != v else v for k, v in row.items()} for row in told])
    card, now = read_json(folder.provenance), file_digests(folder)
    files = {name: now[name] if name.startswith("claims") else digest
             for name, digest in card.get("files", {}).items()}   # older runs recorded none
    if files: write_json(folder.provenance, card | {"files": files})


def main() -> int:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("runs", nargs="+", help="names of folders in data/reference")
    wrong = []
    for name in parser.parse_args().runs:
        rows, moved = retold(run := ROOT/"data"/"reference"/name)
        if moved: wrong += [f"{name}, {words}" for words in moved]
        else: keep(run, rows); print(f"{name}: {len(rows)} verdicts, in new words")
    if wrong: print("nothing is written where something moved:", *wrong, sep="\n", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__": sys.exit(main())
