"""Check a finished site: links, anchors, figures, references, and traces of failed cells.

    python docs/check.py _docs
"""
import argparse, base64, io, posixpath, re, sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from PIL import Image, UnidentifiedImageError

TRACEBACK = "Traceback (most recent call last)"
DRAWN = re.compile(r"<(?:\w+:)?(?:path|line|polyline|polygon|rect|circle|ellipse|use|text|image)\b")
ELSEWHERE = re.compile(r"""(?:url\(\s*|@import\s+)["']?((?:https?:)?//[^"')\s;]+)""")
REFERENCE = re.compile(r"(?<![\w.])\??@((?:fig|tbl|sec|eq|lst)-[\w-]+)")
SMALLEST = 200          # bytes; a plot with one axis is some thousands
LABELLING = {"figcaption", "caption", "summary", "button"}   # words about a figure's place: they stand there when it is empty too
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class Document(HTMLParser):
    "What the checks need from one page."
    def __init__(self, markup: str):
        super().__init__()
        self.ids, self.links, self.loaded, self.images, self.missing = [], [], [], [], []
        self.styles, self.timed = [], False              # what <style> holds; whether papermill's timings are told
        self.figures: dict[str, bool] = {}               # figures and tables by label, and whether they show one or say why not
        self.lang, self.title, self.failed = "", "", 0
        self.words, self.prose = [], []                  # what is not source code; of it, what authors wrote
        self.stack: list[tuple[str, str, str]] = []      # open tags, what they hold (source, output or prose), figure
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        classes = set((given.get("class") or "").split())
        # a style sheet is no place to go to: Quarto gives its light and dark ones the same id
        if "id" in given and tag != "link": self.ids.append(given["id"])
        if tag == "html": self.lang = given.get("lang") or ""
        if tag == "a" and "href" in given: self.links.append(given["href"] or "")
        if tag == "link" and given.get("rel") != "canonical": self.loaded.append(given.get("href") or "")
        if tag in ("img", "script", "source", "iframe") and "src" in given: self.loaded.append(given["src"] or "")
        if tag == "img": self.images.append((given.get("src") or "", given.get("alt")))
        if "missing" in classes: self.missing.append("")
        # pandoc writes `output error`, Quarto `cell-output-error`
        self.failed += {"output", "error"} <= classes or "cell-output-error" in classes
        self.timed |= any("papermill" in name for name in given)
        within = self.stack[-1][2] if self.stack else ""
        label = given.get("id") or ""
        if label.startswith(("fig-", "tbl-")) and label not in self.figures and not within: within = label
        if within: self.figures[within] = self.figures.get(within, False) or tag in ("img", "svg", "table")
        holds = self.stack[-1][1] if self.stack else "prose"
        if "sourceCode" in classes or tag in ("style", "script") or tag == "code" and holds == "prose": holds = "source"
        elif holds == "prose" and (tag == "pre" or classes & {"html-output", "cell-output"}): holds = "output"
        if tag not in VOID: self.stack.append((tag, holds, within))

    def handle_endtag(self, tag):
        if any(tag == name for name, *_ in self.stack):
            while self.stack.pop()[0] != tag: pass

    def handle_data(self, data):
        if self.stack and self.stack[-1][0] == "title": self.title += data
        if self.stack and self.stack[-1][0] == "style": self.styles.append(data)
        holds = self.stack[-1][1] if self.stack else "prose"
        if holds != "source": self.words.append(data)
        if holds == "prose": self.prose.append(data)
        within = self.stack[-1][2] if self.stack else ""
        if within and holds != "source" and data.strip() and not {tag for tag, *_ in self.stack} & LABELLING: self.figures[within] = True
        if self.missing and not self.missing[-1]: self.missing[-1] = data.strip()


def empty_image(data: bytes, suffix: str) -> str:
    "Why a picture shows nothing, or an empty string."
    if len(data) < SMALLEST: return f"is only {len(data)} bytes"
    if suffix == ".svg":
        body = re.sub(r"<defs>.*?</defs>", "", data.decode("utf-8", "replace"), flags=re.S)
        # matplotlib draws the page's background as one path
        return "draws nothing" if len(DRAWN.findall(body)) < 2 else ""
    try: extremes = Image.open(io.BytesIO(data)).convert("RGBA").getextrema()
    except (UnidentifiedImageError, OSError): return "is not a readable picture"
    return "has a single colour" if all(low == high for low, high in extremes) else ""


