"""The package's metadata lives in settings.ini; this file hands it to setuptools.

Name, description and addresses are in pyproject.toml, where nbdev reads them."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=["="], interpolation=None)
ini.read(here / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
package, notebooks = cfg["lib_path"], cfg["nbs_path"]


def lines(key: str) -> list[str]:
    return [line.strip() for line in cfg[key].splitlines() if line.strip()]


def files_under(folder: str) -> list[str]:
    "Files that travel with the package, relative to `folder`: no hidden ones, no caches."
    root, left_out = here / folder, (".", "__pycache__", "_proc")
    found = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    return sorted(str(path) for path in found
                  if not any(part.startswith(left_out) for part in path.parts))


def of_a_reference(name: str) -> bool:
    """What of a committed run `em-repro verify` compares with: its card, verdicts and tables.

    Without preferences request by request, which weigh more than all other tables."""
    if Path(name).name.startswith("preferences"): return False
    parts = Path(name).parts
    return parts[2:3] in (("claims",), ("tables",), ("claims.json",), ("provenance.json",))


# data/ and nbs/ stay where a reader expects them and travel inside the package as em_repro/shipped
# and em_repro/notebooks; of the committed runs in data/reference only what is compared.
setup(
    version=cfg["version"], license=cfg["license"], python_requires=f">={cfg['min_python']}",
    author=cfg["author"], author_email=cfg["author_email"],
    keywords=cfg["keywords"].split(), classifiers=lines("classifiers"),
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=[package, f"{package}.shipped", f"{package}.notebooks"],
    package_dir={package: package, f"{package}.shipped": "data",
                 f"{package}.notebooks": notebooks},
    package_data={f"{package}.shipped": [name for name in files_under("data")
                                         if Path(name).parts[0] != "reference"
                                         or of_a_reference(name)],
                  f"{package}.notebooks": files_under(notebooks)},
    include_package_data=False, install_requires=lines("requirements"),
    extras_require={extra: lines(f"{extra}_requirements")
                    for extra in ("dev", "cluster", "browser", "inspect")},
    entry_points={"nbdev": ["em_repro=em_repro._modidx:d"],
                  "inspect_ai": ["em_repro=em_repro.inspect_provider"],
                  "console_scripts": ["em-repro=em_repro.cli:main"]},
)
