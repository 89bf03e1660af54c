"""Build sdist and wheel and install the wheel where there is nothing but what it requires.

The environment holds the distributions that the wheel's metadata asks for, without extras, and
what those ask for in turn, linked from the environment that runs this script: nothing is
downloaded, and a requirement that settings.ini does not name is missing. `pip check` compares
versions, every module of the package is imported from another folder, and `em-repro doctor` looks
around; half a minute, a part of `make test`. With --download pip fetches and installs everything
anew, which takes some minutes.
"""
import argparse, os, shutil, subprocess, sys, venv
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import importlib, pkgutil
import em_repro
from em_repro.directions import DifferenceInMeans
from em_repro.profiles import load_profile
for module in pkgutil.iter_modules(em_repro.__path__):
    if not module.ispkg: importlib.import_module(f"em_repro.{module.name}")
load_profile("tiny")
print("installed from the sdist:", DifferenceInMeans())
"""


def run(*command: object, **options: object) -> None:
    "A command whose failure ends this script with its code."
    code = subprocess.run(list(map(str, command)), **options).returncode
    if code: raise SystemExit(code)


def built(folder: Path) -> Path:
    "The wheel, built from the sdist; ends with the log's last lines when that fails."
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode: raise SystemExit("\n".join(done.stdout.splitlines()[-20:]))
    return next(folder.glob("em_repro-*.whl"))


def required(wheel: Path) -> list[str]:
    "The requirements in a wheel's metadata."
    info, = metadata.distributions(path=[str(wheel)])
    return info.requires or []


def needed(lines: list[str]) -> dict[str, metadata.Distribution]:
    "The distributions that requirements ask for, without extras, and what those ask for, by name."
    found, waiting = {}, [(line, "") for line in lines]
    seen = set()
    while waiting:
        line, extra = waiting.pop()
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}): continue
        name = canonicalize_name(requirement.name)
        try: found.setdefault(name, metadata.distribution(name))
        except metadata.PackageNotFoundError: raise SystemExit(f"{name} is not installed here")
        for asked in {"", *requirement.extras}:
            if (name, asked) in seen: continue
            seen.add((name, asked))
            waiting += [(more, asked) for more in found[name].requires or []]
    return found


def link(distributions: dict[str, metadata.Distribution], site: Path) -> None:
    "Link what the distributions installed, folder by folder, into another site-packages."
    for name, one in distributions.items():
        if one.files is None: raise SystemExit(f"{name} has no list of its files: use --download")
        for top in {file.parts[0] for file in one.files} - {"..", "__pycache__"}:
            if not (site/top).is_symlink(): (site/top).symlink_to(one.locate_file(top))


def main() -> None:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("--folder", type=Path, default=ROOT/"build"/"package",
                        help="folder to build and install in; it is made anew")
    parser.add_argument("--download", action="store_true",
                        help="let pip fetch and install every requirement")
    args = parser.parse_args()
    folder = args.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wheel = built(folder)
    venv.create(folder/"venv", with_pip=False)
    python = folder/"venv"/"bin"/"python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    if args.download: run(*pip, "install", "-q", "-c", ROOT/"constraints.txt", wheel)
    else:
        link(needed(required(wheel)), next((folder/"venv"/"lib").glob("python3*/site-packages")))
        run(*pip, "install", "-q", "--no-deps", "--no-index", wheel)
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run(*pip, "check", env=alone)
    run(python, "-c", SCRIPT, cwd=folder, env=alone)
    run(python.with_name("em-repro"), "doctor", cwd=folder, env=alone)


if __name__ == "__main__": main()
