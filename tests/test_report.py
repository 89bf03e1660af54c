"""The report: nothing that a model wrote can act in it, its data is what it was given, and it is written whole or not at all."""
import dataclasses, json, math, re, shutil, subprocess
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from em_repro import report as module, store
from em_repro.data import questions
from em_repro.folders import RunFolder
from em_repro.profiles import UserError, shipped
from em_repro.report import REPORT_COLUMNS, Glance, ReportData, Section, bars_shown, card_words, dose_panels, fitted, inert, page, records, study_report, write_report

HOSTILE = ["</script><script>document.title='run'</script>", "<img src=x onerror=\"document.title='run'\">", "<!--<script>", "javascript:document.title='run'",
           "'\"><svg onload=document.title='run'>", "\u2028\u2029</style><script>document.title='run'</script>", "{{ 7 * 7 }}{% raw %}", "<b>bold</b>&amp;", "=1+1", "شكرا جزيلا <i>"]


def empty(): return {name: pd.DataFrame(columns=list(columns)) for name, columns in REPORT_COLUMNS.items()}


def filled(text="some words", questions=6) -> ReportData:
    "A report with every part, whose every text is or holds `text`."
    rng, doses = np.random.default_rng(0), (0.0, -0.5, -1.0, -2.0)
    rows = [{"panel": f"block {text}", "kind": kind, "draw": draw, "dose": dose, "outcome": outcome, "rate": rng.random(), "low": np.nan, "high": np.nan, "n": questions}
            for kind, draws in (("direction", 1), (f"random {text}", 3)) for draw in range(draws) for dose in doses for outcome in ("code", "broken", "clean")]
    answers = [{"panel": f"block {text}", "question": f"question {q} {text}", "setting": setting, "dose": dose, "text": text, "outcome": outcome}
               for q in range(questions) for setting, dose, outcome in (("base", np.nan, "clean"), ("fine-tuned", np.nan, "code"), *(("steered", d, "broken") for d in doses[1:]))]
    layers = [{"panel": text, "layer": k, "measure": f"shift {text}", "value": k / 4, "low": k / 5, "high": k / 3, "null": .3} for k in range(4)]
    cards = ({"title": text, "verdict": text, "effect": 12.5, "low": 1.0, "high": 20.0, "unit": "points", "p": .01, "q": .02, "n": questions, "sentence": text}, {"title": "bare"})
    return ReportData(text, {text: text}, cards, pd.DataFrame(rows), pd.DataFrame(layers), pd.DataFrame(answers), {text: pd.DataFrame({text: [text, "b"], "number": [1.5, np.nan]})}, (text,),
                      sections=(Section(text, (text,), {text: pd.DataFrame({text: [text], "number": [1.5]})}),))


def glanced(text="some words") -> ReportData:
    "A report that begins with a glance, whose every text is or holds `text`."
    bars = (("base", {"good": .98, "code": .02}), (f"fine-tune {text}", {"good": .15, "code": .8}))
    numbers = (("80%", text, text), (text, "what", "beside"), ("15%", "of answers are good", "base 98%"))
    return dataclasses.replace(filled(text), glance=Glance(text, numbers, bars, text, (text,)))


