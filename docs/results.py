"""What a run left behind, as notebook cells: the banner of every page, and the results page."""
import csv, html, json, math, re, shutil
from pathlib import Path
from urllib.parse import quote

from em_repro.claims import claims as declared
from em_repro.cli import effect_text, escaped
from em_repro.figures import title
from em_repro.folders import RunFolder, verdict_files
from em_repro.profiles import UserError
from cells import spoken
from pages import options, read_page, signatures

MEASUREMENTS = "**This page shows committed measurements**, which do not depend on the run that the rest of the site shows."
NO_RUN = "**No run is shown here.** The code is complete; `make reproduce` makes its results, `make docs` shows them."
COLUMNS = ("claim", "verdict", "statement", "effect", "p", "n")
# What stands in smaller print below another column's value, and with which word before it.
BELOW = {"verdict": {"runs": "", "population": ""}, "p": {"q": "q "},
         "effect": {"secondary": "", "cost": "cost: ", "detectable": "detectable "},
         "statement": {"paper": "paper: ", "detail": "found: ", "protocol": "protocol: "}}
VERDICTS = ("supported", "contradicted", "mixed", "inconclusive", "not testable")
KERNEL = {"display_name": "python3", "language": "python", "name": "python3"}


def _json(path: Path):
    "A run's json file, or None when it has none; raises `UserError` when it cannot be read."
    if not path.is_file(): return None
    try: return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid json ({error}): run the stage again, or delete the file") from None


def claims(run: Path) -> list[dict]:
    "The rows of the run's ledger, from claims.json or the folder claims/; an empty list when it has neither."
    kept = _json(RunFolder(run).ledger)
    rows = kept if kept is not None else [_json(path) for path in verdict_files(RunFolder(run))]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"the claims of {run} must be objects, one per claim: make them again with em-repro reproduce")
    return sorted(rows, key=lambda row: [int(part) if part.isdigit() else part
                                         for part in re.split(r"(\d+)", str(row.get("claim", "")))])


def provenance(run: Path | None) -> dict[str, str]:
    "The run's profile and n for the banner, as text; n is a range when the claims have different ones."
    if not run: return {}
    kept, rows, folder = _json(RunFolder(run).provenance), claims(run), run.resolve().name
    kept = kept if isinstance(kept, dict) else {}
    profile = kept.get("profile") or next((row["profile"] for row in rows if row.get("profile")), folder)
    if isinstance(profile, dict): profile = profile.get("name", folder)
    sizes = sorted({int(row["n"]) for row in rows if isinstance(row.get("n"), int | float) and math.isfinite(row["n"])})
    n = " to ".join(map(str, sizes if len(sizes) < 2 else (sizes[0], sizes[-1])))
    n = n or (kept.get("settings") or {}).get("questions", {}).get("evaluation", "")
    found = {"profile": str(profile), "n": str(kept.get("n", n))}
    return found | {key: str(kept[key]) for key in ("commit", "date") if isinstance(kept.get(key), str)}


def _literal(word: str) -> str:
    "A word from a run's file as inline code, whatever characters it has."
    return f"`{' '.join(word.replace('`', ' ').split())}`"


def banner(origin: dict[str, str], executed: bool, outdated: bool) -> dict:
    "A markdown cell that says which run a page's numbers come from, or that it shows none."
    words = NO_RUN
    if origin:
        words = f"**Results on this page: profile {_literal(origin['profile'])}**"
        if origin["n"]: words += f", n = {_literal(origin['n']).strip('`')} questions"
        words += "".join(f", {key} {_literal(origin[key])}" for key in ("commit", "date") if key in origin) + "."
        if origin["profile"] != "paper":
            words += " They say what the method does on this profile's models, not what the paper's models do."
        if not executed: words += " This page was not executed in that run."
        if outdated: words += " **The notebook has changed since:** this page shows the code that ran, and its outputs."
    return markdown_cell(f"::: {{.run-banner}}\n{words}\n:::", "run-banner")


def markdown_cell(source: str, id: str) -> dict:
    return {"cell_type": "markdown", "id": id, "metadata": {}, "source": source}


