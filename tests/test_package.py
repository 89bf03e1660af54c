"""What is in the wheel and the sdist, and that the wheel works where there is no nbdev, no papermill and no notebook."""
import os, re, shutil, subprocess, sys, tarfile, zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "runs", "build", "dist", "_docs", "_proc", "*.egg-info", "__pycache__", ".pytest_cache", ".hypothesis",
                                  ".ipynb_checkpoints")
BUILD = "import sys, setuptools.build_meta as b; print(getattr(b, 'build_' + sys.argv[1])(sys.argv[2]))"


def files_of(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*")
            if p.is_file() and not any(part.startswith((".", "_proc", "__pycache__")) for part in p.relative_to(folder).parts)}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    "A copy to build in: building writes into the source tree."
    copy = tmp_path_factory.mktemp("source") / "em_repro"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT, symlinks=True)
    return copy


def build(kind, tree, out):
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", BUILD, kind, str(out)], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return out / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory): return build("wheel", tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tree, tmp_path_factory): return build("sdist", tree, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive: archive.extractall(folder)
    return folder


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive: return set(archive.namelist())


def test_the_wheel_holds_all_data_and_notebooks(tree, wheel):
    names = contents(wheel)
    data = {f for f in files_of(tree / "data") if not f.startswith("reference/")}
    assert {f"em_repro/shipped/{f}" for f in data} <= names
    assert {f"em_repro/notebooks/{f}" for f in files_of(tree / "nbs")} <= names
    assert {f"em_repro/{p.name}" for p in (tree / "em_repro").glob("*.py")} <= names
    for name in ("profiles/tiny.toml", "profiles/smoke.toml", "claims.toml", "families.toml", "questions.csv", "chat.jsonl"):
        assert f"em_repro/shipped/{name}" in names


def test_the_tiny_checkpoints_travel_with_it(wheel):
    names = contents(wheel)
    for family in ("tiny-qwen2", "tiny-gemma2", "tiny-llama", "tiny-ministral3"):
        for file in ("config.json", "model.safetensors", "tokenizer.json"): assert f"em_repro/shipped/tiny/{family}/{file}" in names


def test_the_wheel_holds_nothing_else(wheel):
    for name in contents(wheel):
        assert name.startswith(("em_repro/", "em_repro-")), name
        assert not re.search(r"__pycache__|\.pyc$|/\.|^em_repro/tests|nbdev\.yml$", name), name


def is_compared(name):
    "Whether a file of data/reference is for pip users: cards, verdicts, and tables without preferences by request."
    return re.fullmatch(r"[^/]+/((claims|tables)/(?!.*/preferences).+|claims\.json|provenance\.json)", name) is not None


def test_of_committed_runs_what_is_compared_travels_and_nothing_else(tree, wheel, sdist):
    "Their notebooks, figures and answers would be half of what is downloaded."
    wanted = {name for name in files_of(tree / "data/reference") if is_compared(name)}
    assert any(name.startswith("tiny/tables/code/") for name in wanted)
    with tarfile.open(sdist) as archive:
        names = {file.name.split("/data/reference/")[1] for file in archive if file.isfile() and "/data/reference/" in file.name}
    assert names == wanted
    with zipfile.ZipFile(wheel) as archive: sizes = {file.filename: file.file_size for file in archive.infolist()}
    of_runs = {name: size for name, size in sizes.items() if name.startswith("em_repro/shipped/reference/")}
    assert {name.removeprefix("em_repro/shipped/reference/") for name in of_runs} == wanted
    assert sum(of_runs.values()) < 2e6 and sum(sizes.values()) < 18e6   # of it 1.1 MB of advice rows, twins and answers, 0.8 MB of runs
    assert len(sizes) - len(of_runs) < 360


def test_a_run_is_verified_with_the_wheel_alone(unpacked, tmp_path):
    "Against the reference that travels with it."
    shutil.copytree(ROOT / "data/reference/tiny", tmp_path / "tiny")
    word, compared = in_wheel(unpacked, tmp_path, """
from em_repro.run import verify
found = verify("tiny")
print(found.word, len(found.tables))
""")
    assert word == "same" and int(compared) == len(list((tmp_path / "tiny/tables/code").glob("*.csv")))


