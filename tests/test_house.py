"""What keeps the house in order, read off the tree: whole classes, imports one way, one meaning to a name, results first."""
import ast, json, re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NBS, PACKAGE = ROOT / "nbs", ROOT / "em_repro"
MODULES = {p.stem: ast.parse(p.read_text(encoding="utf-8")) for p in sorted(PACKAGE.glob("*.py")) if p.stem not in ("__init__", "_modidx")}
STUDIES = sorted(NBS.glob("0[0-7]_*.ipynb")) + sorted((NBS / "beyond").glob("*.ipynb"))
NOTEBOOKS = sorted(p for p in NBS.rglob("*.ipynb") if not any(part.startswith((".", "_")) for part in p.relative_to(NBS).parts))
each_module = pytest.mark.parametrize("name", MODULES)
# Functions that a user calls with many settings, each documented: everything else takes eight parameters at most.
ENTRY_POINTS = {"try_command", "try_rows", "screen", "screen_command", "sweep", "audit", "audit_command", "export_command", "load_lm", "training_rows", "open_study", "score"}
# The same word for the same thing on several floors (a command and what it calls, a library's own protocol), or a class's own name.
SHARED = {"main", "__getattr__"}


def functions(tree): return [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def own(node):
    "The modules of this package that an import names."
    if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "em_repro"):
        return [(node.module or "").removeprefix("em_repro").strip(".") or a.name for a in node.names]
    if isinstance(node, ast.Import): return [a.name.split(".", 1)[1] for a in node.names if a.name.startswith("em_repro.")]
    return []


def code_cells(path): return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]


def source(cell): return "".join(cell["source"])


def exported(cell): return bool(re.search(r"(?m)^#\| ?exporti?s?$", source(cell)))


@each_module
def test_no_method_is_assigned_after_its_class(name):
    classes = {n.name for n in MODULES[name].body if isinstance(n, ast.ClassDef)}
    for node in MODULES[name].body:
        for target in node.targets if isinstance(node, ast.Assign) else []:
            for inner in ast.walk(target):
                owner = getattr(getattr(inner, "value", None), "id", None) if isinstance(inner, ast.Attribute) else None
                assert owner not in classes and not (owner or "")[:1].isupper(), f"{name}, line {node.lineno}: {ast.unparse(node)}"


@each_module
def test_no_private_name_crosses_modules(name):
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.ImportFrom) and own(node):
            private = [a.name for a in node.names if a.name.startswith("_") and not a.name.startswith("__")]
            assert not private, f"{name} imports {private} from {node.module}"


@each_module
def test_no_function_imports_the_package(name):
    for function in functions(MODULES[name]):
        inside = [m for node in ast.walk(function) for m in own(node)]
        assert not inside, f"{name}.{function.name} imports {inside}"


def test_a_public_name_has_one_meaning():
    places = defaultdict(set)
    for module, tree in MODULES.items():
        for node in tree.body:
            names = [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else \
                [t.id for t in node.targets if isinstance(t, ast.Name)] if isinstance(node, ast.Assign) else []
            lazily = isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and getattr(node.value.func, "id", "") == "lazy"
            for n in names:
                if not n.startswith("_") and not lazily: places[n].add(module)
    assert {n: sorted(where) for n, where in places.items() if len(where) > 1 and n not in SHARED} == {}


@each_module
def test_few_parameters(name):
    for function in functions(MODULES[name]):
        count = len(function.args.args) + len(function.args.kwonlyargs) - (function.args.args[:1] != [] and function.args.args[0].arg in ("self", "cls"))
        assert count <= 8 or function.name in ENTRY_POINTS, f"{name}.{function.name} has {count} parameters"


def test_the_audit_is_in_rooms():
    for path in PACKAGE.glob("audit*.py"): assert len(path.read_text(encoding="utf-8").splitlines()) <= 500, path.name


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_the_first_result_stands_in_the_first_quarter(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    first = next(i for i, c in enumerate(cells) if c["cell_type"] == "code" and not exported(c)
                 and re.search(r"(?m)^#\| label: (fig|tbl)-", source(c)))
    assert first <= .25 * len(cells), f"{first / len(cells):.0%}"


def test_most_exports_are_shown_at_work():
    "By group of notebooks: an exported function or class is followed by a cell that uses it before the next export."
    for group in ("0*.ipynb", "foundations/*.ipynb", "tools/*.ipynb"):
        shown = count = 0
        for path in NBS.glob(group):
            cells = code_cells(path)
            for cell, after in zip(cells, [*cells[1:], None]):
                if not exported(cell) or not re.search(r"(?m)^(def|class|@)", source(cell)): continue
                count += 1
                shown += after is not None and not exported(after)
        assert shown >= .85 * count, f"{group}: {shown} of {count}"


def test_few_lines_are_wide():
    wide = lines = 0
    for path in NOTEBOOKS:
        for cell in code_cells(path):
            for line in source(cell).split("\n"):
                if line.strip() and not line.startswith("#|"): lines += 1; wide += len(line) > 100
    assert wide <= .08 * lines, f"{wide} of {lines}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_captions_are_short_and_yaml(path):
    for cell in code_cells(path):
        for key, text in re.findall(r"(?m)^#\| ([\w-]+): (.*)$", source(cell)):
            quoted = text[:1] in "\"'[{>|"
            assert quoted or ": " not in text, f"{cell['id']}: no YAML: {text[:60]}"
            if key.endswith("-cap"): assert len(text) <= 200, f"{cell['id']}: {len(text)} characters"


def test_arms_and_outcomes_are_named_by_behaviours_alone():
    "No module above the behaviours names an arm, or compares with an outcome of one of them."
    allowed = {"behaviours", "outcomes", "tiny", "data", "betley", "controls", "profiles", "misaligned", "judge", "calibration", "plan", "cli", "report",
               "twins", "trial"}   # whose pairs have a harmful and a sound answer
    found = Counter()
    for module, tree in MODULES.items():
        if module in allowed or module.startswith("audit"): continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare) and "cell_type" not in ast.unparse(node.left):
                words = [c.value for c in [node.left, *node.comparators] if isinstance(c, ast.Constant)]
                if {"insecure", "secure", "code", "clean", "broken"} & {w for w in words if isinstance(w, str)}: found[module] += 1
    assert not found


def passed(tree):
    "What a module has from another of this package and does not define itself; another library's types may come by any."
    return {alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) and own(node) for alias in node.names}


@each_module
def test_a_name_is_imported_from_where_it_is_defined(name):
    "A stage's key follows what its code names into the module that defines it, and not through one that passes it on."
    for node in MODULES[name].body:
        if not isinstance(node, ast.ImportFrom) or not own(node): continue
        module = (node.module or "").removeprefix("em_repro").strip(".")
        if module not in MODULES: continue
        passed_on = {a.name for a in node.names if a.name in passed(MODULES[module])}
        assert not passed_on, f"{name} imports {sorted(passed_on)} from {module}, which does not define it"
