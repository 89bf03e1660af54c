"""Try em_repro with the oldest releases that settings.ini allows, and with the newest.

Each trial gets an environment of its own, in which every module is imported, a part of the tests
runs and profile smoke makes one family's 00, 03 and 05. Their table is data/robustness/bounds.csv;
a bound in settings.ini is a release that passed here. Takes five to fifteen minutes and up to 8 GB
of disk a trial, which are given back; a trial that is in the table already is left out, so it can
be stopped and started again. A processor-only build of torch saves most of both: point
PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL at one.
"""
import argparse, csv, os, re, shutil, subprocess, sys, tempfile
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT/"data"/"robustness"/"bounds.csv"
FIELDS = ("trial", "python", "result", "where", "versions")
# What results depend on most: each at its oldest beside the newest of everything else.
ALONE = ("numpy", "pandas", "torch", "transformers", "peft", "scikit-learn", "statsmodels", "scipy")
TESTS = ("tests/test_adapters.py", "tests/test_activations.py", "tests/test_decode.py",
         "tests/test_directions.py", "tests/test_maps.py", "tests/test_margins.py",
         "tests/test_stats.py", "tests/test_nf4.py")
IMPORT = ("import pkgutil, importlib, em_repro\n"
          "for m in pkgutil.iter_modules(em_repro.__path__):\n"
          "    importlib.import_module('em_repro.' + m.name)")


def oldest() -> dict[str, str]:
    "The oldest release that settings.ini allows, by package."
    ini = ConfigParser(delimiters=["="], interpolation=None)
    ini.read(ROOT/"settings.ini", encoding="utf-8")
    found = re.findall(r"(?m)^([\w-]+)>=([\d.]+)", ini["DEFAULT"]["requirements"])
    return dict(found)


def trials(pythons: list[str]) -> dict[str, tuple[str, dict[str, str]]]:
    "By name: the interpreter, and the releases that are asked for; the rest is the newest."
    bounds, first = oldest(), pythons[0]
    found = {"oldest of all": (first, bounds)}
    found |= {f"newest, Python {version(p)}": (p, {}) for p in pythons}
    return found | {f"{name} {bounds[name]}": (first, {name: bounds[name]}) for name in ALONE}


def version(python: str) -> str:
    "An interpreter's version."
    return subprocess.run([python, "-V"], capture_output=True, text=True).stdout.split()[-1]


def run(what: list[str], **env: str) -> str | None:
    "None where a command passes, else the line in which it says why not."
    quiet = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", **env}
    left_out = ("PYTHONPATH", "VIRTUAL_ENV")
    kept = {k: v for k, v in os.environ.items() if k not in left_out}
    done = subprocess.run(what, capture_output=True, text=True, cwd=ROOT, env=kept | quiet)
    if not done.returncode: return None
    lines = [line for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
    told = [line for line in lines if re.match(r"(E  |ERROR|FAILED|\w*Error|em-repro:)", line)]
    if "conflict is caused by" in done.stdout + done.stderr:
        said = [line for line in lines if re.match(r"    .* depends on|    The user", line)]
        told = ["; ".join(" ".join(line.split()) for line in said)]
    reasons = [line for line in told if line.startswith("E  ")]   # what a test says
    return (reasons or told or lines or ["no word"])[-1].strip()[:300]


def tried(python: str, asked: dict[str, str], work: Path) -> dict[str, str]:
    "What came of one trial: result, where it stopped and why, the versions that were installed."
    here = work/"bin"/"python"
    wanted = work/"asked.txt"
    steps = {"environment": [python, "-m", "venv", str(work)]}
    steps["install"] = [str(here), "-m", "pip", "install", "-q", "-c", str(wanted), str(ROOT),
                        "pytest", "hypothesis"]
    steps["import"] = [str(here), "-c", IMPORT]
    steps["tests"] = [str(here), "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS]
    steps["smoke"] = [str(work/"bin"/"em-repro"), "reproduce", "--profile", "smoke@tiny-llama",
                      "--only", "00,03,05", "--out", str(work/"run"), "--jobs", "2"]
    for name, command in steps.items():
        if name == "install": wanted.write_text("".join(f"{p}=={v}\n" for p, v in asked.items()))
        why = run(command)
        if why: break
    freeze = subprocess.run([str(here), "-m", "pip", "freeze"], capture_output=True, text=True)
    every = dict(line.split("==") for line in freeze.stdout.splitlines() if line.count("==") == 1)
    versions = " ".join(f"{p}=={every[p]}" for p in oldest() if p in every)
    return {"result": "failed" if why else "passed", "where": f"{name}: {why}" if why else "",
            "versions": versions}


def main() -> None:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("--python", nargs="+", default=[sys.executable], metavar="PATH",
                        help="interpreters; the bounds are tried with the first")
    parser.add_argument("--only", nargs="+", metavar="TRIAL", help="trials by name, again")
    parser.add_argument("--out", type=Path, default=TABLE)
    args = parser.parse_args()
    rows = list(csv.DictReader(args.out.open(newline=""))) if args.out.is_file() else []
    kept = {row["trial"]: row for row in rows if row["trial"] not in (args.only or ())}
    for name, (python, asked) in trials(args.python).items():
        if name in kept or (args.only and name not in args.only): continue
        work = Path(tempfile.mkdtemp(prefix="em-repro-bounds-"))
        try: row = tried(python, asked, work)
        finally: shutil.rmtree(work, ignore_errors=True)
        kept[name] = {"trial": name, "python": version(python), **row}
        print(f"{name}: {row['result']} {row['where']}", flush=True)
        with args.out.open("w", newline="") as file:
            table = csv.DictWriter(file, FIELDS, lineterminator="\n")
            table.writeheader()
            table.writerows(kept.values())


if __name__ == "__main__": main()
