"""Make the site from the notebooks and a run's executed copies of them.

    python docs/render.py --run runs/tiny --out _docs

`--execute` executes the examples too, the pages of foundations, tools and guide, which no run executes.
nbdev processes the notebooks. Where Quarto is on the PATH it makes the pages, elsewhere the pandoc of
`pypandoc_binary`, since Quarto cannot be installed everywhere; `--renderer` asks for one of them.
"""
import argparse, html, json, posixpath, re, shutil, subprocess, sys, tempfile, tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pypandoc, yaml
from em_repro.cli import BEGIN
from em_repro.folders import RunFolder, run_folder
from em_repro.profiles import UserError
from cells import dress_notebook
from examples import BANNER, KEPT, Stopped, example_pages, executed, executed_examples
from files import Kept
from pages import Page, Site, document, plain_text, read_page, run_pandoc
from quarto_site import render_with_quarto, version
from results import (MEASUREMENTS, api_notebook, banner, glance, landing_banner, leading_figure, markdown_cell, page_verdicts,
                     provenance, results_notebook, sizes, with_size)
from search import write_index

HERE = Path(__file__).resolve().parent
SCRIPT = "site.js"            # of pandoc's pages; Quarto has scripts of its own
MARK = ".em-repro-site"       # lies in every site made here: a folder without it is never replaced
# The pages show the study's source: nbdev would hide exported cells, and execute them again for their signatures.
# The repository's pyproject.toml says the same, so that a bare nbdev-docs executes nothing either.
SKIPPED = "add_show_docs,exec_show_docs,rm_export,add_links"
# Pages that show committed measurements, whatever the run: they are executed here, which takes seconds.
MEASURED = ("foundations/calibration.ipynb", "guide/speed.ipynb", "guide/verdict_changes.ipynb", "guide/changes.ipynb",
            "guide/architectures.ipynb", "guide/checked.ipynb", "guide/summary.ipynb")

LANDING, FOUND = Path("index.ipynb"), "what-was-found"    # the landing page, and its cell in whose place the run's verdicts stand


def warn(message: str) -> None: print(f"warning: {message}", file=sys.stderr)


# Staging: a copy of the notebooks with the run laid over it

def code_of(notebook: dict) -> list[str]:
    "The code that an author wrote: without the parameters that papermill put in."
    return ["".join(cell["source"]).strip() for cell in notebook["cells"] if cell["cell_type"] == "code"
            and not {"injected-parameters", "papermill-error-cell-tag"} & set(cell["metadata"].get("tags", []))]


@dataclass
class Executed:
    "A notebook as it ran: the run that has it, the behaviour that it was executed for, its file, what is in it."
    run: Path
    behaviour: str
    path: Path
    notebook: dict


def executed_notebooks(run: Path, nbs: Path) -> dict[Path, Executed]:
    """Executed notebooks by the source path that they replace; those of no known name are reported and left out.

    A page is about one behaviour: the paper's where it was executed for it, else the first by name."""
    found, kept = {}, RunFolder(run)
    for behaviour in kept.behaviours():
        made = kept.notebooks(behaviour)
        for path in sorted(made.rglob("*.ipynb")):
            name = path.relative_to(made)
            if (nbs/"beyond"/name).is_file(): name = Path("beyond")/name
            if (nbs/name).is_file():
                if name not in found: found[name] = Executed(run, behaviour, path, json.loads(path.read_text(encoding="utf-8")))
            elif not name.name.endswith(".failed.ipynb"): warn(f"{path} is not shown: {nbs} has no notebook of that name")
    return found


def laid_over(runs: Sequence[Path], nbs: Path) -> dict[Path, Executed]:
    "The executed notebook of each page, from the first of the runs that has one."
    found = {}
    for run in runs:
        for name, made in executed_notebooks(run, nbs).items(): found.setdefault(name, made)
    return found


def as_kept(runs: Sequence[Path]) -> dict[Path, Kept]:
    "Each run with the folder of the site that its files go to: `results`, and one below it for those beside the first."
    found = {}
    for run in runs:
        folder = "results" if not found else f"results/beside/{run.resolve().name}"
        while folder in {one.folder for one in found.values()}: folder += "-2"
        found[run] = Kept(run, folder, tuple(provenance(run).items()))
    return found


