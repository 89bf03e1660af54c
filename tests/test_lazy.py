"""The one door for heavy and optional packages: nothing is imported before it is used, and what is missing is named."""
import subprocess, sys

import pytest

from em_repro.lazy import lazy
from em_repro.profiles import UserError


@pytest.fixture
def package(tmp_path, monkeypatch):
    "A package that says when it is imported, with a part that needs something that is not there."
    (tmp_path / "lazy_example").mkdir()
    (tmp_path / "lazy_example/__init__.py").write_text("__version__ = '7'\ndef double(x): return 2 * x\n")
    (tmp_path / "lazy_example/broken.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "lazy_example"
    for name in [n for n in sys.modules if n.startswith("lazy_example")]: del sys.modules[name]


def test_a_module_is_imported_when_it_is_first_used(package):
    module = lazy(package)
    assert package not in sys.modules and not hasattr(module, "__wrapped__") and "not imported yet" in repr(module)
    assert package not in sys.modules, "looking at it is no use of it"
    assert module.double(3) == 6 and package in sys.modules and module.__version__ == "7" and repr(module).endswith("imported>")
    with pytest.raises(AttributeError, match="no attribute 'triple'"): module.triple


def test_what_is_replaced_in_the_module_is_seen(package, monkeypatch):
    module = lazy(package)
    module.double(1)
    monkeypatch.setattr(sys.modules[package], "double", lambda x: x + 100)
    assert module.double(1) == 101


@pytest.mark.parametrize("name, install, advice", [("no_such_package", None, "pip install 'no_such_package'"), ("no_such_package.part", None, "pip install 'no_such_package'"),
                                                   ("no_such_package", "em_repro[dev]", r"pip install 'em_repro\[dev\]'")])
def test_a_missing_package_is_a_sentence_with_what_to_install(name, install, advice):
    module = lazy(name, install)
    with pytest.raises(UserError, match=f"the package no_such_package is needed here and is not installed: install it with `{advice}`"): module.anything


def test_what_a_package_itself_misses_is_not_taken_for_the_package(package):
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"): lazy(f"{package}.broken").anything


def test_modules_that_load_models_import_no_heavy_package_before_one_is_loaded():
    script = ("import sys, em_repro.export, em_repro.decode; heavy = {'transformers', 'peft', 'gguf', 'bitsandbytes', 'huggingface_hub', 'tokenizers'}; "
              "print(sorted(heavy & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "[]"
