"""What a run left behind, as notebook cells: the banner of every page, and the results page."""
import csv, html, json, math, posixpath, re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from em_repro.claims import Claim, advice_claims
from em_repro.claims import claims as paper_claims
from em_repro.cli import effect_text, escaped
from em_repro.figures import p_text, table_of, title
from em_repro.folders import RunFolder, verdict_files
from em_repro.profiles import UserError
from em_repro.spoken import runs_said
from cells import spoken
from files import Kept
from pages import options, read_page, signatures

MEASUREMENTS = "**This page shows committed measurements**, which do not depend on the run that the rest of the site shows."
NO_RUN = "**No run is shown here.** The code is complete; `make reproduce` makes its results, `make docs` shows them."
LEADING = "C3"      # subtracting the direction
VERDICTS = ("supported", "contradicted", "mixed", "inconclusive", "not testable")
KERNEL = {"display_name": "python3", "language": "python", "name": "python3"}


def _json(path: Path):
    "A run's json file, or None when it has none; raises `UserError` when it cannot be read."
    if not path.is_file(): return None
    try: return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid json ({error}): run the stage again, or delete the file") from None


def declared() -> dict[str, Claim]:
    "Every declared claim, the paper's and ours, by id."
    return paper_claims() | advice_claims()


def claims(run: Path) -> list[dict]:
    """The rows of the run's ledger with their `behaviour`, one behaviour after the other, from the folder claims/ or from
    claims.json; an empty list when it has neither."""
    folder = RunFolder(run)
    paths, names = verdict_files(folder), list(folder.behaviours())
    rows = [_json(path) for path in paths] or _json(folder.ledger) or []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"the claims of {run} must be objects, one per claim: make them again with em-repro reproduce")
    whose = [path.parent.name for path in paths] or names[:1] * len(rows) or [""] * len(rows)
    rows = [{"behaviour": name, **row} for name, row in zip(whose, rows)]
    def place(row: dict) -> list:
        parts = re.split(r"(\d+)", str(row.get("claim", "")))
        at = names.index(row["behaviour"]) if row["behaviour"] in names else len(names)
        return [at, *(int(part) if part.isdigit() else part for part in parts)]
    return sorted(rows, key=place)


def by_behaviour(rows: list[dict]) -> dict[str, list[dict]]:
    "Rows of a ledger by behaviour, in their order."
    parts: dict[str, list[dict]] = {}
    for row in rows: parts.setdefault(row.get("behaviour", ""), []).append(row)
    return parts


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
    asked = "requests" if rows and all(row.get("unit") == "nats" for row in rows) else "questions"
    found = {"profile": str(profile), "n": str(kept.get("n", n)), "asked": asked}
    return found | {key: str(kept[key]) for key in ("commit", "date") if isinstance(kept.get(key), str)}


def _literal(word: str) -> str:
    "A word from a run's file as inline code, whatever characters it has."
    return f"`{' '.join(word.replace('`', ' ').split())}`"


def banner(origin: dict[str, str], executed: bool, outdated: bool, links: Sequence[str] = ()) -> dict:
    "A markdown cell that says which run a page's numbers come from, or that it shows none; `links` end it."
    if not origin: return markdown_cell(f"::: {{.run-banner}}\n{NO_RUN}\n:::", "run-banner")
    whose = f"profile {_literal(origin['profile'])}"
    size = f", n = {_literal(origin['n']).strip('`')} {origin['asked']}" if origin["n"] else ""
    size += "".join(f", {key} {_literal(origin[key])}" for key in ("commit", "date") if key in origin)
    if executed:
        words = f"**Results on this page: {whose}**{size}."
        if origin["profile"] != "paper":
            words += " They say what the method does on this profile's models, not what the paper's models do."
        if outdated: words += " **The notebook has changed since:** this page shows the code that ran, and its outputs."
    else: words = f"**No results on this page:** it was not executed in the run that the site shows ({whose}{size})."
    if links: words += f" To open: {', '.join(links)}."
    return markdown_cell(f"::: {{.run-banner}}\n{words}\n:::", "run-banner")


def markdown_cell(source: str, id: str) -> dict:
    return {"cell_type": "markdown", "id": id, "metadata": {}, "source": source}


