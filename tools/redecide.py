"""Decide committed runs again from their evidence, and keep what the ledger says in new words.

For ledgers that gained a column or read otherwise: nothing is computed but verdicts. What moves a
verdict or a number is listed, and then nothing of that run is written. Where the rule itself was
changed, which data/claims_log.toml says, --moved writes what moved, with the tables of tests. Pages
and figures stay as the run left them. A run takes minutes.
"""
import argparse, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORDS = {"detail"}   # columns that may read otherwise
Retold = tuple[dict[tuple[str, str], dict], list[str], dict]   # verdicts, what moved, tables


def beside(evidence) -> dict:
    "Tables that show tests against random vectors beside those of claims, by name."
    from em_repro.claims import claims
    from em_repro.specificity import across_table
    from em_repro.topology import assay_table, effect_units
    inside, outside = evidence.of("within"), evidence.of("across")
    if inside is None or outside is None: return {}
    found = effect_units(inside, outside, claims()["C8"].outcome)
    return {"specificity-across": across_table(inside, outside, claims()["C7"].margin),
            "topology-receivers": assay_table(found, claims()["C8"].margin)}


def retold(run: Path, moves: bool = False) -> Retold:
    """The rows of a run's ledger in new words, by behaviour and claim; what moved; tables.

    `moves`: with the numbers that moved, and with the tables of the claims of which one did."""
    import pandas as pd
    from em_repro.claims import claims, kept_row
    from em_repro.evidence import differences_from, read_evidence, verdicts_of
    from em_repro.folders import read_json
    rows, moved, tables = {}, [], {}
    for path in sorted(run.glob("evidence/*.parquet")):
        evidence = read_evidence(path)
        for claim, (verdict, table) in verdicts_of(evidence).items():
            old, new = read_json(run/"claims"/path.stem/f"{claim}.json"), kept_row(verdict)
            apart = differences_from(pd.DataFrame([new]), pd.DataFrame([old]))[claim]
            moved += [f"{path.stem}, {claim}: {name}, {old[name]} before, {new[name]} now"
                      for name in apart if name not in WORDS]
            # numbers stay as they were, to the last digit
            told = WORDS | ({*apart} if moves else {*()})
            rows[path.stem, claim] = {k: v if k in told else old.get(k, v) for k, v in new.items()}
            if moves and apart: tables[path.stem, claims()[claim].table] = table
        if moves: tables |= {(path.stem, name): table for name, table in beside(evidence).items()}
    return rows, moved, tables


def keep(run: Path, rows: dict[tuple[str, str], dict], tables: dict) -> None:
    "Put rows into a run's verdicts and its ledger, tables in their places, digests into its card."
    from em_repro.claims import Verdict, ledger, record
    from em_repro.figures import save_table
    from em_repro.folders import read_json, run_folder
    from em_repro.run import write_json
    from em_repro.verify import file_digests
    for (behaviour, _), row in rows.items(): record(run, Verdict(**row), behaviour)
    for (behaviour, name), table in tables.items():
        if (run/"tables"/behaviour/f"{name}.csv").is_file():
            save_table(table, run/"tables"/behaviour, name)
    folder = run_folder(run)
    told = [row for name in folder.behaviours() if folder.claims(name).is_dir()
            for row in ledger(run, name).to_dict("records")]
    write_json(folder.ledger, [{k: None if v != v else v for k, v in row.items()} for row in told])
    card, now = read_json(folder.provenance), file_digests(folder)
    written = {f"tables/{behaviour}/{name}.csv" for behaviour, name in tables}
    files = {name: now[name] if name.startswith("claims") or name in written else digest
             for name, digest in card.get("files", {}).items()}   # older runs recorded none
    if files: write_json(folder.provenance, card | {"files": files})


def main() -> int:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("runs", nargs="+", help="names of folders in data/reference")
    parser.add_argument("--moved", action="store_true", help="write what moved, and list it")
    args, wrong = parser.parse_args(), []
    for name in args.runs:
        rows, moved, tables = retold(run := ROOT/"data"/"reference"/name, args.moved)
        if moved and not args.moved:
            wrong += [f"{name}, {words}" for words in moved]
            continue
        keep(run, rows, tables)
        print(f"{name}: {len(rows)} verdicts, in new words", *moved, sep="\n")
    if wrong: print("nothing is written where something moved:", *wrong, sep="\n", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__": sys.exit(main())
