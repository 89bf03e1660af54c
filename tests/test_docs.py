"""The site: what is rendered, what is escaped, what the checker finds. A small fake run stands for a real one."""
import base64, io, json, os, re, shutil, subprocess, sys
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
from hypothesis import given, settings, strategies as st

import cells, check, pages, quarto_site, render, results
from em_repro.cli import BEGIN, END
from em_repro.profiles import UserError

ROOT = Path(__file__).resolve().parents[1]
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
                 shown(text_html=pd.DataFrame({"y": ["shown before it"]}).to_html()),   # only the last has the number
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
    render.build(project/"nbs", project/"site", project/run if run else None, renderer="pandoc")
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
        assert "Rendered by pandoc" in text
        assert '<html lang="' in text and 'href="#content">Skip' in text

def test_a_page_shows_the_first_run_that_executed_it_and_says_whose_it_is(project):
    "Whatever its behaviour; the run itself goes before those beside it."
    other = project/"runs"/"advice"
    shutil.copytree(project/"runs"/"small", other)
    (other/"notebooks"/"code").rename(other/"notebooks"/"advice-money")
    card = json.loads((other/"provenance.json").read_text())
    (other/"provenance.json").write_text(json.dumps(card | {"profile": "elsewhere"}))
    def made(run, beside):
        render.build(project/"nbs", project/"site", run, renderer="pandoc", beside=beside)
        return {path.name: path.read_text() for path in (project/"site").rglob("*.html")}
    both = made(project/"runs"/"small", [other])
    assert all("elsewhere" not in text for text in both.values())
    shutil.rmtree(project/"runs"/"small"/"notebooks"/"code")
    pages = made(project/"runs"/"small", [other])
    assert "profile <code>elsewhere</code>" in pages["first.html"] and "was not executed" not in pages["first.html"]
    assert "profile <code>small</code>" in pages["index.html"] and "profile <code>elsewhere</code>" not in pages["second.html"]
    alone = made(other, [])
    assert "profile <code>elsewhere</code>" in alone["first.html"] and "was not executed" not in alone["first.html"]
    assert render.main(["--nbs", str(project/"nbs"), "--out", str(project/"site"), "--beside", str(project/"nowhere")]) == 2

def test_numbers_and_references(found):
    page = found["first.html"]
    for words in ("Figure\u00a01:</strong> A line", "Table\u00a01:</strong> Rates", "Table\u00a02:</strong> A frame"):
        assert words in page
    for label, words in (("fig-line", "Figure\u00a01"), ("tbl-rates", "Table\u00a01"), ("tbl-frame", "Table\u00a02")):
        assert f'<a href="#{label}">{words}</a>' in page and f'id="{label}"' in page
    assert "<math" in page and '<details class="fold code">' in page and "<h1>The first page</h1>" in page
    assert "<summary>Parameters of this run (2 lines)</summary>" in page and "profile" in page
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
    assert page.count('<li><span class="claim">') == 3 and "Nothing yet" not in page and "&lt;i&gt;s&lt;/i&gt;" in page and "\u221250.0 [\u221275.0, \u221225.0]" in page
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

def test_a_figure_s_png_is_the_page_s_own_where_the_run_keeps_svg_alone(project):
    (project/"runs"/"small"/"figures"/"code"/"line.png").unlink()
    found = built(project)
    drawn = project/"site"/"results"/"figures"/"code"/"line.png"
    assert drawn.read_bytes() == plot() and check.check(project/"site") == []
    for page in ("first.html", "results.html"): assert re.search(r'href="results/figures/code/line.png"[^>]*>png<', found[page]), page

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
        assert re.findall("<script[^>]*>", page) in (['<script src="site.js">'], ['<script src="../site.js">'])
        assert "onclick" not in page and "x.example" not in page
    assert found["first.html"].count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3
    assert "@fig-evil</code>" in found["first.html"]
    assert "<strong>0.5</strong>, see" in found["first.html"]
    assert "<td>&lt;b&gt;x&lt;/b&gt;</td>" in found["results.html"] and "<i>s</i>" not in found["results.html"]