def html_cell(markup: str, id: str, *head: str) -> dict:
    "A cell without visible code that shows HTML."
    output = {"output_type": "display_data", "metadata": {}, "data": {"text/html": markup}}
    source = "\n".join([*head, "#| echo: false", "show()"])
    return {"cell_type": "code", "id": id, "metadata": {}, "execution_count": None, "outputs": [output],
            "source": source}


def size(row: dict) -> str:
    "A verdict's effect with its interval, in signed points or nats."
    return effect_text({"n": "", **row}).split(", n = ")[0]


def over(row: dict) -> str:
    "What a verdict counts, in words."
    n = row.get("n")
    return "" if n in (None, "") else f"{n} {'requests' if row.get('unit') == 'nats' else 'questions'}"


def _in_points(text: str) -> str:
    "A ledger's sentence about shares, such as `target answers -0.74 [-0.78, -0.67]`, in points."
    def points(match: re.Match) -> str: return f"{100 * float(match[0]):+.0f}"
    return re.sub(r"[+-]\d\.\d\d\b", points, text) + " points" if re.search(r"[+-]\d\.\d\d\b", text) else text


def found(row: dict) -> list[str]:
    "What a run found of a claim, a line each: effect, questions and runs, p, and what stands beside them."
    nats, least = row.get("unit") == "nats", row.get("detectable")
    tests = [text for name in ("p", "q") if isinstance(row.get(name), int | float) and (text := p_text(row[name], name))]
    runs = runs_said(row.get("runs") or "", row.get("population") or "")
    lines = [size(row), "; ".join(filter(None, (over(row), runs))), ", ".join(tests)]
    if row.get("detail"): lines.append(f"hypotheses: {row['detail']}")
    if row.get("secondary"): lines.append(row["secondary"] if nats else _in_points(row["secondary"]))
    if row.get("cost"): lines.append(f"cost: {row['cost']}")
    if isinstance(least, int | float): lines.append(f"detectable: {least:.2f} nats a token" if nats else f"detectable: {100 * least:.1f} points")
    return [html.escape(_minus(line)) for line in lines if line]


def _minus(text: str) -> str:
    "Text with the sign before a number as a minus; ranges such as 21-51 and exponents keep theirs."
    return re.sub(r"(?<![\w)])-(?=[\d.])", "\u2212", text)


def badge(verdict) -> str:
    "A verdict as a word with a colour."
    colour = str(verdict).replace(" ", "-") if verdict in VERDICTS else "other"
    return f'<span class="verdict {colour}">{html.escape(str(verdict))}</span>'


def _place(claim: Claim | None, nbs: Path) -> tuple[str, str]:
    "The page that tests a claim and the anchor of its table there; empty where there is none."
    books = [path for folder in ("", "beyond") for path in [nbs/folder/f"{claim.notebook}.ipynb"] if path.is_file()] if claim else []
    if not books: return "", ""
    anchor = _shown_by(json.loads(books[0].read_text(encoding="utf-8"))["cells"], claim.table)
    page = books[0].relative_to(nbs).as_posix().removesuffix(claim.notebook + ".ipynb") + re.sub(r"^\d+_", "", claim.notebook) + ".html"
    return page, anchor


def _shown_by(cells: list[dict], table: str) -> str:
    "The anchor of the cell that shows a table; empty where it has none, or showed nothing when the page was executed."
    made = [(options("".join(cell["source"]))[0].get("label"), cell.get("outputs")) for cell in cells
            if cell["cell_type"] == "code" and f'"{table}"' in "".join(cell["source"])]
    executed = any(cell.get("outputs") for cell in cells)
    return next((f"#{label}" for label, outputs in made if label and (outputs or not executed)), "")


def _links(row: dict, kept: Kept, nbs: Path) -> str:
    "Links to the cell that tests a claim, and to its figure and its data where the run has them."
    claim, run = declared().get(str(row.get("claim"))), RunFolder(kept.run)
    page, anchor = _place(claim, nbs)
    if not page: return ""
    b = row.get("behaviour", "")
    files = {word: path for word, path in (
        ("figure", run.figures(b)/f"{claim.figure}.svg"), ("data", run.tables(b)/f"{claim.table}.csv")) if path.is_file()}
    urls = {"test": page + anchor} | {word: kept.address(files[word]) for word in ("figure", "data") if word in files}
    return ", ".join(f'<a href="{html.escape(url)}">{word}</a>' for word, url in urls.items())


