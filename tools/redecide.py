"""Decide committed runs again from their evidence, and keep what the ledger says now.

For ledgers that gained a column or read otherwise: nothing is computed but verdicts. What moves a
verdict or a number is listed, and then nothing of that run is written, unless `--rule` says that
the rule itself changed: then verdicts and tables of hypotheses are those of the present rule, and
the run's card names it. Executed notebooks stay what they were. A run takes minutes.
"""
import argparse, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORDS = {"detail"}   # columns that may read otherwise


def retold(run: Path, rule: bool = False) -> tuple[dict[tuple[str, str], dict], list[str], dict]:
    """The rows of a run's ledger, by behaviour and claim, and what moved, in words; the tables.

    rule: numbers too are those of the present rule; else they stay as they were."""
    import pandas as pd
    from em_repro.claims import kept_row
    from em_repro.evidence import differences_from, read_evidence, verdicts_of
    from em_repro.folders import read_json
    rows, moved, tables = {}, [], {}
    for path in sorted(run.glob("evidence/*.parquet")):
        for claim, (verdict, table) in verdicts_of(read_evidence(path)).items():
            old, new = read_json(run/"claims"/path.stem/f"{claim}.json"), kept_row(verdict)
            apart = differences_from(pd.DataFrame([new]), pd.DataFrame([old]))[claim]
            moved += [f"{path.stem}, {claim}: {name} {old.get(name)} -> {new.get(name)}"
                      for name in apart if name not in WORDS]
            if apart: tables[path.stem, claim] = table
            # numbers stay as they were, to the last digit
            rows[path.stem, claim] = {k: v if k in WORDS or (rule and k in apart) else old.get(k, v)
                                      for k, v in new.items()}
    return rows, moved, tables


def keep_tables(run: Path, tables: dict) -> None:
    "Put tables of hypotheses into a run, and their digests beside figures that are made of them."
    from em_repro import figures
    from em_repro.claims import claims
    for (behaviour, claim), table in tables.items():
        name, folder = claims()[claim].table, run/"tables"/behaviour
        figures.save_table(table, folder, name)
        for svg in (run/"figures"/behaviour).glob(f"{name}*.svg"): figures.add_source(svg, folder)


def keep(run: Path, rows: dict[tuple[str, str], dict], rule: str = "") -> None:
    "Put rows into a run's verdicts, its ledger, and their digests (and the rule's) into its card."
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
    files = {name: now.get(name) or digest for name, digest in card.get("files", {}).items()}
    again = {"decided_again": {"rule_sha256": rule}} if rule else {}
    if files or again:   # older runs recorded no files
        write_json(folder.provenance, card | ({"files": files} if files else {}) | again)


def main() -> int:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("runs", nargs="+", help="names of folders in data/reference")
    parser.add_argument("--rule", action="store_true", help="the rule changed: write what moved too")
    args, wrong = parser.parse_args(), []
    from em_repro.claims import rule_sha256
    for name in args.runs:
        rows, moved, tables = retold(run := ROOT/"data"/"reference"/name, args.rule)
        if moved and not args.rule: wrong += [f"{name}, {words}" for words in moved]; continue
        if moved: keep_tables(run, tables)
        keep(run, rows, rule_sha256() if moved else "")
        print(f"{name}: {len(rows)} verdicts, in new words", *moved, sep="\n  ")
    if wrong: print("nothing is written where something moved:", *wrong, sep="\n", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__": sys.exit(main())