def executed_here(path: Path) -> dict:
    "A page of committed measurements with its outputs; raises `UserError` when a cell fails."
    try: return executed(path)
    except Stopped as error: raise UserError(f"{path.name} fails at {error}: run the measurements it shows again") from None


def checked(nbs: Path, run: Path | None, beside: Sequence[Path] = ()) -> list[Path]:
    "The runs that a site shows, in order; raises `UserError` for a missing one, one of the old layout, or `nbs` without its list."
    if not (nbs/"_quarto.yml").is_file():
        raise UserError(f"{nbs} has no _quarto.yml, which says what the sidebar holds: pass --nbs")
    runs = [one for one in (run, *beside) if one]
    for one in runs:
        if not one.is_dir():
            raise UserError(f"there is no run in {one}: make one with `make reproduce`, or leave --run out")
        run_folder(one.absolute())      # refuses a run of the old layout
    return runs


def stage(nbs: Path, run: Path | None, work: Path, foot: str, beside: Sequence[Path] = (), examples: dict[str, dict] | None = None) -> Path:
    """Copy `nbs` to `work`, lay the run's executed notebooks over it, and add the banner, the results page and the foot.

    `beside`: runs whose notebooks are shown where the run has none; each page says whose it is. `examples`: pages by
    name that were executed for the site, shown where no run has them. Notebooks that readers can open as they ran are
    laid in `work`/executed: below `nbs` they would be pages."""
    runs = checked(nbs, run, beside)
    staged, origins = work/"nbs", {one: provenance(one) for one in (run, *beside)}
    shutil.copytree(nbs, staged, ignore=shutil.ignore_patterns(".*", "_proc", "_docs", "nbdev.yml", "__pycache__"))
    laid, counted, kept = laid_over(runs, nbs), {one: sizes(one) for one in runs}, as_kept(runs)
    beside_figures = {}
    for path in sorted(staged.rglob("*.ipynb")):
        name = path.relative_to(staged)
        source = json.loads(path.read_text(encoding="utf-8"))
        made = laid.get(name)
        if name.as_posix() in MEASURED or (not made and name.as_posix() in (examples or {})):
            _lay_example(path, name.as_posix(), nbs, examples or {})
            read_page(path, staged)
            continue
        whose, shown = (made.run, made.notebook) if made else (run, source)
        outdated, links = code_of(shown) != code_of(source), []
        for cell in shown["cells"]:
            if cell["cell_type"] == "code" and made: cell["source"] = with_size("".join(cell["source"]), counted[whose])
        if made:
            one, here = kept[whose], posixpath.dirname(name.as_posix())
            one.keep(made.path, work/"executed")
            links = [f"[this notebook as it ran]({posixpath.relpath(one.address(made.path), here or '.')})", *one.source(name)]
            beside_figures[name] = figure_links(one, made.behaviour, staged, here)
        if outdated: warn(f"{name} has changed since the run: the page shows the code that ran")
        # the landing page computes nothing: its banner stands with the verdicts and has no word on what was executed
        landing, at = name == LANDING, 1
        if landing: at = _lay_glance(shown, kept[run] if run else None, staged)
        # without a run the landing page keeps the committed one's table, which names its run itself
        if run or not any(BEGIN in "".join(cell["source"]) for cell in shown["cells"]):
            shown["cells"].insert(at, landing_banner(kept[run]) if landing and run else banner(origins[whose], bool(made), outdated, links))
        if made and (verdicts := page_verdicts(kept[whose], made.behaviour, name, shown)): shown["cells"].insert(at + 1, verdicts)
        path.write_text(json.dumps(shown, ensure_ascii=False), encoding="utf-8")
        read_page(path, staged)             # refuses a cell's head that Quarto would stop at
    if run and (nbs/"00_finetune.ipynb").is_file():
        for path in sorted(nbs.glob("0?_*.ipynb")):
            if Path(path.name) not in laid or laid[Path(path.name)].run != run: warn(f"{path.name} was not executed in {run}: its page shows code only")
    results = results_notebook(kept[run], staged) if run else None
    if results:
        results["cells"].insert(1, banner(origins[run], True, False))
        (staged/"results.ipynb").write_text(json.dumps(results, ensure_ascii=False), encoding="utf-8")
    contents = yaml.safe_load((staged/"_quarto.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    api = api_notebook([name for name in order(contents, staged) if (staged/name).is_file()], staged)
    if api: (staged/"api.ipynb").write_text(json.dumps(api, ensure_ascii=False), encoding="utf-8")
    for path in sorted(staged.rglob("*.ipynb")): dress_notebook(path, staged, beside_figures.get(path.relative_to(staged)))
    _configure(staged, [f"{name}.ipynb" for name, made in (("results", results), ("api", api)) if made], foot)
    _project(nbs.resolve().parent/"pyproject.toml", work)
    return staged


def figure_links(one: Kept, behaviour: str, site: Path, here: str) -> Callable[[str, str], str]:
    "A function from a cell's code and anchor to the line below its figure; the files that it names are kept below `site`."
    def links(code: str, anchor: str) -> str:
        stem = one.figure(code, behaviour)
        if not stem: return ""
        for path in one.of_figure(stem, behaviour).values(): one.keep(path, site)
        return one.links(stem, behaviour, here, f"[code](#{anchor})")
    return links


def _lay_example(path: Path, name: str, nbs: Path, examples: dict[str, dict]) -> None:
    "A page that no run executes, with outputs of its own and the banner that says so; one without outputs needs none."
    shown = executed_here(nbs/name) if name in MEASURED else examples[name]
    words = MEASUREMENTS if name in MEASURED else BANNER
    if any(cell.get("outputs") for cell in shown["cells"]):
        shown["cells"].insert(1, markdown_cell(f"::: {{.run-banner}}\n{words}\n:::", "run-banner"))
    path.write_text(json.dumps(shown, ensure_ascii=False), encoding="utf-8")


def _lay_glance(notebook: dict, kept: Kept | None, nbs: Path) -> int:
    "Put a run's verdicts in the place that the landing page keeps for them; returns where the banner goes."
    cells = notebook["cells"]
    at = next((i for i, cell in enumerate(cells) if cell.get("id") == FOUND), None)
    if at is None: return 1
    found = glance(kept, nbs) if kept else []
    if found: cells[at:at + 1] = found
    # before the next section, where the figure follows
    end = next((i for i in range(at + 1, len(cells)) if re.match("##+ ", "".join(cells[i]["source"]))), len(cells))
    if found: cells[end:end] = leading_figure(kept, nbs)
    return end


def _configure(staged: Path, added: list[str], foot: str) -> None:
    "The staged site's _quarto.yml: the repository's, with the pages that were made here after the first, and the foot."
    path = staged/"_quarto.yml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    contents = config["website"]["sidebar"]["contents"]
    contents[1:1] = [name for name in added if name not in order(contents, staged)]
    config["website"]["page-footer"] = foot
    config.setdefault("project", {}).setdefault("resources", []).append("results/**")
    path.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _project(pyproject: Path, work: Path) -> None:
    "A pyproject.toml beside the staged notebooks: nbdev works in the folder of the nearest one."
    found = pyproject.read_text(encoding="utf-8") if pyproject.is_file() else ""
    if "nbdev" not in tomllib.loads(found).get("tool", {}):
        found = '[project]\nname = "site"\nversion = "0"\n\n[tool.nbdev]\ncustom_sidebar = true\n' + f'skip_procs = "{SKIPPED}"\n'
    (work/"pyproject.toml").write_text(found, encoding="utf-8")


def process(work: Path) -> Path:
    "nbdev's processing of the staged notebooks, in a process of its own because it depends on the working folder."
    program = "from nbdev.serve import proc_nbs; proc_nbs('nbs', n_workers=0)"
    done = subprocess.run([sys.executable, "-c", program], cwd=work, capture_output=True, encoding="utf-8")
    if done.returncode:
        last = (done.stderr.strip() or "it left no message").splitlines()[-1]
        raise UserError(f"nbdev could not process the notebooks: {last}")
    return work/"_proc"


# The site

def entries(contents, root: Path) -> list[tuple[str | None, object]]:
    "A sidebar's contents as (notebook, text) or (None, section); a string in place of a list is a file pattern."
    if isinstance(contents, str):
        found = sorted(path.relative_to(root).as_posix() for path in root.glob(contents) if path.suffix == ".ipynb")
        return [(name, None) for name in found]
    found = []
    for item in contents:
        if isinstance(item, str): found.append((item, None))
        elif "section" in item: found.append((None, item))
        elif "href" in item: found.append((item["href"], item.get("text")))
    return found


def order(contents, root: Path) -> list[str]:
    "The notebooks of the sidebar in reading order."
    return [name for source, item in entries(contents, root)
            for name in ([source] if source else order(item["contents"], root))]


def sidebar(contents, root: Path, site: Site, here: Page) -> str:
    "The navigation as nested lists, as seen from one page."
    items = []
    for source, item in entries(contents, root):
        if source is None:
            if not order(item["contents"], root): continue
            inner = sidebar(item["contents"], root, site, here)
            items.append(f'<li class="section"><span>{html.escape(item["section"])}</span>{inner}</li>')
        elif source in site.pages:
            page = site.pages[source]
            words = html.escape(str(item or page.title).replace("`", ""))
            current = ' aria-current="page"' if page is here else ""
            items.append(f'<li><a href="{here.to(page.url)}"{current}>{words}</a></li>')
        else: items.append(f'<li><span class="missing">{html.escape(source)} (missing)</span></li>')
    return f"<ul>{''.join(items)}</ul>"


def _neighbour(here: Page, page: Page | None, words: str, rel: str) -> str:
    if not page: return "<span></span>"
    title = html.escape(page.title.replace("`", ""))
    return f'<a rel="{rel}" href="{here.to(page.url)}"><small>{words}</small> {title}</a>'


def write_page(page: Page, site: Site, config: dict, root: Path, out: Path) -> dict:
    "One page of the site, by pandoc with the template beside this file; gives its tree."
    contents = config["website"]["sidebar"]["contents"]
    reading = [site.pages[source] for source in order(contents, root) if source in site.pages]
    at = reading.index(page) if page in reading else None
    before = reading[at - 1] if at else None
    after = reading[at + 1] if at is not None and at + 1 < len(reading) else None
    variables = {"script": page.to(SCRIPT), "site": html.escape(config["website"]["title"]), "home": home(page, site),
                 "foot": html.escape(config["website"]["page-footer"]), "lang": config.get("lang", "en-GB"),
                 "sidebar": sidebar(contents, root, site, page),
                 "before": _neighbour(page, before, "Previous", "prev"),
                 "after": _neighbour(page, after, "Next", "next")}
    tree = document(page, site, out)
    headings = contents_list(tree["blocks"])
    if headings and page.source != str(LANDING): variables["headings"] = headings
    if (root/"styles.css").is_file(): variables["styles"] = page.to("styles.css")
    flags = [flag for key, value in variables.items() for flag in ("-V", f"{key}={value}")]
    (out/page.url).parent.mkdir(parents=True, exist_ok=True)
    text = run_pandoc(json.dumps(tree), "-f", "json", "-t", "html5", "--standalone", "--mathml", "--wrap=none",
                      "--template", str(HERE/"page.html"), *flags)
    (out/page.url).write_text(text, encoding="utf-8")
    return tree


def contents_list(blocks: list) -> str:
    "The page's headings of levels 2 and 3 as a list of links."
    # not pandoc's own list: that one carries ids, and the page holds the list twice
    found = [node["c"] for node in blocks if node["t"] == "Header" and node["c"][0] in (2, 3)]
    return "".join(f'<li class="level-{level}"><a href="#{html.escape(at)}">{html.escape(plain_text(words))}</a></li>'
                   for level, (at, *_), words in found)


def home(page: Page, site: Site) -> str:
    "The address of the landing page."
    return page.to(site.pages["index.ipynb"].url if "index.ipynb" in site.pages else page.url)


def render(proc: Path, out: Path) -> Site:
    "All pages of processed notebooks, and the other files beside them."
    config = yaml.safe_load((proc/"_quarto.yml").read_text(encoding="utf-8"))
    pages = [read_page(path, proc) for path in sorted(proc.rglob("*.ipynb"))]
    site = Site({page.source: page for page in pages}, config.get("format", {}).get("html", {}).get("code-fold", False))
    listed = order(config["website"]["sidebar"]["contents"], proc)
    for source in listed:
        if source not in site.pages: warn(f"_quarto.yml lists {source}, which does not exist")
    for source in sorted(site.pages.keys() - set(listed)):
        warn(f"_quarto.yml does not list {source}: the sidebar will not lead to it")
    for path in proc.rglob("*"):
        if path.is_file() and path.suffix not in (".ipynb", ".yml", ".yaml", ".py", ".scss"):
            (out/path.relative_to(proc)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out/path.relative_to(proc))
    shutil.copyfile(HERE/SCRIPT, out/SCRIPT)
    write_index(site, {page.source: write_page(page, site, config, proc, out) for page in pages}, out)
    return site


def refuse_other_folders(out: Path) -> None:
    "Raise `UserError` when `out` holds anything but a site made here: it would be deleted."
    if out.exists() and not (out.is_dir() and ((out/MARK).is_file() or not any(out.iterdir()))):
        raise UserError(f"{out} exists and is not a site made here: choose another --out, or delete it yourself")


def replace_site(made: Path, out: Path) -> None:
    "Put the finished site in the place of the last one."
    for name in (MARK, ".nojekyll"): (made/name).touch()
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(made, out)


def chosen_renderer(asked: str | None) -> str:
    "`quarto` where it is on the PATH, or else `pandoc`; raises `UserError` when Quarto is asked for and not there."
    there = shutil.which("quarto")
    if asked == "quarto" and not there:
        raise UserError("there is no quarto on the PATH: install Quarto, or leave --renderer out and have pandoc's pages")
    return asked or ("quarto" if there else "pandoc")


def build(nbs: Path, out: Path, run: Path | None = None, renderer: str | None = None,
          beside: Sequence[Path] = (), execute: Sequence[str] | None = None, kept: Path = KEPT, jobs: int | None = None) -> str:
    """Make the site in `out` and return the renderer and its version; `beside` as `stage` has it.

    `execute`: names of examples to execute, none of them for all; None executes nothing. They are kept in `kept`.
    Raises `UserError` for a missing run or configuration, a damaged json file, a cell's head that is no YAML, an `out`
    that is not a site, or what a renderer stops at. A failed build leaves the last site as it was.
    """
    refuse_other_folders(out)
    quarto = chosen_renderer(renderer) == "quarto"
    examples = {}
    if execute is not None:
        checked(nbs, run, beside)       # before what takes minutes
        wanted = [page for page in example_pages(nbs, execute) if page not in MEASURED]
        examples = executed_examples(nbs, wanted, kept, jobs)
    name = f"Quarto {version()}" if quarto else f"pandoc {pypandoc.get_pandoc_version()}"
    with tempfile.TemporaryDirectory(prefix="em-repro-site-") as folder:
        work, made = Path(folder), Path(folder)/"_docs"
        stage(nbs, run, work, f"Rendered by {name} from notebooks processed by nbdev.", beside, examples)
        if quarto: render_with_quarto(process(work), made, warn, work/"executed")
        else:
            made.mkdir()
            render(process(work), made)
        if (work/"executed").is_dir(): shutil.copytree(work/"executed", made, dirs_exist_ok=True)
        replace_site(made, out)
    return name


def main(arguments: list[str] | None = None) -> int:
    "The command line; 0 when the site was made, 2 with one sentence when it could not be."
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, help="folder of a run, such as runs/tiny or data/reference/small")
    parser.add_argument("--beside", type=Path, action="append", default=[],
                        help="a run whose notebooks are shown where --run has none; may be repeated")
    parser.add_argument("--execute", nargs="*", metavar="PAGE",
                        help="execute the examples: all, or pages such as foundations/stats.ipynb; kept in build/executed")
    parser.add_argument("--jobs", type=int, help="pages to execute at a time, by default one a processor")
    parser.add_argument("--nbs", type=Path, default=HERE.parent/"nbs", help="folder of the notebooks")
    parser.add_argument("--out", type=Path, default=Path("_docs"), help="folder of the site")
    parser.add_argument("--renderer", choices=("quarto", "pandoc"),
                        help="by default Quarto where it is on the PATH, and pandoc elsewhere")
    args = parser.parse_args(arguments)
    try: name = build(args.nbs, args.out, args.run, args.renderer, args.beside, args.execute, jobs=args.jobs)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:      # pandoc, given a page
        said = (error.stderr or "").strip().splitlines() or ["it left no message"]
        print(f"{Path(error.cmd[0]).name} could not make a page: {said[-1]}", file=sys.stderr)
        return 2
    print(f"{args.out}: rendered by {name}")
    return 0


if __name__ == "__main__": sys.exit(main())
