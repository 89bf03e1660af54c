"""The notebook contract, the order of imports, and what may not be in the repository at all. No torch here."""
import ast, json, os, re, subprocess, sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NBS, PACKAGE = ROOT / "nbs", ROOT / "em_repro"
LONGEST_CELL, LONGEST_CLASS, LONGEST_LINE = 45, 50, 160   # a class stays whole
NOTEBOOKS = sorted(p for p in NBS.rglob("*.ipynb") if not any(part.startswith((".", "_")) for part in p.relative_to(NBS).parts))
STUDIES = [p for p in NOTEBOOKS if re.match(r"0\d_", p.name)]
RUN = STUDIES + sorted((NBS / "beyond").glob("*.ipynb"))   # with those that `reproduce` executes when it is asked to
MODULES = sorted(p for p in PACKAGE.glob("*.py") if p.name not in ("__init__.py", "_modidx.py"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def source(cell): return "".join(cell["source"])


def cells(path, kind="code"): return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]


def statements(cell):
    text = "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in source(cell).split("\n"))
    return ast.parse(text).body


def directives(cell): return re.findall(r"(?m)^#\|\s*(\w+)(?:\s+(\S+))?", source(cell))


def exported(cell): return any(name in ("export", "exporti", "exports") for name, _ in directives(cell))


def imports_of(tree):
    "Names of imported modules, wherever in the tree."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom): yield "." * node.level + (node.module or "")


# Notebooks

def test_there_are_eight_studies():
    assert [p.stem[:2] for p in STUDIES] == [f"0{i}" for i in range(8)]


@each_notebook
def test_a_notebook_is_valid_and_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3" and set(notebook.metadata) <= {"kernelspec", "language_info"}
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}, cell.id
        if cell.cell_type == "code": assert not cell.outputs and cell.execution_count is None, cell.id


@each_notebook
def test_a_notebook_begins_with_a_title_and_what_it_is(path):
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
    assert first["cell_type"] == "markdown" and re.match(r"# \S.*\n+> \S", source(first))


