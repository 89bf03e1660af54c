"""A run's folder: what lies where, and what becomes of a run of the old layout."""
import hashlib, json, subprocess, sys
from pathlib import Path

import pandas as pd
import pytest

from em_repro import cli, run
from em_repro.claims import ledger
from em_repro.folders import KINDS, RunFolder, files_in, run_folder, verdict_files
from em_repro.profiles import UserError, shipped
from em_repro.report import study_report
from em_repro.store import Store, call, echo
from em_repro.study import open_study

SCRIPT = Path(__file__).parents[1]/"tools"/"convert_run.py"
ROW = {"claim": "C1", "statement": "s", "paper": "p", "effect": .5, "n": 4, "verdict": "supported", "detail": "d", "profile": "smoke", "protocol": "r"}


def converted(*folders):
    return subprocess.run([sys.executable, SCRIPT, *folders], capture_output=True, text=True)


def contents(folder):
    "Every file of a folder and its hash; the store's locks come and go."
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*")) if p.is_file() and ".locks" not in p.parts}


@pytest.fixture
def old(tmp_path):
    "A run as versions before the behaviours left it."
    folder = tmp_path/"run"
    Store(folder/"store").get(call(echo, text="one"))
    for name, text in {"tables/rates.csv": "a,n\n1,4\n", "figures/rates.svg": "<svg/>", "figures/rates.png": "png", "claims/C1.json": json.dumps(ROW),
                       "claims.json": json.dumps([ROW]), "provenance.json": "{}", ".made.json": '{"notebooks": {}, "files": {}}',
                       "notebooks/00_finetune.ipynb": "{}", "notebooks/01_code_spillover.failed.ipynb": "{}"}.items():
        (folder/name).parent.mkdir(exist_ok=True)
        (folder/name).write_text(text)
    return folder


def test_paths_are_by_behaviour_and_asking_makes_nothing(tmp_path):
    folder = RunFolder(tmp_path/"run")
    assert [getattr(folder, kind)("advice") for kind in KINDS] == [tmp_path/"run"/kind/"advice" for kind in KINDS]
    assert folder.tables() == tmp_path/"run"/"tables"/"code" and folder.behaviours() == [] and verdict_files(folder) == []
    assert not folder.is_old_layout() and not folder.root.exists()


def test_behaviours_are_those_with_folders_code_first(tmp_path):
    folder = RunFolder(tmp_path)
    for name in ("tables/advice", "claims/zeal", "notebooks/code", "figures/.hidden"): (tmp_path/name).mkdir(parents=True)
    assert folder.behaviours() == ["code", "advice", "zeal"]


WAYS = {"open_study": lambda folder: open_study("smoke", folder), "reproduce": lambda folder: run.reproduce("smoke", folder, only=["00"]),
        "stage": lambda folder: run.run_stages("smoke", folder, only=["00"]), "status": run.status, "ledger": ledger, "claims": cli.ledger_rows, "report": study_report}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_of_the_old_layout_is_refused_in_a_sentence_and_stays(old, way):
    before = contents(old)
    with pytest.raises(UserError, match=r"holds a run of the old layout .tables/rates.csv, now tables/code/rates.csv.: choose another .*convert_run.py"):
        WAYS[way](old)
    assert contents(old) == before


@pytest.mark.parametrize("name", ["tables/a.csv", "figures/a.svg", "figures/a.png", "claims/C1.json", "notebooks/a.ipynb"])
def test_one_file_is_enough_to_know_the_old_layout(tmp_path, name):
    (tmp_path/name).parent.mkdir()
    (tmp_path/name).touch()
    assert RunFolder(tmp_path).is_old_layout()
    with pytest.raises(UserError, match="old layout"): run_folder(tmp_path)


def test_what_is_being_written_does_not_make_a_run_old(tmp_path):
    for name in ("notebooks/.00_finetune.partial.ipynb", "notebooks/.00_finetune.log", "tables/notes.txt"):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).touch()
    assert run_folder(tmp_path).root == tmp_path and files_in(tmp_path/"notebooks") == []


def test_converting_moves_every_file_changes_none_and_can_be_repeated(old):
    before = contents(old)
    first, second = converted(old), converted(old)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert first.stdout == f"{old}: 6 files changed\n" and second.stdout == f"{old}: 0 files changed\n"
    moved = {"/".join((*Path(name).parts[:1], "code", *Path(name).parts[1:])) if name.split("/")[0] in KINDS else name: digest for name, digest in before.items()}
    assert contents(old) == {name: digest for name, digest in moved.items() if name != ".made.json"}
    assert run.status(old).query("what == 'claim'").name.tolist() == ["C1"] == ledger(old).claim.tolist()
    assert set(run.status(old).query("what == 'notebook' and state != 'missing'").state) == {"executed", "failed"}
    assert list(study_report(old).tables) == ["rates"]


def test_converting_overwrites_nothing(old):
    (old/"tables"/"code").mkdir()
    (old/"tables"/"code"/"rates.csv").write_text("another run's\n")
    before = contents(old)
    done = converted(old)
    assert done.returncode and "differ: delete the one that is out of date" in done.stderr and "Traceback" not in done.stderr
    assert contents(old) == before
    assert "there is no run" in converted(old.parent/"nowhere").stderr


def test_committed_runs_have_the_present_layout():
    for folder in (shipped()/"reference").iterdir():
        kept = run_folder(folder)
        assert kept.behaviours()
        for behaviour in kept.behaviours():
            assert all(files_in(folder/kind/behaviour) for kind in KINDS)
            table = {"advice-money": "preference-shifts.csv"}.get(behaviour, "spillover.csv")
            assert len(pd.read_csv(kept.tables(behaviour)/table))
