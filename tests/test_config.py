"""The places that repeat the package's name, description, version and Python agree, and the site's files are where they say."""
import ast, re, sys, tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def ini():
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


@pytest.fixture(scope="module")
def toml(): return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def quarto(): return yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))


def package_version(): return re.search(r'__version__ = "([^"]+)"', (ROOT / "em_repro/__init__.py").read_text(encoding="utf-8"))[1]


def setup_call():
    "Keyword arguments of setup() as syntax trees."
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    call = next(n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "setup")
    return {k.arg: k.value for k in call.keywords}


def test_name_description_version_and_python_agree(ini, toml):
    assert ini["lib_name"] == ini["lib_path"] == toml["project"]["name"] == toml["tool"]["nbdev"]["lib_path"]
    assert ini["description"] == toml["project"]["description"]
    assert ini["version"] == package_version()
    assert toml["project"]["requires-python"] == f">={ini['min_python']}"


def test_nbdev_settings_agree(ini, toml):
    nbdev = toml["tool"]["nbdev"]
    assert ini["allowed_cell_metadata_keys"].split() == nbdev["allowed_cell_metadata_keys"] == ["tags"]
    assert ini["tst_flags"] == nbdev["tst_flags"] and ini["title"] % {**ini} == nbdev["title"]
    assert ini.getboolean("custom_sidebar") is nbdev["custom_sidebar"] is True
    assert (ROOT / ini["nbs_path"]).is_dir() and nbdev.get("nbs_path", "nbs") == ini["nbs_path"]


def test_every_dynamic_field_is_set_by_setup(toml):
    keyword = {"version": "version", "readme": "long_description", "license": "license", "authors": "author", "keywords": "keywords",
               "classifiers": "classifiers", "dependencies": "install_requires", "optional-dependencies": "extras_require"}
    given = setup_call()
    for field in toml["project"]["dynamic"]:
        if field in ("entry-points", "scripts"):
            groups = {ast.literal_eval(k) for k in given["entry_points"].keys}
            assert ("console_scripts" in groups) if field == "scripts" else groups - {"console_scripts"}
        else: assert keyword[field] in given, field
    assert not set(toml["project"]) & set(toml["project"]["dynamic"])


def test_the_console_command_names_a_function_that_exists():
    points = ast.literal_eval(setup_call()["entry_points"])
    for point in points["console_scripts"]:
        module, function = re.fullmatch(r"[\w-]+=([\w.]+):(\w+)", point).groups()
        path = ROOT / Path(*module.split(".")).with_suffix(".py")
        names = {n.name for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.FunctionDef)}
        assert function in names


def test_requirements_cover_what_the_package_imports(ini):
    "Every third-party module that em_repro imports belongs to a declared requirement; lm_eval is used where a reader has it."
    names = {"sklearn": "scikit-learn", "yaml": "pyyaml", "huggingface_hub": "transformers", "tokenizers": "transformers", "IPython": "ipykernel",
             "nbformat": "papermill", "nbclient": "papermill", "jupyter_client": "ipykernel", "pypandoc": "pypandoc_binary",
             "concept_erasure": "concept-erasure"}
    wanted = {re.match(r"[\w.-]+", line)[0].lower() for key in ("requirements", "dev_requirements") for line in ini[key].split("\n") if line.strip()}
    imported = set()
    for path in (ROOT / "em_repro").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import): imported |= {a.name.split(".")[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level: imported.add(node.module.split(".")[0])
    missing = {name for name in imported - set(sys.stdlib_module_names) - {"em_repro", "lm_eval"} if names.get(name, name).lower() not in wanted}
    assert not missing


# The site

def entries(contents):
    for item in [contents] if isinstance(contents, (str, dict)) else contents:
        if isinstance(item, str): yield item
        elif "href" in item: yield item["href"]
        else: yield from entries(item.get("contents", []))


def test_nbdev_reads_the_quarto_file_at_the_root():
    assert (ROOT / "nbs/_quarto.yml").resolve() == (ROOT / "_quarto.yml").resolve()


def test_every_sidebar_entry_exists(quarto):
    hrefs = list(entries(quarto["website"]["sidebar"]["contents"]))
    assert len(hrefs) == len(set(hrefs)) > 10
    for href in hrefs:
        if not href.startswith("http"): assert list((ROOT / "nbs").glob(href)), href


def test_every_notebook_is_in_the_sidebar(quarto):
    listed = {p for href in entries(quarto["website"]["sidebar"]["contents"]) for p in (ROOT / "nbs").glob(href)}
    there = {p for p in (ROOT / "nbs").rglob("*.ipynb") if not any(part.startswith((".", "_")) for part in p.relative_to(ROOT / "nbs").parts)}
    assert there == listed


def test_the_sites_style_exists(quarto):
    assert (ROOT / "nbs" / quarto["format"]["html"]["css"]).is_file()
