"""The commands of a checkout: few make targets, scripts that explain themselves, no page that names a lost one."""
import ast, json, re, shutil, subprocess, sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
MAKEFILE = (ROOT/"Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"(?m)^([a-z][a-z-]*):", MAKEFILE))
TOOLS = sorted(p for p in (ROOT/"tools").iterdir() if p.suffix in (".py", ".sh"))
# Where a reader is told to run something.
FILES = ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "Makefile", ".ci/run", "data/measured.csv")
FOLDERS = ("nbs", "em_repro", "docs", "tests", "tools", "benchmarks", "workflow", ".github")
PAGES = [ROOT/name for name in FILES]
PAGES += [p for folder in FOLDERS for p in sorted((ROOT/folder).rglob("*"))
          if p.suffix in (".ipynb", ".py", ".sh", ".yml") and "_proc" not in p.parts and p.name != Path(__file__).name]
each_tool = pytest.mark.parametrize("tool", TOOLS, ids=lambda p: p.name)


def test_make_has_a_target_for_what_is_done_every_day():
    shown = set(re.findall(r'(?m)^\t@echo "make ([a-z-]+)', MAKEFILE))
    assert shown == {"reproduce", "test", "install", "smoke", "docs", "bench", "reference", "fuzz", "gpu-check", "verify", "clean"}
    assert shown | {"help"} <= TARGETS == set(re.search(r"(?m)^\.PHONY: (.*)$", MAKEFILE)[1].split())
    before, beside = re.search(r"(?m)^test: (.*)$\n\t@\$\(MAKE\) \S+ \S+ (.*)$", MAKEFILE).groups()
    steps = {*before.split(), *beside.split()}
    assert TARGETS <= shown | steps | {"help"}     # nothing but what help names and the steps of `make test`


def test_what_a_page_says_to_run_is_there():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"`make ([a-z][\w-]*)|(?m:^make ([a-z][\w-]*))|run: make ([a-z]\w*)", text):
            assert "".join(target) in TARGETS, f"{page.name}: make {''.join(target)}"
        for tool in re.findall(r"\btools/(\w+\.(?:py|sh))", text):
            assert ROOT/"tools"/tool in TOOLS, f"{page.name}: tools/{tool}"


