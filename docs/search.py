"""The index that the search of pandoc's pages looks through; Quarto makes one of its own.

It holds every public name, and the sentences of every section, those too in which a run says what it found. It holds
neither code nor tables of numbers nor what was printed.
"""
import json
from collections.abc import Iterator
from pathlib import Path

from pages import Page, Site, plain_text, signatures

PROSE = ("Para", "Plain", "BulletList", "OrderedList", "DefinitionList", "BlockQuote", "Div", "Figure", "Table", "LineBlock")
BOXES = {"cell", "cell-label", "html-output", "figure-files"}
BREAKS = ("Para", "Plain", "Figure", "Table")      # words on both sides of these are not one word


def sections(tree: dict) -> Iterator[tuple[str, str, str]]:
    "The sections of a page's tree: anchor (empty before the first heading), heading, and the words of its prose."
    anchor, heading, words = "", "", []
    for block in tree["blocks"]:
        if block["t"] != "Header":
            words += _words(block)
            continue
        yield anchor, heading, " ".join(words)
        anchor, heading, words = block["c"][1][0], plain_text(block["c"][2]), []
    yield anchor, heading, " ".join(words)


def _words(block: dict) -> list[str]:
    return plain_text(_prose(block)).split() if block["t"] in PROSE else []


def _prose(node):
    """A tree without the boxes that hold code, outputs and links to files, and with a space behind every paragraph,
    so that the words of two do not run together."""
    if isinstance(node, list): return [_prose(child) for child in node]
    if not isinstance(node, dict): return node
    if node.get("t") == "Div" and BOXES & set(node["c"][0][1]): return []
    inner = {**node, "c": _prose(node["c"])} if "c" in node else node
    return [inner, {"t": "Space"}] if node.get("t") in BREAKS else inner


def write_index(site: Site, trees: dict[str, dict], out: Path) -> None:
    "Write `out`/search.js: pages, names and sections; a name leads to the cell that defines it."
    pages = list(site.pages.values())
    names = [[at, page.exported.get(name.split(".")[0], ""), name, given, said]
             for at, page in enumerate(pages) for name, given, said in _named(page)]
    found = [[at, anchor, heading or _bare(page.title), text] for at, page in enumerate(pages)
             for anchor, heading, text in sections(trees[page.source]) if text or heading or not anchor]
    index = {"pages": [[_bare(page.title), page.url] for page in pages], "names": names, "sections": found}
    text = json.dumps(index, ensure_ascii=False, separators=(",", ":"))
    # it is a script: <, and the line ends that json has and scripts once had not, are written as escapes
    for sign in "<\u2028\u2029": text = text.replace(sign, f"\\u{ord(sign):04x}")
    (out/"search.js").write_text(f"window.emReproSearch={text}\n", encoding="utf-8")


def _named(page: Page) -> Iterator[tuple[str, str, str]]:
    for name, given, said in signatures(page):
        if name.split(".")[0] in page.exported: yield name, given, _bare(said)


def _bare(words: str) -> str: return words.replace("`", "")
