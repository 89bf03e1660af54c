"""Plant a defect in a copy of the package, see which test or red flag notices it, and so for each.

The defects are in tools/planted.toml: where one is planted, what stands there, what takes its
place, and the tests that should notice. Each runs against a fresh copy, in a process of its own,
and has to fail for the defect's sake: a copy that cannot be imported notices nothing. All of them
first pass on a copy without a defect. Results are kept in the work folder, so that the same command
goes on after an interruption. Takes about 20 minutes on one slow core.
"""
import argparse, csv, hashlib, importlib, json, os, re, shutil, signal, sys, time, tomllib
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
REGISTER, OUT = ROOT / "tools" / "planted.toml", ROOT / "data" / "robustness" / "planted.csv"
# What each column of the table says.
COLUMNS = {
    "name": "of the defect, in tools/planted.toml", "defect": "what is wrong, in words",
    "planted in": "file and function of the copy", "should notice": "tests that are there for it",
    "noticed by": "those that failed because of it; nothing: none did",
    "as": "red flag: a sentence that a user is told; test: an assertion",
    "says": "what the user is told, else the test's name in words", "seconds": "to see it"}
COPIED = ("em_repro", "tests", "data")   # a defect may be planted in these; the rest is linked
LINKED_DATA = ("reference", "report", "tiny", "small", "architectures")
# A copy that fails in one of these ways does not do what it should: it does nothing.
BROKEN = {"SyntaxError", "IndentationError", "ImportError", "ModuleNotFoundError", "NameError",
          "UnboundLocalError", "FileNotFoundError"}
TOLD = {"UserError", "RunError", "MachineError", "RedFlag", "NotByRows"}   # what users read
LONGEST = 900   # seconds that a defect may take
# Imported once, before the processes that a defect each is given: theirs begin at once.
HEAVY = ("numpy", "pandas", "pyarrow.parquet", "scipy.stats", "sklearn.linear_model", "torch",
         "statsmodels.stats.multitest", "statsmodels.stats.proportion", "transformers", "peft",
         "hypothesis", "hypothesis.extra.numpy", "pytest", "matplotlib.pyplot", "pydantic",
         "transformers.models.llama.modeling_llama", "transformers.models.gemma2.modeling_gemma2")


class Defect(NamedTuple):
    "One entry of the register: `old` stands once in `file` and is replaced by `new`."
    name: str
    defect: str
    file: str
    old: str
    new: str
    notices: tuple[str, ...]

    @property
    def digest(self) -> str:
        "Of all that it is."
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()[:16]


def registered(path: Path = REGISTER) -> list[Defect]:
    "The register, in its order; `SystemExit` for an entry that is not whole or is there twice."
    found = []
    for name, entry in tomllib.loads(path.read_text(encoding="utf-8")).items():
        if set(entry) != {*Defect._fields} - {"name"} or not entry["notices"]:
            raise SystemExit(f"{path.name}: {name} needs defect, file, old, new and notices")
        found.append(Defect(name, **entry | {"notices": tuple(entry["notices"])}))
    return found


def copy_of(place: Path) -> Path:
    "The checkout in a folder: what a defect may be planted in is copied, the rest is linked."
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    leave = shutil.ignore_patterns("*.part", ".pytest_cache", ".hypothesis")
    for one in sorted(ROOT.iterdir()):
        if one.name in ("build", "runs", ".git", ".venv", "_docs", "_proc", "dist"): continue
        if one.name not in COPIED: (place / one.name).symlink_to(one); continue
        skip = LINKED_DATA if one.name == "data" else ()
        shutil.copytree(one, place / one.name, ignore=lambda folder, names, top=one, skip=skip: (
            {*leave(folder, names)} | ({*skip} & {*names} if Path(folder) == top else set())))
        for name in skip: (place / one.name / name).symlink_to(one / name)
    return place