def test_results_page(site, found):
    page = found["results.html"]
    assert page.index(">C1<") < page.index(">C2<") < page.index(">C10<")
    assert "<strong>\u221250.0 points [\u221275.0, \u221225.0]</strong>" in page
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
    (lambda s: s.replace("<p", '<p data-papermill="{}"', 1), "papermill's timings"),
    (lambda s: s.replace("<img", "<b"), "fig-line shows no picture"),
    (lambda s: s.replace("</head>", "<style>@import url(//x.example/a.css);</style></head>"), "from another host"),
])
def test_checker_finds(site, found, tmp_path, change, problem):
    copy, text = tmp_path/"site", found["first.html"]
    shutil.copytree(site, copy)
    assert change(text) != text
    (copy/"first.html").write_text(change(text))
    assert any(problem in line for line in check.check(copy)), check.check(copy)
    assert check.main([str(copy)]) == 1

def test_checker_finds_fonts_of_another_host(site, tmp_path):
    copy = tmp_path/"site"
    shutil.copytree(site, copy)
    (copy/"theme.css").write_text('@import url("https://x.example/css2?family=Source");')
    assert check.check(copy) == ["theme.css: loads https://x.example/css2?family=Source from another host"]

@pytest.mark.parametrize("inside, shows", [
    ("", False), ("<pre class='sourceCode'><code>say('None here.')</code></pre>", False),
    ("<details><summary>best_of (7 lines)</summary></details>", False), ("<table></table>", True), ("<img src='x.png'>", True),
    ("<p>This profile leaves out controls.</p>", True), ("<p><code>controls_best</code> is off.</p>", True)])
def test_a_numbered_place_shows_something_or_says_why_not(inside, shows):
    page = check.Document(f"<figure id='tbl-x'>{inside}<figcaption>Table 1: gains</figcaption></figure><p>After it.</p>")
    assert page.figures == {"tbl-x": shows}

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

def test_other_folders_are_never_replaced(project, capsys):
    precious = project/"nbs"
    assert render.main(["--nbs", str(precious), "--out", str(project/"runs")]) == 2
    said = capsys.readouterr()
    assert said.err == f"{project/'runs'} exists and is not a site made here: choose another --out, or delete it yourself\n" and not said.out
    assert (project/"runs"/"small"/"claims.json").is_file()

