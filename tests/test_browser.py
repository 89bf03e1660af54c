"""The site and the report in a real browser: nothing fails, nothing sticks out, everything is reached and read in light and dark.

`tools/browser.py` installs what is needed (the extra `browser`; Chromium comes from the system)
and says which pages are looked at.
"""
import csv, dataclasses, io, os, re, shutil
from pathlib import Path

import pytest

HOW = "`tools/browser.py` runs them; it needs Chromium (Debian: apt-get install chromium)"
if not (os.environ.get("EM_REPRO_SITE") and os.environ.get("EM_REPRO_REPORT")): pytest.skip(f"the tests in a browser were not asked for: {HOW}", allow_module_level=True)
pytest.importorskip("playwright", reason=f"the extra `browser` is not installed: {HOW}")
pytest.importorskip("axe_playwright_python", reason=f"the extra `browser` is not installed: {HOW}")
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from em_repro.report import write_report
from test_report import HOSTILE, filled, glanced

SITE, REPORT = (Path(os.environ[name]).resolve() for name in ("EM_REPRO_SITE", "EM_REPRO_REPORT"))
PROGRAM = os.environ.get("CHROMIUM") or shutil.which("chromium")
QUIET = "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync".split()
SMALL, PHONE, LAPTOP = (360, 740), (390, 844), (1280, 800)
PAGES = sorted(set(SITE.rglob("*.html")) - {SITE/"results"/"report.html"}) + [REPORT]


def name(page): return page.relative_to(SITE).as_posix() if page.is_relative_to(SITE) else page.name


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=PROGRAM, args=QUIET, chromium_sandbox=os.geteuid() != 0)
        yield started
        started.close()


@pytest.fixture
def opened(browser):
    "A function that opens a page and keeps what the browser complains of in `.said`."
    contexts = []
    def at(page, size=LAPTOP, scheme="light", **more):
        contexts.append(browser.new_context(viewport=dict(zip(("width", "height"), size)), color_scheme=scheme, **more))
        tab = contexts[-1].new_page()
        tab.said = []
        tab.on("console", lambda message: message.type in ("error", "warning") and tab.said.append(message.text))
        tab.on("pageerror", lambda error: tab.said.append(str(error)))
        tab.on("requestfailed", lambda request: tab.said.append(f"{request.url} failed"))
        tab.goto(Path(page).as_uri())
        return tab
    yield at
    for context in contexts: context.close()


# Every page

@pytest.mark.parametrize("size", [SMALL, PHONE, LAPTOP], ids=["360", "390", "1280"])
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_opens_and_stays_within_its_width(opened, page, size):
    tab = opened(page, size)
    wide = tab.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide[0] <= wide[1] and not tab.said and tab.title() and tab.locator("h1").count() == 1
    broken = tab.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)")
    assert not broken


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_axe_finds_nothing_serious(opened, page, scheme):
    tab = opened(page, scheme=scheme, bypass_csp=True)
    found = [v for v in Axe().run(tab, options={"resultTypes": ["violations"]}).response["violations"] if v["impact"] in ("serious", "critical")]
    assert not found, [(v["id"], len(v["nodes"]), v["nodes"][0]["html"][:160], v["nodes"][0]["failureSummary"][:200]) for v in found]


# The site

def test_the_landing_page_tells_its_story_on_one_screen(opened):
    tab = opened(SITE/"index.html")
    for place in (tab.locator("h1"), tab.get_by_text("make reproduce").first, tab.locator("ol.glance"), tab.get_by_text("Where next:"), tab.locator(".run-banner")):
        box = place.bounding_box()
        assert box and box["y"] >= 0 and box["y"] + box["height"] <= LAPTOP[1]


def test_the_sidebar_leads_on_a_laptop(opened):
    tab = opened(SITE/"index.html")
    tab.locator(".side").get_by_role("link", name="03 Steering").click()
    assert tab.url.endswith("steering.html") and tab.locator(".side [aria-current=page]").inner_text() == "03 Steering"
    tab.locator(".near a[rel=next]").click()
    assert tab.url.endswith("secure_control.html") and not tab.said


