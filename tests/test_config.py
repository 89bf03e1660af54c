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


@pytest.fixture(scope="module")
def citation(): return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def package_version(): return re.search(r'__version__ = "([^"]+)"', (ROOT / "em_repro/__init__.py").read_text(encoding="utf-8"))[1]


def setup_call():
    "Keyword arguments of setup() as syntax trees."
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    call = next(n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "setup")
    return {k.arg: k.value for k in call.keywords}


def test_what_stands_twice_agrees(ini, toml, citation):
    "nbdev reads name, description and folder in pyproject.toml and the version in `__init__`."
    assert ini["lib_name"] == ini["lib_path"] == toml["project"]["name"] == toml["tool"]["nbdev"]["lib_path"]
    assert ini["description"] == toml["project"]["description"]
    assert ini["version"] == package_version() == citation["version"]
    assert ini["license"] == citation["license"] == "Apache-2.0"
    assert toml["project"]["urls"]["Repository"] == citation["repository-code"]
    assert sys.version_info >= tuple(map(int, ini["min_python"].split(".")))


def test_nothing_else_stands_twice(ini, toml):
    "What setup.py reads in settings.ini is dynamic in pyproject.toml, which alone has nbdev's settings."
    assert set(toml["project"]) == {"name", "description", "dynamic", "urls"}
    assert {"version", "requires-python", "dependencies"} <= set(toml["project"]["dynamic"])
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    read = set(re.findall(r"""(?:cfg\[|lines\()["'](\w+)["']""", setup))
    extras = {f"{extra}_requirements" for extra in ("dev", "cluster", "browser", "inspect")}
    assert read | extras | {"lib_name", "description"} == set(ini)
    assert set(ini) & set(toml["tool"]["nbdev"]) == {"lib_path"}


def test_nbdev_settings(ini, toml):
    nbdev = toml["tool"]["nbdev"]
    assert nbdev["allowed_cell_metadata_keys"] == ["tags"] and nbdev["custom_sidebar"] is True
    assert nbdev["tst_flags"] == "notest cuda" and nbdev["title"] == ini["lib_name"]
    assert (ROOT / ini["nbs_path"]).is_dir() and nbdev.get("nbs_path", "nbs") == ini["nbs_path"]


def test_the_citation_is_valid_and_names_the_paper(citation):
    "The fields that version 1.2.0 of the format requires, and the paper as its listing gives it."
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["message"] and citation["title"] and citation["authors"]
    paper, = citation["references"]
    assert paper["type"] == "article" and paper["title"].startswith("Actionable Activation Directions")
    assert paper["authors"] == [{"family-names": "Syed", "given-names": "Abdul Rafay"}]
    assert paper["doi"] == "10.48550/arXiv.2606.20225" and paper["url"].startswith("https://")
    assert (paper["year"], paper["month"]) == (2026, 6)


def test_every_dynamic_field_is_set_by_setup(toml):
    keyword = {"requires-python": "python_requires",
               "version": "version", "readme": "long_description", "license": "license", "authors": "author", "keywords": "keywords",
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


# The module that a distribution is imported by, where the names differ.
MODULES = {"scikit-learn": "sklearn", "pyyaml": "yaml", "ipykernel": "IPython", "pypandoc_binary": "pypandoc",
           "concept-erasure": "concept_erasure"}
# Come with transformers, papermill and ipykernel.
BESIDE = {"huggingface_hub", "tokenizers", "nbformat", "nbclient", "jupyter_client"}
# Imported by others in our name: transformers places and quantises models.
BY_OTHERS = {"accelerate", "bitsandbytes"}


def required(ini, key):
    "The modules of a list of requirements in settings.ini."
    names = (re.match(r"[\w.-]+", line)[0] for line in ini[key].split("\n") if line.strip())
    return {MODULES.get(name, name) for name in names}


def test_requirements_are_what_the_package_imports(ini):
    "No less at run time and no more; lm_eval and concept_erasure are used where a reader has them."
    imported = set()
    for path in (ROOT / "em_repro").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import): imported |= {a.name.split(".")[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level: imported.add(node.module.split(".")[0])
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "lazy":
                imported.add(getattr(node.args[0], "value", "sys").split(".")[0])   # a loop over names is of optional ones
    optional = {"lm_eval", *required(ini, "dev_requirements")}
    own = {"em_repro", *BESIDE, *optional, *sys.stdlib_module_names}
    assert imported - own == required(ini, "requirements") - BY_OTHERS
    assert imported & optional == {"lm_eval", "concept_erasure"}


def test_constraints_pin_every_requirement(ini):
    "What CI installs is what constraints.txt says."
    def names(lines):
        found = (re.match(r"[\w.-]+", line) for line in lines)
        return {name[0].lower().replace("_", "-") for name in found if name}
    pinned = names((ROOT / "constraints.txt").read_text(encoding="utf-8").split("\n"))
    keys = [key for key in ini if key.endswith("requirements")]
    wanted = names(line for key in keys for line in ini[key].split("\n"))
    # CI installs setuptools in an environment of its own to build with
    assert len(keys) == 5 and wanted - pinned <= {"setuptools"}


LOCKED = re.compile(r"([\w.-]+)==(\S+?)((?: --hash=sha256:[0-9a-f]{64})+)")

@pytest.fixture
def hashes(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import hashes
    return hashes

def test_the_lock_has_the_versions_of_the_constraints_and_a_hash_of_each(hashes):
    lines = [line for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert all(LOCKED.fullmatch(line) for line in lines) and "://" not in "".join(lines)
    lock = {hashes.plain(name): version for name, version, _ in map(lambda line: LOCKED.fullmatch(line).groups(), lines)}
    pinned = {hashes.plain(name): version for name, version in hashes.pins((ROOT / "constraints.txt").read_text(encoding="utf-8")).items()}
    assert len(lock) == len(lines) and len(pinned) > 150 and {name: lock.get(name) for name in pinned} == pinned

def test_a_lock_keeps_the_order_of_the_pins_and_adds_what_nothing_pins(hashes):
    def one(name, version, digit): return {"metadata": {"name": name, "version": version}, "download_info": {"archive_info": {"hashes": {"sha256": digit * 64}}}}
    here = {"metadata": {"name": "em_repro", "version": "1"}, "download_info": {"dir_info": {}}}
    pinned, needed = hashes.locked([one("b", "1", "0"), one("A.c", "2", "1")]), hashes.locked([here, one("b", "1", "0"), one("gpu-part", "3", "2")])
    text = hashes.lock_text("# c\nA_C==2\nb==1\n", pinned, needed)
    assert [line.split(" --hash")[0] for line in text.splitlines() if "==" in line and line[0] != "#"] == ["A_C==2", "b==1", "gpu-part==3"]
    assert f"gpu-part==3 --hash=sha256:{'2' * 64}\n" in text
    with pytest.raises(SystemExit, match="no hash of b"): hashes.lock_text("b==1\n", {}, needed)
    with pytest.raises(SystemExit, match="two files of b"): hashes.lock_text("b==1\n", hashes.locked([one("b", "1", "3")]), needed)

def test_what_pip_says_is_shown_without_an_address(hashes):
    assert hashes.said("note\nERROR: 404 for url: https://an.index/simple/x/ (x)\n") == "404 for url: (address) (x)" and hashes.said("") == "no word"


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
