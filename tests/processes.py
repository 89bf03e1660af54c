"""Child processes at less expense: forked from a process that has imported what takes seconds.

The code that runs is the same. A test of how processes begin, or of what they inherit, takes
real ones.
"""
import multiprocessing, os, sys, time
from concurrent.futures import Executor, Future
from contextlib import redirect_stdout
from functools import lru_cache
from pathlib import Path

IMPORTED = ["em_repro.cli", "em_repro.run", "em_repro.spillover", "papermill"]


@lru_cache(maxsize=None)
def forking():
    "The context of the process to fork from, which starts with the first child."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def fork_children(monkeypatch):
    "Let the runner and the store fork where they spawn."
    from em_repro import run, store
    context = forking()
    for module in (run, store):   # each has the name since it was imported
        monkeypatch.setattr(module, "get_context", lambda method=None: context)


def cells_here(monkeypatch):
    """Let a notebook's process run the cells itself: no kernel, and nothing shown but errors.

    For tests in which cells matter less than what becomes of them."""
    from em_repro import run
    monkeypatch.setattr(run, "_child", _child_without_kernel)


def _child_without_kernel(*arguments):
    from em_repro import run
    from papermill.engines import Engine, papermill_engines
    class Cells(Engine):
        @classmethod
        def execute_managed_notebook(cls, manager, kernel_name, **_):
            with redirect_stdout(None): _run_cells(manager)
    papermill_engines.register(None, Cells)   # None is the engine that is taken where none is named
    run._child(*arguments)


def _run_cells(manager):
    from nbformat.v4 import new_output
    names = {}
    for index, cell in enumerate(manager.nb.cells):
        manager.cell_start(cell, index)
        try:
            if cell.cell_type == "code": exec(cell.source, names)
        except BaseException as error:
            cell.outputs = [new_output("error", ename=type(error).__name__, evalue=str(error), traceback=[repr(error)])]
            manager.cell_exception(cell, index, exception=error)
            return
        finally: manager.cell_complete(cell, index)


class Here(Executor):
    "In place of a pool: a task is done when it is submitted, in this process."
    def __init__(self, *_, **__): pass

    def submit(self, function, *words, **options):
        future = Future()
        try: future.set_result(function(*words, **options))
        except Exception as error: future.set_exception(error)
        return future


def compute_here(monkeypatch):
    "Let the store compute in this process."
    from em_repro import store
    monkeypatch.setattr(store, "ProcessPoolExecutor", Here)


def command(words, cwd, folder):
    "em-repro as a process of its own: exit code, output, errors; `folder` holds these meanwhile."
    paths = [Path(folder)/name for name in ("out", "err")]
    process = forking().Process(target=_command, args=(list(map(str, words)), cwd, paths))
    process.start(); process.join(300)
    if process.exitcode is None: process.kill(); raise TimeoutError(words)
    return process.exitcode, *(path.read_text(encoding="utf-8") for path in paths)


def _command(words, cwd, paths):
    from em_repro import cli
    for number, path in enumerate(paths, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    if cwd: os.chdir(cwd)
    sys.argv = ["em-repro", *words]
    cli.main()


def slow_stage(text: str) -> dict:
    "Is still at work when it is interrupted."
    time.sleep(60)


def one_stage(function):
    "A plan of one stage."
    from em_repro.store import call
    entry, = yield [call(function, text="x")]
    return entry
