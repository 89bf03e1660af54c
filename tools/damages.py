"""Damage a finished run in 200 ways, one at a time, and let `em-repro reproduce` go on from it.

Every kind of file that a run's folder holds is flipped in a bit, cut, emptied, deleted, filled with
junk, made unreadable, replaced by a folder, or exchanged for another of its kind; entries of a
stage change places. The run must then end well, with tables and claims as they were to the byte,
or say in one sentence what to do; no traceback, and no exception's own words in its place. Trials
that the table holds are not done again, so that the same command goes on after an interruption or
in another checkout; `--again 27,42` does those two once more: the same kind of file, but not the
same file where a run has other files by now. Takes about an hour: some seconds a trial where
nothing is computed, half a minute where a notebook is executed.
"""
import argparse, json, os, random, re, shutil, sys, time, traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kills import ROOT, command, commit, differing, read_csv, start, write_csv

COLUMNS = ("trial", "kind", "file", "damage", "outcome", "differing", "seconds", "said",
           "commit")
# Kinds of file, by patterns below the run's folder.
KINDS = {"card": "store/*/*/card.json", "table of an entry": "store/*/*/*.parquet",
         "arrays of an entry": "store/*/*/*.safetensors",
         "json of an entry": "store/*/*/[!c]*.json",
         "adapter": "store/*/*/adapter/*", "entry": "store/*.*/*", "stage": "store/*.*",
         "log of the store": "store/computed.jsonl", "folder of the store": "store/.[lpst]*",
         "lock": "store/.locks/*", "progress": "store/.progress/*",
         "memory of the run": ".made.json", "ledger": "claims.json",
         "provenance": "provenance.json", "report": "report.html",
         "verdict": "claims/*/*.json", "table": "tables/*/*.csv", "figure": "figures/*/*",
         "executed notebook": "notebooks/*/*.ipynb", "evidence": "evidence/*.parquet",
         "folder of the run": "[tfcnse]*", "lock of the run": ".reproduce.lock"}
# An exception's name, or a system's number of what went wrong: nobody wrote that for a reader.
RAW = re.compile(r"\b\w+(Error|Exception|Warning):|\[Errno ")
JUNK = (b"", b"null", b"[]", b"{}", b"3", b'{"key": null}', b"\x00" * 64, b"\xff\xfe" * 40,
        b"[" * 100_000, b'{"a": ')


def flip(path: Path, dice: random.Random, _: list[Path]) -> None:
    data = bytearray(path.read_bytes())
    if data: data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)


def cut(path: Path, dice: random.Random, _: list[Path]) -> None:
    with open(path, "r+b") as file: file.truncate(dice.randrange(max(1, path.stat().st_size)))


def empty(path: Path, *_: object) -> None: path.write_bytes(b"")


def junk(path: Path, dice: random.Random, _: list[Path]) -> None:
    path.write_bytes(dice.choice([*JUNK, dice.randbytes(200)]))


def delete(path: Path, *_: object) -> None:
    if path.is_dir(): shutil.rmtree(path)
    else: path.unlink()


def turn(path: Path, *_: object) -> None:
    "A folder in place of a file, a file in place of a folder."
    was_folder = path.is_dir()
    delete(path)
    if was_folder: path.write_bytes(b"x")
    else: path.mkdir()


def lock(path: Path, *_: object) -> None: path.chmod(0)


def swap(path: Path, dice: random.Random, others: list[Path]) -> Path | None:
    "The one that it was exchanged for, which is damaged too."
    near = [p for p in others if p != path and p.parent == path.parent] or \
        [p for p in others if p != path]
    if not near: return delete(path)
    other, aside = dice.choice(near), path.with_name(".swapped")
    path.rename(aside); other.rename(path); aside.rename(other)
    return other


def add(path: Path, *_: object) -> None:
    "A file that does not belong there."
    (path / "extra.json").write_bytes(b"{}")


FILES = (flip, cut, empty, junk, delete, turn, lock, swap)
FOLDERS = (delete, turn, lock, swap, add)


