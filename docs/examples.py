"""Examples: pages that show what functions do, executed for the site when `--execute` asks for it.

They belong to no run. What they showed is kept by page and by a hash of the notebook, of the
package and of the data that ships, so that a page is executed again only when one has changed.
"""
import hashlib, json, logging, os, sysconfig, time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from em_repro.profiles import UserError, shipped
from em_repro.run import QUIET, environment, this_interpreter
from pages import options, read_page

FOLDERS = ("foundations", "tools", "guide")     # of pages that no run executes
KEPT = Path(__file__).resolve().parents[1]/"build"/"executed"
# Seconds of a cell: two pages compute the stages of profile smoke where they are not there.
LONGEST = 1800
SKIPPED = "skip-execution"                      # nbclient's own tag
BANNER = ("**Examples, executed when this site was made.** They do not depend on the run that the "
          "rest of the site shows.")


# nbclient logs what is said here as a sentence.
SILENT = logging.getLogger("em_repro.examples")
SILENT.addHandler(logging.NullHandler())
SILENT.propagate = False


class Stopped(Exception):
    "A cell that failed: its id, and what it said in a line."
    def __init__(self, cell: str, said: str):
        super().__init__(f"cell `{cell}`: {said}")


def is_left_out(cell: dict) -> bool:
    "Whether tests leave a cell out too: `#| eval: false`, and what needs a GPU or is no test."
    if cell["cell_type"] != "code": return False
    chosen, _ = options("".join(cell["source"]))
    return chosen.get("eval") is False or bool({"notest", "cuda"} & chosen.keys())


def is_skipped(notebook: dict) -> bool:
    "Whether a notebook is never executed: by its first cell's `skip_exec: true`, as nbdev has it."
    head = next((c for c in notebook["cells"] if c["cell_type"] == "raw"), {"source": ""})
    return "skip_exec: true" in "".join(head["source"])


def executed(path: Path, longest: int = 300) -> dict:
    "A notebook with its outputs, executed in its folder; raises `Stopped` when a cell fails."
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    notebook, at = nbformat.read(path, as_version=4), ["the first cell"]
    for cell in filter(is_left_out, notebook.cells): cell.metadata["tags"] = [SKIPPED]
    def begun(cell: Any, cell_index: int) -> None: at[0] = cell.get("id", str(cell_index))
    # Kernels warn of their transport, once each, where nobody can do anything about it.
    client = NotebookClient(notebook, timeout=longest, kernel_name="python3", on_cell_start=begun,
                            extra_arguments=["--log-level=ERROR"], log=SILENT,
                            skip_cells_with_tag=SKIPPED,
                            resources={"metadata": {"path": str(path.parent)}})
    try: client.execute()
    except CellExecutionError as error: raise Stopped(at[0], _said(error)) from None
    except CellTimeoutError: raise Stopped(at[0], f"it took over {longest} seconds") from None
    except DeadKernelError: raise Stopped(at[0], "its process ended") from None
    for cell in filter(is_left_out, notebook.cells): cell.metadata.pop("tags")
    return json.loads(without_folders(nbformat.writes(notebook), path))


def _said(error: Any) -> str:
    "The type of what a cell raised, and the last line of its message."
    lines = str(error.evalue).strip().splitlines()
    return ": ".join([error.ename, *lines[-1:]])


def without_folders(text: str, path: Path) -> str:
    "An executed notebook's text without the folders of its checkout and of installed packages."
    root = next((p for p in path.resolve().parents if (p/"nbs").is_dir()), path.parent)
    for folder in (sysconfig.get_path("purelib"), str(root)):
        if len(Path(folder).parts) > 2: text = text.replace(f"{json.dumps(folder)[1:-1]}/", "")
    return text


def example_pages(nbs: Path, asked: Sequence[str] = ()) -> list[str]:
    """Names of the pages to execute: those asked for, or all below `FOLDERS`.

    Raises `UserError` for a name that is no such page."""
    there = [path.relative_to(nbs).as_posix() for folder in FOLDERS
             for path in sorted((nbs/folder).rglob("*.ipynb")) if "checkpoint" not in path.name]
    names = [f"{name.removesuffix('.ipynb')}.ipynb" for name in asked] or there
    if unknown := [name for name in names if name not in there]:
        raise UserError(f"{unknown[0]} is no page that can be executed: give one of foundations/, "
                        "tools/ and guide/, such as foundations/stats.ipynb, or none for all")
    return names


