#!/usr/bin/env python3
"""running, success or failed for a SLURM job, from scontrol alone: no accounting database is asked."""
import re, subprocess, sys

ALIVE = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STAGE_OUT", "RESIZING"}


def state(job: str) -> str:
    if not re.fullmatch(r"\d+", job): raise SystemExit(f"no job number: {job!r}")
    told = subprocess.run(["scontrol", "--oneliner", "show", "job", job], capture_output=True, text=True)
    found = re.search(r"JobState=(\w+)", told.stdout)
    # A job that scontrol has forgotten ended long ago; whether it ended well is seen by its output, which Snakemake looks for.
    if not found: return "success" if "Invalid job id" in told.stderr else "running"
    if found[1] in ALIVE or found[1] == "REQUEUED": return "running"
    return "success" if found[1] == "COMPLETED" else "failed"


if __name__ == "__main__": print(state(sys.argv[1]))