def plant(defect: Defect, place: Path) -> str:
    "Put it into a copy; where it is then, in words. `SystemExit` unless it stands there once."
    path = place / defect.file
    text = path.read_text(encoding="utf-8")
    if text.count(defect.old) != 1:
        raise SystemExit(f"{defect.name}: {defect.file} has {text.count(defect.old)} times what "
                         f"is to be replaced ({defect.old.splitlines()[0]!r})")
    path.unlink()     # a new file, whatever the old one is linked to
    path.write_text(text.replace(defect.old, defect.new), encoding="utf-8")
    before = text[:text.index(defect.old) + len(defect.old)]
    inside = re.findall(r"(?m)^(?:def|class) (\w+)", before)
    code = path.suffix == ".py" and inside
    return f"{defect.file}: {inside[-1]}" if code else defect.file


class Heard:
    "A plugin of pytest: what became of each test, and what the failed ones said."
    def __init__(self) -> None: self.found: dict[str, dict] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.outcome == "passed" and report.when != "call": return
        if self.found.get(report.nodeid, {}).get("outcome") == "failed": return
        crash = getattr(report.longrepr, "reprcrash", None)
        said = str(getattr(crash, "message", "") or report.longrepr or "")
        self.found[report.nodeid] = {"outcome": report.outcome, "said": said}


def listen(place: Path, nodes: Sequence[str], log: Path, store: Path) -> dict[str, dict]:
    "Run tests of a copy in this process: {node: outcome and what was said}."
    import pytest
    environment = {"PYTHONPATH": str(place), "EM_REPRO_MINIATURE": str(store)}
    os.environ.update(environment)
    os.chdir(place)
    sys.path[:0] = [str(place), str(place / "tests")]
    heard = Heard()
    quiet = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--rootdir", str(place)]
    code = pytest.main([*quiet, *nodes], plugins=[heard])
    if code > 1: raise SystemExit(f"pytest ended with {int(code)}, see {log}")
    return heard.found


def in_child(place: Path, nodes: Sequence[str], work: Path) -> dict[str, dict]:
    "`listen` in a process of its own, which has imported what is heavy already."
    log, answer = work / "planted.log", work / "answer.json"
    answer.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        for number in (1, 2): os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        code = 1
        try:
            signal.alarm(LONGEST)
            answer.write_text(json.dumps(listen(place, nodes, log, work / "miniature")))
            code = 0
        except SystemExit as end: print(end, flush=True)
        except BaseException: traceback.print_exc()
        finally: sys.stdout.flush(); os._exit(code)
    os.waitpid(child, 0)
    if not answer.is_file(): raise SystemExit(f"no answer from {', '.join(nodes)}: see {log}")
    return json.loads(answer.read_text())


def kind_of(said: str) -> str:
    "The name of the exception that a failed test ended with."
    first = said.split(":", 1)[0].split("\n", 1)[0].strip()
    return first.rsplit(".", 1)[-1] if re.fullmatch(r"[\w.]+", first) else "AssertionError"


def first_line(said: str, place: Path) -> str:
    "What a failed test said first, without its exception's name and without paths."
    line = re.sub(r"^[\w.]+:\s+", "", said.strip()).split("\n", 1)[0]
    line = re.sub(r"\S*/(?:planted|miniature|pytest-of-\w+)/\S*/", ".../", line)
    line = re.sub(r" at 0x[0-9a-f]+", "", line.replace(str(place), ""))
    return line if len(line) <= 220 else f"{line[:217]}..."


def judged(defect: Defect, heard: dict[str, dict], place: Path) -> tuple[list[str], str, str]:
    "The tests that noticed, as what, and what the first said."
    said = {node: heard[node]["said"] for node in sorted(heard)
            if heard[node]["outcome"] == "failed" and kind_of(heard[node]["said"]) not in BROKEN}
    nodes = [n for n in defect.notices if any(one.split("[")[0] == n.split("[")[0] for one in said)]
    told = [s for s in said.values() if kind_of(s) in TOLD]
    named = [re.sub(r"\[.*", "", n.split("::test_")[-1]).replace("_", " ") for n in nodes]
    kinds = [word for word, any_ in (("red flag", told), ("test", len(said) > len(told))) if any_]
    says = first_line(told[0], place) if told else next(iter(named), "")
    return nodes, " and ".join(kinds), says


