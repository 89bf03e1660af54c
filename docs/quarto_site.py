"""The site as Quarto makes it, from the notebooks that nbdev has processed.

Quarto trusts what a notebook holds: an output is parsed as its full markdown or written as HTML. What models wrote is
therefore put into the notebook in a form that can neither run, load nor leave its place, as on pandoc's pages.
"""
import json, re, shutil, subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import yaml
from cells import head
from em_repro.profiles import UserError
from pages import (CELL_OPTIONS, PICTURES, Page, Site, folded_under, form_of, joined, merged, options, read_page, run_pandoc,
                   safe_html, terminal, untrusted_markdown, walk)

LANDING = "index.ipynb"
# Quarto's markdown for what an output says: `{` would begin an attribute or a shortcode, `:::` a division.
BRACE, COLON = ({"t": "RawInline", "c": ["markdown", code]} for code in ("&#123;", "&#58;"))
LOUD = re.compile(r"^\W*(WARN\w*|ERROR)\b:?\s*(.*)", re.I)
# Tables of markdown scroll by themselves and are reached by the keyboard, as on pandoc's pages; those of outputs are raw HTML with a box already.
SCROLL = """{Table = function(table)
  return pandoc.Div({table}, pandoc.Attr("", {"scroll"}, {tabindex = "0", role = "region", ["aria-label"] = "Table"}))
end}"""
# An exported name in prose leads to the cell that defines it, but within a link.
NAMED = """{traverse = "topdown", Link = function(link) return link, false end, Code = function(code)
  local place = PLACES[(code.text:gsub("%(%)$", ""))]
  if place then return pandoc.Link({code}, quarto.project.offset .. "/" .. place), false end
end}"""
SKIP = '<a class="skip" href="#quarto-document-content">Skip to the content</a>'
# A link to a name leads to the line above its cell, whose code may be folded; site.js does the same on pandoc's pages.
UNFOLD = """<script>
function unfold() {
  const at = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)))
  const label = at && at.closest(".cell-label"), fold = label && label.nextElementSibling && label.nextElementSibling.querySelector("details.code-fold")
  if (fold && !fold.open) { fold.open = true; at.scrollIntoView() }
}
addEventListener("hashchange", unfold)
unfold()
</script>
"""
UNRESOLVED = re.compile(r"Unable to resolve link target: (.+)$")
COLOUR = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


def version() -> str:
    "What the Quarto on the PATH says that it is; an empty string where there is none."
    program = shutil.which("quarto")
    if not program: return ""
    done = subprocess.run([program, "--version"], capture_output=True, encoding="utf-8")
    return done.stdout.strip().splitlines()[-1] if not done.returncode and done.stdout.strip() else "of unknown version"


def prepare(proc: Path) -> None:
    "Rewrite processed notebooks and the configuration below `proc` as Quarto needs them."
    paths = sorted(proc.rglob("*.ipynb"))
    places = defined_at([read_page(path, proc) for path in paths])
    for path in paths:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells, tables = [], 0
        for cell in notebook["cells"]:
            source = "".join(cell["source"])
            # as with pandoc, the landing page has the whole width
            if cell["cell_type"] == "raw" and path == proc/LANDING: source = source.replace("\n---", "\ntoc: false\n---", 1)
            if cell["cell_type"] == "code":
                chosen, code = options(source)
                cell["outputs"], tables = shown_outputs(cell["outputs"], tables)
                if not code.strip() and not cell["outputs"]: continue       # `#| default_exp`, and nothing more
                if chosen.get("code-fold"): chosen.setdefault("code-summary", folded_under(code))
                source = head({key: value for key, value in numbered(chosen, cell["outputs"]).items() if key in CELL_OPTIONS}) + code
            # the id becomes one on the page, beside those of headings, and metadata become attributes;
            # of a source that is one string Quarto drops the line breaks
            cells.append({**cell, "id": f"cell-{cell.get('id')}", "metadata": {}, "source": source.splitlines(keepends=True)})
        notebook["cells"] = cells
        path.write_text(json.dumps(notebook, ensure_ascii=False), encoding="utf-8")
    config = yaml.safe_load((proc/"_quarto.yml").read_text(encoding="utf-8"))
    config.pop("metadata-files", None)                  # nbdev.yml, which only nbdev-docs writes
    config.setdefault("project", {})["output-dir"] = "_site"
    config["execute"] = {"enabled": False}
    html = config.setdefault("format", {}).setdefault("html", {})
    for place, lines in (("before", SKIP), ("after", UNFOLD)):
        html[f"include-{place}-body"] = [*html.get(f"include-{place}-body", []), {"text": lines}]
    config.setdefault("filters", []).append({"at": "post-render", "path": "pages.lua"})
    named = "".join(f"  [{json.dumps(name)}] = {json.dumps(place)},\n" for name, place in places.items())
    (proc/"pages.lua").write_text(f"local PLACES = {{\n{named}}}\nreturn {{{NAMED}, {SCROLL}}}\n", encoding="utf-8")
    (proc/"_quarto.yml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")


def defined_at(pages: list[Page]) -> dict[str, str]:
    "Page and anchor of every exported name that is defined once, by the words that prose has for it: alone, behind its module, behind the package too."
    site, found = Site({page.source: page for page in pages}), {}
    for page in pages:
        inner = page.module.removeprefix("em_repro.")
        for name in page.exported:
            for word in (name, f"{inner}.{name}", f"em_repro.{inner}.{name}") if inner else (name,):
                if (at := site.definition(word)): found[word] = f"{at[0].url}#{at[1]}"
    return found