def damage(run: Path, number: int, dice: random.Random) -> tuple[str, list[str], str]:
    "Do the damage of a trial: kind of file, the files (two where they are swapped), and how."
    kinds = list(KINDS)
    for step in range(len(kinds)):     # a kind that this run does not have gives way to the next
        kind = kinds[(number + step) % len(kinds)]
        there = sorted(p for p in run.glob(KINDS[kind]) if p.name != "em_repro.lock")
        if there: break
    path = dice.choice(there)
    ways = FOLDERS if path.is_dir() else FILES
    way = ways[(number // len(kinds) + dice.randrange(2)) % len(ways)]
    other = way(path, dice, there)
    names = [one.relative_to(run).as_posix() for one in (path, other) if one]
    return kind, names, way.__name__


def in_child(words: list[str], log: Path) -> int:
    "The command in a child that has imported everything already; its exit code."
    child = os.fork()
    if child: return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for number in (1, 2): os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    code: Any = 99
    try:
        from em_repro import cli
        cli.main(words)
    except SystemExit as error: code = error.code or 0
    except BaseException: traceback.print_exc()
    finally: sys.stdout.flush(); sys.stderr.flush(); os._exit(code)


def apart_from(names: list[str], lost: list[str]) -> list[str]:
    "Without what was damaged, which may still be, and what stands below it, which may be gone."
    damaged = tuple(f"{name}/" for name in names)
    return [one for one in lost if not f"{one}/".startswith(damaged)]


def judged(code: int, said: str, others: list[str]) -> str:
    "What became of a damaged run, in a word; those in capitals must not be."
    if "Traceback" in said: return "TRACEBACK"
    sentences = [line for line in said.splitlines() if line.startswith("em-repro: ")]
    if others: return "DIFFERENT"
    if code == 0: return "recomputed"
    if code not in (1, 2) or not sentences: return "SILENT"
    return "RAW" if RAW.search(sentences[-1]) else "a sentence"


def trial(number: int, whole: Path, work: Path, words: Callable, seed: int) -> dict:
    "Damage a copy of the whole run, let it go on, and judge what became of it."
    run, log, dice = work / "trial", work / "trial.log", random.Random(f"{seed} {number}")
    unlocked(run); shutil.rmtree(run, ignore_errors=True); log.unlink(missing_ok=True)
    shutil.copytree(whole, run)
    progress = {"stage": "training.adapter", "label": "an adapter", "done": 1, "total": 2}
    (run / "store" / ".progress" / f"{'a' * 40}.json").write_text(json.dumps(progress))
    kind, names, way = damage(run, number, dice)
    began = time.monotonic()
    code = in_child(words(run)[3:], log)
    seconds = round(time.monotonic() - began, 1)
    said = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    unlocked(run)
    lost = differing(run, whole)
    others = apart_from(names, lost) if code else lost
    outcome = judged(code, said, others)
    last = next((line for line in reversed(said.splitlines()) if line.startswith("em-repro: ")), "")
    if outcome.isupper(): log.replace(work / f"trial-{number}.log")
    return {"trial": number, "kind": kind, "file": "/".join(names[0].split("/")[:2]), "damage": way,
            "outcome": outcome, "differing": len(others), "seconds": seconds,
            "said": re.sub(r"\S*/trial/", "run/", last.replace(str(run), "run"))}


def unlocked(folder: Path) -> None:
    "Give back the rights that a trial took."
    for path in [folder, *folder.rglob("*")] if folder.is_dir() else []:
        if path.is_symlink() or path.stat().st_mode & 0o777: continue
        path.chmod(0o755); unlocked(path)


def without_rights() -> None:
    "Root reads what it may not: go on without that privilege, so that `lock` is a damage."
    tool = shutil.which("setpriv")
    if os.geteuid() or not tool or os.environ.get("EM_REPRO_DAMAGES"): return
    less = "-dac_override,-dac_read_search"
    os.environ["EM_REPRO_DAMAGES"] = "1"
    limits = [f"--bounding-set={less}", f"--inh-caps={less}"]
    os.execv(tool, [tool, *limits, sys.executable, *sys.argv])


def numbers(text: str) -> list[int]:
    "Numbers with commas between."
    try: return [int(part) for part in text.split(",")]
    except ValueError: raise argparse.ArgumentTypeError(
        f"{text!r} is no list of trials: give numbers with commas between, such as 27,42") from None


def to_do(rows: list[dict], trials: int, again: list[int]) -> list[int]:
    "The trials to do: those asked for again, or those up to `trials` that the table has not."
    done = [int(row["trial"]) for row in rows]
    if again and (unknown := sorted({*again} - {*done})):
        raise SystemExit(f"the table has no trial {unknown[0]}: leave it out of --again")
    return again or [n for n in range(trials) if n not in done]


def main() -> None:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "damages")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "robustness" / "damages.csv")
    parser.add_argument("--profile", default="smoke@tiny-llama")
    parser.add_argument("--only", default="02", help="notebooks, with commas between")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", type=numbers, default=[], metavar="N,N",
                        help="trials of the table to do once more, and no others")
    args = parser.parse_args()
    rows = {int(row["trial"]): row for row in read_csv(args.out)}
    todo = to_do([*rows.values()], args.trials, args.again)
    without_rights()
    work = args.work.resolve(); work.mkdir(parents=True, exist_ok=True)
    def words(run: Path) -> list[str]: return command(run, args.profile, args.only, 1)
    if start(words(work / "whole"), work / "whole.log").wait():
        raise SystemExit(f"the undamaged run failed: see {work / 'whole.log'}")
    sys.path.insert(0, str(ROOT)); os.environ["PYTHONPATH"] = str(ROOT); os.chdir(ROOT)
    import em_repro.cli, em_repro.run, em_repro.spillover, papermill   # noqa: F401  once for all
    code = {"commit": commit()}   # of what was imported
    for number in todo:
        rows[number] = trial(number, work / "whole", work, words, args.seed) | code
        print(*rows[number].values(), sep="\t", flush=True)
        write_csv(args.out, COLUMNS, [rows[n] for n in sorted(rows)])
    counts = Counter(row["outcome"] for row in rows.values())
    for outcome, count in counts.items(): print(outcome, count)


if __name__ == "__main__": main()