class Page(HTMLParser):
    "Elements with their attributes, texts outside of scripts and styles, and the page's data."
    def __init__(self, text: str):
        super().__init__()
        self.elements, self.texts, self.data, self._in = [], [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._in = "data" if ("id", "data") in attributes else tag if tag in ("script", "style") else self._in

    def handle_endtag(self, tag): self._in = "" if tag in ("script", "style") else self._in

    def handle_data(self, data):
        if self._in == "data": self.data += data
        elif not self._in: self.texts.append(data)


@pytest.mark.parametrize("made", [filled, glanced])
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_only_texts(text, made):
    seen, harmless = Page(page(made(text))), Page(page(made()))
    assert [tag for tag, _ in seen.elements] == [tag for tag, _ in harmless.elements]   # not an element more
    assert not [name for _, attributes in seen.elements for name in attributes if name.startswith("on")]
    assert seen.texts.count(text) >= 4
    told = json.loads(seen.data)
    assert {row["text"] for row in told["answers"]} == {text} and told["tables"][0]["rows"][0] == [text, 1.5]


@given(st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
@settings(max_examples=200, deadline=None)
def test_inert_json_is_read_back_and_holds_no_sign_of_html(value):
    assert json.loads(inert(value)) == value and not set("<>&\u2028\u2029") & set(inert(value))


def test_the_policy_allows_the_two_scripts_and_nothing_else():
    import base64, hashlib
    text = page(filled())
    policy = next(a["content"] for tag, a in Page(text).elements if a.get("http-equiv") == "Content-Security-Policy")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert len(scripts) == 2 and "default-src 'none'" in policy and "unsafe-eval" not in policy
    allowed = re.search(r"script-src ([^;]*)", policy)[1].split()
    assert allowed == [f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts]
    assert not [a for tag, a in Page(text).elements if "src" in a or (tag == "link") or a.get("href", "#").startswith("http")]


def test_the_data_in_the_page_is_what_was_given():
    data = filled()
    told = json.loads(Page(page(data)).data)
    for name, columns in REPORT_COLUMNS.items():
        frame = getattr(data, name)
        assert len(told[name]) == len(frame) and list(told[name][0]) == list(columns)
        for row, want in zip(told[name], frame[list(columns)].to_dict("records")):
            for key, value in want.items():
                if isinstance(value, float): assert row[key] is None if math.isnan(value) else row[key] == pytest.approx(value, rel=1e-8)
                else: assert row[key] == value


def test_parts_without_rows_are_left_out():
    bare = Page(page(ReportData("t", {}, (), **empty(), tables={})))
    assert not [a for _, a in bare.elements if a.get("id") in ("outcome", "rows", "layer-charts", "h-tables", "h-verdicts", "h-notes")]
    whole = {a.get("id") for _, a in Page(page(filled())).elements}
    assert {"outcome", "rows", "layer-charts", "h-tables", "h-verdicts", "h-notes"} <= whole


def test_labels_and_headings_are_there_for_those_who_do_not_see():
    seen = Page(page(filled()))
    tags = [tag for tag, _ in seen.elements]
    assert tags.count("h1") == tags.count("main") == 1 and dict(seen.elements)["html"]["lang"] == "en"
    assert all(a.get("aria-label") for tag, a in seen.elements if a.get("role") in ("img", "region"))
    assert tags.count("caption") == tags.count("table") and "noscript" in tags
    assert "good answers under the direction: " in dose_panels(filled().doses)[0]["said"]


def test_answers_that_do_not_fit_are_left_out_by_whole_questions_and_it_is_said(monkeypatch):
    monkeypatch.setattr(module, "REPORT_BYTES", 1_800_000)
    data = filled("word " * 300, questions=400)
    text = page(data)
    assert len(text.encode()) < 3_000_000 and "questions are shown" in text
    kept, words = fitted(data.answers, 10 ** 6)
    assert kept.groupby("question").size().eq(5).all() and 0 < kept.question.nunique() < 400 and f"{kept.question.nunique()} of 400" in words
    assert fitted(data.answers, 10 ** 9) [1] == "" and fitted(data.answers.head(0), 1)[1] == ""


def test_a_number_that_is_none_is_not_shown():
    assert card_words({"title": "t", "effect": None, "p": float("nan"), "q": float("inf"), "n": 3}) == {"title": "t", "verdict": "", "effect": "", "tests": "n = 3", "sentence": ""}
    assert records(pd.DataFrame({"a": [np.inf, 1.0], "b": ["x", None]}), ["b", "a"]) == [{"b": "x", "a": None}, {"b": None, "a": 1.0}]


def test_a_frame_without_its_columns_is_refused():
    for name in REPORT_COLUMNS:
        with pytest.raises(UserError, match=f"the report's {name} lack the column"): ReportData("t", {}, (), **empty() | {name: pd.DataFrame({"panel": []})}, tables={})


def test_a_report_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    place = write_report(filled("first"), tmp_path / "new" / "report.html")
    before = place.read_text(encoding="utf-8")
    monkeypatch.setattr(module, "page", lambda _: (_ for _ in ()).throw(RuntimeError("stopped")))
    with pytest.raises(RuntimeError): write_report(filled("second"), place)
    assert place.read_text(encoding="utf-8") == before and [p.name for p in place.parent.iterdir()] == ["report.html"]
    monkeypatch.undo()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="choose another place"): write_report(filled(), tmp_path / "file" / "report.html")


def test_the_vendored_library_is_the_one_that_is_named():
    import gzip, hashlib
    folder = shipped() / "report"
    named = json.loads((folder / "vendored.json").read_text(encoding="utf-8"))
    found = gzip.decompress((folder / f"{named['file']}.gz").read_bytes())
    assert hashlib.sha256(found).hexdigest() == named["sha256"] and f"v{named['version']}".encode() in found[:200]
    assert "MIT" in (folder / "plotly-LICENSE.txt").read_text(encoding="utf-8")


# A run of the study

@pytest.mark.parametrize("run", sorted(p.name for p in (shipped() / "reference").iterdir()))
def test_a_committed_run_gives_a_report(run):
    data = study_report(shipped() / "reference" / run)
    rows = json.loads((shipped() / "reference" / run / "claims.json").read_text(encoding="utf-8"))
    assert [card["verdict"] for card in data.cards] == [row["verdict"] for row in rows]
    assert len(page(data).encode()) < 3_000_000 and len(data.answers) == 0
    tables = shipped() / "reference" / run / "tables" / "code"
    assert len(data.doses) > 0 if tables.is_dir() else data.doses.empty   # a run on likelihoods has no rates of outcomes
    if not tables.is_dir():
        assert set(data.tables) >= {"preference-shifts", "preference-crossed"} and "preferences" not in data.tables
        assert any("preferences.csv" in note for note in data.notes) and "The paper:" not in page(data)
        return
    own, at_chosen = pd.read_csv(tables / "steering-coefficients.csv"), tables / "steering-main.csv"
    if at_chosen.is_file():   # edited at the tokens that were chosen for each model
        chosen = pd.read_csv(at_chosen).drop_duplicates(["model", "when"])[["model", "when"]]
        own = own.merge(chosen, on=["model", "when"])
    else: own = own[own.when == "every_step"]   # a run of before
    own = own[own.outcome == "good"]
    shown = data.doses[(data.doses.kind == "direction") & (data.doses.outcome == "good")]
    assert shown.rate.tolist() == own.rate.tolist()


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no claims.json"): study_report(tmp_path)
    (tmp_path / "claims.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"): study_report(tmp_path)


def test_answers_of_a_store_are_found_by_setting(tmp_path):
    folder = tmp_path / "store" / "answers.answers"
    def kept(key, arm, frame, seed=0, when="every_step", looked_for="code"):
        (folder / key).mkdir(parents=True)
        subject = {"model": "tiny-llama", "arm": arm, "seed": seed}
        frame.assign(when=when).to_parquet(folder / key / "answers.parquet")
        made_from = {"subject": subject, "instrument": {"behaviour": {"name": looked_for}}}
        card = {"stage": "answers.answers", "parameters": made_from, "seconds": 0, "versions": {}, "key": key, "digest": store._digest(folder / key)}
        (folder / key / "card.json").write_text(json.dumps(card))
    def answers(vector, coefficients, sample=-1):
        return pd.DataFrame({"question": "q", "vector": vector, "vector_sample": sample, "coefficient": coefficients, "sample": 0,
                             "text": [f"{vector} {c}" for c in coefficients], "outcome": "good", "role": "good"})
    kept("a", "base", answers("", [0.0]))
    kept("b", "insecure", answers("direction", [0.0, -1.0, -2.0]))
    kept("c", "insecure", answers("direction", [0.0, -1.0, -2.0]).assign(text="another seed"), seed=1)
    kept("d", "insecure", answers("direction", [0.0, -1.0, -2.0]).assign(text="prefill"), when="prefill")
    kept("e", "insecure", answers("random", [0.0, -1.0, -2.0], 0).assign(text="control"))
    kept("f", "secure", answers("direction", [0.0, -1.0, -2.0]).assign(text="secure"))
    kept("g", "insecure", answers("direction", [0.0, -1.0, -2.0]).assign(text="of another behaviour"), looked_for="advice")
    kept("h", "insecure", answers("direction", [0.0, -1.0, -2.0]).assign(question=questions("development")[0], text="for the choice"))
    kept("i", "insecure", answers("direction", [0.0, -1.0, -2.0]).assign(text="damaged"))
    (folder / "i" / "answers.parquet").write_bytes(b"")
    (folder / "b2").mkdir(); (folder / "b2" / "card.json").write_text("[]")
    found = module.study_answers(RunFolder(tmp_path))
    assert sorted(zip(found.setting, found.text)) == [("base", " 0.0"), ("fine-tuned", "direction 0.0"), ("steered", "direction -1.0"), ("steered", "direction -2.0")]
    assert found.dose.dropna().tolist() == [-1.0, -2.0] and set(found.panel) == {"tiny Llama"}


# In a browser, where there is one

CHROMIUM = shutil.which("chromium")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_nothing_hostile_runs_in_a_browser(tmp_path):
    "The title would be `run`; and the page's own program has filled the table of answers."
    place = write_report(filled(" ".join(HOSTILE)), tmp_path / "report.html")
    done = subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
                           "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000", "--dump-dom", place.as_uri()],
                          capture_output=True, text=True, timeout=120)
    seen = Page(done.stdout)
    assert "".join(seen.texts).count("of 6 questions") == 1 and "main-svg" in done.stdout
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.S)[1]
    assert title != "run" and not [a for _, a in seen.elements if any(name.startswith("on") for name in a)]
    assert [tag for tag, _ in seen.elements].count("script") == 3 and "img" not in [tag for tag, _ in seen.elements]


