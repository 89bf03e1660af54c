"""The workflow for clusters: its graph holds every part once, a killed job is submitted again, and its profiles fit the jobs."""
import json, os, re, subprocess, sys
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


def snakemake(folder, profile, *options, profile_of="local"):
    (folder / "em-repro").write_text(STUB.format(folder=folder)); (folder / "em-repro").chmod(0o755)
    command = [sys.executable, "-m", "snakemake", "-s", WORKFLOW / "Snakefile", "--profile", WORKFLOW / "profiles" / profile_of,
               *(["--cores", "2"] if profile_of == "local" else []), *options,
               "--config", f"profile={profile}", f"out={folder}/a run", f"command={folder}/em-repro"]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env={**os.environ, "PYTHONPATH": str(WORKFLOW.parent)})


def calls(folder):
    "What was asked for: (command, notebooks, families, seeds)."
    found = []
    for line in (folder / "calls").read_text().splitlines():
        name, *words = line.rstrip("\t").split("\t")
        said = {flag: [b for a, b in zip(words, words[1:]) if a == flag] for flag in ("--only", "--model", "--seed", "--out")}
        assert said["--out"] == [f"{folder}/a run"]
        found.append((name, *map(tuple, (said["--only"], said["--model"], said["--seed"]))))
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
    for settings in (PROFILES["sbatch"], PROFILES["kubernetes"]):
        used = set(re.findall(r"\{resources\.(\w+)\}", settings["cluster-generic-submit-cmd"]))
        assert used == set(settings["default-resources"])
        script = WORKFLOW.parent / settings["cluster-generic-status-cmd"].split()[0]
        assert script.is_file() and script.stat().st_mode & 0o111


# A kubectl that runs a job's command at once, in a pod that dies the first time where the test says so.
KUBECTL = """#!{python}
import json, pathlib, subprocess, sys
place, words = pathlib.Path(r"{folder}"), sys.argv[1:]
if words[0] == "create":
    job = json.load(sys.stdin); pod = job["spec"]["template"]["spec"]
    (place / "manifests").open("a").write(json.dumps(job) + "\\n")
    code = subprocess.run(pod["containers"][0]["command"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
    (place / job["metadata"]["name"]).write_text("Failed" if code else "Complete")
elif words[0] == "get":
    if not (place / words[2]).exists(): sys.exit('Error from server (NotFound): jobs.batch "' + words[2] + '" not found')
    print(json.dumps({{"status": {{"conditions": [{{"type": (place / words[2]).read_text(), "status": "True"}}]}}}}))
elif words[0] == "delete": (place / words[-1]).unlink()
"""


@pytest.fixture
def kubectl(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/kubectl").write_text(KUBECTL.format(python=sys.executable, folder=tmp_path)); (tmp_path / "bin/kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    for part, value in (("IMAGE", "em-repro:1"), ("CLAIM", "shared"), ("MOUNT", str(tmp_path))): monkeypatch.setenv(f"EM_REPRO_{part}", value)


def kubernetes(*words): return subprocess.run([WORKFLOW / "kubernetes.py", *map(str, words)], capture_output=True, text=True)


def test_a_kubernetes_job_mounts_the_volume_and_its_end_is_read(kubectl, tmp_path):
    ends = {}
    for name, code in (("well", 0), ("badly", 3)):
        (tmp_path / name).write_text(f"exit {code}\n")
        ends[name] = kubernetes("submit", 2, 4000, 1, tmp_path / name).stdout.strip()
    assert [kubernetes("status", ends[name]).stdout.strip() for name in ends] == ["success", "failed"]
    job = json.loads((tmp_path / "manifests").read_text().splitlines()[0])["spec"]
    container = job["template"]["spec"]["containers"][0]
    assert job["backoffLimit"] == 0 and container["command"] == ["/bin/sh", str(tmp_path / "well")]
    assert container["resources"] == {"requests": {"cpu": "2", "memory": "4000M"}, "limits": {"memory": "4000M", "nvidia.com/gpu": "1"}}
    assert container["volumeMounts"][0]["mountPath"] == str(tmp_path)
    assert kubernetes(ends["well"]).returncode == 0 and kubernetes("status", ends["well"]).stdout.strip() == "failed"


@needs_snakemake
@pytest.mark.skipif(find_spec("snakemake_executor_plugin_cluster_generic") is None, reason="pip install -e '.[cluster]'")
def test_the_kubernetes_profile_submits_and_submits_again(kubectl, tmp_path):
    for name in ("workflow", "em_repro", "data"): (tmp_path / name).symlink_to(WORKFLOW.parent / name)   # status commands are relative to the checkout
    text = (shipped() / "profiles/smoke.toml").read_text().partition("[overrides")[0]
    (tmp_path / "two.toml").write_text(re.sub(r"(?m)^models = .*", 'models = ["tiny-qwen2", "tiny-llama"]', text))
    done = snakemake(tmp_path, tmp_path / "two.toml", "--latency-wait", "1", "--seconds-between-status-checks", "1", profile_of="kubernetes")
    assert done.returncode == 0, done.stderr
    made = calls(tmp_path)
    assert len(made) == len(set(made)) + 1 == 2 + 2 + 1 + 1 + 1 and "Trying to restart job" in done.stderr


def test_no_gpu_is_named():
    "The scheduler shows a job its GPU by CUDA_VISIBLE_DEVICES; whoever sets it takes another job's."
    for path in WORKFLOW.rglob("*"):
        if path.is_file() and path.suffix != ".pyc": assert not re.search(r"CUDA_VISIBLE_DEVICES=|cuda:\d", path.read_text()), path
