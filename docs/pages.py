"""From a processed notebook to a pandoc document: cells, outputs, numbering, cross-references and links.

Only what authors wrote is ever parsed as pandoc's full markdown. Outputs are put into its document tree as finished
nodes, so that text which a model produced cannot close a fence, open a tag or become a link.
"""
import ast, base64, html, json, posixpath, re, subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pypandoc, yaml
from nbdev.config import nbpath2html

from em_repro.profiles import UserError

Node = dict
KINDS = {"fig": "Figure", "tbl": "Table", "sec": "Section"}
CALLOUTS = ("note", "tip", "warning", "important", "caution")
ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


@cache
def pandoc() -> str:
    "Path of the pandoc that pypandoc found: the wheel's own, or the system's."
    return pypandoc.get_pandoc_path()


def run_pandoc(text: str, *args: str) -> str:
    "Standard output of pandoc given `text`; raises `CalledProcessError` when it fails."
    return subprocess.run([pandoc(), *args], input=text, capture_output=True, encoding="utf-8", check=True).stdout


# The pandoc nodes that are made here; https://hackage.haskell.org/package/pandoc-types describes them

def attr(id: str = "", classes: tuple = (), **pairs: str) -> list:
    "A node's attributes; `_` in a name stands for `-`."
    return [id, list(classes), [[k.replace("_", "-"), v] for k, v in pairs.items()]]

def text(string: str) -> Node: return {"t": "Str", "c": string}
def plain(*inlines: Node) -> Node: return {"t": "Plain", "c": list(inlines)}
def raw(markup: str) -> Node: return {"t": "RawBlock", "c": ["html", markup]}
def div(attributes: list, *blocks: Node) -> Node: return {"t": "Div", "c": [attributes, list(blocks)]}
def span(attributes: list, *inlines: Node) -> Node: return {"t": "Span", "c": [attributes, list(inlines)]}
def code_block(string: str, *classes: str) -> Node: return {"t": "CodeBlock", "c": [attr(classes=classes), string]}
def link(url: str, *inlines: Node, classes: tuple = (), **pairs: str) -> Node:
    return {"t": "Link", "c": [attr(classes=classes, **pairs), list(inlines), [url, ""]]}

def figure(id: str, classes: tuple, caption: list, *blocks: Node) -> Node:
    return {"t": "Figure", "c": [attr(id, classes), [None, [plain(*caption)] if caption else []], list(blocks)]}

def scroll_box(*blocks: Node, label: str = "Table") -> Node:
    "A box that scrolls sideways by itself and can be reached with the keyboard."
    return div(attr(classes=("scroll",), tabindex="0", role="region", aria_label=label), *blocks)

def walk(node, change: Callable[[Node], Node | list | None], skip: frozenset = frozenset()):
    "Rebuild a tree from its leaves up: `change` returns a node, a list of nodes in its place, or None to keep it."
    if isinstance(node, list):
        rebuilt = []
        for child in node:
            new = walk(child, change, skip)
            rebuilt.extend(new) if isinstance(child, dict) and isinstance(new, list) else rebuilt.append(new)
        return rebuilt
    if not isinstance(node, dict) or node.get("t") in skip: return node
    if "c" in node: node = {**node, "c": walk(node["c"], change, skip)}
    new = change(node) if "t" in node else None
    return node if new is None else new

def plain_text(nodes) -> str:
    "The words of a piece of tree, for labels and alternative texts."
    if isinstance(nodes, list): return "".join(map(plain_text, nodes))
    if not isinstance(nodes, dict): return ""
    kind = nodes.get("t")
    if kind in ("Str", "Code", "Math"): return nodes["c"] if kind == "Str" else nodes["c"][1]
    return " " if kind in ("Space", "SoftBreak", "LineBreak") else plain_text(nodes.get("c", []))


# HTML from outputs

