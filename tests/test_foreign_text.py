"""What others wrote is shown and acted on by nothing; what is read back is what was written."""
import csv, io, json

import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

import fuzzing
from em_repro.figures import save_table
from em_repro.live import SideBySide
from em_repro.report import ReportData, complete, page, write_report

try: from em_repro.figures import read_table
except ImportError: read_table = pd.read_csv

quick = settings(max_examples=60, deadline=None, derandomize=True)
starts = st.sampled_from(["", "=", "+", "-", "@", "\t", "\r", "\n", "'", "''=", "=1", "-2", "+3.5", "- a", "＝1", "\ud800", "\x1b[31m", "\u202e"])
texts = st.builds("{}{}".format, starts, st.text(max_size=8))
RUNS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def runs(cell):
    "Whether a spreadsheet might run a cell: it begins as a formula does and holds something that can be called."
    try: float(cell); return False
    except ValueError: return cell.startswith(RUNS) and not (cell[0] in "+-" and set(cell) <= set("+-0123456789 .,*%[]"))


@quick
@given(st.lists(texts.filter(lambda text: "\ud800" not in text), min_size=1, max_size=6), st.data())
def test_no_spreadsheet_runs_a_cell_and_numbers_stay_numbers(tmp_path_factory, said, data):
    numbers = data.draw(st.lists(st.floats(-9, 9), min_size=len(said), max_size=len(said)))
    path = save_table(pd.DataFrame({"text": said, "n": numbers}), tmp_path_factory.mktemp("t"), "t")
    cells = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))[1:]
    assert not any(runs(text) for text, _ in cells)
    assert [float(n) for _, n in cells] == pytest.approx(numbers, rel=1e-8, abs=1e-12)


@quick
@given(texts.filter(lambda text: "\ud800" not in text and not text.strip(" \t\r\n").lower() in ("", "na", "nan", "null", "none", "n/a")))
def test_what_was_saved_is_read(tmp_path_factory, text):
    path = save_table(pd.DataFrame({"text": ["a word", text], "n": [1, -2]}), tmp_path_factory.mktemp("t"), "t")
    held = read_table(path)
    assert held.text[1] == text and list(held.n) == [1, -2]


@pytest.mark.parametrize("text", ["+74 [+65, +82]", "-", "+66*", "-5", "+5", "-1e-3", "0", "-1 [-4, +2]", "direction", "'tis"])
def test_figures_and_plain_words_are_written_as_they_were(text, tmp_path):
    assert next(csv.reader(save_table(pd.DataFrame({text: [text]}), tmp_path, "t").open())) == [text]
    assert list(csv.reader(save_table(pd.DataFrame({"a": [text]}), tmp_path, "t").open()))[1] == [text]


def report_of(text):
    answers = pd.DataFrame([dict(panel=text, question=text, setting="base", dose=None, text=text, outcome="good")], dtype=object)
    empty = {name: pd.DataFrame(columns=columns) for name, columns in (("doses", "panel kind draw dose outcome rate low high n".split()), ("layers", "panel layer measure value low high null".split()))}
    return ReportData(text, {text: text}, ({"title": text, "verdict": text, "sentence": text},), empty["doses"], empty["layers"], answers, {text: answers}, (text,))


def test_surrogates_and_escapes_break_no_report(tmp_path):
    path = write_report(report_of("a \ud800 \x1b[31m b"), tmp_path / "r.html")
    text = path.read_text(encoding="utf-8")
    assert "\ufffd" in text and "\ud800" not in page(report_of("\ud800"))


@quick
@given(texts)
def test_a_conversation_in_a_terminal_is_only_text(text):
    assert not fuzzing.unprintable(str(SideBySide(text, {text: text})))


def test_printable_leaves_what_people_write():
    from em_repro.foreign_text import printable
    for text in ("é 日本 \U0001f3f4\u200d\u2620\ufe0f", "[red]x[/red]", "a\n\tb", "العربية", "\\x1b"): assert printable(text) == text
    assert printable("\x1b]0;t\x07\x9b\u202e\ud800\r") == "\\x1b]0;t\\x07\\x9b\\u202e\\ud800\\r"