def html_cell(markup: str, id: str, *head: str) -> dict:
    "A cell without visible code that shows HTML."
    output = {"output_type": "display_data", "metadata": {}, "data": {"text/html": markup}}
    source = "\n".join([*head, "#| echo: false", "show()"])
    return {"cell_type": "code", "id": id, "metadata": {}, "execution_count": None, "outputs": [output],
            "source": source}


def number(value) -> str:
    "A number to three significant digits; a dash for what was not measured. Anything else is text."
    if value is None or value == "" or isinstance(value, float) and math.isnan(value): return "–"
    return f"{value:.3g}".replace("-", "\u2212") if isinstance(value, float) else str(value)


def _links(row: dict, run: Path, nbs: Path) -> str:
    "Links to the cell that tests a claim, and to its figure and its data where the run has them."
    claim = declared().get(str(row.get("claim")))
    if not claim or not (nbs/f"{claim.notebook}.ipynb").is_file(): return ""
    cells = json.loads((nbs/f"{claim.notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    label = next((options(s)[0].get("label") for s in sources if f'"{claim.table}"' in s), None)
    page = re.sub(r"^\d+_", "", claim.notebook) + ".html" + (f"#{label}" if label else "")
    kept = RunFolder(run)
    files = {"figure": kept.figures()/f"{claim.figure}.svg", "data": kept.tables()/f"{claim.table}.csv"}
    found = {"test": page} | {word: _address(file, run) for word, file in files.items() if file.is_file()}
    return ", ".join(f'<a href="{html.escape(url)}">{word}</a>' for word, url in found.items())


def _address(path: Path, run: Path) -> str:
    "Where the results page has a file of the run."
    return f"results/{quote(path.relative_to(run).as_posix())}"


def claims_table(rows: list[dict], run: Path, nbs: Path) -> str:
    "The ledger as an HTML table: the interval stands with its effect, the verdict is a word as well as a colour."
    shown = [key for key in COLUMNS if any(row.get(key) not in (None, "") for row in rows)]
    links = [_links(row, run, nbs) for row in rows]
    body = []
    for row, see in zip(rows, links):
        cells = {key: html.escape(number(row.get(key))) for key in shown}
        if "effect" in cells and row.get("low") is not None and row.get("high") is not None:
            interval = html.escape(f"[{number(row['low'])}, {number(row['high'])}]")
            cells["effect"] += f'<br><span class="interval">{interval}</span>'
        if "verdict" in cells:
            colour = row["verdict"] if row.get("verdict") in VERDICTS else "other"
            cells["verdict"] = f'<span class="verdict {colour}">{cells["verdict"]}</span>'
        for key, small in BELOW.items():
            for name, word in small.items():
                text = html.escape(number(row.get(name)))
                if key in cells and row.get(name) not in (None, ""): cells[key] += f'<br><span class="interval">{word}{text}</span>'
        if see: cells["claim"] += f'<br><span class="interval">{see}</span>'
        body.append("<tr>" + "".join(f'<td class="{key}">{cell}</td>' for key, cell in cells.items()) + "</tr>")
    head = "".join(f'<th scope="col">{"effect [interval]" if key == "effect" else key}</th>' for key in shown)
    return f'<table class="claims"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'


def glance(run: Path, nbs: Path) -> list[dict]:
    "The claims and their verdicts, a line each, as the landing page's cells; an empty list when the run has none."
    rows, kept, items = claims(run), _json(RunFolder(run).provenance), []
    if not rows: return []
    models = " and ".join(map(title, ((kept if isinstance(kept, dict) else {}).get("settings") or {}).get("families", [])))
    for row in rows:
        claim, verdict = declared().get(str(row.get("claim"))), str(row.get("verdict"))
        words = html.escape(str(row.get("statement")))
        if claim and (nbs/f"{claim.notebook}.ipynb").is_file():
            words = f'<a href="{re.sub(r"^[0-9]+_", "", claim.notebook)}.html">{words}</a>'
        colour, effect = verdict.replace(" ", "-") if verdict in VERDICTS else "other", effect_text(row).split(", n = ")[0].replace(" points", "")
        items.append(f'<li><span class="claim">{html.escape(str(row.get("claim")))}</span> <span class="statement">{words}</span> '
                     f'<span class="effect">{html.escape(effect)}</span> <span class="verdict {colour}">{html.escape(verdict)}</span></li>')
    head = f"## What was found{' on ' + escaped(models) if models else ''}"
    what = "Differences of log-likelihoods, over requests" if all(row.get("unit") == "nats" for row in rows) else \
        "Effects in percentage points of the questions"
    unit = f"{what}, with 95% intervals, n = {html.escape(provenance(run)['n'])}."
    return [markdown_cell(head, "what-was-found"), html_cell(f'<ol class="glance">{"".join(items)}</ol><p class="interval unit">{unit}</p>', "glance")]


def sizes(run: Path) -> dict[str, str]:
    "How many questions each figure of a run counts: what its claim or its table says, where they say one number."
    tables, found = {}, {}
    kept = RunFolder(run)
    for path in [path for b in reversed(kept.behaviours()) for path in sorted(kept.tables(b).glob("*.csv"))]:
        with path.open(encoding="utf-8", newline="") as file: tables[path.stem] = {row.get("n") or "" for row in csv.DictReader(file)} - {""}
    said = {claim.figure: row.get("n") for row in claims(run) if (claim := declared().get(str(row.get("claim"))))}
    for stem in {path.stem for b in kept.behaviours() for path in kept.figures(b).glob("*.svg")}:
        named = max((name for name in tables if tables[name] and f"{stem}-".startswith(f"{name}-")), key=len, default="")
        known = tables[named] if named else {str(said.get(stem) or "")}
        n = next(iter(known)).removesuffix(".0") if len(known) == 1 else ""
        if n.isdigit(): found[stem] = n
    return found


def with_size(source: str, sizes: dict[str, str]) -> str:
    "A cell's source, with n at the end of its caption where its figure's is known."
    n = next((sizes[name] for name in re.findall(r'''["']([\w.-]+)["']''', source) if name in sizes), None)
    if n is None or re.search(r"(?m)^#\|\s*fig-cap:.*\bn = ", source): return source
    return re.sub(r"(?m)^(#\|\s*fig-cap:\s*\S.*?)([\"']?)\s*$", rf"\1 n = {n} questions.\2", source, count=1)


def _captions(nbs: Path) -> dict[str, tuple[str, str]]:
    "For each word that a captioned cell names in quotes, such as a figure's file: the caption, and a link to the cell."
    found = {}
    for path in sorted(nbs.rglob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            chosen, code = options("".join(cell["source"])) if cell["cell_type"] == "code" else ({}, "")
            caption, label = chosen.get("fig-cap"), chosen.get("label")
            if not isinstance(caption, str): continue
            anchor = f"#{label}" if isinstance(label, str) else ""
            for word in re.findall(r"""["']([\w.-]+)["']""", code):
                found.setdefault(word, (caption, path.relative_to(nbs).as_posix() + anchor))
    return found


def _gallery(run: Path, nbs: Path) -> list[dict]:
    "Every figure once, its svg shown where there is one, with links to the files and to the study."
    captions, items, kept = _captions(nbs), [], RunFolder(run)
    drawn = [path for b in kept.behaviours() for path in sorted(kept.figures(b).glob("*.*")) if path.suffix in (".svg", ".png")]
    for place in dict.fromkeys(path.with_suffix("") for path in drawn):
        stem, made = place.name, [path for path in (place.with_suffix(".svg"), place.with_suffix(".png")) if path.is_file()]
        urls = {path.suffix[1:]: _address(path, run) for path in made}
        for path in made: _copy(path, nbs/"results"/path.relative_to(run))
        caption, source = captions.get(stem, (re.sub(r"[^\w. ]|_", " ", stem), ""))
        links = [f"[{kind}]({url})" for kind, url in urls.items()] + [f"[in the study]({source})"] * bool(source)
        first, last = list(urls.values())[0], list(urls.values())[-1]
        alt = spoken(caption).replace("\\", "").replace('"', "'")
        items.append(f"::: {{.gallery-item}}\n[![]({first}){{fig-alt=\"{alt}\"}}]({last})\n\n{caption} ({', '.join(links)})\n:::")
    return [markdown_cell("## Figures\n\nA click opens a figure in full.\n\n:::: {.gallery}\n" + "\n\n".join(items)
                          + "\n::::", "figures")] if items else []


def _tables(run: Path, nbs: Path, rows_shown: int = 6) -> list[dict]:
    "Links to every csv table, each with its first rows."
    items = []
    for path in [path for b in RunFolder(run).behaviours() for path in sorted(RunFolder(run).tables(b).glob("*.csv"))]:
        _copy(path, nbs/"results"/path.relative_to(run))
        with path.open(encoding="utf-8", newline="") as file: rows = list(csv.reader(file)) or [[]]
        name = html.escape(path.stem)
        head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in rows[0])
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell[:200])}</td>" for cell in row) + "</tr>"
                       for row in rows[1:rows_shown + 1])
        items.append(f'<details class="fold"><summary>{name}: {len(rows) - 1} rows, {len(rows[0])} columns</summary>'
                     f'<p><a href="{_address(path, run)}">{name}.csv</a></p>'
                     f'<div class="scroll" tabindex="0" role="region" aria-label="First rows of {name}">'
                     f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></details>")
    return [markdown_cell("## Tables\n\nEvery table as csv, with its first rows.", "tables"),
            html_cell("".join(items), "csv-tables")] if items else []


def _copy(source: Path, dest: Path) -> None:
    dest.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, dest)