@pytest.mark.parametrize("size", [SMALL, PHONE], ids=["360", "390"])
def test_the_menu_leads_on_a_phone(opened, size):
    tab = opened(SITE/"index.html", size)
    link = tab.locator("details.menu").get_by_role("link", name="API reference")
    assert not tab.locator(".side").is_visible() and not link.is_visible()
    tab.get_by_text("Menu", exact=True).click()
    link.click()
    assert tab.url.endswith("api.html") and not tab.said


def test_the_keyboard_reaches_the_content(opened):
    tab = opened(SITE/"steering.html")
    tab.keyboard.press("Tab")
    skip = tab.locator(":focus")
    assert skip.inner_text() == "Skip to the content" and skip.bounding_box()["x"] >= 0
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "content"
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.closest('main') !== null && getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.parametrize("page", ["index.html", "api.html", "results.html"])
def test_dark_pages_are_dark_and_printed_ones_are_not(opened, page):
    tab = opened(SITE/page, scheme="dark")
    def paper(): return sum(map(int, re.findall(r"\d+", tab.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]))
    assert paper() < 100
    tab.emulate_media(media="print")
    assert paper() == 765 or tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgba(0, 0, 0, 0)"


SEARCHED = "#search-found [role=option]"

def searched(tab, words):
    "Press the slash key, type, and wait for what is found."
    tab.keyboard.press("/")
    tab.keyboard.type(words)
    tab.wait_for_selector(f"{SEARCHED}, .panel p:not(:empty)")
    return tab.locator(SEARCHED)


def test_the_search_finds_pages_and_functions_by_the_keyboard(opened):
    tab = opened(SITE/"guide"/"glossary.html")
    found = searched(tab, "sweep")
    assert tab.locator(":focus").get_attribute("id") == "search" and 0 < found.count() <= 12
    assert found.first.inner_text().startswith("sweep") and "function or class" in found.first.inner_text()
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowUp")
    chosen = tab.locator(f"{SEARCHED}[aria-selected=true]")
    assert chosen.count() == 1 and chosen.get_attribute("id") == tab.locator("#search").get_attribute("aria-activedescendant") == "search-found-0"
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/foundations/decode.html#def-sweep")
    assert not tab.said


def test_the_search_finds_words_of_the_prose_and_shows_them(opened):
    tab = opened(SITE/"index.html")
    found = searched(tab, "repetition penalty")
    addresses = found.evaluate_all("all => all.map(one => one.dataset.url)")
    assert any("guide/traps.html#" in url for url in addresses) and found.first.locator("mark").count() >= 2
    assert re.match(rf"{found.count()} found|The first {found.count()}", tab.locator("[role=status]").inner_text())


def test_escape_closes_the_search_and_what_is_not_there_is_said(opened):
    tab = opened(SITE/"index.html")
    assert searched(tab, "zzzz no such word").count() == 0 and tab.locator(".panel").inner_text() == "Nothing was found."
    tab.keyboard.press("Escape")
    assert not tab.locator(".panel").is_visible() and tab.locator("#search").input_value() != ""
    tab.keyboard.press("Escape")
    assert tab.locator("#search").input_value() == "" and tab.evaluate("document.activeElement === document.body")


def test_what_is_searched_for_is_never_markup(opened):
    tab = opened(SITE/"index.html")
    searched(tab, "<img src=x onerror=alert(1)>")
    assert tab.locator("#search-found img").count() == 0 and not tab.said


def test_a_site_without_its_index_says_so(opened, tmp_path):
    for name in ("index.html", "site.js", "styles.css"): shutil.copy(SITE/name, tmp_path/name)
    tab = opened(tmp_path/"index.html")
    searched(tab, "sweep")
    assert "search.js" in tab.locator(".panel").inner_text()


def test_one_switch_shows_all_code_and_is_remembered(opened):
    tab = opened(SITE/"steering.html")
    folds = tab.locator("details.fold.code")
    def open_ones(): return folds.evaluate_all("all => all.filter(one => one.open).length")
    assert folds.count() > 20 and open_ones() == 0
    tab.get_by_role("button", name="Show all code").click()
    assert open_ones() == folds.count()
    tab.goto((SITE/"specificity.html").as_uri())
    assert open_ones() == folds.count() > 20
    tab.get_by_role("button", name="Hide all code").click()
    tab.reload()
    assert open_ones() == 0 and not tab.said