def check(site: Path) -> list[str]:
    "Everything that is wrong with the site, one sentence each; an empty list when nothing is."
    if not (site/"index.html").is_file(): return [f"{site} has no index.html: there is no site here"]
    pages = {path.relative_to(site).as_posix(): Document(path.read_text(encoding="utf-8"))
             for path in sorted(site.rglob("*.html"))}
    problems, reached = [], {"index.html"}
    for name, page in pages.items():
        def report(words: str): problems.append(f"{name}: {words}")
        if not page.title.strip(): report("has no title")
        if not page.lang: report("does not say its language (lang)")
        for id, times in Counter(page.ids).items():
            if times > 1: report(f"the id {id!r} is used {times} times")
        if page.failed: report(f"{page.failed} cell(s) ended in an error")
        # a run's report shows what models wrote, which may be a traceback or look like a reference
        answers = name == "results/report.html"
        if TRACEBACK in "".join(page.words) and not answers: report("an output holds a traceback")
        for label in sorted(set(REFERENCE.findall(" ".join(page.prose)))) if not answers else ():
            report(f"the reference @{label} leads nowhere")
        for url in [*page.loaded, *ELSEWHERE.findall("\n".join(page.styles))]:
            if re.match("https?:|//", url): report(f"loads {url} from another host")
        if page.timed: report("tells papermill's timings of a cell")
        for label in sorted(label for label, shows in page.figures.items() if not shows):
            report(f"the {'figure' if label.startswith('fig-') else 'table'} {label} shows {'no picture' if label.startswith('fig-') else 'nothing'} and does not say why")
        for url in [*page.links, *(u for u in page.loaded if not u.startswith("data:"))]:
            target = _target(name, url)
            if target is None: continue
            path, anchor = target
            if not (site/path).is_file(): report(f"{url} leads to no file")
            elif anchor and path in pages and anchor not in pages[path].ids: report(f"{url} leads to no anchor there")
            if path != name: reached.add(path)
        for src, alt in page.images:
            if alt is None: report(f"the picture {src[:60]} has no alt text")
            problems += [f"{name}: the picture {src[:60]} {reason}" for reason in [_empty(site, name, src)] if reason]
    for path in sorted(site.rglob("*.css")):
        found = ELSEWHERE.findall(path.read_text(encoding="utf-8", errors="replace"))
        problems += [f"{path.relative_to(site).as_posix()}: loads {url} from another host" for url in found]
    problems += [f"sidebar: {name}" for name in sorted({name for page in pages.values() for name in page.missing})]
    problems += [f"{name}: no other page leads to it" for name in pages if name not in reached]
    return problems


def _target(page: str, url: str) -> tuple[str, str] | None:
    "The file of the site and the anchor that `url` means on `page`; None for addresses elsewhere."
    parts = urlsplit(url)
    if parts.scheme or parts.netloc: return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(parts.path))) if parts.path else page
    return (posixpath.join(path, "index.html") if parts.path.endswith("/") else path), unquote(parts.fragment)


def _empty(site: Path, page: str, src: str) -> str:
    match = re.match(r"data:image/(\w+)[^,]*;base64,(.*)", src, re.S)
    if match: return empty_image(base64.b64decode(match[2]), f".{match[1]}")
    target = None if src.startswith("data:") else _target(page, src)
    path = site/target[0] if target else None
    return empty_image(path.read_bytes(), path.suffix.lower()) if path and path.is_file() else ""


def main(arguments: list[str] | None = None) -> int:
    "The command line; 1 when something is wrong."
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("site", type=Path, nargs="?", default=Path("_docs"))
    site = parser.parse_args(arguments).site
    problems = check(site)
    print("\n".join(problems) or f"{site}: {sum(1 for _ in site.rglob('*.html'))} pages, nothing wrong")
    return int(bool(problems))


if __name__ == "__main__": sys.exit(main())
