"""Decide committed runs again from their evidence, and keep what the ledger says in new words.

For ledgers that gained a column or read otherwise: nothing is computed but verdicts. What moves a
verdict or a number is listed, and then nothing of that run is written. Where the rule itself was
changed, which data/claims_log.toml says, --moved writes what moved, with the tables of tests. Pages
and figures stay as the run left them. A run takes minutes.
"""
import argparse, math, sys
from collections.abc import Iterator
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


def alike(a: object, b: object) -> bool:
    "Whether two numbers differ by no more than the digits that tables are kept with."
    return isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=1e-6)


def of_preferences(folder: Path, profile: str) -> dict:
    """Verdicts A1 to A7, with tables, from the preferences by request of a run on advice.

    A8 is about another fine-tune's direction, in one run, whose table does not name its donor."""
    import pandas as pd
    from em_repro.behaviours import behaviour_from
    from em_repro.claims import advice_claims, in_words_of
    from em_repro.misalignment import ADDED, CHOSEN, shift_verdicts, steered_verdict
    def read(name: str) -> pd.DataFrame:
        return pd.read_csv(folder/f"{name}.csv", keep_default_na=False, na_values=[""])
    behaviour = behaviour_from(folder.name)
    claims = {name: in_words_of(claim, behaviour) for name, claim in advice_claims().items()}
    plain, steered = read("preferences"), read("preferences-steered")
    plain["twin"] = plain.groupby("set").request.transform(lambda texts: pd.factorize(texts)[0])
    steered = steered.assign(arm=behaviour.finetune, vector=steered.vector.fillna(""))
    found = shift_verdicts(plain, claims, behaviour, profile)
    return found | {name: steered_verdict(steered[steered.what == what], claims[name], c, profile)
                    for name, what, c in (("A6", "subtracted", CHOSEN), ("A7", "added", ADDED))}


def decided(run: Path) -> Iterator[tuple[str, str, tuple]]:
    "Behaviour, claim, and its verdict with its table, from all that a run keeps by question."
    from em_repro.evidence import read_evidence, verdicts_of
    from em_repro.folders import read_json
    for path in sorted(run.glob("evidence/*.parquet")):
        yield from ((path.stem, *item) for item in verdicts_of(read_evidence(path)).items())
    profile = read_json(run/"provenance.json")["profile"]
    for path in sorted(run.glob("tables/*/preferences.csv")):
        yield from ((path.parent.name, *item)
                    for item in of_preferences(path.parent, profile).items())


def retold(run: Path, moves: bool = False) -> Retold:
    """The rows of a run's ledger in new words, by behaviour and claim; what moved; tables.

    `moves`: with the numbers that moved, and with the tables of the claims of which one did."""
    import pandas as pd
    from em_repro.claims import claims, kept_row
    from em_repro.evidence import differences_from, read_evidence
    from em_repro.folders import read_json
    rows, moved, tables = {}, [], {}
    exact = any(run.glob("evidence/*.parquet"))   # tables are rounded
    for behaviour, claim, (verdict, table) in decided(run):
        old, new = read_json(run/"claims"/behaviour/f"{claim}.json"), kept_row(verdict)
        apart = differences_from(pd.DataFrame([new]), pd.DataFrame([old]))[claim]
        moved += [f"{behaviour}, {claim}: {name}, {old[name]} before, {new[name]} now"
                  for name in apart if name not in WORDS
                  if exact or not alike(old[name], new[name])]
        # numbers stay as they were, to the last digit
        told = WORDS | ({*apart} if moves else {*()})
        rows[behaviour, claim] = {k: v if k in told else old.get(k, v) for k, v in new.items()}
        if moves and apart and claim in claims(): tables[behaviour, claims()[claim].table] = table
    for path in sorted(run.glob("evidence/*.parquet")) if moves else ():
        shown = beside(read_evidence(path))
        tables |= {(path.stem, name): table for name, table in shown.items()}
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
