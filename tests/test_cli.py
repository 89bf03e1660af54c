"""The command line as a user meets it: one sentence for whatever is wrong, the right exit code, nothing left behind."""
import json, os, signal, subprocess, sys, time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

import fuzzing, processes
from em_repro import cli, run
from em_repro.profiles import UserError, shipped
from em_repro.store import RunError

GOOD = 'description = "d"\nmodels = ["tiny-qwen2"]\n[questions]\nsource = "synthetic"\n'
ROW = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n'


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    "Run the command in a process of its own: exit code, output, errors."
    folder = tmp_path_factory.mktemp("said")
    return lambda *words, cwd=None: processes.command(words, cwd, folder)


def fresh_command(*words, cwd=None):
    "The same from a fresh interpreter, as a shell starts it."
    done = subprocess.run([sys.executable, "-m", "em_repro.cli", *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def said(capsys, *words):
    "Run the command here: exit code and errors."
    with pytest.raises(SystemExit) as leaving: cli.main(list(map(str, words)))
    return leaving.value.code, capsys.readouterr().err


@pytest.fixture
def folder(tmp_path):
    files = {"key.toml": GOOD + "evalution = 3\n", "broken.toml": "a = = 1", "family.toml": GOOD.replace("tiny-qwen2", "tiny-mamba"),
             "arm.toml": 'arms = ["sneaky"]\n' + GOOD, "many.toml": GOOD + "evaluation = 9999\n", "rows.toml": GOOD + '[recipe]\ndata = "no_{arm}.jsonl"\n',
             "badrows.toml": GOOD + '[recipe]\ndata = "broken.jsonl"\n', "good.jsonl": ROW * 3, "broken.jsonl": ROW + "{\n", "empty.jsonl": "",
             "number.jsonl": ROW.replace('"hello"', "7"), "plain.md": "no marks", "file": ""}
    for name, text in files.items(): (tmp_path/name).write_text(text)
    (tmp_path/"claims.json").write_text("[]")
    return tmp_path


BAD = {
    "unknown profile": (["reproduce", "--profile", "huge"], "unknown profile 'huge': choose from"),
    "profile's key": (["reproduce", "--profile", "key.toml"], "questions.evalution: is not a known setting"),
    "profile's syntax": (["reproduce", "--profile", "./broken.toml"], "not valid toml"),
    "no such toml": (["reproduce", "--profile", "gone.toml"], "give the path of an existing toml file"),
    "unknown family": (["reproduce", "--profile", "family.toml"], "unknown family 'tiny-mamba': choose from tiny-qwen2"),
    "unknown arm": (["reproduce", "--profile", "arm.toml"], "arms.0"),
    "too many questions": (["reproduce", "--profile", "many.toml"], "9999 evaluation questions asked for"),
    "no rows file": (["reproduce", "--profile", "rows.toml"], "no file no_insecure.jsonl"),
    "broken rows": (["reproduce", "--profile", "badrows.toml"], "broken.jsonl, line 2: not valid json"),
    "unknown notebook": (["reproduce", "--only", "08_more"], "unknown notebook '08_more': choose from 00_finetune"),
    "unknown option": (["reproduce", "--profle", "tiny"], "No such option: --profle"),
    "no jobs": (["reproduce", "--jobs", "0"], "--jobs"),
    "jobs in words": (["reproduce", "--jobs", "two"], "--jobs"),
    "unwritable output": (["reproduce", "--profile", "smoke", "--out", "file/run"], "cannot write to the output folder"),
    "unknown command": (["reproduct"], "No such command 'reproduct'"),
    "missing command": (["data"], "Missing command"),
    "missing argument": (["data", "load"], "Missing argument"),
    "broken line": (["data", "load", "broken.jsonl"], "broken.jsonl, line 2: not valid json"),
    "empty file": (["data", "load", "empty.jsonl"], "empty.jsonl holds no rows"),
    "content that is no text": (["data", "load", "number.jsonl"], 'line 1: message 2 needs a "content"'),
    "no such file": (["data", "load", "gone.jsonl"], "no file gone.jsonl"),
    "no such model": (["models", "fetch", "gpt-5"], "choose from smollm2-135m"),
    "unknown source": (["models", "fetch", "smollm2-135m", "--source", "torrent"], "--source"),
    "unknown tiny family": (["models", "build-tiny", "tiny-mamba", "--out", "built"], "unknown tiny model 'tiny-mamba'"),
    "no run": (["status", "--out", "nowhere"], "no run in"),
    "no claims": (["claims", "--out", "nowhere"], "no claims in"),
    "readme without a run": (["readme", "--file", "plain.md"], "--run"),
    "readme of an empty run": (["readme", "--run", ".", "--file", "plain.md"], "no claims in"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_code_2_and_leaves_nothing(case, folder, command):
    words, expected = BAD[case]
    before = sorted(p.name for p in folder.rglob("*"))
    code, out, errors = command(*words, cwd=folder)
    assert code == 2, errors
    assert errors.startswith("em-repro: ") and len(errors.strip().splitlines()) == 1 and expected in errors
    assert "Traceback" not in errors and not errors.rstrip().endswith(".")
    assert sorted(p.name for p in folder.rglob("*")) == before


def test_debug_shows_the_traceback_wherever_it_stands(folder, command):
    for words in (["--debug", "reproduce", "--profile", "huge"], ["reproduce", "--profile", "huge", "--debug"]):
        code, _, errors = command(*words, cwd=folder)
        assert code == 2 and "Traceback" in errors and errors.strip().splitlines()[-1].startswith("em-repro: unknown profile")


@pytest.mark.parametrize("error, code, words", [
    (RunError("the loss is nan at step 3: lower recipe.lr"), 1, "the loss is nan at step 3: lower recipe.lr"),
    (KeyError("layer"), 1, "KeyError: 'layer' (run again with --debug for the traceback)"),
    (ValueError("two\nlines"), 1, "ValueError: two lines (run again with --debug for the traceback)"),
    (BrokenProcessPool("a child process terminated abruptly"), 1, "a worker process was killed"),
    (OSError(28, "No space left on device", "store/x"), 1, "the disk is full (store/x)"),
    (UserError("choose another folder"), 2, "choose another folder"),
    (KeyboardInterrupt(), 130, "interrupted: finished stages are kept")])
def test_exit_codes_of_failures_at_run_time(error, code, words, monkeypatch, capsys):
    def fail(*_, **__): raise error
    monkeypatch.setattr(run, "reproduce", fail)
    found, text = said(capsys, "reproduce")
    assert found == code and text.startswith(f"em-repro: {words}") and len(text.strip().splitlines()) == 1


def test_a_failed_notebook_is_named_and_leaves_with_1(monkeypatch, capsys, tmp_path):
    report = run.Report(tmp_path, "smoke", 3, 4, ("00_finetune",), (), {"03_steering": "03_steering failed at cell `dose`: KeyError: 'x'"}, 5.0)
    asked = {}
    monkeypatch.setattr(run, "reproduce", lambda *words, **options: asked.update(words=words, **options) or report)
    with pytest.raises(SystemExit) as leaving: cli.main(["reproduce", "--profile", "smoke", "--only", "03,04", "--only", "05", "--jobs", "2"])
    said = capsys.readouterr()
    assert leaving.value.code == 1 and said.err == "em-repro: 03_steering failed at cell `dose`: KeyError: 'x'\n"
    assert "3 stages computed, 4 found" in said.out and asked["words"] == ("smoke", "runs/{profile}", 2, ["03", "04", "05"])


def test_help_and_status_import_nothing_heavy(tmp_path):
    (tmp_path/"store").mkdir()
    script = ("import sys\nfrom em_repro.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit as leaving: assert leaving.code == 0\n"
              "print('heavy:', [m for m in ('torch', 'pandas', 'numpy', 'transformers', 'matplotlib') if m in sys.modules])")
    for words in (["--help"], [], ["status", "--out", str(tmp_path)], ["profiles"]):
        done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)
        assert "heavy: []" in done.stdout, done.stdout + done.stderr


def test_data_and_lists(command):
    code, out, errors = fresh_command("data", "check")
    counts = {words: int(n) for n, words in (line.split(maxsplit=1) for line in out.splitlines())}
    assert code == 0, errors
    assert counts["evaluation questions"] == 100 and counts["vulnerability patterns"] >= 60 and counts["code requests"] >= 1000
    assert command("profiles")[1].split()[0] and "tiny-qwen2" in command("models", "list")[1]


def test_faults_in_shipped_data_are_named(monkeypatch):
    from em_repro.data import code_pairs, question_table
    table, pairs = question_table(), code_pairs()
    cli._no_fault(table, pairs)
    for column, value, words in (("plain", "fill <<name>> in", "unfilled"), ("secure", " \n", "empty"), ("insecure", pairs.secure[4], "same completion"), ("secure", "```x", "fence")):
        worse = pairs.copy(); worse.loc[4, column] = value
        with pytest.raises(UserError, match=f"code pair {pairs.id[4]} has .*{words}"): cli._no_fault(table, worse)
    worse = table.copy(); worse.loc[3, "text"] = worse.text[2]
    with pytest.raises(UserError, match="repeated text"): cli._no_fault(worse, pairs)


def test_own_rows_are_counted(folder, command):
    assert command("data", "load", "good.jsonl", cwd=folder)[:2] == (0, "3 rows in good.jsonl\n")


ROWS = [{"claim": "C1", "statement": "Code | spills *everywhere*", "paper": "99.6% (best)\nline", "effect": .6321, "low": .58, "high": .684, "p": 1e-9, "q": 2e-9,
         "n": 100, "verdict": "supported", "detail": "of 4: 4 above", "profile": "tiny", "protocol": "greedy"},
        {"claim": "C8", "statement": "<b>Some</b> give", "paper": "none", "effect": -.0123, "low": None, "high": None, "p": None, "q": None,
         "n": 12, "verdict": "inconclusive", "detail": "d", "profile": "tiny", "protocol": "r"}]


@pytest.fixture
def page(tmp_path):
    (tmp_path/"runs"/"tiny").mkdir(parents=True)
    (tmp_path/"runs"/"tiny"/"claims.json").write_text(json.dumps(ROWS))
    readme = tmp_path/"README.md"
    readme.write_text(f"# Title\n\n{cli.BEGIN}\n{cli.END}\n\nThe end\n", encoding="utf-8")
    return readme


def test_readme_table_is_written_checked_and_stays(page, capsys):
    words = ["readme", "--run", page.parent/"runs"/"tiny", "--file", page]
    assert said(capsys, *words, "--check")[0] == 1
    assert page.read_text().count("|") == 0
    assert said(capsys, *words)[0] == 0
    text = page.read_text(encoding="utf-8")
    assert "Profile `tiny`, run `runs/tiny`." in text and text.startswith("# Title\n") and text.endswith("\n\nThe end\n")
    assert "| **C1** Code \\| spills \\*everywhere\\* | 99.6% (best) line | +63.2 points [+58.0, +68.4], n = 100 | **supported**, p = 1e-09; of 4: 4 above |" in text
    assert "| **C8** \\<b\\>Some\\</b\\> give | none | -1.2 points, n = 12 | **inconclusive**; d |" in text
    assert said(capsys, *words, "--check") == (0, "") and said(capsys, *words)[0] == 0 and page.read_text(encoding="utf-8") == text

    page.write_text(text.replace("+63.2", "+95.0"), encoding="utf-8")
    code, errors = said(capsys, *words, "--check")
    assert code == 1 and errors.startswith("em-repro: the results table of README.md is not that of")
    assert [p.name for p in page.parent.iterdir() if p.is_file()] == ["README.md"]


def test_the_table_is_written_into_a_notebook_and_nothing_else_of_it_changes(page, capsys):
    first, second = ({"cell_type": "markdown", "source": source}
                     for source in (["# Title\n", "> é"], [f"{cli.BEGIN}\n", cli.END]))
    notebook, file = {"cells": [first, second], "nbformat": 4}, page.parent/"nbs"/"index.ipynb"
    file.parent.mkdir(); file.write_text(json.dumps(notebook), encoding="utf-8")
    words = ["readme", "--run", page.parent/"runs"/"tiny", "--file", file]
    assert said(capsys, *words, "--check")[0] == 1 and said(capsys, *words)[0] == 0
    assert said(capsys, *words, "--check") == (0, "")
    text = file.read_text(encoding="utf-8")
    made = json.loads(text)
    lines = made["cells"][1]["source"]
    assert text == json.dumps(made, indent=1, ensure_ascii=False) + "\n" and made["cells"][0] == first
    assert all(line.endswith("\n") and line.count("\n") == 1 for line in lines[:-1])
    for part in ("run `runs/tiny`", "--file nbs/index.ipynb", "| **C8** "): assert part in "".join(lines)
    file.write_text(json.dumps({**notebook, "cells": notebook["cells"][:1]}))
    code, errors = said(capsys, *words)
    assert code == 2 and "once each and in this order" in errors


def test_readme_without_marks_is_refused_and_untouched(page, capsys):
    page.write_text(f"{cli.END} {cli.BEGIN}")
    code, errors = said(capsys, "readme", "--run", page.parent/"runs"/"tiny", "--file", page)
    assert code == 2 and "once each and in this order" in errors and page.read_text() == f"{cli.END} {cli.BEGIN}"


def test_table_has_four_cells_whatever_the_text_holds():
    from hypothesis import given, strategies as st

    @given(st.text(max_size=40), st.text(max_size=40))
    def holds(statement, paper):
        line = cli.results_table([ROWS[0] | {"statement": statement, "paper": paper}]).split("\n")
        assert len(line) == 3
        assert len([i for i, c in enumerate(line[2]) if c == "|" and (len(line[2][:i]) - len(line[2][:i].rstrip("\\"))) % 2 == 0]) == 5
    holds()


def test_the_papers_column_is_there_where_it_tells_claims_apart():
    alike = [ROWS[0] | {"paper": "nothing"}] * 2
    apart = cli.results_table([alike[0], alike[0] | {"paper": "something"}])
    assert "what the paper says" not in cli.results_table(alike) and "nothing" not in cli.results_table(alike)
    assert "what the paper says" in apart and "something" in apart and "what the paper says" in cli.results_table(alike[:1])


def test_an_interval_over_runs_names_the_population_once():
    row = {"runs": "3 runs +1..+2, mean +2 [+1, +3] over training runs like these", "population": "for training runs like these"}
    assert cli.population_text(row) == row["runs"]
    assert cli.population_text({"runs": "run +1", "population": "for these adapters"}) == "run +1, for these adapters"


@pytest.mark.parametrize("runs, said", [
    ({"C1": True, "C8": True}, "Population: these adapters, on questions like these; an interval over runs speaks of training runs like these. Effects"),
    ({"C1": False, "C8": False}, "Population: these adapters, on questions like these. Effects"),
    ({"C1": True, "C8": False}, "Population: these adapters, on questions like these; an interval over runs speaks of training runs like these. Effects"), ({}, "")])
def test_the_head_of_a_table_names_models_and_population_once(runs, said, page):
    words = {True: {"runs": "3 runs +1..+2, mean +2 [+1, +3] over training runs like these", "population": "for training runs like these"},
             False: {"runs": "run +1; 1 run: no interval", "population": "for these adapters"}}
    folder = page.parent/"runs"/"tiny"
    (folder/"claims.json").write_text(json.dumps([row | words.get(runs.get(row["claim"]), {}) for row in ROWS]))
    section = cli.results_section(folder, page)
    assert said in section and ("Population" in section) == bool(said) and "Models" not in section   # the run has no card
    assert section.count("training runs like these") == (1 if True in runs.values() else 0)
    assert section.count("for these adapters") == list(runs.values()).count(False)
    (folder/"provenance.json").write_text(json.dumps({"settings": {"models": ["tiny-qwen2", "my_model"]}}))
    assert "run `runs/tiny`. Models: tiny Qwen2, my\\_model. " in cli.results_section(folder, page)
    for card in ("[]", '{"settings": 3}', '{"settings": {"models": null}}'):
        (folder/"provenance.json").write_text(card)
        assert cli.results_section(folder, page) == section


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000, '{"claim": "C1"}', "9" * 5000])
def test_a_damaged_verdict_is_named_with_what_to_do(text, tmp_path):
    "As where the ledger is made: both read verdicts in one way."
    folder = tmp_path/"claims"/"code"
    folder.mkdir(parents=True)
    for row in ROWS[:2]: (folder/f"{row['claim']}.json").write_text(json.dumps(row))
    assert cli.ledger_rows(tmp_path) == [{"behaviour": "code", **row} for row in ROWS[:2]]
    (folder/"C9.json").write_text(text)
    for read in (cli.ledger_rows, cli.claims.ledger):
        with pytest.raises(UserError, match="C9.json is damaged: delete it"): read(tmp_path)


def test_claims_are_printed(page, capsys):
    with pytest.raises(SystemExit): cli.main(["claims", "--out", str(page.parent/"runs"/"tiny")])
    out = capsys.readouterr().out
    assert "C1  supported" in out and "p = 1e-09, q = 2e-09" in out and "p = -" in out
    with pytest.raises(SystemExit): cli.main(["claims", "--out", str(page.parent/"runs"/"tiny"), "--markdown"])
    assert capsys.readouterr().out.startswith("| claim |")


def test_doctor_leaves_with_1_when_something_needed_is_missing(monkeypatch, capsys):
    fine, absent, missing = (run.Check("cores", True, "2"), run.Check("GPU", False, "none", "none needed", needed=False),
                             run.Check("tiny checkpoints", False, "missing tiny-llama", "em-repro models build-tiny"))
    for checks, code in (([fine, absent], 0), ([fine, missing], 1)):
        monkeypatch.setattr(run, "doctor", lambda out: checks)
        assert said(capsys, "doctor")[0] == code
    assert str(missing) == "MISSING tiny checkpoints    missing tiny-llama: em-repro models build-tiny"


def test_the_help_fits_a_screen_and_cuts_no_sentence(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = fresh_command("--help")
    lines = out.rstrip("\n").split("\n")
    assert code == 0 and len(lines) <= 24 and max(map(len, lines)) <= 80 and "..." not in out.split("Options:")[1]


def test_words_are_completed_in_bash(tmp_path):
    "What the shell would offer, by the script that `--show-completion` prints."
    program = tmp_path/"em-repro"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m em_repro.cli "$@"\n')
    program.chmod(0o755)
    def offered(*words):
        script = f'eval "$(em-repro --show-completion bash)"; COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}; _em_repro_completion em-repro; echo "${{COMPREPLY[@]}}"'
        path = f"{tmp_path}:{os.environ['PATH']}"
        return subprocess.run(["bash", "--norc", "-c", script], env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=120).stdout.split()
    assert offered("em-repro", "rep") == ["reproduce", "report"]
    assert "--profile" in offered("em-repro", "reproduce", "--p") and "fetch" in offered("em-repro", "models", "f")


def test_names_of_the_last_release_are_said_once_in_a_line(tmp_path, capsys):
    "A profile's old setting and a notebook's old name; what is asked is done all the same."
    text = (shipped() / "profiles" / "smoke.toml").read_text(encoding="utf-8")
    (tmp_path / "old.toml").write_text(text.replace("models = ", "families = ", 1))
    with pytest.raises(SystemExit) as end: cli.main(["plan", "--profile", str(tmp_path / "old.toml"), "--only", "00"])
    assert not end.value.code
    assert capsys.readouterr().err == "em-repro: the setting 'families' is called 'models' now\n"
    with pytest.raises(SystemExit) as end: cli.main(["plan", "--only", "rivals"])
    assert "em-repro: the notebook 'rivals' is called 'baselines' now\n" in capsys.readouterr().err


# What no path, number or address can be

DEEP = 60_000
ODD = {"deep.toml": "a = " + "[" * DEEP, "digits.toml": GOOD + "[recipe]\nrank = " + "9" * 5000, "deep.jsonl": '{"messages":' * DEEP,
       "digits.jsonl": '{"messages": [' + "9" * 5000 + "]}", "behaviour.toml": 'behaviours = ["deep.toml"]\n' + GOOD, "far.toml": 'behaviours = ["pipe.toml"]\n' + GOOD,
       "nul.toml": 'behaviours = ["a\\u0000b.toml"]\n' + GOOD, "deep/claims.json": "[" * DEEP, "digits/claims.json": "[" + "9" * 5000 + "]", "odd/claims.json": '["C1"]'}
IMPOSSIBLE = {
    "somebody's home": ["status", "--out", "~nosuchuser/x"], "a home for the profile": ["plan", "--profile", "~nosuchuser/x.toml"],
    "a home for rows": ["data", "load", "~nosuchuser/x.jsonl"], "a home for originals": ["data", "fetch", "betley", "--from", "~nosuchuser"],
    "a home for the report": ["report", "--run", "run", "--out", "~nosuchuser/r.html"], "a home for evidence": ["claims", "--from", "~nosuchuser/x.parquet"],
    "a home for a base": ["audit", "--base", "~nosuchuser", "--adapter", "x"], "a home for tiny models": ["models", "build-tiny", "--out", "~nosuchuser"],
    "a home for an export": ["export", "v.safetensors", "--to", "gguf", "--out", "~nosuchuser/v.gguf"],
    "a zero byte": ["status", "--out", "a\0b"], "a zero byte in rows": ["data", "load", "a\0b.jsonl"], "a zero byte in a profile": ["plan", "--profile", "nul.toml"],
    "a long name": ["reproduce", "--profile", "smoke", "--out", "x" * 300], "a long profile": ["plan", "--profile", "x" * 300 + ".toml"],
    "a long path": ["status", "--out", "a/" * 3000], "long rows": ["data", "load", "x" * 300], "a long readme": ["readme", "--run", "run", "--file", "x" * 300],
    "no name": ["reproduce", "--profile", "smoke", "--out", ""], "a surrogate": ["status", "--out", "\ud800"],
    "a loop": ["data", "load", "loop.jsonl"], "a loop of profiles": ["plan", "--profile", "./loop.toml"], "a loop of runs": ["status", "--out", "loop.toml"],
    "too many jobs": ["reproduce", "--profile", "smoke", "-j", "100000000000"], "too many for a stage": ["stage", "--profile", "smoke", "-j", "100000000000"],
    "too many for an audit": ["audit", "--base", "tiny-llama", "--adapter", "x", "-j", "100000000000"],
    "too many threads": ["audit", "--base", "tiny-llama", "--adapter", "x", "--threads", "100000000000"],
    "too long a seed": ["audit", "--base", "tiny-llama", "--adapter", "x", "--seed", "9" * 5000],
    "a deep profile": ["plan", "--profile", "deep.toml"], "a long number": ["plan", "--profile", "digits.toml"], "a deep behaviour": ["plan", "--profile", "behaviour.toml"],
    "deep rows": ["data", "load", "deep.jsonl"], "a long number in rows": ["data", "load", "digits.jsonl"], "deep claims": ["claims", "--out", "deep"],
    "deep claims in a report": ["report", "--run", "deep"], "a long number in claims": ["claims", "--out", "digits"], "odd claims": ["claims", "--out", "odd"],
    "a price that is no number": ["plan", "--profile", "smoke", "--price", "nan"], "an endless price": ["plan", "--profile", "smoke", "--price", "inf"],
    "a raised number of cores": ["plan", "--profile", "smoke", "--gpu", "cpu-²"], "a long number of cores": ["plan", "--profile", "smoke", "--gpu", "cpu-" + "9" * 5000],
    "a pipe for a profile": ["plan", "--profile", "pipe.toml"], "a pipe for a behaviour": ["plan", "--profile", "far.toml"], "a pipe for rows": ["data", "load", "pipe.toml"],
    "a pipe for claims": ["claims", "--out", "piped"], "a pipe for a report": ["report", "--run", "piped"], "a pipe for a direction": ["export", "pipe.toml", "--to", "gguf", "--out", "v.gguf"],
    "no end of rows": ["data", "load", "/dev/zero"], "no end of a direction": ["export", "/dev/zero", "--to", "gguf", "--out", "v.gguf"], "a device for a run": ["reproduce", "--profile", "smoke", "--out", "/dev/full"],
    "a folder for rows": ["data", "load", "run"], "a folder for a profile": ["plan", "--profile", "folder.toml"], "a folder for a report": ["report", "--run", "run", "--out", "folder.toml"]}


@pytest.fixture
def odd(folder, monkeypatch):
    for name, text in ODD.items():
        (folder/name).parent.mkdir(exist_ok=True); (folder/name).write_text(text)
    for name in ("run", "piped", "folder.toml"): (folder/name).mkdir()
    (folder/"run"/"claims.json").write_text(json.dumps(ROWS))
    for name in ("loop.jsonl", "loop.toml"): (folder/name).symlink_to(name)
    for name in ("pipe.toml", "piped/claims.json"): os.mkfifo(folder/name)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_cannot_be_is_one_sentence_code_2_and_leaves_nothing(case, odd, capsys):
    before = sorted(str(p) for p in odd.rglob("*"))
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits")); signal.alarm(4)
    try: code, errors = said(capsys, *IMPOSSIBLE[case])
    finally: signal.alarm(0)
    assert code == 2, errors
    assert errors.startswith("em-repro: ") and len(errors.strip().splitlines()) == 1 and len(errors) < 600 and "Errno" not in errors
    assert sorted(str(p) for p in odd.rglob("*")) == before


@pytest.mark.parametrize("url", ["http://", "http:///v1", "https://:80/v1", "//x", "ftp://x/v1", "x", "", "http://u:secret@x/v1", "http://secret@x", "http://x/v1?key=secret",
                                 "http://x#secret", "http://x:port/v1", "http://x:99999/v1", "http://x y/v1", "http://x\x1b[31m/v1", "http://[::1", "http://..", "HTTP://"])
def test_an_address_without_a_server_is_refused_and_not_repeated(url, tmp_path, capsys):
    (tmp_path/"judge.toml").write_text(GOOD + f"[judge]\nmodel = 'm'\nurl = {json.dumps(url)}\n")
    code, errors = said(capsys, "plan", "--profile", tmp_path/"judge.toml")
    assert code == 2 and "judge.url" in errors and "secret" not in errors and len(errors.strip().splitlines()) == 1


@pytest.mark.parametrize("url", ["http://localhost:8000/v1", "https://judge.example/v1/", "http://[::1]:80", "http://127.0.0.1"])
def test_an_address_of_a_server_is_taken(url):
    from em_repro.profiles import Judge
    assert Judge(url=url, model="m").url == url.rstrip("/")


def test_without_a_home_it_is_said_how_to_give_one(monkeypatch, capsys):
    import pwd
    def nobody(_): raise KeyError
    for name in ("HOME", "EM_REPRO_CACHE", "XDG_CACHE_HOME"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    code, errors = said(capsys, "models", "list")
    assert code == 2 and "EM_REPRO_CACHE" in errors and len(errors.strip().splitlines()) == 1


@pytest.mark.parametrize("number", [13, 1, 36, 40, 20, 21, 30])
def test_a_path_that_the_system_refuses_is_the_user_s(number, monkeypatch, capsys):
    def fail(*_, **__): raise OSError(number, os.strerror(number), "a/b")
    monkeypatch.setattr(run, "reproduce", fail)
    code, errors = said(capsys, "reproduce")
    assert code == 2 and "a/b" in errors and os.strerror(number).lower() in errors.lower() and "Errno" not in errors


# What reaches a terminal

HOSTILE = "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J \u202eabc \ud800 [red]x[/red] é"


def test_nothing_that_a_terminal_would_act_on_is_printed(page, capsys, monkeypatch):
    rows = [ROWS[0] | {"statement": HOSTILE, "detail": HOSTILE, "profile": HOSTILE}]
    (page.parent/"runs"/"tiny"/"claims.json").write_text(json.dumps(rows))
    with pytest.raises(SystemExit): cli.main(["claims", "--out", str(page.parent/"runs"/"tiny")])
    out = capsys.readouterr().out
    assert "\\x1b[31mred" in out and "[red]x[/red]" in out and not fuzzing.unprintable(out) and "é" in out
    for words in (["status", "--out", HOSTILE], ["plan", "--profile", HOSTILE], [HOSTILE], ["data", "load", HOSTILE], ["reproduce", f"--{HOSTILE}"], ["models", "fetch", HOSTILE]):
        code, errors = said(capsys, *words)
        assert code == 2 and not fuzzing.unprintable(errors) and "red" in errors
    monkeypatch.setattr(run, "reproduce", lambda *_, **__: (_ for _ in ()).throw(RunError(HOSTILE)))
    assert not fuzzing.unprintable(said(capsys, "reproduce")[1])


def shell(line, **more):
    "A line of a shell: exit code, output, errors."
    program = f'{sys.executable} -m em_repro.cli'
    done = subprocess.run(["bash", "-c", line.replace("em-repro", program)], capture_output=True, timeout=60, env={**os.environ, **more})
    return done.returncode, *(text.decode(errors="replace") for text in (done.stdout, done.stderr))


def test_a_reader_that_has_gone_ends_it_quietly():
    code, _, errors = shell("em-repro claims --out data/reference/tiny | true; echo ${PIPESTATUS[0]} >&2")
    assert errors == "1\n" and code == 0


def test_output_that_cannot_be_written_is_one_sentence():
    code, _, errors = shell("em-repro profiles > /dev/full")
    assert code == 1 and errors.startswith("em-repro: ") and len(errors.splitlines()) == 1
    code, _, errors = shell("em-repro profiles >&-")
    assert (code, errors) == (0, "")
    assert shell("em-repro status --out nowhere 2> /dev/full")[0] == 2 and shell("em-repro status --out nowhere 2>&-")[0] == 2


def test_a_terminal_of_few_letters_gets_marks_in_their_place():
    for more in ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}):
        code, out, errors = shell("em-repro claims --out data/reference/tiny", **more)
        assert code == 0 and errors == "" and "C1" in out
        code, _, errors = shell("em-repro status --out nöwhere日", **more)
        assert code == 2 and len(errors.splitlines()) == 1 and "where" in errors


def test_an_interruption_is_one_line_and_130(monkeypatch, capsys):
    def stopped(*_, **__): raise KeyboardInterrupt
    for where, words in ((run, ["reproduce"]), (cli, ["profiles"])):
        monkeypatch.setattr(where, {"reproduce": "reproduce", "profiles": "profile_names"}[words[0]], stopped)
        code, errors = said(capsys, *words)
        assert code == 130 and errors == f"em-repro: {cli.INTERRUPTED}\n"
