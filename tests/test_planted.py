"""Every registered defect was planted and noticed; two of the cheap ones are planted here."""
import ast, importlib.util, re, subprocess, sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
_spec = importlib.util.spec_from_file_location("planted", ROOT / "tools/planted.py")
planted = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(planted)
DEFECTS = planted.registered()
TABLE = pd.read_csv(planted.OUT, dtype=str, keep_default_na=False)
CHEAP = ("question-twice", "holm-left-out")
each_defect = pytest.mark.parametrize("defect", DEFECTS, ids=lambda d: d.name)


def test_there_are_enough_and_their_names_are_theirs():
    assert len(DEFECTS) >= 24 and len({d.defect for d in DEFECTS}) == len(DEFECTS)
    for one in DEFECTS: assert re.fullmatch(r"[a-z]+(-[a-z]+)+", one.name) and len(one.defect) <= 90, one.name


def test_the_table_has_every_defect_and_each_was_noticed():
    assert list(TABLE) == list(planted.COLUMNS) and TABLE.name.tolist() == [d.name for d in DEFECTS]
    assert TABLE.defect.tolist() == [d.defect for d in DEFECTS]
    assert TABLE["should notice"].tolist() == ["; ".join(d.notices) for d in DEFECTS]
    assert (TABLE["noticed by"] == TABLE["should notice"]).all(), TABLE.name[TABLE["noticed by"] != TABLE["should notice"]].tolist()
    assert set(TABLE["as"]) <= {"red flag", "test", "red flag and test"} and (TABLE["as"].str.contains("red flag").sum() >= 8)
    assert (TABLE.seconds.astype(float) > 0).all()


@each_defect
def test_a_defect_can_still_be_planted(defect):
    "What is to be replaced stands once in a file that is copied, and what is to notice is a test that is there."
    assert Path(defect.file).parts[0] in planted.COPIED and defect.old != defect.new
    assert (ROOT / defect.file).read_text(encoding="utf-8").count(defect.old) == 1
    if defect.file.endswith(".py"): ast.parse((ROOT / defect.file).read_text(encoding="utf-8").replace(defect.old, defect.new))
    for node in defect.notices:
        path, name = node.split("[")[0].split("::")
        assert f"\ndef {name}(" in (ROOT / path).read_text(encoding="utf-8"), node


def test_a_copy_that_only_breaks_notices_nothing():
    "An exception of the defect's own making is no check; one failure of the right kind is."
    defect, node = DEFECTS[0], DEFECTS[0].notices[0]
    for said in ("NameError: name 'x' is not defined", "ModuleNotFoundError: No module named 'y'", "SyntaxError: invalid syntax"):
        assert planted.judged(defect, {node: {"outcome": "failed", "said": said}}, ROOT)[0] == []
    for said, kind in (("assert 1 == 2", "test"), ("AssertionError: \nnot equal", "test"), ("em_repro.profiles.UserError: a sentence", "red flag"),
                       ("miniature.RedFlag: a sentence", "red flag"), ("Failed: DID NOT RAISE", "test")):
        nodes, found, says = planted.judged(defect, {node: {"outcome": "failed", "said": said}}, ROOT)
        assert (nodes, found) == ([node], kind) and says
    assert planted.judged(defect, {node: {"outcome": "passed", "said": ""}}, ROOT) == ([], "", "")


def test_a_defect_that_cannot_be_planted_stops_the_script(tmp_path):
    (tmp_path / "em_repro").mkdir()
    (tmp_path / "em_repro/a.py").write_text("x = 1\nx = 1\n")
    twice = planted.Defect("a", "", "em_repro/a.py", "x = 1", "x = 2", ("t",))
    with pytest.raises(SystemExit, match="has 2 times"): planted.plant(twice, tmp_path)
    (tmp_path / "few.toml").write_text('[a]\ndefect = "x"\n')
    with pytest.raises(SystemExit, match="needs defect, file, old, new and notices"): planted.registered(tmp_path / "few.toml")


def test_cheap_defects_are_noticed_now(tmp_path):
    "The script itself, on two defects: one in data, one in code. Nothing of the checkout changes."
    def state(): return {p: p.stat().st_mtime_ns for folder in ("em_repro", "data") for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".csv", ".toml")}
    before = state()
    done = subprocess.run([sys.executable, ROOT / "tools/planted.py", "--only", ",".join(CHEAP), "--work", tmp_path / "work"], capture_output=True, text=True,
                          timeout=900, env={**planted.os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 defects, 2 noticed by all that should" in done.stdout and state() == before