TAGS = set("a abbr b br caption code col colgroup dd del details div dl dt em figcaption figure h3 h4 h5 h6 hr i img "
           "ins kbd li ol p pre q s samp small span strong style sub summary sup table tbody td tfoot th thead tr tt u "
           "ul var".split())
VOID = {"br", "col", "hr", "img"}
DROPPED = set("script iframe object template noscript noembed noframes svg math title textarea xmp select".split())
ATTRIBUTES = set("align alt cellpadding cellspacing class colspan height href id lang open role rowspan scope span src "
                 "style tabindex title valign width".split())
FETCHES = re.compile(r"url\s*\(|@import|expression\s*\(|image-set|\\", re.I)


def scoped(css: str, within: str) -> str:
    "`css` nested below the selector `within`, or nothing when it could fetch a file or break out of its braces."
    depth = [0]
    for brace in re.findall(r"[{}]", css): depth.append(depth[-1] + (1 if brace == "{" else -1))
    return "" if FETCHES.search(css) or "<" in css or min(depth) < 0 or depth[-1] else f"{within}{{{css}}}"


class _Safe(HTMLParser):
    "Writes a fragment again from allowed tags and attributes, always balanced, its ids beginning with `prefix`."
    def __init__(self, prefix: str):
        super().__init__(convert_charrefs=True)
        self.out, self.open, self.dropping, self.prefix = [], [], [], prefix

    def handle_starttag(self, tag, attrs):
        if tag in DROPPED: self.dropping.append(tag)
        if self.dropping or tag not in TAGS: return
        given = [(name, self.prefix + value if name == "id" and value else value or "") for name, value in attrs]
        kept = "".join(f' {name}="{html.escape(value)}"' for name, value in given if self.allowed(name, value))
        self.out.append("<style>" if tag == "style" else f"<{tag}{kept}>")
        if tag not in VOID: self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        if tag in VOID: self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        if self.dropping:
            if tag == self.dropping[-1]: self.dropping.pop()
        elif tag in self.open:
            while (last := self.open.pop()) != tag: self.out.append(f"</{last}>")
            self.out.append(f"</{tag}>")

    def handle_data(self, data):
        if self.dropping: return
        style = self.open[-1:] == ["style"]
        self.out.append(scoped(data, ".html-output") if style else html.escape(data, quote=False))

    @staticmethod
    def allowed(name: str, value: str) -> bool:
        if name == "style": return not FETCHES.search(value)
        if name == "src": return loads_locally(value)
        if name == "href": return loads_locally(value) or bool(re.match("https?://|mailto:", value))
        return name in ATTRIBUTES or name.startswith("aria-")


def loads_locally(url: str) -> bool:
    "Whether an address from an output is a relative path, an anchor or an embedded picture."
    # browsers skip control characters and turn backslashes, which would hide `//host` from the second pattern
    if re.search(r"[\x00-\x1f\\]", url): return False
    return bool(re.match(r"data:image/(png|jpeg|gif);base64,|(?!/)[^:?#]*([?#]|$)", url.strip()))


def safe_html(fragment: str, prefix: str = "") -> str:
    "A fragment of HTML without scripts, event handlers, foreign files and page-wide styles; ids get the prefix."
    ids = set(re.findall(r"""\bid\s*=\s*["']?([\w-]+)""", fragment))
    def own(match: re.Match) -> str: return f"#{prefix}{match[1]}" if match[1] in ids else match[0]
    parser = _Safe(prefix)
    parser.feed(re.sub(r"(?s)<style.*?</style>", lambda style: re.sub(r"#([\w-]+)", own, style[0]), fragment))
    parser.close()
    return "".join(parser.out) + "".join(f"</{tag}>" for tag in reversed(parser.open))


# Notebooks

