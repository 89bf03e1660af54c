"Package metadata lives in settings.ini; this file hands it to setuptools."
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=["="], interpolation=None)
ini.read(here / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]


def lines(key: str) -> list[str]:
    return [line.strip() for line in cfg[key].splitlines() if line.strip()]


def files_under(folder: str) -> list[str]:
    root = here / folder
    return sorted(str(p.relative_to(root)) for p in root.rglob("*")
                  if p.is_file() and not any(part.startswith((".", "__pycache__", "_proc")) for part in p.relative_to(root).parts))


# data/ and nbs/ stay where a reader expects them and travel inside the package as em_repro/shipped and em_repro/notebooks.
setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"], license="Apache-2.0",
    author=cfg["author"], author_email=cfg["author_email"], keywords=cfg["keywords"].split(),
    long_description=(here / "README.md").read_text(encoding="utf-8"), long_description_content_type="text/markdown",
    classifiers=["Development Status :: 3 - Alpha", "Intended Audience :: Science/Research", "Programming Language :: Python :: 3"],
    packages=["em_repro", "em_repro.shipped", "em_repro.notebooks"],
    package_dir={"em_repro": "em_repro", "em_repro.shipped": "data", "em_repro.notebooks": "nbs"},
    package_data={"em_repro.shipped": files_under("data"), "em_repro.notebooks": files_under("nbs")},
    include_package_data=False, python_requires=f">={cfg['min_python']}",
    install_requires=lines("requirements"), extras_require={"dev": lines("dev_requirements"), "cluster": lines("cluster_requirements"),
                                                          "browser": lines("browser_requirements")},
    entry_points={"nbdev": ["em_repro=em_repro._modidx:d"], "console_scripts": ["em-repro=em_repro.cli:main"]},
)