def _claim_row(row: dict, kept: Kept, nbs: Path) -> str:
    effect, *more = found(row)
    see, protocol = _links(row, kept, nbs), row.get("protocol")
    cells = {"claim": html.escape(str(row.get("claim"))) + (f'<br><span class="interval">{see}</span>' if see else ""),
             "statement": html.escape(str(row.get("statement") or ""))
             + (f'<br><span class="interval">protocol: {html.escape(_minus(protocol))}</span>' if protocol else ""),
             "paper": html.escape(str(row.get("paper") or "not recorded")),
             "found": "<br>".join([f"<strong>{effect}</strong>", *(f'<span class="interval">{line}</span>' for line in more)]),
             "verdict": badge(row.get("verdict"))}
    return "<tr>" + "".join(f'<td class="{key}">{cell}</td>' for key, cell in cells.items()) + "</tr>"


def claims_table(rows: list[dict], kept: Kept, nbs: Path) -> str:
    "The ledger as an HTML table: in every row what the paper says stands beside what this run found."
    body, parts = [], by_behaviour(rows)
    for name, part in parts.items():
        if len(parts) > 1: body.append(f'<tr class="behaviour"><th colspan="5" scope="colgroup">Behaviour {html.escape(name)}</th></tr>')
        body += [_claim_row(row, kept, nbs) for row in part]
    names = ("claim", "what is claimed", "what the paper says", "what this run found", "verdict")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return f'<table class="claims"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'


def _line(row: dict, url: str) -> str:
    "A claim, its effect and its verdict as one line of a list."
    words = html.escape(str(row.get("statement")))
    if url: words = f'<a href="{html.escape(url)}">{words}</a>'
    return (f'<li><span class="claim">{html.escape(str(row.get("claim")))}</span> <span class="statement">{words}</span> '
            f'<span class="effect">{html.escape(_minus(size(row).replace(" points", "").replace(" nats a token", "")))}</span> {badge(row.get("verdict"))}</li>')


def _unit(rows: list[dict]) -> str:
    return "Shifts in nats a token" if all(row.get("unit") == "nats" for row in rows) else "Effects in percentage points"


