"""Build the sdist and install it in an empty environment, without the extra `dev`.

Imports the package from another folder and runs `em-repro doctor` there. Takes some minutes, nearly
all of which installs torch and its like. A part of `make test`.
"""
import argparse, os, shutil, subprocess, sys, venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
from em_repro.directions import DifferenceInMeans
from em_repro.profiles import load_profile
load_profile("tiny")
print("installed from the sdist:", DifferenceInMeans())
"""


def built(folder: Path) -> Path:
    "The sdist, built into `folder`; ends with the log's last lines when that fails."
    command = [sys.executable, "-m", "build", "--sdist", "--outdir", folder, ROOT]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode: raise SystemExit("\n".join(done.stdout.splitlines()[-20:]))
    return next(folder.glob("em_repro-*.tar.gz"))


def main() -> None:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("--folder", type=Path, default=ROOT/"build"/"package",
                        help="folder to build and install in; it is made anew")
    folder = parser.parse_args().folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sdist = built(folder)
    venv.create(folder/"venv", with_pip=True)
    here = folder/"venv"/"bin"
    limits = ("-c", ROOT/"constraints.txt")
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for command in ((here/"python", "-m", "pip", "install", "-q", *limits, sdist),
                    (here/"python", "-c", SCRIPT), (here/"em-repro", "doctor")):
        if subprocess.run(command, cwd=folder, env=alone).returncode: raise SystemExit(1)


if __name__ == "__main__": main()
