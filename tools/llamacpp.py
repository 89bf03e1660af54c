"""Exported control vectors do in llama.cpp what they do here (tests/llamacpp.py).

Makes an environment of its own in build/llamacpp and compiles llama.cpp there, which takes about
ten minutes the first time; fetches SmolLM2-135M. With the run of tools/audit_small.py in place, its
fine-tune and its direction are compared as well.
"""
import argparse, subprocess, sys, venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACE, PIN = ROOT/"build"/"llamacpp", "llama-cpp-python==0.3.36"


def environment() -> Path:
    "The Python of an environment with llama.cpp, made where there is none or the metadata changed."
    python, mark = PLACE/"bin"/"python", PLACE/".installed"
    sources = [ROOT/name for name in ("setup.py", "settings.ini", "constraints.txt")]
    if not mark.is_file() or any(path.stat().st_mtime > mark.stat().st_mtime for path in sources):
        venv.create(PLACE, with_pip=True)
        pip = [python, "-m", "pip", "install", "-q", "-c", ROOT/"constraints.txt"]
        subprocess.run([*pip, "-e", ROOT, PIN], check=True)
        mark.touch()
    return python


def main() -> int:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("--prompts", type=int, default=6, help="prompts to compare answers to")
    parser.add_argument("--audit", type=Path, default=ROOT/"runs"/"audit-small",
                        help="run of tools/audit_small.py; left out where there is none")
    args = parser.parse_args()
    more = [args.audit] if args.audit.is_dir() else []
    command = [environment(), ROOT/"tests"/"llamacpp.py", args.prompts, *more]
    return subprocess.run([str(word) for word in command]).returncode


if __name__ == "__main__": sys.exit(main())