def test_missing_run_is_one_sentence(project, capsys):
    assert render.main(["--nbs", str(project/"nbs"), "--run", str(project/"gone"), "--out", str(project/"site")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# Quarto: what it is given, and what is made of what it says. The program itself is a stand-in here.

STAND_IN = """#!{python}
import json, pathlib, sys, yaml
if "--version" in sys.argv: print("1.7.34"); sys.exit()
config = yaml.safe_load(open("_quarto.yml"))
out = pathlib.Path(config["project"]["output-dir"])
print("[1/1] first.ipynb", file=sys.stderr)
{does}
out.mkdir()
out.joinpath("index.html").write_text("<p>made</p><pre><code>x</code></pre>")
print(json.dumps([sys.argv[1:], sorted(map(str, pathlib.Path().rglob("*.ipynb")))]), file=open({log!r}, "w"))
"""

@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    "A function that puts a `quarto` on the PATH, which does what it is told and logs its arguments."
    folder = tmp_path/"bin"
    folder.mkdir()
    def make(does=""):
        program = folder/"quarto"
        program.write_text(STAND_IN.format(python=sys.executable, does=does, log=str(tmp_path/"log.json")))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return tmp_path/"log.json"
    return make

def test_quarto_makes_the_site_where_it_is_on_the_path(project, stand_in, capsys):
    log = stand_in()
    arguments = ["--nbs", str(project/"nbs"), "--out", str(project/"site"), "--run", str(project/"runs"/"small")]
    assert render.main(arguments) == 0
    assert "rendered by Quarto 1.7.34" in capsys.readouterr().out
    given, notebooks = json.loads(log.read_text())
    assert given[0] == "render" and "00_first.ipynb" in notebooks and "results.ipynb" in notebooks
    assert (project/"site"/"index.html").read_text() == '<p>made</p><pre tabindex="0"><code>x</code></pre>'
    assert render.main([*arguments, "--renderer", "pandoc"]) == 0
    assert "rendered by pandoc" in capsys.readouterr().out

def test_quarto_s_dark_pages_are_printed_in_light_colours():
    links = ['<link href="a.css" rel="stylesheet" class="quarto-color-scheme">', '<link href="b.css" rel="stylesheet" class="quarto-color-scheme quarto-color-alternate">']
    assert quarto_site.finished("".join(links)) == links[0] + links[1].replace(">", ' media="screen">')

def test_quarto_that_is_asked_for_and_not_there_is_a_sentence(project, monkeypatch, capsys):
    monkeypatch.setattr(render.shutil, "which", lambda name: None)
    assert render.main(["--nbs", str(project/"nbs"), "--out", str(project/"site"), "--renderer", "quarto"]) == 2
    said = capsys.readouterr().err
    assert "no quarto on the PATH" in said and said.count("\n") == 1 and not (project/"site").exists()
    assert "pandoc" in render.build(project/"nbs", project/"site")

def test_what_quarto_stops_at_is_a_sentence_and_the_last_site_stays(project, stand_in, capsys):
    before = built(project)
    stand_in('print("\\x1b[91mERROR: YAMLError: bad indentation (7:12)\\x1b[39m\\n\\nStack trace:\\n  at a.ts", file=sys.stderr); sys.exit(1)')
    assert render.main(["--nbs", str(project/"nbs"), "--out", str(project/"site")]) == 2
    assert capsys.readouterr().err == "Quarto could not render the site: first.ipynb: YAMLError: bad indentation (7:12)\n"
    assert {name: (project/"site"/name).read_text() for name in before} == before

def test_what_quarto_warns_of_is_shown(project, stand_in, capsys):
    there, gone = ("WARN: Unable to resolve link target: results/notebooks/code/" + name for name in ("00_first.ipynb", "gone.ipynb"))
    stand_in(f'print("WARN: Unable to resolve crossref @fig-gone\\n[WARNING] Duplicate id\\n{there}\\n{gone}", file=sys.stderr)')
    assert render.main(["--nbs", str(project/"nbs"), "--run", str(project/"runs"/"small"), "--out", str(project/"site")]) == 0
    said = capsys.readouterr().err
    assert "code/gone.ipynb" in said and "code/00_first.ipynb" not in said
    assert "warning: Quarto: Unable to resolve crossref @fig-gone" in said and "Duplicate id" in said

def prepared(project, run=True):
    "The cells of the first page as Quarto gets them, and its configuration."
    work = project/"work"
    work.mkdir()
    render.stage(project/"nbs", project/"runs"/"small" if run else None, work, "foot")
    proc = render.process(work)
    quarto_site.prepare(proc)
    cells = {name: json.loads((proc/f"{name}.ipynb").read_text()) for name in ("00_first", "results") if (proc/f"{name}.ipynb").is_file()}
    return cells, yaml.safe_load((proc/"_quarto.yml").read_text())

def by_id(notebook): return {cell["id"]: cell | {"source": "".join(cell["source"])} for cell in notebook["cells"]}

def test_what_quarto_is_given(project):
    timed = project/"runs"/"small"/"notebooks"/"code"/"00_first.ipynb"
    kept = json.loads(timed.read_text())
    for cell in kept["cells"]: cell["metadata"]["papermill"] = {"duration": 1.5}
    timed.write_text(json.dumps(kept | {"metadata": kept["metadata"] | {"papermill": {"duration": 2}}}))
    notebooks, config = prepared(project)
    cells = by_id(notebooks["00_first"])
    assert set(notebooks["00_first"]["metadata"]) == {"kernelspec"}
    assert not any(cell["metadata"] for cell in cells.values())
    for cell in cells.values():
        if cell["cell_type"] == "code": assert not {"export", "default_exp"} & pages.options("".join(cell["source"]))[0].keys()
    assert cells["cell-twice-label"]["source"].count("[]{#def-twice}") == 1
    def summary(id): return pages.options(cells[id]["source"])[0]["code-summary"]
    assert summary("cell-twice") == "twice, exported to em_repro.first (3 lines)"
    assert summary("cell-injected") == "Parameters of this run (2 lines)"
    assert summary("cell-parameters") == "Parameters and their defaults (1 line)"
    assert '#| fig-alt: "A line: c < 0"' in cells["cell-line"]["source"]
    assert config["project"]["output-dir"] == "_site" and config["execute"] == {"enabled": False} and "metadata-files" not in config
    assert [step["path"] for step in config["filters"]] == ["pages.lua"]
    assert "cell-default" not in cells          # it holds nothing but nbdev's word
    assert all(isinstance(cell["source"], list) for cell in notebooks["00_first"]["cells"])
    assert notebooks["results"]["cells"] and all(id.startswith("cell-") for id in cells)

def test_names_in_prose_lead_to_their_cells_on_quarto_s_pages(project):
    prepared(project)
    made, = project.rglob("pages.lua")
    made.write_text('quarto = {project = {offset = ".."}}\n' + made.read_text())
    def shown(words): return pages.run_pandoc(words, "-f", "markdown", "-t", "html", "--lua-filter", str(made)).strip()
    assert shown("`first.twice()`") == '<p><a href="../first.html#def-twice"><code>first.twice()</code></a></p>'
    assert shown("[`twice`](x.html), `thrice`") == '<p><a href="x.html"><code>twice</code></a>, <code>thrice</code></p>'
    assert shown("|a|b|\n|-|-|\n|`em_repro.first.twice`|2|").startswith('<div class="scroll"') and shown("`twice`").count("href") == 1

def test_outputs_cannot_leave_their_place_on_quarto_s_pages(project):
    notebooks, _ = prepared(project)
    shown = [o for n in notebooks.values() for c in n["cells"] for o in c.get("outputs", [])]
    given = [o["data"]["text/markdown"] for o in shown if "text/markdown" in o.get("data", {})]
    markup, words = [t for t in given if "{=html}" in t], [t for t in given if "{=html}" not in t]
    assert markup and words and all(len(o["data"]) == 1 and "text/html" not in o["data"] for o in shown if "data" in o)
    for text in markup:
        assert "<script" not in text and "onclick" not in text and "x.example" not in text
        tree = json.loads(pages.run_pandoc(text, "-f", "markdown", "-t", "json"))["blocks"]
        assert [block["t"] for block in tree] == ["RawBlock"]
    assert "@fig-line" in words[0] and "**0.5**" in words[0]

def test_what_showed_nothing_has_no_number_on_quarto_s_pages():
    table, line = ({"label": f"{kind}-x", f"{kind}-cap": "Said", "code-fold": True} for kind in ("tbl", "fig"))
    made, _ = quarto_site.shown_outputs([shown(text_html="<table></table>")], 0)
    assert quarto_site.numbered(table, made) == table and quarto_site.numbered(line, [picture()]) == line
    for chosen, outputs in ((table, []), (line, []), (line, made), (table, [shown(text_plain="None")])):
        assert quarto_site.numbered(chosen, outputs) == {"code-fold": True}

def test_tables_of_one_name_do_not_share_styles():
    styled = '<style>#T_a td {color: red}</style><table id="T_a"><tr><td>```1</td></tr></table>'
    made, count = quarto_site.shown_outputs([shown(text_html=styled), shown(text_html=styled), shown(text_html=styled, text_markdown="| a |\n|---|\n| 1 |")], 0)
    first, second, third = (output["data"]["text/markdown"] for output in made)
    assert count == 2 and 'id="out1-T_a"' in first and 'id="out2-T_a"' in second and "<table" not in third
    assert "#out1-T_a td" in first and "#out1-T_a" not in second and first.startswith("``````{=html}\n")

@pytest.mark.parametrize("said", ["<script>alert(1)</script>", "{{< include /etc/passwd >}}", "::: {.hidden}\ntext\n:::", "[x]{onclick=alert(1)}",
                                  "# Head {#fig-x onclick=alert(1)}", "```{=html}\n<b>x</b>\n```", "![](https://x.example/a.png)", "[x](javascript:a)"])
def test_markdown_from_outputs_stays_words(said):
    again = json.loads(pages.run_pandoc(quarto_site.quoted(said), "-f", "markdown", "-t", "json"))
    kinds = re.findall(r'"t": ?"(\w+)"', json.dumps(again))
    assert not {"RawBlock", "RawInline", "Div", "Span", "Image", "Link"} & set(kinds) and "onclick" not in json.dumps([n for n in kinds])
    assert "{{<" not in quarto_site.quoted(said) and "\n:::" not in "\n" + quarto_site.quoted(said)
    assert "fig-x" not in [m for m in re.findall(r'"(fig-x)"', json.dumps(again))]

@settings(deadline=None, max_examples=20)          # three calls of pandoc each
@given(st.text(alphabet=st.sampled_from(list("{}:<>|`#*_[]()=\n ab.%@")), max_size=40))
def test_any_markdown_from_outputs_stays_words(said):
    once = quarto_site.quoted(said)
    kinds = set(re.findall(r'"t": ?"(\w+)"', pages.run_pandoc(once, "-f", "markdown", "-t", "json")))
    assert not {"RawBlock", "RawInline", "Div", "Span"} & kinds and "{{<" not in once

def test_figures_that_were_not_made_are_notes(project):
    notebooks, _ = prepared(project, run=False)
    cells = by_id(notebooks["00_first"])
    assert pages.options(cells["cell-line"]["source"])[0] == {"code-fold": True, "code-summary": "Code (1 line)"}
    assert cells["cell-line-not-run"]["source"] == "::: {#fig-line .not-run}\nNot executed: nothing to show.\n\nA line: $c < 0$\n:::"
    assert "{#tbl-frame .not-run}" in cells["cell-frame-not-run"]["source"]

def test_captions_are_spoken():
    for caption, words in (("A *line*: `x_1` at $c < 0$", "A line: x_1 at c < 0"), ("See [one](a.html), __two__", "See one, two"), ("a_b and c_d * 2 * 3", "a_b and c_d * 2 * 3")):
        assert cells.spoken(caption) == words

def test_dark_pages_have_one_palette():
    def colours(text): return dict(re.findall(r"--([\w-]+): ?(#\w+)", text))
    page = re.search(r"html:root\{(.*?)\}", (ROOT/"docs"/"page.html").read_text(), re.S)[1]
    quarto = re.search(r"body\.quarto-dark \{(.*?)\}", (ROOT/"nbs"/"styles.css").read_text(), re.S)[1]
    assert colours(page) == colours(quarto) and len(colours(page)) == 18
    dark = (ROOT/"nbs"/"dark.scss").read_text()
    for name, key in (("body-bg", "paper"), ("body-color", "ink"), ("link-color", "link"), ("border-color", "line"), ("code-bg", "chip"),
                      ("sidebar-bg", "wash"), ("sidebar-fg", "words"), ("text-muted", "quiet"), ("input-bg", "paper"), ("input-color", "ink"),
                      ("input-border-color", "strong")):
        assert f"${name}: {colours(page)[key]};" in dark

def test_light_pages_have_the_palette_of_pandoc_s():
    css, light = (ROOT/"nbs"/"styles.css").read_text(), (ROOT/"nbs"/"light.scss").read_text()
    shared = dict(re.findall(r"--([\w-]+): ?(#\w+)", re.search(r":root \{(.*?)\}", css, re.S)[1]))
    for name, key in (("body-color", "ink"), ("link-color", "link"), ("border-color", "line"), ("code-color", "ink"), ("code-bg", "chip"),
                      ("sidebar-bg", "wash"), ("sidebar-fg", "words"), ("text-muted", "quiet")):
        assert f"${name}: {shared[key]};" in light

def test_nothing_is_loaded_from_another_host_by_the_theme():
    html = yaml.safe_load((ROOT/"_quarto.yml").read_text())["format"]["html"]
    assert html["html-math-method"] == "mathml" and set(html["theme"]) == {"light", "dark"}
    for layers in html["theme"].values():
        files = [layer for layer in layers if layer.endswith(".scss")]
        assert any("$web-font-path: false;" in (ROOT/"nbs"/name).read_text() for name in files)
        assert not check.ELSEWHERE.findall("".join((ROOT/"nbs"/name).read_text() for name in files))

def test_nbdev_alone_executes_nothing_either():
    import tomllib
    assert tomllib.loads((ROOT/"pyproject.toml").read_text())["tool"]["nbdev"]["skip_procs"] == render.SKIPPED


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
    chosen, rest = pages.options('#| export\n#| fig-cap: "Doses: all"\n#| echo: false\n\nx = 1\n#| y')
    assert chosen == {"export": True, "fig-cap": "Doses: all", "echo": False} and rest == "x = 1\n#| y"
    assert pages.options("#| default_exp first\n") == ({"default_exp": "first"}, "")
    assert pages.options("#| fig-cap: |\n#|   Two lines:\n#|   one caption\nx")[0] == {"fig-cap": "Two lines:\none caption"}

NO_HEADS = [("fig-cap: Doses: all of them", "is no YAML.*put the text in quotes"), ("fig-cap: [one, two]", "must be one word"),
            ("fig-cap: {a: 1}", "must be one word"), ("fig-cap:", "must be one word"), ("fig-capt: A", "known neither"),
            ("tbl-cap: 'A line", "is no YAML"), ("- a: b", "is no `key: value`"), ("exprot", "known neither")]

@pytest.mark.parametrize("line, words", NO_HEADS)
def test_heads_that_quarto_would_stop_at_are_refused(line, words):
    with pytest.raises(ValueError, match=words): pages.options(f"#| {line}\nx = 1")

def test_a_caption_that_is_no_yaml_stops_the_build_in_a_sentence(project, capsys):
    path = project/"nbs"/"00_first.ipynb"
    path.write_text(path.read_text().replace('\\"A line: $c < 0$\\"', "A line: $c < 0$"))
    assert render.main(["--nbs", str(project/"nbs"), "--out", str(project/"site")]) == 2
    said = capsys.readouterr().err
    assert "00_first.ipynb, cell line: `#| fig-cap: A line: $c < 0$` is no YAML" in said and said.count("\n") == 1

COMMITTED = sorted(p for folder in ("nbs", "data/reference") for p in (ROOT/folder).rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)

@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_head_is_one_mapping_that_quarto_knows(path):
    cells = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    labels = []
    for cell in cells:
        chosen, _ = pages.options("".join(cell["source"]))
        labels += [chosen[key] for key in ("label",) if key in chosen]
        for key in ("fig-cap", "tbl-cap", "fig-alt"): assert isinstance(chosen.get(key, ""), str), (cell["id"], key)
    assert len(labels) == len(set(labels))

def test_the_real_configuration():
    root = Path(__file__).resolve().parents[1]
    assert (root/"nbs"/"_quarto.yml").resolve() == root/"_quarto.yml"
    config = yaml.safe_load((root/"_quarto.yml").read_text())
    listed = render.order(config["website"]["sidebar"]["contents"], root/"nbs")
    assert len(listed) == len(set(listed))
    assert sorted(listed) == sorted(path.relative_to(root/"nbs").as_posix() for path in (root/"nbs").rglob("*.ipynb")
                                    if ".ipynb_checkpoints" not in path.parts)


# The workflow that makes the site

STEPS = yaml.safe_load((ROOT/".github"/"workflows"/"docs.yml").read_text())["jobs"]["build"]["steps"]

def test_nothing_in_the_workflow_may_fail_unseen():
    commands = [step["run"] for step in STEPS if "run" in step]
    assert not any("continue-on-error" in step for step in STEPS)
    assert [next(word for word in ("pip", "render.py", "check.py") if word in command) for command in commands] == ["pip", "render.py", "check.py"]
    assert "--renderer quarto --execute --out" in commands[1] and commands[2].split()[-1] == commands[1].split()[-1]

@pytest.fixture
def bare(tmp_path):
    "A checkout with few notebooks, and a Python beside it that has what `.[dev]` asks for and nothing else."
    import venv
    from configparser import ConfigParser
    from importlib import metadata
    from packaging.requirements import Requirement
    pins = [Requirement(line) for line in (ROOT/"constraints.txt").read_text().splitlines() if re.match(r"[\w.-]+==", line)]
    def fits(pin):
        try: return pin.specifier.contains(metadata.version(pin.name), prereleases=True)
        except metadata.PackageNotFoundError: return True
    if not all(map(fits, pins)): pytest.skip("this environment has other versions than constraints.txt")
    sys.path.insert(0, str(ROOT/"tools"))
    import package
    tree = tmp_path/"checkout"
    tree.mkdir()
    for name in ("data", "em_repro"): (tree/name).symlink_to(ROOT/name)
    shutil.copytree(ROOT/"docs", tree/"docs", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "settings.ini", "pyproject.toml", "constraints.txt", "README.md", "LICENSE", "_quarto.yml"): shutil.copy(ROOT/name, tree/name)
    for name in ("index.ipynb", "03_steering.ipynb", "guide/verdict_changes.ipynb", "foundations/folders.ipynb", "styles.css", "theme.scss", "light.scss", "dark.scss"):
        (tree/"nbs"/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/"nbs"/name, tree/"nbs"/name)
    (tree/"nbs"/"_quarto.yml").symlink_to(Path("..")/"_quarto.yml")
    venv.create(tmp_path/"python", with_pip=True)
    ini = ConfigParser(delimiters=["="], interpolation=None)
    ini.read(ROOT/"settings.ini", encoding="utf-8")
    lines = [line for key in ("requirements", "dev_requirements") for line in ini["DEFAULT"][key].split("\n") if line.strip()]
    place = next((tmp_path/"python"/"lib").glob("python3*/site-packages"))
    for left in {*place.iterdir()} - {*place.glob("pip*")}:       # a setuptools of the venv's own, in Python 3.11
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    package.link({name: one for name, one in package.needed(lines).items() if name != "pip"}, place)
    return tree

def test_the_workflow_s_commands_run_up_to_quarto(bare, stand_in, tmp_path):
    log = stand_in()
    (tmp_path/"home").mkdir()
    # pip reaches no index: what is missing in the environment stays missing
    alone = {"PATH": os.pathsep.join([str(tmp_path/"python"/"bin"), str(tmp_path/"bin"), "/usr/bin", "/bin"]), "HOME": str(tmp_path/"home"),
             "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    for step in (step for step in STEPS if "run" in step):
        if "check.py" in step["run"]: break
        done = subprocess.run(["bash", "-e", "-c", step["run"]], cwd=bare, env=alone, capture_output=True, text=True)
        assert done.returncode == 0, f"{step['run']}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
    given, notebooks = json.loads(log.read_text())
    assert given[0] == "render" and {"03_steering.ipynb", "guide/verdict_changes.ipynb", "api.ipynb", "results.ipynb"} <= set(notebooks)
    assert "executed foundations/folders.ipynb" in done.stdout and "rendered by Quarto" in done.stdout and (bare/"_docs"/"index.html").is_file()


def test_links_of_the_change_log_lead_to_pages_or_to_the_repository(monkeypatch):
    "What is no page of the site is in the repository; the site's checker refuses anything else."
    guide = ROOT / "nbs" / "guide"
    cell = next(c for c in json.loads((guide / "changes.ipynb").read_text(encoding="utf-8"))["cells"] if c.get("id") == "changes-log-section")
    shown = []
    monkeypatch.chdir(guide)
    exec("".join(cell["source"]), {"re": re, "Path": Path, "Markdown": shown.append})
    links = re.findall(r"\]\(([^)#]+)\)", shown[0])
    assert len(links) > 5
    for link in links:
        if link.startswith("https://github.com/em-repro/em_repro/blob/main/"): assert (ROOT / link.split("/blob/main/")[1]).exists(), link
        else: assert link.startswith("https://") or (link.endswith(".ipynb") and (guide / link).is_file()), link


@pytest.mark.parametrize("path", sorted((ROOT / "nbs").rglob("*.ipynb")), ids=lambda p: p.stem)
def test_no_page_links_out_of_the_site_by_a_path(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "markdown": continue
        for link in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", "".join(cell["source"])):
            there = (path.parent / link).resolve()
            if link == "api.html": continue   # the site makes it
            assert there.is_file() and there.is_relative_to(ROOT / "nbs"), link
