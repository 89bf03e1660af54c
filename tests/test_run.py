"""The runner, on small notebooks made here: what is executed, kept, refused and said when something fails."""
import hashlib, io, json, os, platform, signal, subprocess, sys, time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from filelock import FileLock
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_notebook

import processes
from em_repro import run
from em_repro.claims import LEDGER_COLUMNS, Verdict
from em_repro.folders import RunFolder
from em_repro.profiles import Profile, UserError, load_profile, notebooks, shipped
from em_repro.store import RunError, Store, call, echo
from em_repro.study import open_study

SMOKE = load_profile("smoke")

PARAMETERS = 'profile = "smoke"\nbehaviour = "code"\nout = "runs/{profile}"'
TABLE = ('from em_repro.folders import run_folder\nfolder = run_folder(out, profile).tables(behaviour)\nfolder.mkdir(parents=True, exist_ok=True)\n'
         '(folder/"NAME.csv").write_text("x\\n1\\n")')


def write_notebook(path, *cells, parameters=PARAMETERS, kernel="python3"):
    made = [new_code_cell(parameters, id="parameters", metadata={"tags": ["parameters"]})] if parameters else []
    made += [new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(cells)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=made, metadata={"kernelspec": {"name": kernel, "display_name": "", "language": "python"}}), path)
    return path


def execute_all(source, place, parameters, **options):
    "Execute one notebook into the run `place`: {label: how it failed}."
    return run.execute_all([run.Execution(source, RunFolder(place), parameters)], **options)


def an_echo(profile, text="one"):
    first, = yield [call(echo, text=text)]
    second, = yield [call(echo, text="again", before=first)]
    return second


def killed_stage(text: str) -> dict:
    os.kill(os.getpid(), signal.SIGKILL)


class Study:
    "Two notebooks and their plans in place of the eight."
    def __init__(self, folder, monkeypatch):
        self.nbs, self.out, self.plans = folder/"nbs", folder/"run", {}
        names = ("00_first", "01_second")
        for name in names: write_notebook(self.nbs/f"{name}.ipynb", TABLE.replace("NAME", name))
        monkeypatch.setattr(run, "STUDIES", {name: ("none", "none") for name in names})
        monkeypatch.setattr(run, "notebooks", lambda: self.nbs)
        monkeypatch.setattr(run, "check_profile", lambda profile: None)
        monkeypatch.setattr(run, "keep_evidence", lambda study, said: {"evidence/code.parquet": "its sha256"})   # tested in test_evidence
        monkeypatch.setattr(run, "_hash_files", lambda *_: "the package and its data stay as they are")
        monkeypatch.setattr(run, "plan_of", lambda name, profile: self.plans.get(name, an_echo)(profile))
        self.seen = []

    def reproduce(self, **options):
        self.seen.clear()
        return run.reproduce("smoke", self.out, 1, watch=lambda *event: self.seen.append(event[:2]), **options)

    def log(self): return (self.out/"store"/"computed.jsonl").read_text()


@pytest.fixture
def forked(monkeypatch):
    "Notebooks run in children that fork."
    processes.fork_children(monkeypatch)


@pytest.fixture
def kernel_study(tmp_path, monkeypatch, forked):
    "Stages are computed here."
    processes.compute_here(monkeypatch)
    return Study(tmp_path, monkeypatch)


@pytest.fixture
def study(kernel_study, monkeypatch):
    "Cells are run without a kernel too."
    processes.cells_here(monkeypatch)
    return kernel_study


@pytest.fixture
def spawned_study(tmp_path, monkeypatch):
    "With the processes of a real run."
    return Study(tmp_path, monkeypatch)


def test_every_notebook_is_executed_for_every_behaviour(study, monkeypatch):
    "Each into the folders of its behaviour, which it is told; again only what has changed."
    monkeypatch.setattr(run, "load_profile", lambda name: Profile(**SMOKE.model_dump() | {"behaviours": ("code", "advice")}))
    made = study.reproduce()
    assert made.executed == ("00_first", "01_second", "00_first (advice)", "01_second (advice)") and made.failed == {}
    assert {name for event, name in study.seen if event == "done"} >= set(made.executed)
    for behaviour in ("code", "advice"):
        notebook = study.out/"notebooks"/behaviour/"00_first.ipynb"
        assert json.loads(notebook.read_text())["metadata"]["papermill"]["parameters"]["behaviour"] == behaviour
        assert (study.out/"tables"/behaviour/"00_first.csv").is_file()
    (study.out/"tables"/"advice"/"00_first.csv").unlink()
    write_notebook(study.nbs/"01_second.ipynb", "1 / 0")
    failed = study.reproduce().failed
    assert set(failed) == {"01_second", "01_second (advice)"} and failed["01_second (advice)"].startswith("01_second (advice) failed at cell `cell-0`")
    states = {row["notebook"]: row["state"] for row in run.run_state(study.out)["notebooks"]}
    assert states == {"00_first": "executed", "01_second": "failed", "00_first (advice)": "executed", "01_second (advice)": "failed"}


