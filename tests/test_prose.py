"Numbers in prose: each is rebuilt from committed data, and one that nobody marked is found."
import re, shutil, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/"tools"))
import prose


@pytest.fixture(scope="module")
def known(): return prose.numbers()


@pytest.mark.parametrize("page", prose.PAGES)
def test_every_number_of_a_page_is_what_the_data_say(page, known):
    text = (ROOT/page).read_text(encoding="utf-8")
    moved = [(mark[1], mark[2], known[mark[1]]) for mark in prose.MARK.finditer(text) if mark[2] != known[mark[1]]]
    assert not moved and prose.rebuilt(page, known) == text, "run tools/prose.py"


@pytest.mark.parametrize("page", prose.PAGES)
def test_no_number_of_a_page_is_without_a_mark(page):
    assert list(prose.unmarked(prose.prose(page), prose.DECLARED.get(page, {}))) == []


def test_every_number_is_used_and_every_exception_is_there(known):
    pages = {page: (ROOT/page).read_text(encoding="utf-8") for page in prose.PAGES}
    used = {mark[1] for text in pages.values() for mark in prose.MARK.finditer(text)}
    assert used == set(known)
    assert set(prose.DECLARED) <= set(pages)
    for page, words in prose.DECLARED.items():
        text = prose.prose(page)
        assert all(one in text and why for one, why in words.items()), page


@pytest.mark.parametrize("text, found", [
    ("It took 7 minutes.", ["7"]), ("A gain of 69.5 points", ["69.5"]), ("in 62% of them", ["62%"]), ("| sweep | 3.8 |", ["3.8"]), ("of 6 800 answers", ["6", "800"]),
    ("It took seven minutes.", ["seven minutes"]), ("ten points", ["ten points"]), ("-0.5 nats", ["-0.5"]), ("two of\n3 runs", ["3"]),
    ("SmolLM2-135M, C3a, A1 and arXiv:2606.20225", []), ("notebook 03, [07](x9.ipynb)", []), ("95% intervals over `40` questions, Python 3.11", []),
    ("<!-- n a.b -->7<!-- n --> minutes", []), ("```\nx = 3\n```\nfour models", []), ("$e^{2.5} = 12$", []), ("1. first\n2. second", []),
    ("<!-- results:begin -->\n| 73.6 |\n<!-- results:end -->", []), ("99% intervals", ["99%"]), ("`one` of 12 `two`", ["12"]), ("an open ` here\n\n12 there `", ["12"])])
def test_what_is_found(text, found):
    assert [words.partition(" in: ")[0] for words in prose.unmarked(text, {})] == found


def test_an_exception_is_of_its_words_only():
    assert list(prose.unmarked("exit code 0 or 9", {"exit code 0": "an exit code"})) == ["9 in: or 9"]


def test_a_number_moves_with_its_data(tmp_path, monkeypatch, known):
    "Each of the sources is changed, and what is read from it changes."
    changes = {"data/audit_calibration.csv": ("chat,0,", "own answers,0,", {"audit.leaking"}),
               "data/small/trial_stages.csv": (",547.03", ",1547.03", {"trial.minutes"}),
               "data/reference/small/stages.jsonl": ('"seconds": 2', '"seconds": 12', {"small.minutes", "small.one-family"}),
               f"{prose.lead_run()}/provenance.json": ('"evaluation": 100', '"evaluation": 90', {"lead.questions"}),
               f"{prose.lead_run()}/claims/code/C3a.json": ('"p_within": 0.1', '"p_within": 0.0001', {"lead.token"}),
               f"{prose.lead_run()}/claims/code/C3.json": ('"effect": 0.5', '"effect": 0.6', {"lead.gain"}),
               "benchmarks/results/agreement.json": ('"same answers": 0.4', '"same answers": 0.9', {"agreement.sweep", "agreement.loop"}),
               "benchmarks/results/sweep.json": ('"tokens until settled": 1', '"tokens until settled": 2', {"sweep.settled"}),
               "Makefile": ("INPUTS ?= 2000", "INPUTS ?= 3000", {"fuzz.make"})}
    for name in ("data", "benchmarks/results", "Makefile", "tests/test_fuzz.py"):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT/name).is_dir() else shutil.copy)(ROOT/name, tmp_path/name)
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    assert prose.numbers() == known
    for name, (old, new, which) in changes.items():
        before = (tmp_path/name).read_text(encoding="utf-8")
        assert old in before, name
        (tmp_path/name).write_text(before.replace(old, new), encoding="utf-8")
        assert {key for key, value in prose.numbers().items() if value != known[key]} == which, name
        (tmp_path/name).write_text(before, encoding="utf-8")


def test_the_table_of_targets_moves_with_its_data(monkeypatch):
    before, kept = prose.targets_table(), prose.benchmark
    monkeypatch.setattr(prose, "benchmark", lambda name: kept(name) | {"rows": [row | {"ratio": 2 * row["ratio"]} for row in kept(name)["rows"]]})
    assert prose.targets_table() != before and "16.6" in prose.targets_table()


def test_the_command_fills_and_checks(tmp_path, monkeypatch, capsys, known):
    page = tmp_path/"page.md"
    page.write_text("It took <!-- n trial.minutes -->1<!-- n --> minutes.\n")
    monkeypatch.setattr(prose, "PAGES", (str(page),))
    monkeypatch.setattr(prose, "numbers", lambda: known)
    monkeypatch.setattr(sys, "argv", ["prose.py", "--check"])
    assert prose.main() == 1 and "trial.minutes" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["prose.py"])
    assert prose.main() == 0 and f">{known['trial.minutes']}<" in page.read_text()
    page.write_text(page.read_text() + "<!-- n nothing -->1<!-- n -->")
    assert prose.main() == 1 and "names no number" in capsys.readouterr().err


def test_marks_are_not_seen_on_a_page():
    "They are comments, in Markdown as in the site's pages."
    pages = pytest.importorskip("pypandoc")
    shown = pages.convert_text("It took <!-- n a.b -->7<!-- n --> minutes.", "html", format="markdown")
    assert re.sub("<!--.*?-->", "", shown).strip() == "<p>It took 7 minutes.</p>"
