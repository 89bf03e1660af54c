#!/usr/bin/env python3
"""Jobs of the workflow as Kubernetes jobs that mount one volume: `submit CORES MEMORY_MB GPUS SCRIPT`, `status JOB`, or names of jobs to delete.

Needs kubectl, and in the environment EM_REPRO_IMAGE (an image with em_repro and snakemake), EM_REPRO_CLAIM (a ReadWriteMany
volume claim) and EM_REPRO_MOUNT (where Snakemake itself and the jobs see it: checkout and results lie there)."""
import json, os, subprocess, sys, uuid


def manifest(name: str, cores: int, memory_mb: int, gpus: int, script: str) -> dict:
    "The job. It is not tried again by Kubernetes, since Snakemake does so; GPUs are those that the device plugin shows it."
    image, claim, mount = (os.environ[f"EM_REPRO_{part}"] for part in ("IMAGE", "CLAIM", "MOUNT"))
    wants = {"cpu": str(cores), "memory": f"{memory_mb}M"}
    limits = {"memory": f"{memory_mb}M", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    container = {"name": "job", "image": image, "command": ["/bin/sh", script], "resources": {"requests": wants, "limits": limits},
                 "volumeMounts": [{"name": "shared", "mountPath": mount}]}
    pod = {"restartPolicy": "Never", "containers": [container], "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": claim}}]}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "labels": {"app": "em-repro"}},
            "spec": {"backoffLimit": 0, "ttlSecondsAfterFinished": 86400, "template": {"spec": pod}}}


def kubectl(*words: str, text: str | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(["kubectl", *words], input=text, capture_output=True, text=True)


def submit(cores: str, memory_mb: str, gpus: str, script: str) -> str:
    name = f"em-repro-{uuid.uuid4().hex[:12]}"
    done = kubectl("create", "-f", "-", text=json.dumps(manifest(name, int(cores), int(memory_mb), int(gpus), os.path.abspath(script))))
    if done.returncode: raise SystemExit(done.stderr)
    return name


def status(name: str) -> str:
    "running, success or failed; a job that is gone has failed, and a server that does not answer says nothing of the job."
    told = kubectl("get", "job", name, "-o", "json")
    if told.returncode: return "failed" if "NotFound" in told.stderr else "running"
    ended = {each["type"] for each in json.loads(told.stdout).get("status", {}).get("conditions", []) if each["status"] == "True"}
    return "success" if "Complete" in ended else "failed" if "Failed" in ended else "running"


if __name__ == "__main__":
    if sys.argv[1] == "submit": print(submit(*sys.argv[2:]))
    elif sys.argv[1] == "status": print(status(sys.argv[2]))
    else: raise SystemExit(kubectl("delete", "job", "--ignore-not-found", "--wait=false", *sys.argv[1:]).returncode)
