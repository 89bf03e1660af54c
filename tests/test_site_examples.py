"""Pages executed for the site: once, kept by what they depend on, and a sentence when a cell fails."""
import json, os, sys, sysconfig
from pathlib import Path

import pytest

pytest.importorskip("pypandoc")
pytest.importorskip("nbdev")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/"docs"))
import examples, render
from em_repro.profiles import UserError

KERNEL = {"display_name": "python3", "language": "python", "name": "python3"}
QUARTO = """
project: {type: website}
website:
  title: example
  sidebar: {contents: [index.ipynb, guide/words.ipynb, foundations/one.ipynb, tools/two.ipynb]}
"""
ONE = ["with open('../../ran', 'a') as file: file.write('1')\nimport os\nprint('six times', 7, os.getcwd())",
       "#| eval: false\nraise RuntimeError('tests leave this out')", "#| notest\n1 / 0", "#| cuda\n1 / 0",
       "#| label: tbl-a\n#| tbl-cap: A table\ntype('T', (), {'_repr_html_': lambda self: '<table><tr><td>42</td></tr></table>'})()"]


def md(source, id): return {"cell_type": "markdown", "id": id, "metadata": {}, "source": source}

def write(path, title, *sources):
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [md(f"# {title}\n> Words", "title")] + [
        {"cell_type": "code", "id": f"cell-{i}", "metadata": {}, "execution_count": None, "outputs": [], "source": source}
        for i, source in enumerate(sources)]
    path.write_text(json.dumps({"cells": cells, "metadata": {"kernelspec": KERNEL}, "nbformat": 4, "nbformat_minor": 5}))


@pytest.fixture
def nbs(tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "surroundings", lambda: "the package and the data")
    made = tmp_path/"checkout"/"nbs"
    write(made/"index.ipynb", "Landing")
    write(made/"guide"/"words.ipynb", "Only words")
    write(made/"foundations"/"one.ipynb", "One", *ONE)
    write(made/"tools"/"two.ipynb", "Two", "2 + 2")
    (made/"_quarto.yml").write_text(QUARTO)
    return made

def build(nbs, **more):
    out = nbs.parent/"site"
    render.build(nbs, out, renderer="pandoc", kept=nbs.parent/"kept", jobs=1, **more)
    return {p.relative_to(out).as_posix(): p.read_text() for p in out.rglob("*.html")}

def times(nbs): return len((nbs.parent/"ran").read_text()) if (nbs.parent/"ran").exists() else 0


def test_nothing_is_executed_without_the_flag(nbs):
    found = build(nbs)
    assert times(nbs) == 0 and not (nbs.parent/"kept").exists()
    assert "six times" not in found["foundations/one.html"].split("<pre", 1)[0] and "Examples, executed" not in "".join(found.values())


def test_pages_are_executed_once_and_found_again_until_something_changes(nbs, monkeypatch, capsys):
    found = build(nbs, execute=())
    assert "executed foundations/one.ipynb" in capsys.readouterr().out
    assert "six times 7 nbs/foundations" in found["foundations/one.html"] and ">42<" in found["foundations/one.html"]
    assert str(nbs.parent) not in found["foundations/one.html"]
    for name in ("foundations/one.html", "tools/two.html"): assert "Examples, executed when this site was made" in found[name] and "No run is shown" not in found[name]
    assert "Examples, executed" not in found["guide/words.html"] and "No run is shown" not in found["guide/words.html"]   # nothing there to execute
    assert times(nbs) == 1 and len(list((nbs.parent/"kept").iterdir())) == 2
    assert build(nbs, execute=()) == found and times(nbs) == 1 and "executed" not in capsys.readouterr().out

    monkeypatch.setattr(examples, "surroundings", lambda: "another package")
    assert build(nbs, execute=("foundations/one",)) and times(nbs) == 2
    write(nbs/"foundations"/"one.ipynb", "One", *ONE, "3")
    assert build(nbs, execute=("foundations/one.ipynb",)) and times(nbs) == 3
    kept = sorted((nbs.parent/"kept").iterdir())
    assert [p.name.partition("-")[0] for p in kept] == ["foundations.one", "tools.two"]     # what it showed before is gone
    kept[0].write_text("{")
    assert build(nbs, execute=("foundations/one.ipynb",)) and times(nbs) == 4               # damaged: executed anew


def test_cells_that_tests_skip_are_not_executed_and_stay_as_they_are(nbs):
    made = examples.executed(nbs/"foundations"/"one.ipynb")
    assert [cell["metadata"] for cell in made["cells"] if "tags" in cell["metadata"]] == []
    assert [bool(cell.get("outputs")) for cell in made["cells"]] == [False, True, False, False, False, True]


@pytest.mark.parametrize("code,said", [("raise ValueError('first\\nthe last line')", "ValueError: the last line"), ("import os\nos._exit(3)", "its process ended"),
                                       ("import time\ntime.sleep(60)", "it took over 10 seconds")])
def test_a_failing_cell_is_one_sentence_and_other_pages_are_kept(nbs, code, said, capsys, monkeypatch):
    monkeypatch.setattr(examples, "LONGEST", 10)
    monkeypatch.setattr(render, "KEPT", nbs.parent/"kept")
    write(nbs/"tools"/"two.ipynb", "Two", "1", code)
    with pytest.raises(UserError) as caught: build(nbs, execute=())
    assert str(caught.value).startswith(f"tools/two.ipynb fails at cell `cell-1`: {said}: repair it, or ") and "\n" not in str(caught.value)
    assert len(list((nbs.parent/"kept").iterdir())) == 1 and not (nbs.parent/"site").exists()


@pytest.mark.parametrize("words,said", [(["--execute", "index"], "index.ipynb is no page that can be executed: give one of "), (["--execute", "--jobs", "0"], "give --jobs 1 or more"),
                                        (["--execute", "--run", "nowhere"], "there is no run in nowhere")])
def test_what_cannot_be_executed_is_a_sentence_before_any_work(nbs, words, said, capsys):
    assert render.main([*words, "--nbs", str(nbs), "--out", str(nbs.parent/"site"), "--renderer", "pandoc"]) == 2
    shown = capsys.readouterr().err
    assert said in shown and len(shown.splitlines()) == 1 and times(nbs) == 0


def test_folders_of_this_machine_are_taken_out(nbs):
    page, packages = nbs/"foundations"/"one.ipynb", sysconfig.get_path("purelib")
    said = json.dumps([f"{nbs.parent}/runs/x", f"{packages}/tqdm/auto.py:21: a warning", "/usr/bin"])
    assert examples.without_folders(said, page) == json.dumps(["runs/x", "tqdm/auto.py:21: a warning", "/usr/bin"])


def test_a_hash_of_folders_sees_names_and_content_and_no_caches(tmp_path):
    (tmp_path/"a").write_text("x")
    first = examples.digest_of(tmp_path)
    (tmp_path/"__pycache__").mkdir(); (tmp_path/"__pycache__"/"a.pyc").write_text("y")
    assert examples.digest_of(tmp_path) == first
    (tmp_path/"a").rename(tmp_path/"b")
    assert examples.digest_of(tmp_path) != first


def test_pages_that_can_be_executed_are_those_below_three_folders():
    names = examples.example_pages(ROOT/"nbs")
    assert {name.partition("/")[0] for name in names} == set(examples.FOLDERS) and {"foundations/stats.ipynb", "tools/cli.ipynb", "guide/traps.ipynb"} <= set(names)
    assert len(names) > 80 and examples.cores() >= 1 and os.sep not in examples.BANNER