def digest_of(*folders: Path) -> str:
    "A hash of all files of some folders."
    found = hashlib.sha256()
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            if "__pycache__" in path.parts: continue
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            found.update(f"{path.relative_to(folder).as_posix()}\0{content}\0".encode())
    return found.hexdigest()


def surroundings() -> str:
    "A hash of the package and of the data that ships: what examples depend on."
    package = Path(find_spec("em_repro").origin).resolve().parent
    return digest_of(package, shipped())


def _kept(path: Path) -> dict | None:
    "A kept notebook, or None where there is none that can be read."
    try: found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError): return None
    return found if isinstance(found, dict) and isinstance(found.get("cells"), list) else None


def _keep(notebook: dict, place: Path) -> None:
    "Keep an executed notebook in place of what the page showed before."
    place.parent.mkdir(parents=True, exist_ok=True)
    for old in place.parent.glob(f"{place.name.rpartition('-')[0]}-*.ipynb"):
        if len(old.name) == len(place.name): old.unlink()
    text, new = json.dumps(notebook, ensure_ascii=False), place.with_suffix(".part")
    new.write_text(text, encoding="utf-8")
    new.replace(place)


def executed_examples(nbs: Path, names: Sequence[str], kept: Path = KEPT, jobs: int | None = None,
                      tell: Callable = print) -> dict[str, dict]:
    """Executed notebooks by name: those in the folder `kept`, the others now, `jobs` at a time.

    Pages without a cell to execute are as they are. Raises `UserError`, which names page and cell,
    when a cell fails, and for no `jobs`; what the other pages showed is kept."""
    if jobs is not None and jobs < 1:
        raise UserError(f"{jobs} pages cannot be executed at a time: give --jobs 1 or more")
    around, places, found = surroundings(), {}, {}
    for name in names:
        read_page(nbs/name, nbs)            # refuses a cell's head that is no YAML
        source = (nbs/name).read_bytes()
        key = hashlib.sha256(f"{name}\0{around}\0".encode() + source).hexdigest()[:20]
        place = kept/f"{name.removesuffix('.ipynb').replace('/', '.')}-{key}.ipynb"
        notebook = json.loads(source)
        if not any(map(_runs, notebook["cells"])) or is_skipped(notebook): found[name] = notebook
        elif made := _kept(place): found[name] = made
        else: places[name] = place
    if places: found |= _all_executed(nbs, places, jobs, tell)
    return found


def _runs(cell: dict) -> bool:
    "Whether executing a cell does anything."
    if cell["cell_type"] != "code": return False
    return bool(options("".join(cell["source"]))[1].strip()) and not is_left_out(cell)


def cores() -> int:
    "Processors that this process may use; 2 where that is not known."
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2


def _all_executed(nbs: Path, places: dict[str, Path], jobs: int | None, tell: Callable) -> dict:
    "Pages executed now, some at a time, each kept once it is there; the first failure is raised."
    found, failed = {}, {}
    def one(name: str) -> tuple[dict, float]:
        began = time.monotonic()
        return executed(nbs/name, LONGEST), time.monotonic() - began
    # Threads, each with a kernel, which is a process: kernels of one process never share a port.
    with (this_interpreter(), environment(CUDA_VISIBLE_DEVICES="", PYTHONWARNINGS=QUIET["PYTHONWARNINGS"]),
          ThreadPoolExecutor(jobs or cores()) as pool):
        asked: dict[Future, str] = {pool.submit(one, name): name for name in places}
        for n, future in enumerate(as_completed(asked), 1):
            name = asked[future]
            try: found[name], seconds = future.result()
            except Stopped as error: failed[name] = str(error); continue
            _keep(found[name], places[name])
            tell(f"[{n}/{len(places)}] executed {name}  {seconds:.0f} s", flush=True)
    if failed:
        name, more = next(iter(sorted(failed))), len(failed) - 1
        others = f" ({more} more failed)" if more else ""
        raise UserError(f"{name} fails at {failed[name]}{others}: repair it, or make the site "
                        "without --execute; what other pages showed is kept")
    return found