def test_code_is_open_where_functions_are_explained(opened):
    tab = opened(SITE/"foundations"/"stats.html")
    assert tab.locator("details.fold.code").count() == 0 and tab.get_by_role("button", name="Show all code").count() == 0


def test_a_link_to_a_name_opens_its_code(opened):
    tab = opened(SITE/"steering.html")
    name = tab.locator(".cell-label [id^=def-]").first.get_attribute("id")
    tab.goto((SITE/"steering.html").as_uri() + f"#{name}")
    assert tab.locator("details.fold.code[open]").count() == 1


def test_a_figure_is_shown_in_full_and_closed(opened):
    tab = opened(SITE/"steering.html")
    link = tab.locator("figure a.zoom").first
    link.click()
    box = tab.locator("dialog.figure-box")
    assert box.is_visible() and box.locator("img").evaluate("i => i.naturalWidth > 0") and "Figure" in box.locator("p").inner_text()
    tab.keyboard.press("Escape")
    assert not box.is_visible() and tab.evaluate("document.activeElement.className") == "zoom" and not tab.said


def test_the_site_s_switch_turns_pages_dark_and_is_remembered(opened):
    tab = opened(SITE/"index.html")
    def paper(): return tab.evaluate("getComputedStyle(document.body).backgroundColor")
    light = paper()
    tab.get_by_role("button", name="Dark page").click()
    assert paper() != light
    tab.goto((SITE/"steering.html").as_uri())
    assert paper() != light
    tab.get_by_role("button", name="Light page").click()
    assert paper() == light


def test_without_scripts_everything_is_there(opened):
    tab = opened(SITE/"steering.html", java_script_enabled=False)
    tab.locator("details.fold.code summary").first.click()
    assert tab.locator("details.fold.code pre").first.is_visible() and tab.locator("#search").count() == 0
    assert tab.locator("figure a.zoom").first.get_attribute("href").endswith((".svg", ".png"))


def test_a_served_site_searches_too_and_asks_no_other_host(browser):
    import functools, http.server, threading
    handler = functools.partial(type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None}), directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        context, asked = browser.new_context(), []
        tab, home = context.new_page(), f"http://127.0.0.1:{server.server_port}/"
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(home + "beyond/misalignment.html")
        assert searched(tab, "sweep").count() > 0 and asked and all(url.startswith(home) for url in asked)
        context.close()
        server.shutdown()


# The report

def at_dose(tab, place):
    "Move the pointer over the points of a chart until its answers are shown."
    for point in place.locator(".scatterlayer .trace").last.locator(".point").all():
        point.hover(force=True)
        tab.wait_for_timeout(150)
        if re.search(r", dose -?[\d.]+: \d+ of \d+ answers", tab.locator("#heard").inner_text()): return True
    return False


def test_pointing_at_a_dose_shows_its_answers(opened):
    tab = opened(REPORT)
    assert at_dose(tab, tab.locator("#dose-charts .chart").first) and tab.locator("#heard .outcome").count() > 0
    assert tab.locator(".hoverlayer .hovertext").count() > 0 and not tab.said


def test_answers_are_searched_and_filtered(opened):
    tab = opened(REPORT)
    def shown(): return tab.locator("#rows tr").count()
    every, asked = shown(), tab.locator("#rows th").first.inner_text()
    tab.locator("#search").fill(asked)
    assert shown() == 1 < every and "of 1 questions" in tab.locator("#count").inner_text()
    tab.locator("#search").fill("no question has these words")
    assert shown() == 0 and tab.locator("#count").inner_text() == "no question fits"
    tab.locator("#search").fill("")
    whose = tab.locator("#whose option").all_inner_texts().index("fine-tuned")
    kept = {}
    tab.locator("#whose").select_option(index=whose)
    for kind in ("good", "code", "incoherent"):
        tab.locator("#kind").select_option(kind)
        kept[kind] = tab.locator("#rows tr").evaluate_all(f"rows => rows.map(r => r.cells[{whose} + 1].querySelector('.outcome').textContent)")
        assert set(kept[kind]) <= {kind}
    assert sum(map(len, kept.values())) == every or every == 20