@dataclass
class Page:
    "A processed notebook and the page that it becomes; paths are relative to the notebooks' folder and the site's."
    source: str
    url: str
    title: str
    description: str
    cells: list
    module: str = ""
    exported: dict[str, str] = field(default_factory=dict)   # a function or class -> its anchor

    @property
    def executed(self) -> bool:
        "Whether any cell has an output."
        return any(cell.get("outputs") for cell in self.cells)

    def to(self, url: str) -> str:
        "`url` as seen from this page."
        return posixpath.relpath(url, posixpath.dirname(self.url) or ".")


# What Quarto knows at a cell's head (its schema cell-*.yml), and what nbdev knows there; its bare words have no colon.
CELL_OPTIONS = set("""classes code-fold code-line-numbers code-overflow code-summary column echo error eval fig-align
  fig-alt fig-cap fig-cap-location include label layout-ncol lst-cap lst-label output panel tbl-cap tbl-cap-location
  tbl-colwidths warning""".split())
DIRECTIVES = set("default_exp export exporti exports exec_doc hide hide_line notest cuda".split())


def options(source: str) -> tuple[dict, str]:
    """The `#|` lines at a cell's head, one YAML mapping as Quarto reads them, and the rest of the cell.

    Raises `ValueError` for what Quarto would stop at: no YAML, a value that is no scalar, an option it does not know.
    """
    lines = source.splitlines()
    end = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#|")), len(lines))
    given = [line[2:].removeprefix(" ") for line in lines[:end] if line.strip()]
    bare = [line for line in given if line and not line[0].isspace() and ":" not in line]
    found = {word: value.strip() or True for word, _, value in (line.strip().partition(" ") for line in bare)}
    try: mapping = yaml.safe_load("\n".join(line for line in given if line not in bare)) or {}
    except yaml.YAMLError as error:
        said = next((line for line in given if re.match(r"[\w-]+: .*: ", line)), given[0])
        reason = getattr(error, "problem", None) or "it cannot be read"
        raise ValueError(f"`#| {said[:60]}` is no YAML ({reason}): put the text in quotes") from None
    if not isinstance(mapping, dict): raise ValueError(f"`#| {given[0][:60]}` is no `key: value`")
    for key, value in (found | mapping).items():
        if key not in CELL_OPTIONS | DIRECTIVES: raise ValueError(f"`#| {key}` is known neither to Quarto nor to nbdev")
        if value is None or isinstance(value, dict | list):
            raise ValueError(f"`#| {key}` must be one word, number or text in quotes, not {value!r}")
    return found | mapping, "\n".join(lines[end:]).strip("\n")


def folded_under(code: str, said: str = "Code") -> str:
    "The line under which code is folded: what is said of it, and how long it is."
    lines = len(code.splitlines())
    return f"{said} ({lines} line{'s' * (lines != 1)})"


def defined(code: str) -> Iterator[str]:
    "Public names that a cell defines at its top level."
    try: tree = ast.parse(code)
    except SyntaxError: return
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"): yield node.name


def read_page(path: Path, root: Path) -> Page:
    """Read a notebook; once nbdev has processed it, title and description are in its first raw cell.

    Raises `UserError`, which names page and cell, for options that Quarto would not read.
    """
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in cells: cell["source"] = "".join(cell["source"])
    head = next((c["source"] for c in cells if c["cell_type"] == "raw"), "")
    match = re.match(r"---\n(.*?)\n---", head.strip(), re.S)
    meta = (yaml.safe_load(match[1]) or {}) if match else {}
    source = path.relative_to(root)
    page = Page(source.as_posix(), source.with_name(meta.get("output-file") or nbpath2html(source).name).as_posix(),
                str(meta.get("title", source.stem)), str(meta.get("description", "")), cells)
    for cell in cells:
        if cell["cell_type"] != "code": continue
        try: chosen, code = options(cell["source"])
        except ValueError as error: raise UserError(f"{source}, cell {cell.get('id')}: {error}") from None
        if "default_exp" in chosen: page.module = f"em_repro.{chosen['default_exp']}"
        if {"export", "exports"} & chosen.keys() and "hide" not in chosen:
            page.exported |= {name: f"def-{name}" for name in defined(code)}
    return page