def test_an_unknown_behaviour_is_refused_before_any_work(tmp_path):
    with pytest.raises(UserError, match="unknown behaviour 'gossip': choose from code"):
        run.check_profile(Profile(**SMOKE.model_dump() | {"behaviours": ("code", "gossip")}))
    with pytest.raises(UserError, match="unknown behaviour 'gossip'"): open_study("smoke", tmp_path / "run", behaviour="gossip")
    assert not (tmp_path / "run").exists()


def test_names_every_study_notebook_and_its_plan():
    "The table of plans, the folder of notebooks and the declared claims name the same notebooks."
    import importlib, tomllib
    from em_repro.profiles import shipped
    assert sorted(run.STUDIES) == sorted(p.stem for p in notebooks().glob("0*.ipynb"))
    assert all(run.source_of(name).is_file() for name in run.MORE)
    for module, function in (run.STUDIES | run.MORE).values(): assert callable(getattr(importlib.import_module(f"em_repro.{module}"), function))
    claims = tomllib.loads((shipped()/"claims.toml").read_text(encoding="utf-8"))["claim"]
    assert {claim["notebook"] for claim in claims} <= set(run.STUDIES)


def test_second_run_does_nothing_and_a_change_does_only_its_part(spawned_study, monkeypatch):
    study = spawned_study
    first = study.reproduce()
    assert (first.computed, first.found, first.exit_code) == (2, 0, 0) and first.executed == ("00_first", "01_second")
    assert ("done", "00_first") in study.seen and ("done", "store.echo") in study.seen
    log, made = study.log(), (study.out/"notebooks"/"code"/"00_first.ipynb").read_bytes()

    processes.compute_here(monkeypatch); processes.fork_children(monkeypatch)
    again = study.reproduce()
    assert (again.computed, again.found) == (0, 2) and again.current == ("00_first", "01_second")
    assert study.log() == log and study.seen == []
    assert (study.out/"notebooks"/"code"/"00_first.ipynb").read_bytes() == made

    study.plans["01_second"] = lambda profile: an_echo(profile, "other")
    other = study.reproduce()
    assert (other.computed, other.found, other.executed, other.current) == (2, 2, ("01_second",), ("00_first",))
    (study.out/"tables"/"code"/"00_first.csv").unlink()
    assert study.reproduce(only=["00"]).executed == ("00_first",)
    assert (study.out/"tables"/"code"/"00_first.csv").is_file()
    assert study.reproduce(only=["00"], force=True).executed == ("00_first",)


def test_hash_over_files_is_of_names_and_contents(tmp_path):
    (tmp_path/"reference").mkdir(); (tmp_path/"pairs").mkdir()
    (tmp_path/"pairs"/"a.toml").write_text("1")
    first = run._hash_files(tmp_path, "*")
    for name in ("reference/claims.json", ".draft", "pairs/.a.toml.part"): (tmp_path/name).write_text("x")
    assert run._hash_files(tmp_path, "*") == first
    (tmp_path/"pairs"/"a.toml").rename(tmp_path/"pairs"/"b.toml")
    second = run._hash_files(tmp_path, "*")
    (tmp_path/"pairs"/"b.toml").write_text("2")
    assert len({first, second, run._hash_files(tmp_path, "*")}) == 3


def test_leaves_no_machine_path_in_what_it_writes(kernel_study):
    study = kernel_study
    write_notebook(study.nbs/"00_first.ipynb", TABLE.replace("NAME", "x"), "import warnings, os\nwarnings.warn('look')\nprint(os.getcwd() + '/x')")
    study.reproduce(only=["00"])
    made = study.out/"notebooks"/"code"/"00_first.ipynb"
    record = json.loads(made.read_text())["metadata"]["papermill"]
    assert (record["input_path"], record["output_path"]) == ("00_first.ipynb", "notebooks/code/00_first.ipynb")
    text = made.read_text() + (study.out/"provenance.json").read_text()
    for part in text.split("\n"): assert str(study.out)[1:] not in part
    assert r'out = \"run\"' in text and f"{Path.cwd()}/" not in text and f"{sys.prefix}/" not in text
    assert sorted(p.name for p in (study.out/"notebooks"/"code").iterdir()) == ["00_first.ipynb"]