def test_a_table_is_downloaded_as_it_is(opened):
    tab = opened(REPORT)
    box = tab.locator("details", has=tab.locator(".download")).first
    box.locator("summary").click()
    with tab.expect_download() as waiting: box.locator(".download").click()
    rows = list(csv.reader(io.StringIO(Path(waiting.value.path()).read_text(encoding="utf-8-sig"), newline="")))
    assert waiting.value.suggested_filename.endswith(".csv") and rows[0] == box.locator("th").all_inner_texts()
    assert len(rows) - 1 == int(re.search(r"\((\d+) rows?\)", box.locator("summary").inner_text())[1])


def test_the_switch_turns_the_page_dark_and_back(opened):
    tab = opened(REPORT)
    def paper(): return tab.evaluate("getComputedStyle(document.body).backgroundColor")
    first = paper()
    tab.locator("#theme").click()
    assert paper() != first
    tab.locator("#theme").click()
    assert paper() == first


def test_hostile_texts_stay_texts_when_pointed_at_and_downloaded(opened, tmp_path):
    text = " ".join(HOSTILE)
    tab = opened(write_report(filled(text), tmp_path/"report.html"))
    before = tab.title()
    assert at_dose(tab, tab.locator("#dose-charts .chart").first)
    for trace in tab.locator("#dose-charts .chart").first.locator(".scatterlayer .trace").all():
        trace.locator(".point").last.hover(force=True)
        tab.wait_for_timeout(100)
    tab.locator("#search").fill("<script>")
    assert tab.locator("#rows tr").count() == 6
    tab.locator("details summary").first.click()
    with tab.expect_download() as waiting: tab.locator(".download").first.click()
    body = list(csv.reader(io.StringIO(Path(waiting.value.path()).read_text(encoding="utf-8-sig"), newline="")))
    assert body[1][0] == text and tab.title() == before != "run" and not tab.said
    assert tab.locator("main img, main script, main b, main iframe, svg [onload]").count() == 0


@pytest.mark.parametrize("start", "=+-@\t\r")
def test_no_cell_of_a_download_is_a_formula(opened, tmp_path, start):
    tab = opened(write_report(filled(start + "1+1"), tmp_path/"report.html"))
    tab.locator("details summary").first.click()
    with tab.expect_download() as waiting: tab.locator(".download").first.click()
    rows = list(csv.reader(io.StringIO(Path(waiting.value.path()).read_text(encoding="utf-8-sig"), newline="")))
    assert rows[0][0][0] == rows[1][0][0] == "'" and rows[1][1] == "1.5"


LONG = ("No sign in answers to our 60 questions that the fine-tune's are code, or harmful or hostile, more often than the base's; an increase to 8% or more (are code) "
        "or 12% or more (are harmful or hostile) would have been seen (in four audits of five).")

@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("sentence", ["The fine-tune leaks.", LONG], ids=["short", "long"])
def test_the_first_screen_of_a_phone_has_the_verdict_three_numbers_and_a_figure(opened, tmp_path, sentence, scheme):
    data = glanced()
    bars = (*data.glance.bars, ("fine-tune, gated at prefill", {"good": .9, "code": .1}))
    shown = dataclasses.replace(data, title="Audit of smollm2-135m-insecure", glance=dataclasses.replace(data.glance, sentence=sentence, bars=bars))
    tab = opened(write_report(shown, tmp_path / "report.html"), (390, 844), scheme)
    for place in (".glance .sentence", ".glance .numbers", ".glance svg", ".glance figcaption"):
        box = tab.locator(place).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["y"] >= 0 and box["y"] + box["height"] <= 844, place
    assert tab.locator(".glance .numbers > div").count() == 3 and not tab.locator("dl.facts").is_visible() and not tab.said
    tab.get_by_text("What was compared, and how").click()
    assert tab.locator("dl.facts").is_visible()
