"""What the site does beyond showing pages: search, folds, figures with their files, verdicts first, what changed."""
import hashlib, json, re, shutil, subprocess

import pytest

pytest.importorskip("pypandoc")
pytest.importorskip("nbdev")
from test_docs import (QUARTO, ROOT, built, by_id, code, make_project, md, picture, prepared,     # noqa: F401
                       plot, project, shown, write)

import check, files, pages, render, results
from em_repro.claims import claims as declared
from em_repro.figures import table_of


def filled_project(tmp_path):
    "The example of test_docs with a study page that reaches a verdict, its table, its answers, and a figure of no table."
    folder = make_project(tmp_path)
    nbs, run = folder/"nbs", folder/"runs"/"small"
    claim = declared()["C2"]
    cells = [md("# Directions\n> Found", "title"), md("The question, with `twice` and a quokka.", "text"),
             code(f'#| label: fig-main\n#| fig-cap: "The main one, $c < 0$"\nstudy.figure(draw(), "{claim.figure}")', "main", picture()),
             code(f'#| label: tbl-main\n#| tbl-cap: Tests\nstudy.table(tests, "{claim.table}")', "tests", shown(text_html="<table><tr><td>1</td></tr></table>")),
             code('#| code-fold: false\nopen_one = 1', "open")]
    write(nbs/"02_directions.ipynb", *[{**cell, "outputs": []} if cell["cell_type"] == "code" else cell for cell in cells])
    write(run/"notebooks"/"code"/"02_directions.ipynb", *cells)
    (nbs/"_quarto.yml").write_text(QUARTO.replace("00_first.ipynb, ", "00_first.ipynb, 02_directions.ipynb, "))
    for end in ("svg", "png"): (run/"figures"/"code"/f"{claim.figure}.{end}").write_bytes(plot(end))
    (run/"tables"/"code"/f"{claim.figure}.csv").write_text("layer,rate,n\n1,0.5,24\n")
    (run/"tables"/"code"/f"{claim.table}.csv").write_text("a,b\n1,2\n")
    (run/"evidence").mkdir()
    (run/"evidence"/"code.parquet").write_bytes(b"answers")
    row = {"claim": "C2", "statement": "Up goes up", "paper": "99.6% (best)", "effect": 0.695, "low": 0.645, "high": 0.738,
           "p": 3e-32, "q": 0.0, "n": 24, "verdict": "supported", "profile": "small", "runs": "runs +71, -68", "population": "for these adapters",
           "secondary": "target answers -0.74 [-0.78, -0.67]", "detectable": 0.2, "detail": "of 1: 1 holds", "cost": "none"}
    (run/"claims.json").write_text(json.dumps([row]))
    (run/"provenance.json").write_text(json.dumps({"profile": "small", "commit": "0123456789ab+"}))
    return folder

@pytest.fixture(scope="module")
def place(tmp_path_factory): return filled_project(tmp_path_factory.mktemp("filled"))

@pytest.fixture(scope="module")
def found(place): return built(place)

@pytest.fixture(scope="module")
def index(place, found):
    text = (place/"site"/"search.js").read_text()
    return json.loads(text.removeprefix("window.emReproSearch="))


# Search

def test_the_index_leads_to_names_sections_and_pages(place, found, index):
    urls = [url for _, url in index["pages"]]
    assert set(urls) == set(found)
    entries = [(urls[at], anchor) for at, anchor, *_ in index["names"] + index["sections"]]
    for url, anchor in entries: assert not anchor or f'id="{anchor}"' in found[url], (url, anchor)
    name = next(entry for entry in index["names"] if entry[2] == "twice")
    assert (urls[name[0]], name[1]) == ("first.html", "def-twice") and name[3].startswith("(x: int = 1") and name[4] == "Two x, or more."
    section = next(entry for entry in index["sections"] if entry[1] == "keys")
    assert section[2:] == ["Keys", "Uses twice."]

def test_the_index_holds_prose_and_neither_code_nor_outputs(index):
    words = json.dumps(index)
    assert "quokka" in words and "Rate 0.5" in words     # the one is written, the other said by a run
    for other in ("open_one", "study.figure", "return times", "svg", "shown before it"): assert other not in words

def test_the_index_is_a_script_that_holds_no_tag(place, found):
    assert "<" not in (place/"site"/"search.js").read_text()