def test_a_card_says_which_stages_had_more_threads():
    "Of lines that were logged before threads were, none; of a key that was computed again, the last."
    log = [{"key": "a"}, {"key": "b", "threads": 6}, {"key": "b", "threads": 4}, {"key": "c", "threads": 4}, {"key": "d", "threads": 1}]
    assert run.more_threads(log, usual=1) == {"threads": "4 in 2 of 4 stages"}
    assert run.more_threads(log[:1], usual=1) == run.more_threads([], usual=1) == run.more_threads(log[-1:], usual=1) == {}
    assert run.more_threads(log, usual=4) == {"threads": "1 in 1 of 4 stages"}


def test_ledger_and_provenance(study):
    row = {"claim": "C1", "statement": "s", "paper": "p", "effect": .5, "low": .4, "high": .6, "p": None, "q": .01, "n": 4,
           "verdict": "supported", "detail": "d", "profile": "smoke", "protocol": "r"}
    cell = f"import json, os\nfolder = run_folder(out).claims(behaviour)\nos.makedirs(folder, exist_ok=True)\n(folder/'C1.json').write_text({json.dumps(json.dumps(row))})"
    write_notebook(study.nbs/"00_first.ipynb", TABLE.replace("NAME", "x"), cell)
    report = study.reproduce(only=["00"])
    assert json.loads((study.out/"claims.json").read_text()) == [row | {name: None for name in LEDGER_COLUMNS if name not in row}]   # not kept, so missing
    kept = json.loads((study.out/"provenance.json").read_text())
    assert kept["profile"] == "smoke" and kept["failed"] == [] and kept["evidence"] == {"evidence/code.parquet": "its sha256"} and kept["stages"] == {"store.echo": {"computed": 2, "seconds": kept["stages"]["store.echo"]["seconds"]}}
    assert set(kept["files"]) == {"claims.json", "claims/code/C1.json", "notebooks/code/00_first.ipynb", "tables/code/x.csv"}
    assert all(kept["files"][name] == hashlib.sha256((study.out/name).read_bytes()).hexdigest() for name in kept["files"])
    assert kept["machine"]["architecture"] == platform.machine() and platform.node() not in json.dumps(kept) and set(kept["code"]) == {"package", "data"}
    assert "(1 verdicts)" in str(report) and "_docs/index.html" in str(report)
    assert {r["claim"]: r["verdict"] for r in run.run_state(study.out)["claims"]} == {"C1": "supported"}


def test_failure_is_kept_beside_the_good_one_and_stops_no_other(study):
    study.reproduce()
    good = (study.out/"notebooks"/"code"/"00_first.ipynb").read_bytes()
    write_notebook(study.nbs/"00_first.ipynb", "ok = True", "raise ValueError('first line\\nthe second line')")
    write_notebook(study.nbs/"01_second.ipynb", TABLE.replace("NAME", "01_second"), "3 + 3")
    report = study.reproduce()
    assert report.exit_code == 1 and report.executed == ("01_second",)
    assert "00_first failed at cell `cell-1`: ValueError: the second line" in report.failed["00_first"]
    assert (study.out/"notebooks"/"code"/"00_first.ipynb").read_bytes() == good
    assert "first line" in (study.out/"notebooks"/"code"/"00_first.failed.ipynb").read_text()
    assert not list((study.out/"notebooks"/"code").glob(".*partial*"))
    assert json.loads((study.out/"provenance.json").read_text())["failed"] == ["00_first"]
    assert {"notebook": "00_first", "state": "failed"} in run.run_state(study.out)["notebooks"]

    write_notebook(study.nbs/"00_first.ipynb", "ok = True")
    assert study.reproduce().executed == ("00_first",)
    assert not list((study.out/"notebooks"/"code").glob("*.failed.ipynb")) and not list((study.out/"notebooks"/"code").glob(".*.log"))


@pytest.mark.parametrize("error", ["store.RunError", "store.MachineError", "profiles.UserError", "evidence.NotStored"])
def test_a_cell_that_fails_with_a_sentence_of_ours_is_told_by_the_sentence(study, error):
    module, name = error.split(".")
    write_notebook(study.nbs/"00_first.ipynb", f"from em_repro.{module} import {name}\nraise {name}('runs/x cannot be used: move it away')")
    failed = study.reproduce().failed["00_first"]
    assert "00_first failed at cell `cell-0`: runs/x cannot be used: move it away (see " in failed and name not in failed