def api_notebook(contents: list[str], nbs: Path) -> dict | None:
    "The reference of everything that the notebooks `contents` export, in their order; None when they export nothing."
    cells = []
    for page in (read_page(nbs/name, nbs) for name in contents):
        found = list(signatures(page))
        if not found or not page.module: continue
        head, said = re.match(r"# (.*)\n*(?:> (.*))?", next(c["source"] for c in page.cells if c["cell_type"] == "markdown")).groups()
        items = [f'<dt><a href="{html.escape(page.url)}#def-{html.escape(name.split(".")[0])}"><code>{html.escape(name)}</code></a>'
                 f'<code class="given">{html.escape(given)}</code></dt><dd>{_spoken(first)}</dd>' for name, given, first in found]
        short = page.module.rpartition(".")[2]
        cells += [markdown_cell(f"## {page.module} {{#{short}}}\n\n[{head}]({page.source}){': ' + said if said else ''}", f"module-{short}"),
                  html_cell(f'<dl class="api">{"".join(items)}</dl>', f"names-{short}")]
    if not cells: return None
    top = markdown_cell("# API reference\n> Every public name with its signature and what it is for; a name leads to the cell that defines it", "api")
    return {"cells": [top, *cells], "metadata": {"kernelspec": KERNEL}, "nbformat": 4, "nbformat_minor": 5}