def signatures(page: Page) -> Iterator[tuple[str, str, str]]:
    "What a page exports: name (a method's with its class), arguments and result as written, first sentence of the docstring."
    for cell in page.cells:
        chosen, code = options(cell["source"]) if cell["cell_type"] == "code" else ({}, "")
        if not {"export", "exports"} & chosen.keys() or "hide" in chosen: continue
        try: tree = ast.parse(code)
        except SyntaxError: continue
        for node in tree.body: yield from _signature(node)


def _signature(node: ast.stmt, within: str = "") -> Iterator[tuple[str, str, str]]:
    if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"): return
    words = (ast.get_docstring(node) or "").partition("\n\n")[0]
    first = re.split(r"(?<=[.!?])\s", " ".join(words.split()), maxsplit=1)[0]
    if isinstance(node, ast.FunctionDef):
        is_property = any("property" in ast.unparse(mark) for mark in node.decorator_list)
        given = "" if is_property else f"({', '.join(_arguments(node, bool(within)))})"
        yield within + node.name, given + (f" -> {ast.unparse(node.returns)}" if node.returns else ""), first
        return
    made = next((member for member in node.body if isinstance(member, ast.FunctionDef) and member.name == "__init__"), None)
    fields = [ast.unparse(line).split(" = field(")[0] for line in node.body if isinstance(line, ast.AnnAssign)]
    yield node.name, f"({', '.join(_arguments(made, True) if made else fields)})", first
    for member in node.body: yield from _signature(member, f"{node.name}.")


def _arguments(function: ast.FunctionDef, method: bool) -> list[str]:
    "The arguments as written, but for a method's first."
    given, said = function.args, []
    def add(argument: ast.arg, value: ast.expr | None, stars: str = ""):
        default = "" if value is None else (" = " if argument.annotation else "=") + ast.unparse(value)
        said.append(stars + ast.unparse(argument) + default)
    ordered = [*given.posonlyargs, *given.args]
    for argument, value in zip(ordered, [None] * (len(ordered) - len(given.defaults)) + given.defaults): add(argument, value)
    if method and not any(ast.unparse(mark) == "staticmethod" for mark in function.decorator_list): del said[:1]
    if given.vararg: add(given.vararg, None, "*")
    elif given.kwonlyargs: said.append("*")
    for argument, value in zip(given.kwonlyargs, given.kw_defaults): add(argument, value)
    if given.kwarg: add(given.kwarg, None, "**")
    return said


@dataclass
class Site:
    "What a page needs to know about the others."
    pages: dict[str, Page]                                  # by source
    fold: bool | str = False                                # Quarto's site-wide `code-fold`

    def definition(self, name: str) -> tuple[Page, str] | None:
        "The page and anchor that define an exported name, when there is exactly one."
        module, _, short = name.removesuffix("()").rpartition(".")
        found = [(page, page.exported[short]) for page in self.pages.values() if short in page.exported
                 and (not module or page.module == module or page.module == f"em_repro.{module}")]
        return found[0] if len(found) == 1 else None


def document(page: Page, site: Site, files: Path) -> dict:
    "The page as pandoc's document tree; the images of its outputs are written below the folder `files`."
    maker = _Maker(page, site, files)
    return maker.document()