def test_the_sdist_holds_what_a_build_needs(sdist):
    "Tests, pages and benchmarks need a checkout."
    with tarfile.open(sdist) as archive: names = archive.getnames()
    folders, written = {"em_repro", "data", "nbs"}, {"em_repro.egg-info", "setup.cfg", "PKG-INFO"}
    files = {"setup.py", "settings.ini", "pyproject.toml", "MANIFEST.in", "constraints.txt",
             "README.md", "LICENSE", "CITATION.cff"}
    assert {name.split("/")[1] for name in names if "/" in name} == folders | files | written


def test_the_wheels_card(wheel, unpacked):
    metadata = next(unpacked.glob("*.dist-info/METADATA")).read_text(encoding="utf-8")
    version = re.search(r'"(.+)"', (ROOT / "em_repro/__init__.py").read_text())[1]
    assert f"\nName: em_repro\nVersion: {version}\n" in metadata and "\nRequires-Python: >=3.11\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata or "\nLicense: Apache-2.0\n" in metadata
    for name in ("torch", "transformers", "peft", "scikit-learn", "papermill"): assert re.search(rf"(?m)^Requires-Dist: {name}\b", metadata), name
    for name in ("nbdev", "pytest"): assert re.search(rf'(?m)^Requires-Dist: {name}\b.*extra == "dev"', metadata), name
    points = next(unpacked.glob("*.dist-info/entry_points.txt")).read_text(encoding="utf-8")
    assert "em-repro=em_repro.cli:main" in points.replace(" ", "")
    assert list(unpacked.glob("*.dist-info/**/LICENSE"))


def test_the_sdist_can_build_the_same_wheel(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as archive: archive.extractall(tmp_path, filter="data")
    tree, = tmp_path.iterdir()
    for name in ("settings.ini", "pyproject.toml", "setup.py", "README.md", "LICENSE"): assert (tree / name).is_file(), name
    (tmp_path / "out").mkdir()
    assert contents(build("wheel", tree, tmp_path / "out")) == contents(wheel)


def in_wheel(unpacked, tmp_path, script):
    "Run a script that sees the unpacked wheel before any other em_repro, from an empty folder and with no notebook tool to import."
    blocked = "import sys\nfor name in ('nbdev', 'fastcore', 'papermill', 'ipykernel', 'nbformat', 'nbclient', 'IPython', 'jupyter_client'): sys.modules[name] = None\n"
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", blocked + script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


def test_an_estimator_is_imported_from_the_wheel_alone(unpacked, tmp_path):
    file, module, score = in_wheel(unpacked, tmp_path, """
import numpy as np
from em_repro.directions import DifferenceInMeans
import em_repro
X = np.random.default_rng(0).normal(size=(60, 8)); y = np.repeat([0, 1], 30); X[y == 1] += 2
print(em_repro.__file__, DifferenceInMeans.__module__, DifferenceInMeans().fit(X, y).score(X, y))
""")
    assert Path(file).is_relative_to(unpacked) and module == "em_repro.directions" and float(score) > 0.9


def test_the_readmes_example_runs_as_it_stands(unpacked, tmp_path):
    "Word for word, where only the wheel is installed."
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert blocks and "DifferenceInMeans" in blocks[0]
    shown = [in_wheel(unpacked, tmp_path, block) for block in blocks]
    assert all(shown)
    accuracy, *shape = shown[0]
    assert 0.5 < float(accuracy) <= 1 and " ".join(shape) == "(20, 64)"


def test_data_profiles_and_claims_are_found_from_the_wheel(unpacked, tmp_path):
    found = in_wheel(unpacked, tmp_path, """
from em_repro.profiles import load_profile, notebooks, profile_names, run_dir, shipped
from em_repro.claims import claims
from em_repro.data import code_pairs, questions
print(shipped(), notebooks(), run_dir("runs/x"), len(claims()), len(code_pairs()) >= 1000, len(questions("evaluation")), load_profile("tiny").name,
      len(list(notebooks().glob("0*.ipynb"))), "smoke" in profile_names())
""")
    assert found == [str(unpacked / "em_repro/shipped"), str(unpacked / "em_repro/notebooks"), str(tmp_path / "runs/x"), "14", "True", "100", "tiny", "8", "True"]
    assert not list(tmp_path.iterdir())


def test_the_checkout_finds_its_own_folders():
    from em_repro.profiles import notebooks, shipped
    assert {shipped().name, notebooks().name} in ({"data", "nbs"}, {"shipped", "notebooks"})