def seen(defect: Defect, work: Path) -> dict[str, str]:
    "Plant a defect in a fresh copy and see what notices: a line of the table."
    began, place = time.monotonic(), copy_of(work / "tree")
    where = plant(defect, place)
    nodes, kinds, says = judged(defect, in_child(place, defect.notices, work), place)
    seconds = f"{time.monotonic() - began:.1f}"
    values = (defect.name, defect.defect, where, "; ".join(defect.notices),
              "; ".join(nodes) or "nothing", kinds, says, seconds)
    return dict(zip(COLUMNS, values))


def check_sound(defects: Iterable[Defect], work: Path) -> None:
    "`SystemExit` unless every test that should notice something passes where nothing is wrong."
    nodes = list(dict.fromkeys(node for defect in defects for node in defect.notices))
    sums = hashlib.sha256(json.dumps(nodes).encode() + tree_digest().encode()).hexdigest()
    kept = work / "sound"
    if kept.is_file() and kept.read_text() == sums: return
    began = time.monotonic()
    heard = in_child(copy_of(work / "tree"), nodes, work)
    wrong = [node for node, one in heard.items() if one["outcome"] == "failed"]
    if wrong: raise SystemExit(f"without a defect, {wrong[0]} fails: {heard[wrong[0]]['said']}")
    kept.write_text(sums)
    seconds = time.monotonic() - began
    print(f"{len(heard)} tests pass without a defect ({seconds:.0f} s)", flush=True)


def tree_digest() -> str:
    "Of the package's code and of the tests."
    files = [*sorted((ROOT / "em_repro").glob("*.py")), *sorted((ROOT / "tests").glob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def write_table(rows: Iterable[dict], out: Path) -> None:
    "The table as a csv file."
    with out.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(COLUMNS), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def begin() -> None:
    "Settings and imports that all processes share."
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    os.environ |= dict.fromkeys(threads, "1") | {
        "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    for name in HEAVY: importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    if "em_repro" in sys.modules: raise SystemExit("em_repro was imported before it was copied")


def main() -> None:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "planted")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--only", help="names of defects, with commas between; the table stays")
    args = parser.parse_args()
    every, work = registered(), args.work.resolve()
    names = args.only.split(",") if args.only else [defect.name for defect in every]
    if unknown := {*names} - {defect.name for defect in every}:
        raise SystemExit(f"no defect {sorted(unknown)[0]!r} in {REGISTER.name}")
    work.mkdir(parents=True, exist_ok=True)
    begin()
    chosen = [defect for defect in every if defect.name in names]
    check_sound(chosen, work)
    state = work / f"planted-{tree_digest()[:12]}.jsonl"
    lines = state.read_text(encoding="utf-8").splitlines() if state.is_file() else []
    kept = {digest: row for digest, row in map(json.loads, lines)}
    for defect in chosen:
        if defect.digest not in kept:
            kept[defect.digest] = seen(defect, work)
            with state.open("a", encoding="utf-8") as file:
                file.write(json.dumps([defect.digest, kept[defect.digest]]) + "\n")
        row = kept[defect.digest]
        found = row["as"] or "NOTHING"
        print(f"{row['seconds']:>6} s  {defect.name}: {found}: {row['says']}", flush=True)
    rows = [kept[defect.digest] for defect in every if defect.digest in kept]
    if not args.only: write_table(rows, args.out)
    blind = [row["name"] for row in rows if row["noticed by"] != row["should notice"]]
    print(f"{len(rows)} defects, {len(rows) - len(blind)} noticed by all that should",
          *blind, sep="\n  ")
    raise SystemExit(bool(blind))


if __name__ == "__main__": main()
