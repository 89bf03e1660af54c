"""What is written into the staged notebooks, so that both renderers say the same.

Quarto renders a notebook as it stands, and the pandoc renderer makes a document of it: a cell that becomes part of a
module gets a line that says so, with the anchors that links lead to; a figure or table that was not made gets a note
in its place; a picture gets a text for those who cannot see it.
"""
import json, re

from pages import PICTURES, defined, folded_under, form_of, options, read_page

NOT_RUN = "Not executed: nothing to show."
# Pages that are read for what they find: their code is folded. Where functions are explained it stays open.
FOLDED = re.compile(r"\d\d_|beyond/")


def dress(page, files=None) -> list[dict]:
    """The cells of a staged page with its labels, notes, folds and alternative texts; papermill's metadata is dropped.

    `files`: from the code of a cell with a figure, and the anchor above it, to the line of links that stands below it."""
    cells, section, anchored, folded = [], page.title, set(), FOLDED.match(page.source)
    for cell in page.cells:
        if cell["cell_type"] == "markdown":
            section = next(iter(re.findall(r"(?m)^#{1,6} +(.*?) *(?:\{#.*)?$", cell["source"])[-1:]), section)
        if cell["cell_type"] != "code":
            cells.append(cell)
            continue
        chosen, code = options(cell["source"])
        tags = cell["metadata"].pop("tags", [])
        cell["metadata"] = {}
        shown = chosen.get("include") is not False and "hide" not in chosen
        drawn = shown and any(form_of(output) in PICTURES for output in cell["outputs"])
        links = files(code, f"code-{cell.get('id')}") if files and drawn else ""
        if shown and code.strip() and chosen.get("echo") is not False:
            words, anchors = _label(page, chosen, code, tags, anchored)
            if folded: _fold(cell, chosen, code, words)
            said = f"[]{{#code-{cell.get('id')}}}" * bool(links) + anchors + ("" if folded else words)
            if said: cells.append(_markdown(f"::: {{.cell-label}}\n{said}\n:::", f"{cell.get('id')}-label"))
        cells.append(cell)
        if drawn: _describe(cell, chosen, section)
        if links: cells.append(_markdown(f"::: {{.figure-files}}\n{links}\n:::", f"{cell.get('id')}-files"))
        if shown and not page.executed and re.match("(fig|tbl)-", str(chosen.get("label", ""))):
            cells.append(_not_run(cell, chosen, code))
    return cells


def _label(page, chosen: dict, code: str, tags: list, anchored: set) -> tuple[str, str]:
    "What is said of a cell that is exported or holds parameters, and the anchors of the names that it defines."
    if {"export", "exports", "exporti"} & chosen.keys():
        names = [n for n in dict.fromkeys(defined(code)) if n in page.exported and n not in anchored]
        anchored.update(names)
        return f"exported to `{page.module or 'em_repro'}`", "".join(f"[]{{#{page.exported[name]}}}" for name in names)
    if "injected-parameters" in tags: return "parameters of this run", ""
    return ("parameters and their defaults" if "parameters" in tags else ""), ""


def _fold(cell: dict, chosen: dict, code: str, words: str) -> None:
    "Fold a cell's code under a line that says what it holds, unless its author chose otherwise."
    if "code-fold" in chosen: return
    names = list(dict.fromkeys(defined(code)))
    what = ", ".join(names[:3] + ["..."] * (len(names) > 3)) or "Code"
    said = words.replace("`", "")
    said = said.capitalize() if said.startswith("parameters") else f"{what}, {said}" if said else what
    given = {"code-fold": True, "code-summary": folded_under(code, said)}
    for option, value in given.items():
        if option not in chosen: _add(cell, option, value)
        chosen.setdefault(option, value)


def _not_run(cell: dict, chosen: dict, code: str) -> dict:
    "The numbered place of a figure or table that was not made; its label and caption leave the cell."
    kept = {key: value for key, value in chosen.items()
            if key != "label" and not key.startswith(("fig-", "tbl-"))}
    cell["source"] = head(kept) + code
    caption = chosen.get("fig-cap") or chosen.get("tbl-cap") or ""
    words = f"::: {{#{chosen['label']} .not-run}}\n{NOT_RUN}\n\n{caption}\n:::"
    return _markdown(words, f"{cell.get('id')}-not-run")


def _describe(cell: dict, chosen: dict, section: str) -> None:
    "Give a cell's pictures an alternative text: the caption's words, or where the figure stands."
    if "fig-alt" in chosen: return
    words = spoken(str(chosen.get("fig-cap") or "")) or f"Figure in the section {spoken(section)}"
    _add(cell, "fig-alt", words)


def _add(cell: dict, option: str, value) -> None:
    "Put an option behind those at a cell's head."
    lines = cell["source"].splitlines()
    at = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#|")), len(lines))
    cell["source"] = "\n".join([*lines[:at], f"#| {option}: {json.dumps(value, ensure_ascii=False)}", *lines[at:]])


def spoken(markdown: str) -> str:
    "A caption's words without the marks of code, mathematics and emphasis."
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", markdown)
    words = re.sub(r"(?<!\w)[*_]{1,3}(?=\S)(.*?)(?<=\S)[*_]{1,3}(?!\w)", r"\1", words)
    return " ".join(re.sub(r"[`$]", "", words).split())


def head(chosen: dict) -> str:
    "Options as the lines at a cell's head."
    return "".join(f"#| {key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in chosen.items())


def _markdown(source: str, id: str) -> dict:
    return {"cell_type": "markdown", "id": id, "metadata": {}, "source": source}


def dress_notebook(path, root, files=None) -> None:
    "Rewrite a staged notebook as `dress` does; what an editor or papermill noted goes."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    page = read_page(path, root)
    kept = {key: value for key, value in notebook["metadata"].items() if key == "kernelspec"}
    made = {**notebook, "cells": dress(page, files), "metadata": kept}
    path.write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