@pytest.mark.parametrize("path", RUN, ids=lambda p: p.stem)
def test_a_study_has_one_parameters_cell_of_plain_commented_values(path):
    tagged = [c for c in cells(path) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    body = ast.parse(source(tagged[0])).body
    assert [node.targets[0].id for node in body] == ["profile", "behaviour", "out"] and ast.literal_eval(body[0].value) == "smoke"
    for node in body: assert isinstance(ast.literal_eval(node.value), str)
    assert all("#" in line for line in source(tagged[0]).splitlines())


@each_notebook
def test_other_notebooks_have_no_parameters(path):
    if path not in RUN: assert not [c for c in cells(path) if c["metadata"].get("tags")]


@each_notebook
def test_imports_stand_alone(path):
    "The documentation step runs cells that import, and would run whatever else is in them."
    for cell in cells(path):
        body = statements(cell)
        kinds = {isinstance(node, (ast.Import, ast.ImportFrom)) for node in body}
        assert exported(cell) or len(kinds) < 2, (cell["id"], source(cell)[:80])


@each_notebook
def test_no_notebook_needs_nbdev(path):
    for cell in cells(path):
        names = {name.split(".")[0] for node in statements(cell) for name in imports_of(node)}
        assert not names & {"nbdev", "fastcore"}, cell["id"]
        assert "nbdev_export" not in source(cell), cell["id"]


@each_notebook
def test_cells_fit_on_a_screen(path):
    for cell in cells(path):
        lines = source(cell).split("\n")
        # Quarto wants a caption on one line, as it wants a paragraph.
        wide = [line for line in lines if len(line) > LONGEST_LINE and not line.startswith("#|")]
        longest = LONGEST_CLASS if re.search(r"(?m)^class ", source(cell)) else LONGEST_CELL
        assert len(lines) <= longest and not wide, (cell["id"], len(lines), wide)


@each_notebook
def test_code_has_no_tabs_or_trailing_blanks(path):
    for cell in cells(path): assert not re.search(r"\t|[ ]+$", source(cell), re.M), cell["id"]


@pytest.mark.parametrize("path", RUN, ids=lambda p: p.stem)
def test_a_study_labels_its_figures_and_tables_once(path):
    labels = [label for cell in cells(path) for label in re.findall(r"(?m)^#\| label: (\S+)", source(cell))]
    assert len(labels) == len(set(labels)) and all(re.fullmatch(r"(fig|tbl)-[a-z0-9-]+", label) for label in labels)
    assert any(label.startswith("fig-") for label in labels) and any(label.startswith("tbl-") for label in labels)
    for cell in cells(path):
        for kind in re.findall(r"(?m)^#\| label: (fig|tbl)-", source(cell)): assert f"#| {kind}-cap: " in source(cell), cell["id"]


@each_notebook
def test_a_guide_exports_nothing(path):
    if path.parent.name == "guide": assert not [c for c in cells(path) if exported(c) or "default_exp" in source(c)]


# Modules

def made_from(module):
    return re.search(r"(?m)^# AUTOGENERATED! DO NOT EDIT! File to edit: (\S+)\.$", module.read_text(encoding="utf-8"))


def test_every_module_names_a_notebook_that_exists_and_names_it_back():
    for module in MODULES:
        found = made_from(module)
        assert found, f"{module.name} was not made by nbdev-export"
        notebook = (PACKAGE / found[1]).resolve()
        assert notebook in NOTEBOOKS, found[1]
        assert [name for cell in cells(notebook) for what, name in directives(cell) if what == "default_exp"] == [module.stem]


def test_every_default_exp_has_its_module():
    wanted = [name for path in NOTEBOOKS for cell in cells(path) for what, name in directives(cell) if what == "default_exp"]
    assert sorted(wanted) == sorted(m.stem for m in MODULES)


def test_a_module_holds_its_notebooks_exports():
    "A notebook that was changed and not exported shows here (layout aside)."
    for module in MODULES:
        text = re.sub(r"\s", "", module.read_text(encoding="utf-8"))
        for cell in cells((PACKAGE / made_from(module)[1]).resolve()):
            if not exported(cell): continue
            for node in statements(cell):
                if isinstance(node, (ast.Import, ast.ImportFrom)): continue
                piece = re.sub(r"\s", "", "\n".join(source(cell).split("\n")[node.lineno - 1:node.end_lineno]))
                assert "em_repro." in piece or piece in text, (module.name, cell["id"])


GROUPS = {"foundations": 0, "nbs": 1, "beyond": 2, "tools": 3}


def group(module):
    "The storey that a module stands on; calibration is read among the foundations and tries the studies' own rules."
    return GROUPS["tools" if module.stem == "calibration" else (PACKAGE / made_from(module)[1]).resolve().parent.name]


def own_imports(module, nested):
    "Modules of this package that a module imports: when it is loaded, or also inside its functions."
    tree = ast.parse(module.read_text(encoding="utf-8"))
    stack = list(ast.walk(tree)) if nested else list(outer_nodes(tree))
    for node in stack:
        if isinstance(node, ast.ImportFrom):
            name = "em_repro" + ("." + node.module if node.module else "") if node.level else node.module
            if name == "em_repro": yield from (a.name for a in node.names if (PACKAGE / f"{a.name}.py").is_file())
            elif name.startswith("em_repro."): yield name.split(".")[1]
        elif isinstance(node, ast.Import): yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("em_repro."))
        elif nested and isinstance(node, ast.Call) and getattr(node.func, "id", "") == "lazy":
            name = getattr(node.args[0], "value", "")
            if name.startswith("em_repro."): yield name.split(".")[1]


def outer_nodes(tree):
    "Everything that runs on import."
    todo = list(tree.body)
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)): todo += list(ast.iter_child_nodes(node))


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.stem)
def test_imports_go_one_way(module):
    place = group(module)
    for name in set(own_imports(module, nested=True)) - {module.stem}:
        other = PACKAGE / f"{name}.py"
        assert group(other) <= place, f"{module.stem} imports {name}"
        if place == group(other) == 1: assert made_from(other)[1] < made_from(module)[1], f"{module.stem} imports the later study {name}"