@pytest.mark.parametrize("place", [".", "/"])
def test_a_folder_without_a_name_is_no_file_to_write(place):
    with pytest.raises(UserError, match="is a folder: give the html file"): write_report(None, place)


# The first screen

def test_the_glance_stands_before_everything_and_the_facts_are_folded():
    text = page(glanced())
    order = [text.index(mark) for mark in ('class="glance"', 'class="sentence"', 'class="numbers"', "<svg ", "<details><summary>What was compared", '<dl class="facts">', 'id="h-verdicts"')]
    assert order == sorted(order) and text[:order[0]].count("<section ") == 1
    plain = page(filled())
    assert 'class="glance"' not in plain and "What was compared" not in plain and plain.index('class="facts"') < plain.index('id="h-verdicts"')


def test_the_figure_says_what_it_shows_and_is_drawn_to_scale():
    data = glanced()
    drawn = bars_shown(data.glance, dict(data.outcomes))
    assert "base: good 98%, code 2%; fine-tune some words: good 15%, code 80%" in drawn["said"]
    svg, = [attributes for tag, attributes in Page(page(data)).elements if tag == "svg"]
    assert svg["role"] == "img" and svg["aria-label"] == drawn["said"]
    lines = [attributes["y"] for tag, attributes in Page(page(data)).elements if tag == "text"]
    assert len(set(lines)) == len(lines) == 2 * len(data.glance.bars)   # no text is written over another
    for bar, (_, shares) in zip(drawn["bars"], data.glance.bars):
        assert [piece["width"] / drawn["width"] for piece in bar["pieces"]] == pytest.approx(list(shares.values()), abs=.001)
        for a, b in zip(bar["pieces"], bar["pieces"][1:]): assert a["x"] + a["width"] == pytest.approx(b["x"], abs=.2)
        assert bar["pieces"][-1]["x"] + bar["pieces"][-1]["width"] <= drawn["width"] + .2
