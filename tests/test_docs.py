"""The site: what is rendered, what is escaped, what the checker finds. A small fake run stands for a real one."""
import base64, io, json, shutil, sys
from pathlib import Path

import pytest

pytest.importorskip("pypandoc")
pytest.importorskip("nbdev")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/"docs"))
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import yaml
from hypothesis import given, strategies as st

import check, pages, render, results
from em_repro.cli import BEGIN, END
from em_repro.profiles import UserError

KERNEL = {"display_name": "python3", "language": "python", "name": "python3"}
QUARTO = """
project: {type: website}
website:
  title: example
  sidebar:
    contents:
      - index.ipynb
      - section: Study
        contents: [00_first.ipynb, foundations/second.ipynb]
"""
EVIL = "``` </code></pre><script>alert(1)</script>\n```\n:::\n@fig-evil"


def md(source, id): return {"cell_type": "markdown", "id": id, "metadata": {}, "source": source}

def code(source, id, *outputs, tags=()):
    return {"cell_type": "code", "id": id, "metadata": {"tags": list(tags)} if tags else {}, "execution_count": None,
            "source": source, "outputs": list(outputs)}

def shown(**data):
    return {"output_type": "display_data", "metadata": {}, "data": {k.replace("_", "/", 1): v for k, v in data.items()}}