def test_words_of_neighbouring_paragraphs_stay_apart(tmp_path):
    import search
    tree = json.loads(pages.run_pandoc("One\n\n- two\n- three\n\n| a | b |\n|---|---|\n| c | d |\n\n## Head\n\nfour", "-f", "markdown", "-t", "json"))
    found = list(search.sections(tree))
    assert found == [("", "", "One two three a b c d"), ("head", "Head", "four")]

@pytest.mark.skipif(not shutil.which("node"), reason="there is no node to run the script in")
def test_the_script_ranks_names_first_and_marks_what_was_asked(place, found):
    "The search itself, without a browser: tests/test_browser.py presses the keys."
    script = (ROOT/"docs"/"site.js").read_text()
    head = ('const store = {}, node = {media: "", style: {}, append() {}};'
            'globalThis.window = globalThis; globalThis.location = {hash: ""};'
            'globalThis.matchMedia = () => ({matches: false, addEventListener() {}});'
            'globalThis.document = {currentScript: {src: "file:///x/site.js"}, documentElement: node, getElementById: () => node, addEventListener() {},'
            ' createElement: tag => ({tag, setAttribute() {}, append(...all) { this.text = all.join("") }})};')
    tail = ('index = prepared(window.emReproSearch);'
            'const said = query => matches(query).map(one => one.entry.title);'
            'console.log(JSON.stringify({twice: said("twice()"), keys: said("key"), both: said("twice question"), none: said("zzz"), empty: said("  "),'
            ' marked: marked("A <b> quokka", ["quokka", "<b>"]).map(part => part.tag ? "[" + part.text + "]" : part)}))')
    program = "\n".join([head, (place/"site"/"search.js").read_text(), script.replace('"use strict"', ""), tail])
    done = subprocess.run(["node", "-e", program], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    said = json.loads(done.stdout)
    assert said["twice"][0] == "twice" and said["keys"][0] == "Keys" and "Directions" in said["both"]
    assert said["none"] == said["empty"] == [] and "".join(said["marked"]) == "A [<b>] [quokka]"


# Scripts

def test_pages_load_one_script_of_their_own_and_nothing_else(found):
    for name, page in found.items():
        depth = "../" * name.count("/")
        assert re.findall("<script[^>]*>", page) == [f'<script src="{depth}site.js">']
        policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
        assert "default-src 'none'" in policy and re.search(r"script-src ([^;]*)", policy)[1] == "'self' file:"
    assert not re.findall(r"https?://|\beval\(|innerHTML|fetch\(|XMLHttpRequest", (ROOT/"docs"/"site.js").read_text())

def test_the_dark_palette_is_a_sheet_that_the_script_can_choose(found):
    page = found["index.html"]
    assert re.search(r'<style id="dark" media="screen and \(prefers-color-scheme: dark\)">[^<]*html:root\{color-scheme:dark', page)
    assert page.index('id="dark"') < page.index("<script")


# Folded code

def test_code_of_the_study_is_folded_and_that_of_foundations_is_not(found, tmp_path):
    page = found["directions.html"]
    assert page.count('<details class="fold code">') == 2 and "open_one" in page
    assert "open_one" not in "".join(re.findall(r"(?s)<details class=\"fold code\">.*?</details>", page))
    other = make_project(tmp_path)
    shutil.copy(other/"nbs"/"00_first.ipynb", other/"nbs"/"foundations"/"second.ipynb")
    both = built(other)
    # of its author's own choice one is folded everywhere
    assert both["first.html"].count('class="fold code"') > 3 and both["foundations/second.html"].count('class="fold code"') == 1

def test_quarto_folds_the_same_cells(place):
    given, config = prepared(place)
    shutil.rmtree(place/"work")
    chosen = pages.options(by_id(given["00_first"])["cell-twice"]["source"])[0]
    assert chosen["code-fold"] is True and chosen["code-summary"].startswith("twice, exported to em_repro.first")
    real = (ROOT/"_quarto.yml").read_text()
    assert "code-tools: {toggle: true" in real and "lightbox: true" in real and "search: true" in real

def test_code_of_what_was_not_executed_is_folded_too(tmp_path):
    page = built(make_project(tmp_path), run=None)["first.html"]
    assert "Not executed" in page and page.count('<details class="fold code">') == len(re.findall('<div class="sourceCode"', page))

def test_every_study_page_and_no_other_is_folded():
    import cells
    names = [path.relative_to(ROOT/"nbs").as_posix() for path in (ROOT/"nbs").rglob("*.ipynb")]
    folded = {name for name in names if cells.FOLDED.match(name)}
    assert folded == {name for name in names if name[0].isdigit() or name.startswith("beyond/")} and len(folded) >= 13


# Verdicts, figures, files

def test_a_verdict_leads_to_its_table_only_where_there_is_one():
    cells = [code('#| label: tbl-a\nstudy.table(x, "a")', "a"), code("1", "b", picture())]
    assert results._shown_by(cells, "a") == "" and results._shown_by(cells[:1], "a") == "#tbl-a" and results._shown_by(cells, "b") == ""

def test_a_study_page_begins_with_its_verdicts_and_main_figure(found):
    page = found["directions.html"]
    assert page.index('class="glance own"') < page.index('class="main-figure"') < page.index("The question, with")
    assert 'href="#tbl-main"' in page and 'href="#fig-main"' in page and "+69.5 [+64.5, +73.8]" in page
    assert 'class="glance own"' not in found["first.html"]      # it reaches none

def beside(page, label):
    "The line of links below a figure: words and addresses."
    line = re.search(rf'(?s)id="{label}".*?<div class="figure-files">(.*?)</div>', page)[1]
    return line, dict(re.findall(r'<a href="([^"]*)">([^<]*)</a>', line))

def test_beside_a_figure_are_its_files_its_code_and_where_it_is_from(place, found):
    line, links = beside(found["directions.html"], "fig-main")
    figure = declared()["C2"].figure
    assert links == {f"results/figures/code/{figure}.svg": "svg", f"results/figures/code/{figure}.png": "png",
                     f"results/tables/code/{figure}.csv": "table (csv)", "results/evidence/code.parquet": "answers by question (parquet)",
                     "#code-main": "code"}
    for url in links: assert url.startswith("#") or (place/"site"/url).is_file()
    digest = hashlib.sha256((place/"site"/"results"/"tables"/"code"/f"{figure}.csv").read_bytes()).hexdigest()
    assert f"<code>{digest[:12]}</code>" in line and "<code>0123456789ab+</code>" in line and "<code>small</code>" in line
    assert found["directions.html"].index('id="code-main"') < found["directions.html"].index('id="fig-main"')

def test_a_figure_without_a_table_names_none(found):
    line, links = beside(found["first.html"], "fig-line")
    assert {"svg", "png", "code"} <= set(links.values()) and "table" not in " ".join(links.values()) and "sha256" not in line

def test_figures_of_runs_beside_the_first_have_their_own_files(place):
    other = place/"runs"/"advice"
    shutil.copytree(place/"runs"/"small", other)
    shutil.rmtree(place/"runs"/"small"/"notebooks")
    render.build(place/"nbs", place/"two", place/"runs"/"small", renderer="pandoc", beside=[other])
    shutil.copytree(other/"notebooks", place/"runs"/"small"/"notebooks")
    shutil.rmtree(other)
    _, links = beside((place/"two"/"directions.html").read_text(), "fig-main")
    assert all(url.startswith(("results/beside/advice/", "#")) and (url[0] == "#" or (place/"two"/url).is_file()) for url in links)
    assert check.check(place/"two") == []

def test_figures_open_in_full_with_and_without_scripts(found):
    assert re.search(r'<a href="directions_files/1.png" class="zoom"><img', found["directions.html"])
    assert re.search(r'<a href="results/figures/code/line.svg" class="zoom"><img', found["results.html"])

def test_a_page_leads_to_the_notebook_as_it_ran_and_to_its_source(place, found):
    page = found["directions.html"]
    path = place/"site"/"results"/"notebooks"/"code"/"02_directions.ipynb"
    assert f'href="results/notebooks/code/{path.name}"' in page
    assert path.read_bytes() == (place/"runs"/"small"/"notebooks"/"code"/path.name).read_bytes()
    assert f'href="{files.REPOSITORY}/blob/0123456789ab/nbs/02_directions.ipynb"' in page and "uncommitted changes" in page
    assert not list((place/"site"/"results").rglob("*.html")) and "as it ran" not in found["foundations/second.html"]

@pytest.mark.parametrize("commit", ["", "abc", "javascript:alert(1)", "0123456789ab/../..", "0123456789ab++"])
def test_a_commit_that_is_none_makes_no_link(place, commit):
    assert files.Kept(place, "results", (("commit", commit),)).source(place) == []

def test_the_site_of_such_a_run_has_nothing_wrong(place, found): assert check.check(place/"site") == []

@pytest.mark.parametrize("figure, table", [("steering-cost", "steering-cost"), ("steering-cost-chosen", "steering-cost"), ("spillover-rates", "spillover"),
                                           ("spilloverrates", ""), ("topology-rank", ""), ("a", "")])
def test_a_figure_s_table_is_the_longest_name_that_begins_it(figure, table):
    assert table_of(figure, ["steering", "steering-cost", "spillover", "topology-matrix"]) == table


# The claims

def test_the_claims_read_in_points_with_the_paper_beside(found):
    row = re.search(r"(?s)<td class=\"claim\">C2.*?</tr>", found["results.html"])[0]
    assert '<td class="paper">99.6% (best)</td>' in row and "<strong>+69.5 points [+64.5, +73.8]</strong>" in row
    for words in ("24 questions; runs +71, \u221268, for these adapters", "p &lt; 1e-16, q &lt; 1e-16", "hypotheses: of 1: 1 holds",
                  "target answers \u221274 [\u221278, \u221267] points", "detectable: 20.0 points", "cost: none"): assert words in row, words
    for link in ('href="directions.html#tbl-main">test', '.svg">figure', '.csv">data'): assert link in row

def test_nats_are_not_made_points():
    row = {"claim": "A1", "effect": 0.22, "low": 0.17, "high": 0.27, "p": 0.0001, "q": None, "n": 51, "unit": "nats", "detectable": 0.14,
           "secondary": "shift -0.74 [-0.78, -0.67]"}
    assert results.found(row) == ["+0.22 nats a token [+0.17, +0.27]", "51 requests", "p = 0.0001", "shift \u22120.74 [\u22120.78, \u22120.67]",
                                  "detectable: 0.14 nats a token"]

@pytest.mark.parametrize("text, shown", [("-0.5", "\u22120.5"), ("21-51 points", "21-51 points"), ("p = 6.3e-11", "p = 6.3e-11"), ("[-4, -.5]", "[\u22124, \u2212.5]"),
                                         ("tiny-llama -1", "tiny-llama \u22121")])
def test_minus_signs(text, shown): assert results._minus(text) == shown

def test_what_was_not_measured_is_said():
    assert results.found({"claim": "C1", "n": None}) == ["not measured"]


# What changed

def test_one_page_leads_to_all_that_changed():
    cells = json.loads((ROOT/"nbs"/"guide"/"changes.ipynb").read_text(encoding="utf-8"))["cells"]
    words = "\n".join("".join(cell["source"]) for cell in cells)
    for source in ("CHANGELOG.md", "claims_log()", "verdicts_before.csv", "verdict_changes.ipynb", "renamed.ipynb", "verify.ipynb"): assert source in words
    assert "guide/changes.ipynb" in render.MEASURED
    for page in ("README.md", "nbs/index.ipynb"): assert "guide/changes.ipynb" in (ROOT/page).read_text(encoding="utf-8")


def test_a_run_of_two_behaviours_shows_them_apart():
    "Each with its own files, and the landing page begins with the paper's."
    kept, nbs = files.Kept(ROOT/"data"/"reference"/"tiny-full"), ROOT/"nbs"
    rows = results.claims(kept.run)
    parts = results.by_behaviour(rows)
    assert list(parts) == ["code", "advice"] and [len(part) for part in parts.values()] == [14, 14]
    assert [row["claim"] for row in parts["code"]] == [row["claim"] for row in parts["advice"]]
    table = results.claims_table(rows, kept, nbs)
    code_half, advice_half = table.split("Behaviour advice")
    assert "tables/advice" not in code_half and "tables/code" not in advice_half and "tables/advice" in advice_half
    _, landing = results.glance(kept, nbs)
    first, folded = "".join(landing["outputs"][0]["data"]["text/html"]).split("<details>")
    assert first.count("<li>") == folded.count("<li>") == 14