def test_a_kernel_that_dies_is_named_with_its_cell(tmp_path, forked):
    source = write_notebook(tmp_path/"a.ipynb", "1", "import os\nos.kill(os.getpid(), 9)")
    failed = execute_all(source, tmp_path/"made", {"profile": "smoke"})
    assert "a failed at cell `cell-1`" in failed["a"] and "DeadKernel" in failed["a"]
    assert not (tmp_path/"made"/"notebooks"/"code"/"a.ipynb").exists()


def test_a_killed_process_is_told_from_a_failed_one(tmp_path):
    source = write_notebook(tmp_path/"a.ipynb", "import os\nos.kill(os.getppid(), 9)")
    assert "exit code -9" in execute_all(source, tmp_path/"made", {"profile": "smoke"})["a"]


@pytest.mark.parametrize("models, rest", [("tiny-llama", []), ("tiny-llama,tiny-qwen2", ["after"])])
def test_a_notebook_ends_early_where_there_is_no_pair_of_models(
        tmp_path, monkeypatch, forked, models, rest):
    "That is no failure: it is executed, says why in a sentence, and shows nothing else of the end."
    monkeypatch.chdir(tmp_path)
    source = write_notebook(tmp_path/"nbs"/"a.ipynb", "from em_repro.study import open_study\nstudy = open_study(profile, out)",
                            "study.between_models()", "print('after')")
    assert execute_all(source, tmp_path/"made", {"profile": f"smoke@{models}", "out": "runs/x"}) == {}
    made = nbformat.read(tmp_path/"made"/"notebooks"/"code"/"a.ipynb", as_version=4)
    assert not made.metadata.papermill.exception and "papermill-error" not in json.dumps(made)
    ended, last = made.cells[-2:]
    assert [output.text.strip() for output in last.outputs] == rest
    assert [output.output_type for output in ended.outputs] == ([] if rest else ["display_data"])
    if not rest: assert "has one model" in ended.outputs[0].data["text/markdown"] and ended.metadata.papermill.status == "completed"


def test_unknown_parameter_is_refused(tmp_path):
    source, plain = write_notebook(tmp_path/"a.ipynb", "1"), write_notebook(tmp_path/"b.ipynb", "1", parameters=None)
    with pytest.raises(UserError, match="a.ipynb has no parameter 'profle': it takes profile, behaviour, out"):
        run.execute(run.Execution(source, RunFolder(tmp_path/"made"), {"profle": "x"}), tmp_path)
    with pytest.raises(UserError, match="no cell tagged"): run.check_parameters(plain, {"profile": "x"})
    assert not (tmp_path/"made").exists()


def test_kernel_is_this_interpreter_whatever_is_registered(tmp_path, monkeypatch):
    "A kernelspec of another environment by the same name, one thread, one job, and braces in the folder's name."
    spec = tmp_path/"kernels"/"python3"/"kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["/bin/false"], "display_name": "python3", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    cell = (f"import os, sys\nassert sys.executable == {sys.executable!r}\nassert os.getcwd() == {os.getcwd()!r}\n"
            "assert [os.environ[k] for k in ('OMP_NUM_THREADS', 'EM_REPRO_JOBS')] == ['3', '1']")
    source = write_notebook(tmp_path/"{odd} name"/"a.ipynb", cell, kernel="someone-elses")
    assert execute_all(source, tmp_path/"{odd} name"/"made", {"profile": "smoke"}, threads=3) == {}
    assert os.environ["JUPYTER_PATH"] == str(tmp_path)


def test_a_failed_plan_stops_neither_the_others_nor_its_notebook(study):
    def broken(profile): raise ValueError("no such layer")
    study.plans["00_first"] = broken
    report = study.reproduce()
    assert report.computed == 2 and set(report.executed) == {"00_first", "01_second"}


def test_one_failure_of_several_plans_is_met_once(study):
    def broken(profile):
        yield [call(echo, text="one")]
        raise ValueError("the loss is nan")
    study.plans = dict.fromkeys(("00_first", "01_second"), broken)
    write_notebook(study.nbs/"00_first.ipynb", "raise ValueError('the loss is nan')")
    report = study.reproduce()
    assert report.failed["01_second"] == "01_second was stopped by the same failure as 00_first" and ("start", "01_second") not in study.seen
    write_notebook(study.nbs/"00_first.ipynb", "'well after all'")
    assert study.reproduce().failed == {}