def write(path, *cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    notebook = {"cells": cells, "metadata": {"kernelspec": KERNEL}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(notebook))

def plot(form="png", empty=False):
    figure = plt.figure(figsize=(2, 2))
    if not empty: figure.add_subplot().plot([0, 1], [1, 0])
    data = io.BytesIO()
    figure.savefig(data, format=form)
    plt.close(figure)
    return data.getvalue()

def drawing(svg): return {"output_type": "display_data", "metadata": {}, "data": {"image/svg+xml": svg}}

def picture(empty=False): return shown(image_png=base64.b64encode(plot(empty=empty)).decode(), text_plain="<Figure>")


def first_cells(figure=None):
    return [md("# The first page\n> It has `code`", "title"), code("#| default_exp first", "default"),
            md("See @fig-line, @tbl-rates, @tbl-frame and [the second](foundations/second.ipynb#keys). "
               "The function `twice`.", "intro"),
            code('profile = "smoke"', "parameters", tags=["parameters"]),
            code('#| export\ndef twice(x: int = 1, *, times=2) -> int:\n    "Two `x`, or more. And so on."\n    return times * x', "twice"),
            md("| a | b |\n|---|---|\n| 1 | 2 |\n\n: Rates {#tbl-rates}", "rates"),
            code("#| label: fig-line\n#| fig-cap: \"A line: $c < 0$\"\n#| code-fold: true\ndraw('line')", "line",
                 figure or picture()),
            code("#| label: tbl-frame\n#| tbl-cap: A frame\nframe", "frame",
                 shown(text_html=pd.DataFrame({"x": ["<script>alert(1)</script>"]}).to_html())),
            code("print(answer)", "answer", {"output_type": "stream", "name": "stdout", "text": EVIL}),
            code("answer", "value", shown(text_plain=EVIL)),
            code("say(answer)", "say", shown(text_markdown=f"Rate **0.5**, see @fig-line. {EVIL.splitlines()[0]}")),
            code("styled", "styled", shown(
                text_html='<style>@import url(http://x.example/a.css); #T_a {color: red}</style>'
                          '<p id="T_a" onclick="alert(1)"><script>alert(1)</script>text</p>'))]


def make_project(tmp_path):
    nbs, run = tmp_path/"nbs", tmp_path/"runs"/"small"
    write(nbs/"index.ipynb", md("# Example\n> A site", "title"), md("Begin with [one](00_first.ipynb).", "text"))
    first = first_cells()
    write(nbs/"00_first.ipynb", *[{**cell, "outputs": []} if cell["cell_type"] == "code" else cell for cell in first])
    write(nbs/"foundations"/"second.ipynb", md("# Second\n> More", "title"), md("## Keys\n\nUses `twice`.", "keys"))
    (nbs/"_quarto.yml").write_text(QUARTO)
    injected = code('# Parameters\nprofile = "small"', "injected", tags=["injected-parameters"])
    write(run/"notebooks"/"code"/"00_first.ipynb", *first[:4], injected, *first[4:])
    for folder in ("figures", "tables"): (run/folder/"code").mkdir(parents=True)
    (run/"figures"/"code"/"line.svg").write_bytes(plot("svg"))
    (run/"figures"/"code"/"line.png").write_bytes(plot())
    (run/"tables"/"code"/"rates.csv").write_text("name,rate\n<b>x</b>,0.5\n")
    claim = {"claim": "C2", "statement": "<i>s</i>", "effect": -0.5, "low": -0.75, "high": None, "p": 1e-5, "n": 24,
             "verdict": "supported", "profile": "small"}
    rows = [claim, claim | {"claim": "C10", "high": -0.25}, claim | {"claim": "C1", "verdict": "unheard of"}]
    (run/"claims.json").write_text(json.dumps(rows))
    (run/"provenance.json").write_text(json.dumps({"profile": "small", "commit": "abc"}))
    return tmp_path


@pytest.fixture
def project(tmp_path): return make_project(tmp_path)

def built(project, run="runs/small"):
    render.build(project/"nbs", project/"site", project/run if run else None)
    return {path.relative_to(project/"site").as_posix(): path.read_text() for path in (project/"site").rglob("*.html")}

@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "A finished site that tests only read."
    folder = make_project(tmp_path_factory.mktemp("project"))
    built(folder)
    return folder/"site"

@pytest.fixture(scope="module")
def found(site): return {path.relative_to(site).as_posix(): path.read_text() for path in site.rglob("*.html")}


def test_site_is_whole(site, found):
    assert set(found) == {"index.html", "results.html", "api.html", "first.html", "foundations/second.html"}
    assert check.check(site) == []
    for name, text in found.items():
        assert name == "api.html" or "profile <code>small</code>" in text and "n = 24 questions" in text
        assert "Rendered by pandoc" in text and "rendering of this site is unverified" in text
        assert '<html lang="' in text and 'href="#content">Skip' in text

def test_numbers_and_references(found):
    page = found["first.html"]
    for words in ("Figure\u00a01:</strong> A line", "Table\u00a01:</strong> Rates", "Table\u00a02:</strong> A frame"):
        assert words in page
    for label, words in (("fig-line", "Figure\u00a01"), ("tbl-rates", "Table\u00a01"), ("tbl-frame", "Table\u00a02")):
        assert f'<a href="#{label}">{words}</a>' in page and f'id="{label}"' in page
    assert "<math" in page and '<details class="fold"' in page and "<h1>The first page</h1>" in page
    assert "parameters of this run" in page and "profile" in page
    assert page.count("<pre") == page.count('<div class="sourceCode"') + page.count('<pre class="output" tabindex="0"') and '<div class="sourceCode" id="cb1" tabindex="0"' in page

def test_links_between_folders(found):
    assert 'href="foundations/second.html#keys"' in found["first.html"]
    assert 'href="../first.html#def-twice"' in found["foundations/second.html"]
    assert 'id="def-twice"' in found["first.html"]
    assert 'rel="next" href="results.html"' in found["index.html"]
    assert 'rel="prev" href="../first.html"' in found["foundations/second.html"]

def test_the_reference_names_what_is_exported(found):
    page = found["api.html"]
    assert '<a href="first.html#def-twice"><code>twice</code></a>' in page and "(x: int = 1, *, times=2) -&gt; int</code>" in page
    assert "<dd>Two <code>x</code>, or more.</dd>" in page and "em_repro.first" in page and "And so on" not in page

def test_signatures_are_as_written():
    source = ("#| export\nclass Map(Base):\n    'A map.'\n    k: int = 3\n    def fit(self, X, *rest: str, **more) -> 'Map': ...\n    def _hidden(self): ...\n"
              "    @property\n    def size(self) -> int: 'How many.'\n    @staticmethod\n    def of(x): ...\nclass Made:\n    def __init__(self, a, b=None): ...")
    page = pages.Page("a.ipynb", "a.html", "A", "", [code(source, "a"), code("def shown(): ...", "b"), md("#| export", "c")])
    assert list(pages.signatures(page)) == [("Map", "(k: int = 3)", "A map."), ("Map.fit", "(X, *rest: str, **more) -> 'Map'", ""), ("Map.size", " -> int", "How many."),
                                            ("Map.of", "(x)", ""), ("Made", "(a, b=None)", "")]

def test_the_landing_page_shows_the_verdicts(project):
    write(project/"nbs"/"index.ipynb", md("# Example\n> A site", "title"), md("[one](00_first.ipynb)", "text"), md("Nothing yet.", "what-was-found"), md("Next.", "next"), md("## More", "more"))
    page = built(project)["index.html"]
    assert page.count('<li><span class="claim">') == 3 and "Nothing yet" not in page and "&lt;i&gt;s&lt;/i&gt;" in page and "-50.0 [-75.0, -25.0]" in page
    assert page.index('class="glance"') < page.index("Next.") < page.index('class="run-banner"') < page.index(">More") and "not executed" not in page
    assert "Nothing yet" in built(project, run=None)["index.html"]

def test_the_landing_page_keeps_the_committed_table_where_no_run_is_shown(project):
    committed = f"## Found\n\n{BEGIN}\nOf small.\n\n| claim | verdict |\n|---|---|\n| C1 | **kept** |\n{END}"
    write(project/"nbs"/"index.ipynb", md("# Example\n> A site", "title"),
          md("[one](00_first.ipynb)", "text"), md(committed, "what-was-found"), md("Next.", "next"))
    page = built(project, run=None)["index.html"]
    assert "<strong>kept</strong>" in page and "No run is shown here" not in page
    assert check.check(project/"site") == []
    page = built(project)["index.html"]
    assert "kept" not in page and 'class="run-banner"' in page
    assert page.count('<li><span class="claim">') == 3

def test_a_run_s_report_is_part_of_the_site(project):
    from test_report import filled
    from em_repro.report import write_report
    write_report(filled(EVIL), project/"runs"/"small"/"report.html")
    assert 'href="results/report.html"' in built(project)["results.html"] and check.check(project/"site") == []

def test_captions_say_how_many(tmp_path):
    for name in ("figures", "tables"): (tmp_path/name/"code").mkdir(parents=True)
    for name in ("doses-late", "doses", "other"): (tmp_path/"figures"/"code"/f"{name}.svg").touch()
    (tmp_path/"tables"/"code"/"doses.csv").write_text("a,n\n1,40\n2,40.0\n3,\n".replace("40.0", "40"))
    (tmp_path/"tables"/"code"/"other.csv").write_text("a,n\n1,40\n2,41\n")
    assert results.sizes(tmp_path) == {"doses": "40", "doses-late": "40"}
    assert results.with_size('#| fig-cap: "Doses: all."\nfigure("doses-late")', {"doses-late": "40"}) == '#| fig-cap: "Doses: all. n = 40 questions."\nfigure("doses-late")'
    for source in ('#| fig-cap: Others.\nfigure("other")', '#| fig-cap: All, n = 3.\nfigure("doses")', 'figure("doses")'): assert results.with_size(source, {"doses": "40"}) == source

def test_outputs_are_text(found):
    for page in found.values():
        assert "<script" not in page and "onclick" not in page and "x.example" not in page
    assert found["first.html"].count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3
    assert "@fig-evil</code>" in found["first.html"]
    assert "<strong>0.5</strong>, see" in found["first.html"]
    assert "<td>&lt;b&gt;x&lt;/b&gt;</td>" in found["results.html"] and "<i>s</i>" not in found["results.html"]

def test_results_page(site, found):
    page = found["results.html"]
    assert page.index(">C1<") < page.index(">C2<") < page.index(">C10<")
    assert "[\u22120.75, \u22120.25]" in page
    assert 'class="verdict supported"' in page and 'class="verdict other"' in page
    assert 'src="results/figures/code/line.svg"' in page and 'href="results/tables/code/rates.csv"' in page
    assert 'alt="A line: c &lt; 0"' in page and 'href="first.html#fig-line"' in page
    assert (site/"results"/"figures"/"code"/"line.png").is_file()

def test_without_a_run(project):
    found = built(project, run=None)
    assert "results.html" not in found and "No run is shown here" in found["index.html"]
    assert "Not executed" in found["first.html"] and check.check(project/"site") == []

def test_a_run_of_the_old_layout_is_refused(project):
    (project/"runs"/"small"/"tables"/"rates.csv").write_text("a\n1\n")
    with pytest.raises(UserError, match="old layout .tables/rates.csv, now tables/code/rates.csv.*convert_run.py"): built(project)

def test_changed_code_is_said(project, capsys):
    path = project/"nbs"/"00_first.ipynb"
    path.write_text(path.read_text().replace("times * x", "3 * x"))
    page = built(project)["first.html"]
    assert "has changed since" in page and "has changed since" in capsys.readouterr().err
    assert "has changed since" not in (project/"site"/"index.html").read_text()

def test_missing_sidebar_entry(project, capsys):
    (project/"nbs"/"_quarto.yml").write_text(QUARTO.replace("00_first", "09_gone.ipynb, 00_first"))
    built(project)
    assert "09_gone.ipynb, which does not exist" in capsys.readouterr().err
    assert check.check(project/"site") == ["sidebar: 09_gone.ipynb (missing)"]


@pytest.mark.parametrize("change, problem", [
    (lambda s: s.replace("second.html#keys", "second.html#gone"), "leads to no anchor"),
    (lambda s: s.replace("foundations/second.html#keys", "foundations/gone.html"), "leads to no file"),
    (lambda s: s.replace('id="fig-line"', 'id="tbl-rates"'), "is used 2 times"),
    (lambda s: s.replace("<title>The first page – example</title>", ""), "has no title"),
    (lambda s: s.replace('lang="en-GB"', ""), "language"),
    (lambda s: s.replace("alert(1)", check.TRACEBACK), "traceback"),
    (lambda s: s.replace('alt="A line', 'data-x="A line'), "no alt text"),
    (lambda s: s.replace("first_files/1.png", "https://x.example/1.png"), "from another host"),
    (lambda s: s.replace("first_files/1.png", "first_files/2.png"), "leads to no file"),
])
def test_checker_finds(site, found, tmp_path, change, problem):
    copy, text = tmp_path/"site", found["first.html"]
    shutil.copytree(site, copy)
    assert change(text) != text
    (copy/"first.html").write_text(change(text))
    assert any(problem in line for line in check.check(copy)), check.check(copy)
    assert check.main([str(copy)]) == 1

WRONG = [
    (code("draw()", "x", picture(empty=True)), "single colour"),
    (code("draw()", "x", drawing("<svg/>")), "bytes"),
    (code("draw()", "x", drawing(plot("svg", empty=True).decode())), "draws nothing"),
    (code("1/0", "x", {"output_type": "error", "ename": "ZeroDivisionError", "evalue": "division", "traceback": []}),
     "ended in an error"),
    (code("print()", "x", {"output_type": "stream", "name": "stderr", "text": check.TRACEBACK + ":"}), "traceback"),
    (md("See @fig-nowhere.", "x"), "@fig-nowhere leads nowhere"),
    (md("![A caption](gone.png)", "x"), "gone.png leads to no file"),
    (md("[away](gone.ipynb)", "x"), "gone.ipynb leads to no file"),
]

def test_checker_finds_in_a_run(project):
    path = project/"runs"/"small"/"notebooks"/"code"/"00_first.ipynb"
    write(path, *json.loads(path.read_text())["cells"], *(cell for cell, _ in WRONG))
    built(project)
    problems = check.check(project/"site")
    assert len(problems) == len(WRONG), problems
    for _, words in WRONG: assert sum(words in problem for problem in problems) == 1, words


def test_a_failed_build_leaves_the_last_site(project):
    before = built(project)
    (project/"runs"/"small"/"claims.json").write_text("{")
    with pytest.raises(UserError, match="claims.json is not valid json"): built(project)
    assert {name: (project/"site"/name).read_text() for name in before} == before

def test_other_folders_are_never_replaced(project):
    precious = project/"nbs"
    assert render.main(["--nbs", str(precious), "--out", str(project/"runs")]) == 2
    assert (project/"runs"/"small"/"claims.json").is_file()

def test_missing_run_is_one_sentence(project, capsys):
    assert render.main(["--nbs", str(project/"nbs"), "--run", str(project/"gone"), "--out", str(project/"site")]) == 2
    assert capsys.readouterr().err.count("\n") == 1

def test_quarto_is_named_when_it_is_not_there(project, monkeypatch, capsys):
    monkeypatch.setattr(render.shutil, "which", lambda name: None)
    assert "pandoc" in render.build(project/"nbs", project/"site", quarto=True)
    assert "no quarto on the PATH" in capsys.readouterr().err


@given(st.text(alphabet=st.sampled_from(list("<>/\"'= aonclickscriptsylejv:#{}@;&!-")), max_size=60))
def test_sanitised_html_is_stable_and_inert(fragment):
    once = pages.safe_html(fragment)
    assert pages.safe_html(once) == once
    opened = check.Document(once)
    assert not opened.stack and "<script" not in once.lower()

@given(st.sampled_from(["javascript:alert(1)", "//x.example/a", "/\\x.example/a", "ht\ttp://x.example", " javascript:a",
                        "data:text/html,x", "data:image/svg+xml;base64,x", "file:///etc/passwd", "JaVaScRiPt:a"]))
def test_addresses_from_outputs(url):
    assert "src" not in pages.safe_html(f'<img src="{url}">')
    assert "href" not in pages.safe_html(f'<a href="{url}">x</a>')

def test_styles_stay_in_their_box():
    assert pages.safe_html("<style>p {color: red}</style>") == "<style>.html-output{p {color: red}}</style>"
    assert pages.safe_html("<style>} body {display: none}</style>") == "<style></style>"
    two = pages.safe_html('<style>#T_a td {color: #abc}</style><table id="T_a"></table>', "out1-")
    assert "#out1-T_a td {color: #abc}" in two and 'id="out1-T_a"' in two

def test_options_are_read_as_written():
    chosen, rest = pages.options("#| fig-cap: Doses: all of them\n#| echo: false\n#| export: true\n\nx = 1")
    assert chosen == {"fig-cap": "Doses: all of them", "echo": False, "export": True} and rest == "x = 1"

@pytest.mark.parametrize("value, words", [(None, "–"), (float("nan"), "–"), (-0.41234, "\u22120.412"), (24, "24")])
def test_numbers(value, words): assert results.number(value) == words


def test_the_real_configuration():
    root = Path(__file__).resolve().parents[1]
    assert (root/"nbs"/"_quarto.yml").resolve() == root/"_quarto.yml"
    config = yaml.safe_load((root/"_quarto.yml").read_text())
    listed = render.order(config["website"]["sidebar"]["contents"], root/"nbs")
    assert len(listed) == len(set(listed))
    assert sorted(listed) == sorted(path.relative_to(root/"nbs").as_posix() for path in (root/"nbs").rglob("*.ipynb")
                                    if ".ipynb_checkpoints" not in path.parts)