class _Maker:
    def __init__(self, page: Page, site: Site, files: Path):
        self.page, self.site, self.files = page, site, files
        self.images, self.tables, self.meta = 0, 0, {}
        self.numbers: dict[str, tuple[str, str]] = {}        # label -> (kind, number or heading)

    def document(self) -> dict:
        slots = [f"::::: {{.page-{key}}}\n{getattr(self.page, key)}\n:::::" for key in ("title", "description")]
        slots += [self.slot(i, cell) for i, cell in enumerate(self.page.cells) if cell["cell_type"] != "raw"]
        tree = json.loads(run_pandoc("\n\n".join(slots), "-f", "markdown-yaml_metadata_block", "-t", "json"))
        body = tree["blocks"]
        for change in (self.fill, self.as_figure, self.count, self.resolve): body = walk(body, change)
        body = walk(body, self.link_code, skip=frozenset({"Link", "Header", "CodeBlock"}))
        return {**tree, "meta": self.meta, "blocks": body}

    def slot(self, i: int, cell: Node) -> str:
        "Markdown as it is; a code cell as an empty place that holds its caption, which is markdown too."
        if cell["cell_type"] == "markdown": return cell["source"]
        chosen, _ = options(cell["source"])
        caption = chosen.get("fig-cap") or chosen.get("tbl-cap") or ""
        return f"::::: {{.cell-slot n={i}}}\n{caption}\n:::::"

    def fill(self, node: Node) -> list | None:
        "Put cells where their slots are, and the title and description into the metadata."
        if node["t"] != "Div": return None
        (_, classes, pairs), blocks = node["c"]
        if "cell-slot" in classes:
            return self.cell(self.page.cells[int(dict(pairs)["n"])], blocks[0]["c"] if blocks else [])
        if classes in (["page-title"], ["page-description"]):
            self.meta[classes[0].removeprefix("page-")] = {"t": "MetaInlines", "c": blocks[0]["c"] if blocks else []}
            return []
        return None

    # cells

    def cell(self, cell: Node, caption: list) -> list:
        chosen, code = options(cell["source"])
        if chosen.get("include") is False or "hide" in chosen: return []
        blocks = []
        if code.strip() and chosen.get("echo") is not False: blocks.append(self.source(chosen, code))
        if chosen.get("output") is not False: blocks += self.outputs(cell, chosen, caption)
        return blocks

    def source(self, chosen: dict, code: str) -> Node:
        "The code, folded when asked."
        blocks = [code_block(code, "python", "cell-code")]
        fold = chosen.get("code-fold", self.site.fold)
        if fold:
            summary = html.escape(str(chosen.get("code-summary", folded_under(code))))
            head = f'<details class="fold code"{" open" if fold == "show" else ""}><summary>{summary}</summary>'
            blocks = [raw(head), *blocks, raw("</details>")]
        return div(attr(classes=("cell",)), *blocks)

    def outputs(self, cell: Node, chosen: dict, caption: list) -> list:
        shown = list(merged(cell.get("outputs", [])))
        label = chosen["label"] if isinstance(chosen.get("label"), str) else ""
        pictures = sum(form_of(output) in PICTURES for output in shown)
        blocks, done = [], 0
        tables = [i for i, output in enumerate(shown) if form_of(output) in ("text/html", "text/markdown")]
        for i, output in enumerate(shown):
            form = form_of(output)
            numbered = label if tables[-1:] == [i] or form not in ("text/html", "text/markdown") else ""   # a cell's last table has its number
            data = joined(output.get("data", {}).get(form, output.get("text", ""))) if form != "error" else ""
            if form in PICTURES:
                id = f"{label}-{done + 1}" if label and pictures > 1 else label
                blocks.append(self.picture(form, data, id, caption, chosen))
                done += 1
            elif form == "error":
                blocks.append(code_block(ANSI.sub("", f"{output['ename']}: {output['evalue']}"), "output", "error"))
            elif form == "text/markdown" or form == "stream" and chosen.get("output") == "asis":
                blocks += self.tabled(untrusted_markdown(data), numbered, caption)
            elif form == "text/html":
                self.tables += 1
                table = div(attr(classes=("html-output",)), raw(safe_html(data, f"out{self.tables}-")))
                boxed = scroll_box(table, label=plain_text(caption) or "Table") if "<table" in data else table
                blocks += self.tabled([boxed], numbered, caption)
            elif form == "text/latex": blocks += untrusted_markdown(data)
            elif data.strip():
                kind = ("stderr",) if output.get("name") == "stderr" else ()
                blocks.append(code_block(terminal(data), "output", *kind))
        return blocks

    def tabled(self, blocks: list, label: str, caption: list) -> list:
        "Blocks as a numbered table, when the cell has a `tbl-` label."
        return [figure(label, ("table",), caption, *blocks)] if label.startswith("tbl-") else blocks

    def picture(self, form: str, data: str, id: str, caption: list, chosen: dict) -> Node:
        self.images += 1
        folder = Path(self.page.url).with_suffix("").name + "_files"
        path = self.files/Path(self.page.url).parent/folder/f"{self.images}.{'svg' if 'svg' in form else form[6:]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if "svg" in form else base64.b64decode(data))
        url = f"{folder}/{path.name}"
        image = {"t": "Image", "c": [attr(), [text(str(chosen.get("fig-alt", "")))], [url, ""]]}
        return figure(id, (), caption, plain(link(url, image, classes=("zoom",))))      # site.js shows it in full

    # the whole document

    def as_figure(self, node: Node) -> Node | list | None:
        "Labelled tables and divisions become figures, which get the numbers; tables and callouts get their boxes."
        if node["t"] == "Table":
            (id, classes, _), caption = node["c"][0], node["c"][1][1]
            if not id.startswith("tbl-"): return scroll_box(node)
            bare = {**node, "c": [attr(classes=tuple(classes)), [None, []], *node["c"][2:]]}
            inlines = [inline for block in caption for inline in block["c"]]
            return figure(id, ("table",), inlines, scroll_box(bare, label=plain_text(inlines) or "Table"))
        if node["t"] == "Div":
            (id, classes, _), blocks = node["c"]
            if re.match("(fig|tbl)-", id) and blocks and blocks[-1]["t"] == "Para":
                kept = tuple(name for name in classes if name == "not-run")
                return figure(id, kept or ("table",) * id.startswith("tbl-"), blocks[-1]["c"], *blocks[:-1])
            kind = next((k for k in CALLOUTS if f"callout-{k}" in classes), None)
            if kind:
                titled = blocks and blocks[0]["t"] == "Header"
                title = blocks[0]["c"][2] if titled else [text(kind.capitalize())]
                return div(node["c"][0], {"t": "Para", "c": [{"t": "Strong", "c": title}]}, *blocks[titled:])
        if node["t"] == "Image":
            (id, classes, pairs), _, target = node["c"]
            alt = dict(pairs).get("fig-alt")
            if alt: return {**node, "c": [[id, classes, [p for p in pairs if p[0] != "fig-alt"]], [text(alt)], target]}
        return None

    def count(self, node: Node) -> Node | None:
        "Give figures and tables their numbers, in the order of the page; headings keep their words for references."
        if node["t"] == "Header": self.numbers[node["c"][1][0]] = ("", plain_text(node["c"][2]))
        kind = node["t"] == "Figure" and re.match("(fig|tbl)-", node["c"][0][0])
        if not kind: return None
        number = str(1 + sum(k == KINDS[kind[1]] for k, _ in self.numbers.values()))
        self.numbers[node["c"][0][0]] = (KINDS[kind[1]], number)
        caption = [inline for block in node["c"][1][1] for inline in block["c"]]
        head = {"t": "Strong", "c": [text(f"{KINDS[kind[1]]}\u00a0{number}{':' if caption else ''}")]}
        return {**node, "c": [node["c"][0], [None, [plain(head, {"t": "Space"}, *caption)]], node["c"][2]]}

    def resolve(self, node: Node) -> Node | list | None:
        if node["t"] == "Cite": return self.reference(*node["c"])
        if node["t"] == "CodeBlock":      # long lines scroll in their box, by the keyboard as well
            (id, classes, pairs), code = node["c"]
            return {**node, "c": [[id, classes, [*pairs, ["tabindex", "0"]]], code]}
        if node["t"] == "Header" and node["c"][1][0]:
            anchor = link(f"#{node['c'][1][0]}", classes=("anchor",), aria_label=f"Link to {plain_text(node['c'][2])}")
            return {**node, "c": [*node["c"][:2], [*node["c"][2], anchor]]}
        if node["t"] == "Link":
            url, title = node["c"][2]
            return {**node, "c": [*node["c"][:2], [self.target(url), title]]}
        return None

    def reference(self, citations: list, words: list) -> list:
        "`@fig-x` as a link to `Figure 1`; what is not on the page is marked as Quarto marks it, for check.py to find."
        if not all(re.match("(fig|tbl|sec)-", c["citationId"]) for c in citations): return words
        inlines = []
        for c in citations:
            label = c["citationId"]
            kind, number = self.numbers.get(label, (None, None))
            if inlines: inlines += [text(","), {"t": "Space"}]
            if kind is None: inlines.append(span(attr(classes=("unresolved",)), text(f"?@{label}")))
            elif c["citationMode"]["t"] == "SuppressAuthor" or not kind: inlines.append(link(f"#{label}", text(number)))
            else: inlines.append(link(f"#{label}", text(f"{kind}\u00a0{number}")))
        return inlines

    def target(self, url: str) -> str:
        "Links between notebooks become links between their pages."
        path, mark, anchor = url.partition("#")
        source = posixpath.normpath(posixpath.join(posixpath.dirname(self.page.source), path))
        return self.page.to(self.site.pages[source].url) + mark + anchor if path and source in self.site.pages else url

    def link_code(self, node: Node) -> Node | None:
        "An exported name in prose leads to the cell that defines it."
        named = node["t"] == "Code" and re.fullmatch(r"[\w.]+(\(\))?", node["c"][1])
        found = self.site.definition(node["c"][1]) if named else None
        if not found: return None
        page, anchor = found
        return link(("" if page is self.page else self.page.to(page.url)) + f"#{anchor}", node)