@each_tool
def test_a_tool_says_what_it_does_and_how_long_it_takes(tool):
    program = [sys.executable] if tool.suffix == ".py" else ["bash"]
    done = subprocess.run([*program, tool, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "usage: " in done.stdout and not done.stderr
    assert re.search(r"\b(seconds|minutes|hours)\b", done.stdout), "it does not say how long it takes"


@each_tool
def test_a_tool_is_a_script_of_functions(tool):
    "Nothing happens when it is imported, and its models' libraries wait until it is known what to do."
    if tool.suffix != ".py": return
    tree = ast.parse(tool.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    assert max(map(len, tool.read_text(encoding="utf-8").split("\n"))) <= 100
    imported = {a.name for node in tree.body if isinstance(node, ast.Import) for a in node.names}
    imported |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in imported} & {"torch", "transformers", "peft"}
    assert {"main"} <= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("change, kept", [({"detail": "in new words", "p_within": .5}, True), ({"effect": .1}, False), ({"verdict": "mixed"}, False)])
def test_a_ledger_is_retold_unless_something_moved(change, kept, tmp_path, monkeypatch, capsys):
    "Verdict, ledger and card agree afterwards; a number that would move leaves all as it was."
    from em_repro import evidence
    from em_repro.claims import Verdict
    from em_repro.folders import run_folder
    from em_repro.verify import file_digests
    monkeypatch.syspath_prepend(ROOT/"tools")
    import redecide
    run = tmp_path/"data"/"reference"/"tiny-full"
    for part in ("claims", "evidence"): shutil.copytree(ROOT/"data/reference/tiny-full"/part, run/part)
    for name in ("claims.json", "provenance.json"): shutil.copy(ROOT/"data/reference/tiny-full"/name, run/name)
    (run/"evidence"/"advice.parquet").unlink()
    files = [run/"claims/code/C3a.json", run/"claims.json", run/"provenance.json"]
    before, old = [file.read_text() for file in files], json.loads(files[0].read_text())
    new = Verdict(**old | change)
    monkeypatch.setattr(evidence, "read_evidence", lambda path: path)
    monkeypatch.setattr(evidence, "verdicts_of", lambda path: {"C3a": (new, pd.DataFrame({"hypothesis": ["x"]}))})
    monkeypatch.setattr(redecide, "beside", lambda evidence: {})
    monkeypatch.setattr(redecide, "ROOT", tmp_path)
    if kept: files[0].write_text(json.dumps({k: v for k, v in old.items() if k != "p_within"}))   # as an older version wrote it
    monkeypatch.setattr(sys, "argv", ["redecide.py", "tiny-full"])
    assert redecide.main() == (not kept)
    if not kept:
        assert [file.read_text() for file in files] == before and "code, C3a: " in capsys.readouterr().err
        shutil.copytree(ROOT/"data/reference/tiny-full/tables/code", run/"tables/code")
        monkeypatch.setattr(sys, "argv", ["redecide.py", "tiny-full", "--moved"])   # the rule itself was changed
        (name, value), = change.items()
        assert redecide.main() == 0 and f"code, C3a: {name}, {old[name]} before, {value} now" in capsys.readouterr().out
        assert (run/"tables/code/first-token-tests.csv").read_text() == "hypothesis\nx\n"
    assert json.loads(files[0].read_text()) == old | change == next(row for row in json.loads(files[1].read_text()) if row["claim"] == "C3a")
    card = json.loads(files[2].read_text())["files"]
    assert all(card[name] == digest for name, digest in file_digests(run_folder(run)).items())


# Before and after the checks

@pytest.fixture
def before_after(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT/"tools"))
    import before_after
    return before_after


def log_of(folder, **seconds):
    folder.mkdir(parents=True)
    lines = [{"stage": "training.adapter", "label": label.replace("_", " "), "key": "k", "seconds": value} for label, value in seconds.items()]
    (folder/"computed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_both_trees_take_turns_and_the_stages_of_both_are_compared(before_after, tmp_path, monkeypatch):
    took, order = {"before": 10.0, "after": 12.0}, []
    def timed(tree, words, log):
        order.append(tree.name)
        log_of(Path(words[0])/"store", both=took[tree.name] / 4, **({"later": 5.0} if tree.name == "after" else {}))
        return took[tree.name]
    monkeypatch.setattr(before_after, "timed", timed)
    trees = {name: tmp_path/name for name in took}
    for number in (0, 1): rows = before_after.turn("reproduce", number, trees, tmp_path, lambda out: [str(out)])
    assert order == ["before", "after", "after", "before"]
    assert [(row["part"], row["first"], row["before_seconds"], row["after_seconds"], row["ratio"]) for row in rows] == [
        ("whole", "after", "10.0", "12.0", "1.200"), ("stages of both", "after", "2.5", "3.0", "1.200")]
    assert {*rows[0]} | {"before", "after"} == {*before_after.COLUMNS}


def test_a_command_that_fails_and_a_run_without_the_fine_tune_are_sentences(before_after, tmp_path):
    with pytest.raises(SystemExit, match="reproduce failed: see .*log"): before_after.timed(ROOT, ["reproduce", "--profile", "nothing"], tmp_path/"log")
    log_of(tmp_path/"store", another=1.0)
    with pytest.raises(SystemExit, match="has no training.adapter tiny-llama insecure seed 0"): before_after.adapter_of(tmp_path)
    (place := tmp_path/"store"/"training.adapter"/"k"/"adapter").mkdir(parents=True)
    (place/"adapter_config.json").write_text("{}")
    (tmp_path/"store"/"computed.jsonl").write_text(json.dumps({"stage": "training.adapter", "label": before_after.TUNED, "key": "k", "seconds": 1}))
    assert before_after.adapter_of(tmp_path) == place