def page_verdicts(kept: Kept, behaviour: str, name: Path, notebook: dict) -> dict | None:
    "The verdicts that a page reaches and its main figure in small, as the cell it begins with; None where it reaches none."
    rows = [row for row in claims(kept.run) if (claim := declared().get(str(row.get("claim")))) and claim.notebook == name.stem
            and row["behaviour"] in ("", behaviour)]
    if not rows: return None
    heads = [options("".join(cell["source"])) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    main, code = next(((chosen, code) for chosen, code in heads if str(chosen.get("label", "")).startswith("fig-")), ({}, ""))
    drawing = kept.of_figure(kept.figure(code, behaviour), behaviour).get("svg")
    items = "".join(_line(row, _shown_by(notebook["cells"], declared()[row["claim"]].table)) for row in rows)
    words = f'<ol class="glance own">{items}</ol><p class="interval unit">{_unit(rows)}, with 95% intervals.</p>'
    if drawing:
        src = posixpath.relpath(kept.address(drawing), name.parent.as_posix())
        alt = f"The main figure, which stands below in full: {spoken(str(main.get('fig-cap', '')))}"
        words += (f'<p><a href="#{main["label"]}"><img class="main-figure" src="{html.escape(src)}" '
                  f'alt="{html.escape(alt)}"></a></p>')
    return html_cell(words, "page-verdicts")


def glance(kept: Kept, nbs: Path) -> list[dict]:
    "The claims and their verdicts, a line each, as the landing page's cells; an empty list when the run has none."
    rows, card = claims(kept.run), _json(RunFolder(kept.run).provenance)
    if not rows: return []
    settings = (card if isinstance(card, dict) else {}).get("settings") or {}
    names = settings.get("models", settings.get("families", []))
    models = " and ".join(map(title, names if len(names) < 3 else []))
    lists = {name: "".join(_line(row, _place(declared().get(str(row.get("claim"))), nbs)[0]) for row in part)
             for name, part in by_behaviour(rows).items()}
    (_, first), *others = lists.items()
    head = f"## What was found{' on ' + escaped(models) if models else ''}"
    more = "".join(f'<details><summary>The same models and behaviour {html.escape(name)}</summary><ol class="glance">{items}</ol></details>'
                   for name, items in others)
    return [markdown_cell(head, "what-was-found"), html_cell(f'<ol class="glance">{first}</ol>{more}', "glance")]


def landing_banner(kept: Kept) -> dict:
    "What the landing page's list counts and whose it is, in a line."
    origin, rows = dict(kept.origin), claims(kept.run)
    words = f"Profile {_literal(origin['profile'])}" if not rows else f"{_unit(rows)}, 95% intervals: profile {_literal(origin['profile'])}"
    if origin["n"]: words += f", n = {_literal(origin['n']).strip('`')} {origin['asked']}"
    words += "".join(f", {key} {_literal(origin[key])}" for key in ("commit", "date") if key in origin) + "."
    if origin["profile"] != "paper": words += " Not the paper's models."
    return markdown_cell(f"::: {{.run-banner}}\n{words}\n:::", "run-banner")


def leading_figure(kept: Kept, nbs: Path) -> list[dict]:
    "The figure of the claim that the paper is named for, or of the first that has one, as the landing page's cell."
    rows, run = claims(kept.run), RunFolder(kept.run)
    for row in sorted(rows, key=lambda row: row.get("claim") != LEADING):
        claim = declared().get(str(row.get("claim")))
        stem, behaviour = (claim.figure if claim else ""), next(iter(run.behaviours()), "")
        svg = kept.of_figure(stem, behaviour).get("svg")
        if not svg: continue
        for path in kept.of_figure(stem, behaviour).values(): kept.keep(path, nbs)
        caption, source = _captions(nbs).get(stem, ("", []))
        words = spoken(caption).replace("\\", "").replace('"', "'")
        return [markdown_cell(f"[![]({kept.address(svg)}){{fig-alt=\"{words}\"}}]({kept.address(svg)}){{.zoom}}\n\n{caption}\n\n"
                              f"::: {{.figure-files}}\n{kept.links(stem, behaviour, '', *source)}\n:::", "leading-figure")]
    return []


def sizes(run: Path) -> dict[str, str]:
    "How many questions each figure of a run counts: what its claim or its table says, where they say one number."
    tables, found = {}, {}
    kept = RunFolder(run)
    for path in [path for b in reversed(kept.behaviours()) for path in sorted(kept.tables(b).glob("*.csv"))]:
        with path.open(encoding="utf-8", newline="") as file: tables[path.stem] = {row.get("n") or "" for row in csv.DictReader(file)} - {""}
    said = {claim.figure: row.get("n") for row in claims(run) if (claim := declared().get(str(row.get("claim"))))}
    for stem in {path.stem for b in kept.behaviours() for path in kept.figures(b).glob("*.svg")}:
        named = table_of(stem, [name for name in tables if tables[name]])
        known = tables[named] if named else {str(said.get(stem) or "")}
        n = next(iter(known)).removesuffix(".0") if len(known) == 1 else ""
        if n.isdigit(): found[stem] = n
    return found


def with_size(source: str, sizes: dict[str, str]) -> str:
    "A cell's source, with n at the end of its caption where its figure's is known."
    n = next((sizes[name] for name in re.findall(r'''["']([\w.-]+)["']''', source) if name in sizes), None)
    if n is None or re.search(r"(?m)^#\|\s*fig-cap:.*\bn = ", source): return source
    return re.sub(r"(?m)^(#\|\s*fig-cap:\s*\S.*?)([\"']?)\s*$", rf"\1 n = {n} questions.\2", source, count=1)


def _captions(nbs: Path) -> dict[str, tuple[str, list[str]]]:
    "For each word that a captioned cell names in quotes, such as a figure's file: the caption, and links to figure and code."
    found = {}
    for path in sorted(nbs.rglob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            chosen, code = options("".join(cell["source"])) if cell["cell_type"] == "code" else ({}, "")
            caption, label = chosen.get("fig-cap"), chosen.get("label")
            if not isinstance(caption, str): continue
            anchor, page = f"#{label}" if isinstance(label, str) else "", path.relative_to(nbs).as_posix()
            links = [f"[in the study]({page}{anchor})"] + [f"[code]({page}#code-{cell['id']})"] * bool(cell.get("outputs"))
            for word in re.findall(r"""["']([\w.-]+)["']""", code): found.setdefault(word, (caption, links))
    return found


def _gallery(kept: Kept, nbs: Path) -> list[dict]:
    "Every figure once, its svg shown where there is one, with links to the files and to the study."
    captions, items, run = _captions(nbs), [], RunFolder(kept.run)
    drawn = [path for b in run.behaviours() for path in sorted(run.figures(b).glob("*.*")) if path.suffix in (".svg", ".png")]
    for place in dict.fromkeys(path.with_suffix("") for path in drawn):
        stem, behaviour = place.name, place.parent.name
        files = kept.of_figure(stem, behaviour)
        for path in files.values(): kept.keep(path, nbs)
        caption, source = captions.get(stem, (re.sub(r"[^\w. ]|_", " ", stem), []))
        first = kept.address(files.get("svg") or files["png"])
        alt = spoken(caption).replace("\\", "").replace('"', "'")
        items.append(f"::: {{.gallery-item}}\n[![]({first}){{fig-alt=\"{alt}\"}}]({first}){{.zoom}}\n\n{caption}\n\n"
                     f"::: {{.figure-files}}\n{kept.links(stem, behaviour, '', *source)}\n:::\n:::")
    return [markdown_cell("## Figures\n\nA click shows a figure in full.\n\n:::: {.gallery}\n" + "\n\n".join(items)
                          + "\n::::", "figures")] if items else []


def _tables(kept: Kept, nbs: Path, rows_shown: int = 6) -> list[dict]:
    "Links to every csv table, each with its first rows."
    items, run = [], RunFolder(kept.run)
    for path in [path for b in run.behaviours() for path in sorted(run.tables(b).glob("*.csv"))]:
        kept.keep(path, nbs)
        with path.open(encoding="utf-8", newline="") as file: rows = list(csv.reader(file)) or [[]]
        name = html.escape(path.stem)
        head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in rows[0])
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell[:200])}</td>" for cell in row) + "</tr>"
                       for row in rows[1:rows_shown + 1])
        items.append(f'<details class="fold"><summary>{name}: {len(rows) - 1} rows, {len(rows[0])} columns</summary>'
                     f'<p><a href="{kept.address(path)}">{name}.csv</a></p>'
                     f'<div class="scroll" tabindex="0" role="region" aria-label="First rows of {name}">'
                     f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></details>")
    answers = [path for b in run.behaviours() if (path := run.evidence(b)).is_file()]
    for path in answers: kept.keep(path, nbs)
    how = " ([how](guide/reading_results.ipynb))" if (nbs/"guide"/"reading_results.ipynb").is_file() else ""
    said = "Every table as csv, with its first rows."
    if answers: said += (f"\n\nEvery answer by question, from which the verdicts can be decided again{how}: "
                         f"{', '.join(f'[{path.name}]({kept.address(path)})' for path in answers)}.")
    return [markdown_cell(f"## Tables\n\n{said}", "tables"), html_cell("".join(items), "csv-tables")] if items else []


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


def results_notebook(kept: Kept, nbs: Path) -> dict | None:
    "The results page; figures and tables are copied below `nbs`. None when the run has nothing to show."
    run, cells = kept.run, []
    rows = claims(run)
    if rows:
        words = ("## Claims\n\nEach row is one claim, what the paper says of it and what this run found: @tbl-claims. The unit of "
                 "inference is the question; q is p after the correction within the claim's family of tests. "
                 "*Detectable* is the smallest effect (for equivalence: margin) that this run would have found in four "
                 "of five repetitions: it tells an inconclusive claim that was well measured from one that was not. "
                 "What is said of target answers is what the paper counts; it decides nothing here.")
        if (nbs/"guide"/"changes.ipynb").is_file():
            words += "\n\n[What changed since the last release, and why](guide/changes.ipynb)."
        cells = [markdown_cell(words, "claims"),
                 html_cell(claims_table(rows, kept, nbs), "claims-table", "#| label: tbl-claims",
                           "#| tbl-cap: The claims and what this run says about them")]
    if (run/"report.html").is_file():
        kept.keep(run/"report.html", nbs)
        cells.append(markdown_cell("## Report\n\n[One file to keep or pass on](results/report.html): verdicts, doses, layers and tables, and every answer side by side, to search.", "report"))
    cells += _gallery(kept, nbs) + _tables(kept, nbs)
    if not cells: return None
    title = markdown_cell("# Results\n> Claims, figures and tables of this run", "results")
    return {"cells": [title, *cells], "metadata": {"kernelspec": KERNEL}, "nbformat": 4, "nbformat_minor": 5}
