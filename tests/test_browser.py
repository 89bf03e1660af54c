"""The site and the report in a real browser: nothing fails, nothing sticks out, everything is reached and read in light and dark.

`tools/browser.py` installs what is needed (the extra `browser`; Chromium comes from the system)
and says which pages are looked at.
"""
import csv, io, os, re, shutil
from pathlib import Path

import pytest

HOW = "`tools/browser.py` runs them; it needs Chromium (Debian: apt-get install chromium)"
if not (os.environ.get("EM_REPRO_SITE") and os.environ.get("EM_REPRO_REPORT")): pytest.skip(f"the tests in a browser were not asked for: {HOW}", allow_module_level=True)
pytest.importorskip("playwright", reason=f"the extra `browser` is not installed: {HOW}")
pytest.importorskip("axe_playwright_python", reason=f"the extra `browser` is not installed: {HOW}")
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from em_repro.report import write_report
from test_report import HOSTILE, filled

SITE, REPORT = (Path(os.environ[name]).resolve() for name in ("EM_REPRO_SITE", "EM_REPRO_REPORT"))
PROGRAM = os.environ.get("CHROMIUM") or shutil.which("chromium")
QUIET = "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync".split()
PHONE, LAPTOP = (360, 740), (1280, 800)
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

@pytest.mark.parametrize("size", [PHONE, LAPTOP], ids=["phone", "laptop"])
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


def test_the_menu_leads_on_a_phone(opened):
    tab = opened(SITE/"index.html", PHONE)
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
    for kind in ("code", "broken", "clean"):
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
