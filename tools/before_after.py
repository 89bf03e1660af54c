"""Is `em-repro reproduce` or `em-repro audit` slower than before anything was checked?

A commit from before the checks is laid out beside this checkout. Both reproduce the study of the
earlier commit's profile `smoke` and audit one of its fine-tunes with `--quick`, taking turns, each
in a fresh folder. A line of the table is one turn: seconds before and after, and their ratio, of
whole commands and of the stages that both have (later releases have more). Takes about half an hour
a turn on two cores that do nothing else: two to five minutes a command.
"""
import argparse, json, os, shutil, statistics, subprocess, sys, time
from collections.abc import Callable
from pathlib import Path

from kills import ROOT, commit, write_csv

# The last commit that loads a checkpoint without accounting for its tensors, sweeps without a look
# at the model's own logits, and hands a prompt over unread.
BEFORE = "74f549a"
COLUMNS = ("command", "part", "turn", "first", "before_seconds", "after_seconds", "ratio", "before",
           "after")
MODEL = "tiny-llama"
TUNED = f"training.adapter {MODEL} insecure seed 0"


def git(*words: str) -> None:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"git {words[0]} failed: {done.stderr.strip().splitlines()[-1]}")


def laid_out(folder: Path, name: str) -> Path:
    "A worktree of the commit, made where there is none."
    if not (folder / "em_repro").is_dir():
        git("worktree", "prune")
        git("worktree", "add", "--detach", str(folder), name)
    return folder


def timed(tree: Path, words: list[str], log: Path) -> float:
    "Seconds of a command of a tree, with the environment of this one."
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    with open(log, "ab") as file:
        done = subprocess.run([sys.executable, "-m", "em_repro.cli", *words], cwd=tree, stdout=file,
                              stderr=file, env=environment)
    if done.returncode: raise SystemExit(f"{tree.name}: {words[0]} failed: see {log}")
    return time.monotonic() - began


def stages(folder: Path) -> dict[str, float]:
    "Seconds of every stage that was computed below a folder, by its label."
    found: dict[str, float] = {}
    for log in folder.rglob("computed.jsonl"):
        for line in log.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found[row["label"]] = found.get(row["label"], 0) + row["seconds"]
    return found


def in_both(before: dict[str, float], after: dict[str, float]) -> tuple[float, float]:
    "Seconds of the stages that both computed."
    same = before.keys() & after.keys()
    return sum(before[name] for name in same), sum(after[name] for name in same)


def adapter_of(run: Path) -> Path:
    "The fine-tune of a run that is audited."
    for line in (run / "store" / "computed.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["label"] != TUNED: continue
        place = run / "store" / row["stage"] / row["key"]
        return next(place.glob("**/adapter_config.json")).parent
    raise SystemExit(f"{run} has no {TUNED}: the profile must train it")


def turn(name: str, number: int, trees: dict[str, Path], work: Path, words: Callable) -> list[dict]:
    "Both trees' turn at a command, the one first in even turns and the other in odd ones."
    order = list(trees) if number % 2 == 0 else list(trees)[::-1]
    seconds, computed = {}, {}
    for which in order:
        out = work / f"{name}-{which}"
        shutil.rmtree(out, ignore_errors=True)
        seconds[which] = timed(trees[which], words(out), work / f"{name}-{which}.log")
        computed[which] = stages(out)
    same = in_both(computed["before"], computed["after"])
    parts = {"whole": (seconds["before"], seconds["after"]), "stages of both": same}
    return [{"command": name, "part": part, "turn": number, "first": order[0],
             "before_seconds": f"{a:.1f}", "after_seconds": f"{b:.1f}", "ratio": f"{b / a:.3f}"}
            for part, (a, b) in parts.items() if a]


def main() -> None:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("--before", default=BEFORE, help="the commit to compare with")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "before_after")
    parser.add_argument("--out", type=Path,
                        default=ROOT / "data" / "robustness" / "before_after.csv")
    args = parser.parse_args()
    work = args.work.resolve(); work.mkdir(parents=True, exist_ok=True)
    trees = {"before": laid_out(work / "tree", args.before), "after": ROOT}
    profile = str(trees["before"] / "data" / "profiles" / "smoke.toml")   # one for both
    more, rows = {"before": args.before, "after": commit()}, []
    def study(out: Path) -> list[str]:
        return ["reproduce", "--profile", profile, "--out", str(out), "--jobs", str(args.jobs)]
    def audit(out: Path) -> list[str]:
        tuned = str(adapter_of(work / "reproduce-before"))    # the same for both
        return ["audit", "--base", MODEL, "--adapter", tuned, "--quick", "--out", str(out),
                "--jobs", str(args.jobs)]
    for number in range(args.turns):
        for name, words in (("reproduce", study), ("audit", audit)):
            for row in turn(name, number, trees, work, words):
                rows.append(row | more)
                print(*rows[-1].values(), sep="\t", flush=True)
            write_csv(args.out, COLUMNS, rows)
    for key in dict.fromkeys((row["command"], row["part"]) for row in rows):
        ratios = [float(row["ratio"]) for row in rows if (row["command"], row["part"]) == key]
        print(*key, f"median ratio {statistics.median(ratios):.3f}")


if __name__ == "__main__": main()
