"""Dockerfile and devcontainer run what README says, on a Python that the package supports. No engine runs here: they are read."""
import json, re
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
DEVCONTAINER = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
# What CI runs, and so what the constraints are known to install on.
SUPPORTED = re.findall(r'python-version: "([\d.]+)"', (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))


def commands(text):
    "The two commands of README, without their comments."
    block = re.search(r"## Two commands\n\n```\n(.*?)```", text, re.S)[1]
    return [line.split("#")[0].strip() for line in block.splitlines()]


TWO = commands((ROOT / "README.md").read_text(encoding="utf-8"))


def test_the_image_runs_readmes_commands():
    "A target each; the last, which is built when none is named, reproduces."
    run = [" ".join(json.loads(line)) for line in re.findall(r"(?m)^CMD (\[.*\])$", DOCKERFILE)]
    assert TWO == ["make reproduce", "make test"] and run == TWO[::-1]
    assert re.findall(r"(?m)^FROM .* AS (\w+)$", DOCKERFILE) == ["installed", "test", "reproduce"]


def test_the_image_installs_by_hash_and_then_the_package_alone():
    "What `make install` would do is done, so that it finds nothing left."
    first, then = (line.split(" && ") for line in re.findall(r"(?m)^RUN (.*)$", DOCKERFILE))
    assert first == ["python -m venv .venv", ".venv/bin/pip install --require-hashes --no-deps -r requirements.lock"]
    assert then == [".venv/bin/pip install --no-deps --no-build-isolation -e .", "touch .venv/.installed", "make install"]
    assert "$(VENV)/.installed: " in MAKEFILE and re.search(r"(?m)^VENV +\?= \.venv$", MAKEFILE)
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "Linux on x86_64, Python 3.11." in lock and "FROM --platform=linux/amd64 python:3.11-" in DOCKERFILE
    assert re.search(r"(?m)^setuptools==", lock)     # what the package is built with, since nothing else is fetched


def test_the_devcontainer_runs_readmes_commands():
    assert DEVCONTAINER["onCreateCommand"] == "make install" and DEVCONTAINER["postCreateCommand"].split(" && ") == TWO
    assert DEVCONTAINER["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"] == ".venv/bin/python"


def test_every_command_is_a_target_of_the_makefile():
    for command in [*TWO, "make install", *re.findall(r"make \w+", DOCKERFILE)]:
        assert re.search(rf"(?m)^{command.split()[1]}:", MAKEFILE), command


def test_python_is_one_that_the_package_supports():
    settings = ConfigParser()
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    least = tuple(map(int, settings["DEFAULT"]["min_python"].split(".")))
    for image in (re.search(r"(?m)^FROM (?:--platform=\S+ )?(\S+) AS installed", DOCKERFILE)[1], DEVCONTAINER["image"]):
        found = re.search(r"python:(\d+)\.(\d+)-bookworm$", image)
        assert tuple(map(int, found.groups())) >= least and ".".join(found.groups()) in SUPPORTED, image


def test_nothing_that_is_made_goes_into_the_image():
    "An environment of another machine, runs and caches stay out; what the commands need does not."
    left = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {".venv", "runs", "build", ".git"} <= set(left)
    assert not {"data", "nbs", "em_repro", "tests", "docs", "tools", "Makefile", "constraints.txt", "requirements.lock"} & set(left)


def test_it_is_said_that_nothing_ran_them():
    for name in ("README.md", "CONTRIBUTING.md", "Dockerfile"):
        assert re.search(r"[Uu]nverified", (ROOT / name).read_text(encoding="utf-8")), name