def numbered(chosen: dict, outputs: list) -> dict:
    "A cell's options, without label and caption where it showed no figure or table: Quarto would number an empty place."
    label, forms = str(chosen.get("label", "")), {form for output in outputs for form in output.get("data", {})}
    shown = forms & {*PICTURES, *(["text/markdown"] if label.startswith("tbl-") else [])} or chosen.get("output") == "asis" and outputs
    if shown or not label.startswith(("fig-", "tbl-")): return chosen
    return {key: value for key, value in chosen.items() if key != "label" and not key.startswith(("fig-", "tbl-"))}


def shown_outputs(outputs: list, tables: int) -> tuple[list, int]:
    "A cell's outputs in the one form that is shown, harmless; and how many HTML outputs the page has had by then."
    made = []
    for output in merged(outputs):
        form = form_of(output)
        if form == "stream": made.append({**output, "text": terminal(output["text"])})
        elif form == "error": made.append({**output, "traceback": [f"{output['ename']}: {output['evalue']}"]})
        elif form:
            data = joined(output["data"][form])
            if form == "text/html":
                tables += 1
                # as text/html it would have Quarto load require.js and jquery from another host
                form, data = "text/markdown", raw_block(boxed(data, f"out{tables}-"))
            elif form in ("text/markdown", "text/latex"): form, data = "text/markdown", quoted(data)
            elif form == "text/plain": data = terminal(data)
            made.append({"output_type": "display_data", "metadata": {}, "data": {form: data}})
    return made, tables


def boxed(markup: str, prefix: str) -> str:
    "An HTML output with its ids and styles for itself, in a box that scrolls when it holds a table."
    inner = f'<div class="html-output">{safe_html(markup, prefix)}</div>'
    return f'<div class="scroll" tabindex="0" role="region" aria-label="Table">{inner}</div>' if "<table" in inner else inner


def raw_block(markup: str) -> str:
    "Markup that Quarto writes into the page as it stands."
    fence = "`" * (3 + max(map(len, re.findall("`+", markup)), default=0))
    return f"{fence}{{=html}}\n{markup}\n{fence}"


def quoted(markdown: str) -> str:
    "Markdown from an output as Quarto's markdown: the same words and tables, without HTML, attributes and shortcodes."
    def plain(node: dict) -> list | None:
        if node["t"] != "Str" or not re.search(r"[{]|:::", node["c"]): return None
        parts = re.split(r"([{]|:(?=::)|(?<=:):)", node["c"])
        return [BRACE if part == "{" else COLON if part == ":" else {"t": "Str", "c": part} for part in parts if part]
    blocks = walk(untrusted_markdown(markdown), plain)
    return run_pandoc(json.dumps({"pandoc-api-version": _api_version(), "meta": {}, "blocks": blocks}),
                      "-f", "json", "-t", "markdown-raw_html-raw_attribute+tex_math_dollars", "--wrap=none")


@cache
def _api_version() -> list[int]:
    return json.loads(run_pandoc("", "-f", "markdown", "-t", "json"))["pandoc-api-version"]


def render_with_quarto(proc: Path, out: Path, warn: Callable[[str], None], later: Path) -> None:
    """Render the prepared notebooks into `out`; raises `UserError`, one sentence, where Quarto stops.

    `later`: what is laid over the site when it is made; that Quarto does not find it is no news."""
    prepare(proc)
    done = subprocess.run([shutil.which("quarto") or "quarto", "render", "--no-cache"], cwd=proc,
                          capture_output=True, encoding="utf-8", errors="replace")
    lines = [COLOUR.sub("", line).strip() for line in (done.stdout + "\n" + done.stderr).splitlines()]
    for line in dict.fromkeys(filter(LOUD.match, lines)):
        target = UNRESOLVED.search(line)
        if not done.returncode and not (target and (later/unquote(target[1])).is_file()): warn(f"Quarto: {LOUD.match(line)[2]}")
    if done.returncode or not (proc/"_site"/"index.html").is_file():
        raise UserError(f"Quarto could not render the site: {_reason(lines)}")
    for path in (proc/"_site").rglob("*.html"):
        path.write_text(finished(path.read_text(encoding="utf-8")), encoding="utf-8")
    shutil.move(proc/"_site", out)


def finished(page: str) -> str:
    "A page as Quarto made it, with what it lacks: plain outputs that the keyboard reaches, as highlighted code, and light colours on paper."
    dark = 'class="quarto-color-scheme quarto-color-alternate"'
    return page.replace("<pre><code>", '<pre tabindex="0"><code>').replace(dark, f'{dark} media="screen"')


def _reason(lines: list[str]) -> str:
    "What Quarto said when it stopped: the page at which it was, and its first error."
    page = next((match[1] for line in reversed(lines) if (match := re.match(r"\[ *\d+/\d+\] (\S+)", line))), "")
    said = next((line for line in lines if LOUD.match(line) and line.upper().startswith("ERROR")), "")
    said = LOUD.match(said)[2] if said else next(filter(None, reversed(lines)), "it left no message")
    return f"{page + ': ' if page else ''}{said}"
