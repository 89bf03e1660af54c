"""Kill a run of the study again and again, let it finish, and compare it with one that was not.

Each of ten runs of `smoke` is killed ten times: at moments spread over its stages and its
notebooks, by SIGKILL, either all of its processes or one of them. What it leaves must be the
tables and claims of the unkilled run, to the byte. The result of every kill is kept in the work
folder, and runs that the table holds are not done again, so that the same command goes on after an
interruption or in another checkout. Takes one to two hours: five to ten minutes a run on two cores.
"""
import argparse, csv, filecmp, json, os, random, re, signal, subprocess, sys, time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("run", "kills", "of_all", "of_one", "in_notebooks", "attempts", "finished", "differing",
           "tracebacks", "of_tracker", "commit")
# Where Python's own resource tracker is the one that was killed, its successor prints a traceback
# for every semaphore that it has not heard of, about ten. The run goes on and ends well.
TRACEBACK = re.compile(r"Traceback \(most recent call last\):"
                       r'(\s+File "[^"]*resource_tracker\.py")?')


def commit() -> str:
    "Of this checkout, with a plus where the package differs from it; empty where it is none."
    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
        return done.stdout.strip()
    return git("rev-parse", "--short", "HEAD") + "+" * bool(git("diff", "HEAD", "--", "em_repro"))


def command(out: Path, profile: str, only: str = "", jobs: int = 2) -> list[str]:
    "The words of `em-repro reproduce`, as this checkout has it."
    words = [sys.executable, "-m", "em_repro.cli", "reproduce", "--profile", profile]
    return [*words, "--out", str(out), "--jobs", str(jobs), *(["--only", only] if only else [])]


def start(words: list[str], log: Path) -> subprocess.Popen:
    "A process of a session of its own; what it says is added to the log."
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(log, "ab") as file:
        return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=file, stderr=file,
                                start_new_session=True)


def results(run: Path) -> dict[str, Path]:
    "Tables and claims of a run, by their place in it."
    files = [*run.glob("tables/*/*.csv"), *run.glob("claims/*/*.json"), *run.glob("claims.json")]
    return {path.relative_to(run).as_posix(): path for path in sorted(files)}


def differing(run: Path, whole: Path) -> list[str]:
    "The tables and claims that are not the same in both runs, to the byte."
    ours, theirs = results(run), results(whole)
    if not theirs: raise SystemExit(f"{whole} has neither tables nor claims to compare with")
    return [name for name in sorted({*ours, *theirs}) if name not in ours or name not in theirs
            or not filecmp.cmp(ours[name], theirs[name], shallow=False)]


def tree(process: subprocess.Popen) -> list[Any]:
    "The process and all that come from it, kernels in sessions of their own among them."
    import psutil
    try: root = psutil.Process(process.pid); return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess: return []


def end(processes: list[Any]) -> None:
    "SIGKILL, without a chance to say so."
    import psutil
    for one in processes:
        try: one.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess: continue


def moments(dice: random.Random, kills: int, stages: int, notebooks: int) -> Iterator[tuple]:
    "When to kill: stages computed in all and notebooks executed anew, and seconds after that."
    for place in sorted(dice.random() for _ in range(kills)):
        late = place > .7     # the notebook phase
        at = (stages, int((place - .7) / .3 * notebooks)) if late else (int(place / .7 * stages), 0)
        yield *at, dice.uniform(0, 4), dice.random() < .5


def reached(run: Path, since: float) -> tuple[int, int]:
    "Stages computed so far, and notebooks executed since a moment."
    log = run / "store" / "computed.jsonl"
    stages = log.read_bytes().count(b"\n") if log.is_file() else 0
    made = [p for p in run.glob("notebooks/*/*.ipynb") if p.stat().st_mtime > since]
    return stages, len(made)