def test_what_no_notebook_can_get_past_is_raised(spawned_study):
    study = spawned_study
    def wrong(profile): raise UserError("unknown model 'x'")
    study.plans = dict.fromkeys(("00_first", "01_second"), wrong)
    with pytest.raises(UserError, match="unknown model"): study.reproduce()
    study.plans["01_second"] = lambda profile: processes.one_stage(killed_stage)
    with pytest.raises(RunError, match="killed.*--jobs 1.*finished stages are kept"): study.reproduce()
    def full(profile): raise OSError(28, "No space left on device")
    study.plans["01_second"] = full
    with pytest.raises(RunError, match="is full"): study.reproduce()
    assert not (study.out/"notebooks").exists() and study.reproduce.__self__ is study


def test_bad_input_is_refused_before_any_work(tmp_path):
    (tmp_path/"file").write_text("")
    for options, words in (({"profile": "huge"}, "unknown profile 'huge'"), ({"only": ["09"]}, "unknown notebook '09'"), ({"only": []}, "no notebook"),
                           ({"jobs": 0}, "a whole number from 1 to"), ({"profile": "smoke", "out": tmp_path/"file"/"x"}, "cannot write")):
        with pytest.raises(UserError, match=words): run.reproduce(**{"out": tmp_path/"run", **options})
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_jobs_from_the_environment(monkeypatch):
    monkeypatch.setenv("EM_REPRO_JOBS", "3")
    assert run.check_jobs(None) == 3
    monkeypatch.setenv("EM_REPRO_JOBS", "many")
    with pytest.raises(UserError, match="EM_REPRO_JOBS"): run.check_jobs(None)


def test_two_runs_do_not_share_a_folder(study):
    study.out.mkdir()
    with FileLock(study.out/".reproduce.lock"), pytest.raises(UserError, match="another process"): study.reproduce()

ODD = ["", "[]", "null", "3", '"x"', "{}", '{"notebooks": 3, "files": 3}', '{"notebooks": [], "files": []}', '{"notebooks": {"00_first": []}, "files": {"a": null}}',
       "\x00\xff\xfe", "{" * 50, "[" * 100_000]


@pytest.mark.parametrize("name", [".made.json", "claims.json", "provenance.json"])
def test_files_of_any_shape_are_written_anew(study, name):
    "What a run remembers of itself may be cut, empty, binary or something else; the run makes it again."
    whole = study.reproduce()
    before = json.loads((study.out/".made.json").read_text())
    for text in ODD if name == ".made.json" else ODD[::3]:
        (study.out/name).write_text(text, encoding="latin-1")
        again = study.reproduce()
        assert again.failed == {} and set(again.executed + again.current) == set(whole.executed), text[:20]
        assert json.loads((study.out/".made.json").read_text())["notebooks"] == before["notebooks"]


def test_a_partial_run_does_not_take_a_damaged_table_for_a_good_one(study):
    "The other notebook's table was changed: to execute one of the two does not make it right."
    study.reproduce()
    table = study.out/"tables"/"code"/"00_first.csv"
    table.write_text("x\n999\n")
    assert study.reproduce(only=["01"]).executed == ("01_second",)
    assert "00_first" in study.reproduce().executed and table.read_text() == "x\n1\n"
    assert study.reproduce().current == ("00_first", "01_second")


def test_a_report_that_cannot_be_written_does_not_hide_what_failed(study, monkeypatch):
    "A notebook's own sentence stays, the other files are written, and the exit code is that of a failed run."
    write_notebook(study.nbs/"00_first.ipynb", TABLE.replace("NAME", "x"), "raise ValueError('the loss is nan')")
    (study.out/"claims"/"code").mkdir(parents=True)
    (study.out/"claims"/"code"/"C1.json").write_text(json.dumps(dict.fromkeys(LEDGER_COLUMNS, "x")))
    def full(*_): raise UserError("cannot write the report (No space left on device): choose another place")
    monkeypatch.setattr(run.reports, "write_report", full)
    report = study.reproduce(only=["00"])
    assert report.exit_code == 1 and "the loss is nan" in report.failed["00_first"]
    assert "report.html could not be written: cannot write the report" in report.failed["report.html"]
    assert json.loads((study.out/"provenance.json").read_text())["failed"] == ["00_first"]