def test_nothing_imports_itself_by_a_detour():
    graph = {m.stem: set(own_imports(m, nested=True)) - {m.stem} for m in MODULES}
    done = set()
    while len(done) < len(graph):
        free = {m for m in set(graph) - done if graph[m] <= done}
        assert free, f"a circle among {sorted(set(graph) - done)}"
        done |= free


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.stem)
def test_a_module_does_nothing_that_was_ruled_out(module):
    tree = ast.parse(module.read_text(encoding="utf-8"))
    banned = {"nbdev", "fastcore", "pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    assert not {name.split(".")[0] for name in imports_of(tree)} & banned
    for node in ast.walk(tree):
        # Without its being refused, transformers asks at the terminal whether a checkpoint's code may run.
        refusal = isinstance(node, ast.keyword) and getattr(node.value, "value", None) is False
        if isinstance(node, ast.keyword): assert refusal or node.arg not in ("trust_remote_code", "allow_pickle"), node.value.lineno
        if isinstance(node, ast.Attribute):
            name = (getattr(node.value, "id", ""), node.attr)
            if (module.stem, name) == ("export", ("torch", "save")): continue   # lm-evaluation-harness reads nothing else
            assert name not in {("torch", "load"), ("torch", "save"), ("pd", "read_pickle")}, node.lineno
            assert node.attr not in ("to_pickle", "read_pickle"), node.lineno
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("eval", "exec", "__import__"): pytest.fail(f"line {node.lineno}")
        if isinstance(node, ast.keyword) and node.arg == "shell": assert not getattr(node.value, "value", True), node.lineno


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.stem)
def test_public_names_are_documented(module):
    tree = ast.parse(module.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"
            if isinstance(node, ast.FunctionDef): assert node.returns is not None, f"{node.name} does not say what it returns"


# The repository

SKIPPED = {".git", ".venv", "runs", "build", "dist", "_docs", "_proc", "__pycache__", ".pytest_cache", ".hypothesis", ".ipynb_checkpoints", "shared"}
TEXT = {".py", ".ipynb", ".md", ".toml", ".ini", ".yml", ".yaml", ".csv", ".json", ".jsonl", ".txt", ".css", ".html", ".cfg", ".in", ".cff", ".jinja", ".svg", ""}


def repository_files():
    for folder, names, files in os.walk(ROOT):
        names[:] = sorted(n for n in names if n not in SKIPPED and not n.endswith(".egg-info"))
        files = sorted(f for f in files if f not in SKIPPED)   # in a worktree .git is a file
        yield from (Path(folder, f) for f in files if Path(f).suffix in TEXT)


def test_no_file_names_a_machine():
    "Folders of one machine, or the address of a package host, would be somebody's and not the reader's."
    places = [re.escape("/" + word + "/") for word in ("root", "work", "mnt", "Users")]
    here = re.compile(r"(?<![\w.~<>-])(" + "|".join(places) + r")|/home/(?!user\b|<)\w+/|artifactory|(?<!files\.)pythonhosted\.org/packages")
    found = []
    for path in repository_files():
        if path == Path(__file__).resolve() or "data/pairs" in path.as_posix(): continue
        if path.name in ("detector_recorded.csv", "detector_unseen.csv", "detector_unseen_2.csv"): continue   # examples, folders of nobody
        for i, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if here.search(line): found.append(f"{path.relative_to(ROOT)}:{i}: {here.search(line)[0]}")
    assert not found, found[:10]


def test_importing_the_package_is_quick_and_brings_no_torch():
    script = "import sys, time; t = time.perf_counter(); import em_repro; print(time.perf_counter() - t, 'torch' in sys.modules, em_repro.__version__)"
    runs = [subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split() for _ in range(3)]
    assert min(float(seconds) for seconds, _, _ in runs) < 0.5
    assert {torch for _, torch, _ in runs} == {"False"}


@pytest.mark.parametrize("module", ["profiles", "store", "data", "stats", "claims"])
def test_modules_that_need_no_torch_do_not_bring_it(module):
    if not (PACKAGE / f"{module}.py").is_file(): pytest.fail(f"em_repro.{module} is missing")
    script = f"import sys, em_repro.{module}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip() == "False"
