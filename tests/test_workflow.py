"""The workflow for clusters: its graph holds every part once, a killed job is submitted again, and its profiles fit the jobs."""
import os, re, subprocess, sys
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from em_repro.profiles import load_profile, shipped

WORKFLOW = Path(__file__).parents[1] / "workflow"
PROFILES = {path.parent.name: yaml.safe_load(path.read_text()) for path in (WORKFLOW / "profiles").glob("*/config.yaml")}
needs_snakemake = pytest.mark.skipif(find_spec("snakemake") is None, reason="pip install -e '.[cluster]'")

# Says what it was asked for; the first job of a pair dies as a job does that the system kills.
STUB = """#!/bin/sh
for word; do printf '%s\\t' "$word"; done >> "{folder}/calls"; echo >> "{folder}/calls"
case "$*" in *"--only 05"*) [ -e "{folder}/died" ] || {{ touch "{folder}/died"; kill -9 $$; }} ;; esac
"""


def snakemake(folder, profile, *options):
    (folder / "em-repro").write_text(STUB.format(folder=folder)); (folder / "em-repro").chmod(0o755)
    command = [sys.executable, "-m", "snakemake", "-s", WORKFLOW / "Snakefile", "--profile", WORKFLOW / "profiles/local", "--cores", "2", *options,
               "--config", f"profile={profile}", f"out={folder}/a run", f"command={folder}/em-repro"]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env={**os.environ, "PYTHONPATH": str(WORKFLOW.parent)})


def calls(folder):
    "What was asked for: (command, notebooks, families, seeds)."
    found = []
    for line in (folder / "calls").read_text().splitlines():
        name, *words = line.rstrip("\t").split("\t")
        said = {flag: [b for a, b in zip(words, words[1:]) if a == flag] for flag in ("--only", "--family", "--seed", "--out")}
        assert said["--out"] == [f"{folder}/a run"]
        found.append((name, *map(tuple, (said["--only"], said["--family"], said["--seed"]))))
    return found


@needs_snakemake
def test_every_part_is_a_job_and_a_killed_one_is_submitted_again(tmp_path):
    text = (shipped() / "profiles/smoke.toml").read_text().replace('"tiny-gemma2"', '"someone/a-model"').replace("tiny-gemma2", "someone/a-model")
    text = text.replace("[overrides.someone/a-model]", '[overrides."someone/a-model"]').replace("seeds = [0]", "seeds = [0, 1]")
    (tmp_path / "mine.toml").write_text(text)
    settings = load_profile(tmp_path / "mine.toml")
    done = snakemake(tmp_path, tmp_path / "mine.toml")
    assert done.returncode == 0, done.stderr
    families, pairs = settings.families, list(combinations(settings.families, 2))
    wanted = {("stage", ("00,01",), (name,), (str(seed),)) for name in families for seed in settings.seeds}
    wanted |= {("stage", ("00,01,02,03,04,06,07",), (name,), ()) for name in families} | {("stage", ("05,06,07",), pair, ()) for pair in pairs}
    made = calls(tmp_path)
    assert set(made) == wanted | {("reproduce", (), (), ())} and len(made) == len(wanted) + 1 + 1   # the killed one twice
    assert made[-1][0] == "reproduce" and "Trying to restart job" in done.stderr
    order = {call: i for i, call in enumerate(made)}
    for pair in pairs: assert order["stage", ("05,06,07",), pair, ()] > max(order["stage", ("00,01,02,03,04,06,07",), (name,), ()] for name in pair)
    again = snakemake(tmp_path, tmp_path / "mine.toml")
    assert again.returncode == 0 and calls(tmp_path) == made


@needs_snakemake
def test_a_dry_run_asks_for_nothing(tmp_path):
    done = snakemake(tmp_path, "smoke", "-n")
    assert done.returncode == 0 and not (tmp_path / "calls").exists()


def test_what_a_job_is_submitted_with_is_set_and_lost_jobs_come_again():
    assert set(PROFILES) == {"local", "sbatch", "slurm", "kubernetes"}
    for name, settings in PROFILES.items():
        assert settings["retries"] >= 2 and settings["rerun-incomplete"] and settings["keep-going"], name
        if settings.get("executor") == "slurm" or "cluster-generic-submit-cmd" in settings: assert settings["latency-wait"] >= 30, name
    used = set(re.findall(r"\{resources\.(\w+)\}", PROFILES["sbatch"]["cluster-generic-submit-cmd"]))
    assert used == set(PROFILES["sbatch"]["default-resources"])
    script = WORKFLOW.parent / PROFILES["sbatch"]["cluster-generic-status-cmd"]
    assert script.is_file() and script.stat().st_mode & 0o111


def test_no_gpu_is_named():
    "The scheduler shows a job its GPU by CUDA_VISIBLE_DEVICES; whoever sets it takes another job's."
    for path in WORKFLOW.rglob("*"):
        if path.is_file() and path.suffix != ".pyc": assert not re.search(r"CUDA_VISIBLE_DEVICES=|cuda:\d", path.read_text()), path