@pytest.mark.parametrize("text", ODD[1:4])
def test_a_damaged_verdict_of_another_notebook_is_a_sentence(study, text):
    (study.out/"claims"/"code").mkdir(parents=True)
    (study.out/"claims"/"code"/"C9.json").write_text(text)
    report = study.reproduce(only=["00"])
    assert "C9.json is damaged" in report.failed["claims.json"] and report.executed == ("00_first",) and report.exit_code == 1
    assert (study.out/"provenance.json").is_file() and run.run_state(study.out)["claims"] == []


def test_a_full_disk_at_the_end_is_said_once(study, monkeypatch):
    real = run.storage.replace_text
    def full(path, text):
        if path.parent == study.out: raise OSError(28, os.strerror(28), str(path))
        real(path, text)
    monkeypatch.setattr(run.storage, "replace_text", full)
    report = study.reproduce(only=["00"])
    (files, sentence), = report.failed.items()
    assert report.exit_code == 1 and files == ".made.json, provenance.json" and "is full" in sentence and "\n" not in sentence


@pytest.mark.parametrize("place", ["notebooks", "store", ".reproduce.lock", "store/.locks", "store/.tmp"])
def test_what_stands_in_a_runs_way_is_a_sentence(study, place):
    "A file where a folder is expected, or a folder where a file is."
    (study.out/place).parent.mkdir(parents=True)
    if place == ".reproduce.lock": (study.out/place).mkdir()
    else: (study.out/place).write_text("x")
    with pytest.raises((RunError, UserError), match=place.replace(".", r"\.")) as caught: study.reproduce()
    assert "\n" not in str(caught.value) and ("run again" in str(caught.value) or "choose another" in str(caught.value))


@pytest.mark.parametrize("text", [*ODD, '{"label": 3, "done": "x", "total": null}', '{"label": "l", "stage": "s", "done": 1, "total": "many"}',
                                  '{"label": "l", "stage": "s", "done": NaN, "total": 2}'])
def test_progress_files_of_any_shape_are_passed_over(tmp_path, text):
    store = Store(tmp_path/"store")
    (store.root/".progress"/"a.json").write_text(text, encoding="latin-1")
    (store.root/".progress"/"b.json").mkdir()
    (store.root/".progress"/"c.json").write_text(json.dumps({"stage": "s", "label": "l", "done": 1, "total": 2}))
    assert [row["key"] for row in run.progress_files(store.root)] == ["c"]
    from rich.console import Console
    run.Live(store.root, Console(file=io.StringIO())).table()
    assert len(run.run_state(tmp_path)["running"]) == 1 and "interrupted: l  50%" in run.status_text(tmp_path)


@pytest.mark.parametrize("name", ["tables/code/00_first.csv", "claims/code/C2.json", "figures/code/shares.svg", "notebooks/code/00_first.ipynb",
                                  "evidence/code.parquet", "claims.json", "provenance.json", "report.html", ".made.json"])
def test_a_folder_in_place_of_a_runs_file_is_a_sentence_before_any_work(study, name):
    "What the run had stays, and nothing is executed."
    study.reproduce()
    place = study.out/name
    place.unlink(missing_ok=True); place.mkdir(parents=True)
    def kept(): return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in study.out.rglob("*") if path.is_file() and path.name != ".reproduce.lock"}
    before = kept()
    with pytest.raises(RunError) as caught: study.reproduce()
    assert str(caught.value).startswith(f"{place} cannot be used (Is a directory): move away what stands there") and kept() == before


def test_a_notebook_that_meets_a_folder_says_so_in_a_sentence(tmp_path):
    "One that somebody executes alone, without `reproduce`."
    ours, row = open_study("smoke", tmp_path), Verdict(**json.loads((shipped()/"reference"/"tiny"/"claims"/"code"/"C2.json").read_text()))
    for kind, name, save in (("tables", "rates.csv", lambda: ours.table(pd.DataFrame({"a": [1]}), "rates")),
                             ("figures", "rates.svg", lambda: ours.figure(Figure(), "rates")),
                             ("claims", "C2.json", lambda: ours.verdict(row))):
        (tmp_path/kind/"code"/name).mkdir(parents=True)
        with pytest.raises(RunError, match=rf"{name}.* cannot be used .Is a directory.: move away what stands there"): save()


@pytest.mark.parametrize("only", [[""], ["5", ""], "", [" "], ["/"], [".ipynb"]])
def test_an_empty_name_chooses_nothing(only):
    with pytest.raises(UserError, match="empty name.*choose from 00_finetune"): run.choose(only)