# outputs

PICTURES = ("image/svg+xml", "image/png", "image/jpeg")
FORMS = ("text/markdown", *PICTURES, "text/html", "text/latex", "text/plain")

def form_of(output: Node) -> str:
    "The representation of an output that is shown; empty for what only a live notebook can show."
    if output["output_type"] in ("stream", "error"): return output["output_type"]
    data = output.get("data", {})
    return "" if any("widget" in key for key in data) else next((form for form in FORMS if form in data), "")

def joined(value) -> str: return "".join(value) if isinstance(value, list) else str(value)

def merged(outputs: list) -> Iterator[Node]:
    "Neighbouring pieces of one stream as one output."
    last = None
    for output in outputs:
        if output["output_type"] == "stream": output = {**output, "text": joined(output["text"])}
        if last and output["output_type"] == "stream" and last.get("name") == output["name"]:
            last["text"] += output["text"]
        else:
            if last: yield last
            last = output
    if last: yield last

def terminal(string: str) -> str:
    "Text as a terminal would leave it: no colour codes, and progress lines only in their last state."
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in ANSI.sub("", string).strip("\n").split("\n"))

OUTPUT_MARKDOWN = ("markdown_strict-raw_html+pipe_tables+simple_tables+table_captions+tex_math_dollars+citations"
                   "+backtick_code_blocks+strikeout+intraword_underscores+all_symbols_escapable+smart")

def untrusted_markdown(string: str) -> list:
    "Markdown from an output: HTML in it stays text, and it can neither set attributes nor load or run anything."
    def harmless(node: Node) -> list | None:
        use = {"Image": "src", "Link": "href"}.get(node["t"])
        return node["c"][1] if use and not _Safe.allowed(use, node["c"][2][0]) else None
    return walk(json.loads(run_pandoc(string, "-f", OUTPUT_MARKDOWN, "-t", "json"))["blocks"], harmless)