def _spoken(sentence: str) -> str:
    "A docstring's sentence as HTML: what stands between backticks is code."
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(sentence, quote=False))


def results_notebook(run: Path, nbs: Path) -> dict | None:
    "The results page; figures and tables are copied to `nbs`/results. None when the run has nothing to show."
    rows, cells = claims(run), []
    if rows:
        words = ("## Claims\n\nEach row is one claim of the paper, tested in this run: @tbl-claims. The unit of "
                 "inference is the question; q is p after the correction within the claim's family of tests. "
                 "*Detectable* is the smallest effect (for equivalence: margin) that this run would have found in four "
                 "of five repetitions: it tells an inconclusive claim that was well measured from one that was not. "
                 "*Secondary* is the outcome that the paper counts and that decides nothing here. "
                 "*Seeds* says whether each seed of the fine-tuning alone gives the same verdict.")
        cells = [markdown_cell(words, "claims"),
                 html_cell(claims_table(rows, run, nbs), "claims-table", "#| label: tbl-claims",
                           "#| tbl-cap: The claims and what this run says about them")]
    if (run/"report.html").is_file():
        _copy(run/"report.html", nbs/"results"/"report.html")
        cells.append(markdown_cell("## Report\n\n[One file to keep or pass on](results/report.html): verdicts, doses, layers and tables, and every answer side by side, to search.", "report"))
    cells += _gallery(run, nbs) + _tables(run, nbs)
    if not cells: return None
    title = markdown_cell("# Results\n> Claims, figures and tables of this run", "results")
    return {"cells": [title, *cells], "metadata": {"kernelspec": KERNEL}, "nbformat": 4, "nbformat_minor": 5}