def test_a_script_without_the_main_guard_is_a_sentence(tmp_path):
    "Of the notebooks' processes; the store's own are in test_store."
    source, script = write_notebook(tmp_path/"a.ipynb", "1"), tmp_path/"script.py"
    lines = ["import sys", f"sys.path.insert(0, {str(Path(run.__file__).parents[1])!r})", "from pathlib import Path", "from em_repro import run",
             "from em_repro.folders import RunFolder", "from em_repro.store import leave_if_starting", "leave_if_starting()",
             f"task = run.Execution(Path({str(source)!r}), RunFolder({str(tmp_path/'made')!r}), {{'profile': 'smoke'}})", "print(run.execute_all([task])['a'])"]
    script.write_text("\n".join(lines))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert 'put the call under `if __name__ == "__main__":`' in done.stdout and not done.stderr


# A part of a run

def by_family(profile):
    "A stage for each family and one for all of them together, as a study that compares models has it."
    each = yield [call(echo, text=f"{name} {seed}") for name in profile.models for seed in profile.seeds]
    together, = yield [call(echo, text=" ".join(profile.models), before=each[0])]
    return together


def test_parts_fill_the_store_that_the_whole_reads(study, monkeypatch):
    study.plans["00_first"] = by_family
    def stage(**part): return run.run_stages("smoke", study.out, ["00"], jobs=1, watch=lambda *_: None, **part)
    models = run.load_profile("smoke").models
    assert stage(models=[models[0]]) == (2, 0) and stage(models=[models[0]]) == (0, 2)
    assert stage(models=[models[1]], seeds=[0]) == (2, 0)
    made = study.reproduce(only=["00"])
    assert made.executed == ("00_first",) and (made.computed, made.found) == (len(models) - 2 + 1, 2)
    assert not (study.out / ".made.json").is_file() or (study.out / "notebooks").is_dir()


def test_a_run_of_some_models_says_so_in_its_card_and_to_its_notebooks(study):
    seen = {}
    study.plans["00_first"] = lambda profile: seen.update(models=profile.models) or by_family(profile)
    made = run.reproduce("smoke@tiny-llama", study.out, jobs=1, only=["00"], watch=lambda *_: None)
    card = json.loads((study.out / "provenance.json").read_text(encoding="utf-8"))
    assert made.profile == card["profile"] == "smoke@tiny-llama" and card["settings"]["models"] == ["tiny-llama"] == list(seen["models"])
    parameters = json.loads((study.out / "notebooks" / "code" / "00_first.ipynb").read_text(encoding="utf-8"))["metadata"]["papermill"]["parameters"]
    assert parameters["profile"] == "smoke@tiny-llama"


def test_a_part_executes_nothing_and_may_run_beside_a_run(study):
    study.out.mkdir()
    with FileLock(study.out/".reproduce.lock"): run.run_stages("smoke", study.out, ["00"], jobs=1, watch=lambda *_: None)
    assert not (study.out / "notebooks").exists() and not (study.out / "claims.json").exists()


def test_a_part_that_is_none_is_refused_before_any_work(tmp_path):
    for part, words in (({"models": ["gpt-5"]}, "unknown model 'gpt-5'"), ({"seeds": [7]}, "unknown seed 7"), ({"only": ["99"]}, "99")):
        with pytest.raises(UserError, match=words): run.run_stages("smoke", tmp_path / "run", **part)
    assert not (tmp_path / "run").exists()


def test_what_stopped_a_part_is_its_failure(study):
    def stopped(profile):
        yield [call(echo, text="one")]
        raise UserError("unknown thing: choose another")
    study.plans["00_first"] = stopped
    with pytest.raises(UserError, match="unknown thing"): run.run_stages("smoke", study.out, ["00"], jobs=1, watch=lambda *_: None)


@pytest.mark.parametrize("told, state", [("JobId=7 JobState=RUNNING Reason=None", "running"), ("JobState=COMPLETED", "success"), ("JobState=FAILED", "failed"),
                                         ("JobState=CANCELLED", "failed"), ("JobState=NODE_FAIL", "failed"), ("JobState=PENDING", "running"), ("", "running")])
