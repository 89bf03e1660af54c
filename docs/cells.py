"""What is written into the staged notebooks, so that both renderers say the same.

Quarto renders a notebook as it stands, and the pandoc renderer makes a document of it: a cell that becomes part of a
module gets a line that says so, with the anchors that links lead to; a figure or table that was not made gets a note
in its place; a picture gets a text for those who cannot see it.
"""
import json, re

from pages import PICTURES, defined, form_of, options, read_page

NOT_RUN = "Not executed: nothing to show."


def dress(page) -> list[dict]:
    "The cells of a staged page with its labels, notes and alternative texts; papermill's metadata is dropped."
    cells, section, anchored = [], page.title, set()
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
        if shown and code.strip() and chosen.get("echo") is not False:
            cells += _label(cell, page, chosen, code, tags, anchored)
        cells.append(cell)
        if shown and any(form_of(output) in PICTURES for output in cell["outputs"]):
            _describe(cell, chosen, section)
        if shown and not page.executed and re.match("(fig|tbl)-", str(chosen.get("label", ""))):
            cells.append(_not_run(cell, chosen, code))
    return cells


def _label(cell: dict, page, chosen: dict, code: str, tags: list, anchored: set) -> list[dict]:
    "The line above a cell that is exported or holds parameters, if it is one of these."
    words = None
    if {"export", "exports", "exporti"} & chosen.keys():
        names = [n for n in dict.fromkeys(defined(code)) if n in page.exported and n not in anchored]
        anchored.update(names)
        anchors = "".join(f"[]{{#{page.exported[name]}}}" for name in names)
        words = f"{anchors}exported to `{page.module or 'em_repro'}`"
    elif "injected-parameters" in tags: words = "parameters of this run"
    elif "parameters" in tags: words = "parameters and their defaults"
    return [_markdown(f"::: {{.cell-label}}\n{words}\n:::", f"{cell.get('id')}-label")] if words else []


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
    lines = cell["source"].splitlines()
    at = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#|")), len(lines))
    cell["source"] = "\n".join([*lines[:at], f"#| fig-alt: {json.dumps(words, ensure_ascii=False)}", *lines[at:]])


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


def dress_notebook(path, root) -> None:
    "Rewrite a staged notebook with its labels, notes and texts; what an editor or papermill noted goes."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    page = read_page(path, root)
    kept = {key: value for key, value in notebook["metadata"].items() if key == "kernelspec"}
    made = {**notebook, "cells": dress(page), "metadata": kept}
    path.write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