def killed_once(words: list[str], run: Path, moment: tuple, dice: random.Random) -> dict:
    "Start the run, kill it at the moment, and wait until nothing of it is left."
    stages, notebooks, seconds, everyone = moment
    since, log = time.time(), run.with_suffix(".log")
    process = start(words, log)
    while process.poll() is None:
        now = reached(run, since)
        if now[0] >= stages and now[1] >= notebooks: break
        time.sleep(.1)
    time.sleep(seconds)
    there = tree(process)
    kind = {"of": "all" if everyone else "one", "in_notebooks": stages <= reached(run, 0)[0]
            and any(run.glob("notebooks/*/.*.partial.ipynb")), "alive": bool(there)}
    if there: end(there if everyone else [dice.choice(there)])
    try: process.wait(120)
    except subprocess.TimeoutExpired: pass     # one that lives on without the one that was killed
    end([*there, *tree(process)])
    process.wait()
    return kind


def finish(words: list[str], run: Path, most: int = 3) -> tuple[int, bool]:
    "Let the run come to its end: attempts that it took, whether it did."
    for attempt in range(1, most + 1):
        if start(words, run.with_suffix(".log")).wait() == 0: return attempt, True
    return most, False


def tracebacks(text: str) -> dict[str, int]:
    "Tracebacks of a log, and how many of them are of Python's resource tracker."
    found = TRACEBACK.findall(text)
    return {"tracebacks": len(found), "of_tracker": sum(map(bool, found))}


def one_run(number: int, args: argparse.Namespace, kept: dict, keep: Any) -> dict:
    "Kill a run as often as asked, those of an earlier call included, and compare what it leaves."
    run, whole = args.work / f"run-{number}", args.work / "whole"
    words = command(run, args.profile, args.only, args.jobs)
    total = reached(whole, 0)
    row = kept.setdefault(str(number), {"kills": []})
    plan = list(moments(random.Random(f"{args.seed} {number}"), args.kills, *total))
    for i in range(len(row["kills"]), args.kills):
        dice = random.Random(f"{args.seed} {number} {i}")
        row["kills"].append(killed_once(words, run, plan[i], dice)); keep()
    attempts, finished = finish(words, run)
    alive = [kill for kill in row["kills"] if kill["alive"]]
    found = {"run": number, "kills": len(alive), "of_all": sum(k["of"] == "all" for k in alive),
             "in_notebooks": sum(k["in_notebooks"] for k in alive), "attempts": attempts,
             "finished": finished, "differing": len(differing(run, whole)),
             **tracebacks(run.with_suffix(".log").read_text("utf-8", "replace"))}
    row["found"] = found | {"of_one": found["kills"] - found["of_all"], "commit": commit()}
    keep()
    return row["found"]


def read_csv(path: Path) -> list[dict]:
    "The lines of a table, none where there is no file."
    if not path.is_file(): return []
    with open(path, newline="", encoding="utf-8") as file: return list(csv.DictReader(file))


def write_csv(path: Path, columns: tuple[str, ...], rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(new := path.with_suffix(".part"), "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader(); table.writerows(rows)
    new.replace(path)   # the table is all that is kept: it must not be half of one


def main() -> None:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "kills")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "robustness" / "kills.csv")
    parser.add_argument("--profile", default="smoke")
    parser.add_argument("--only", default="", help="some of the notebooks, with commas between")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--kills", type=int, default=10, help="of each run")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work = args.work.resolve(); args.work.mkdir(parents=True, exist_ok=True)
    state = args.work / "kills.json"
    kept = json.loads(state.read_text(encoding="utf-8")) if state.is_file() else {}
    for row in read_csv(args.out): kept[row["run"]] = {"found": row}
    def keep() -> None:
        (new := state.with_suffix(".part")).write_text(json.dumps(kept, indent=1), encoding="utf-8")
        new.replace(state)
    whole = command(args.work / "whole", args.profile, args.only, args.jobs)
    if start(whole, args.work / "whole.log").wait():
        raise SystemExit(f"the unkilled run failed: see {args.work / 'whole.log'}")
    print(*COLUMNS, sep="\t", flush=True)
    for number in range(1, args.runs + 1):
        row = kept.get(str(number), {}).get("found") or one_run(number, args, kept, keep)
        print(*(row.get(name, "") for name in COLUMNS), sep="\t", flush=True)
        write_csv(args.out, COLUMNS, [kept[str(i)]["found"] for i in range(1, number + 1)])


if __name__ == "__main__": main()