def test_the_status_script_reads_scontrol(tmp_path, monkeypatch, told, state):
    script = Path(run.__file__).parents[1] / "workflow" / "slurm_status.py"
    (fake := tmp_path / "scontrol").write_text(f"#!/bin/sh\necho '{told}'\n")
    fake.chmod(0o755)
    done = subprocess.run([sys.executable, script, "7"], capture_output=True, text=True, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert done.stdout.strip() == state
    assert subprocess.run([sys.executable, script, "7; ls"], capture_output=True).returncode


def test_status_tells_running_from_interrupted_and_changes_nothing(tmp_path):
    store = Store(tmp_path/"store")
    entry = store.get(call(echo, text="one"))
    running, dead = "a" * 40, "b" * 40
    for key, name in ((running, "finetune.adapter tiny-qwen2"), (dead, "directions.states")):
        (store.root/".progress"/f"{key}.json").write_text(json.dumps({"stage": "s", "label": name, "done": 3, "total": 4, "note": "steps"}))
    (store.root/".damaged"/"store.echo-abc-1").mkdir(parents=True)
    with FileLock(store.root/".locks"/f"{running}.lock"):
        table, text = run.status(tmp_path), run.status_text(tmp_path)
        assert run.tidy_store(store.root) == 1
    assert "running: finetune.adapter tiny-qwen2  75%  steps" in text and "interrupted: directions.states  75%" in text
    assert table[table.state == "damaged"].name.tolist() == ["store.echo-abc"] and "claims: none yet" in text
    (entry.path/"card.json").unlink()
    assert run.run_state(tmp_path)["stages"] == []
    with pytest.raises(UserError, match="no run in"): run.status(tmp_path/"nowhere")
    assert not (tmp_path/"nowhere").exists()


def test_plain_lines_and_live_table(tmp_path):
    text = io.StringIO()
    lines = run.Lines(text)
    for event in (("start", "a"), ("start", "b"), ("done", "a", 11.23), ("failed", "b", 1)): lines(*event)
    assert text.getvalue() == "[  1/2] a  11.2 s\n[  2/2] b  FAILED\n"
    from rich.console import Console
    (tmp_path/".progress").mkdir()
    (tmp_path/".progress"/"k.json").write_text(json.dumps({"stage": "s", "label": "adapter [seed 0]", "done": 1, "total": 2, "note": "steps"}))
    (tmp_path/".progress"/"half.json").write_text("{")
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with run.Live(tmp_path, console) as live:
        live("start", "00_finetune"); live("start", "x"); live("done", "x", 2.0)
        live.display.refresh()
    shown = console.file.getvalue()
    assert all(words in shown for words in ("adapter [seed 0]", "steps", "1 of 2 known so far", "00_finetune", "x 2.0 s"))


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from em_repro import cli, run
import processes
run.STUDIES = {{"00_first": ("none", "none")}}
run.check_profile = lambda profile: None
run.plan_of = lambda name, profile: processes.one_stage(processes.slow_stage)
if __name__ == "__main__": cli.main(["reproduce", "--profile", "smoke", "--out", {out!r}, "--jobs", "1"])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_ends_the_children_and_says_how_to_go_on(tmp_path, number):
    script, out = tmp_path/"script.py", tmp_path/"run"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), out=str(out)))
    process = subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list((out/"store"/".progress").glob("*.json")) and time.monotonic() < deadline: time.sleep(.2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert errors.strip().splitlines()[-1] == "em-repro: interrupted: finished stages are kept, the same command goes on from there"
    assert "Traceback" not in errors
    state, = run.run_state(out)["running"]
    assert state["state"] == "interrupted"


# Which notebooks are about which behaviour

def test_a_profile_may_name_its_notebooks_and_others_may_be_asked_for():
    one = load_profile("small-advice")
    assert run.choose(None, one) == ["00_finetune", "misalignment"] and run.choose(["03"], one) == ["03_steering"] and run.choose(None, SMOKE) == list(run.STUDIES)


def test_a_notebook_that_reads_answers_nobody_judges_is_refused_before_any_work(tmp_path):
    for only, words in ((["01"], "nothing that judges the answers of pretrained models"), (["03", "misalignment"], "nothing that judges")):
        with pytest.raises(UserError, match=words): run.reproduce("small-advice", tmp_path / "out", only=only)
    with pytest.raises(UserError, match="behaviour code has no twins"): run.reproduce("smoke", tmp_path / "out", only=["misalignment"])
    assert not (tmp_path / "out").exists()


def test_twins_are_read_for_the_behaviours_that_have_them():
    both = run.by_behaviour(load_profile("tiny-full"))
    assert run.books_of(["00_finetune", "misalignment"], both["code"]) == ["00_finetune"] and run.books_of(["misalignment"], both["advice"]) == ["misalignment"]
