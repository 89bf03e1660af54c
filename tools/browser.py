"""Open the site and the report in Chromium: errors, widths, axe-core (tests/test_browser.py).

Looks at _docs and at the report of the smoke run, as `make test` leaves them; takes some minutes.
Installs the extra `browser` where it is missing; Chromium itself comes from the system.
"""
import argparse, os, shutil, subprocess, sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    "Path of the browser: what CHROMIUM says, or the first of the usual names on the PATH."
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)


def main() -> int:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("--site", type=Path, default=ROOT/"_docs", help="folder of the site")
    parser.add_argument("--report", type=Path, default=ROOT/"runs"/"smoke"/"report.html",
                        help="a report with answers")
    parser.add_argument("--if-there", action="store_true",
                        help="install nothing; say so and leave where the tools are missing")
    args = parser.parse_args()
    program, tools = chromium(), find_spec("axe_playwright_python") is not None
    if args.if_there and not (program and tools):
        print("SKIPPED: the site and the report in a browser "
              "(apt-get install chromium, then tools/browser.py)")
        return 0
    if not program: raise SystemExit("no chromium on the PATH: apt-get install chromium, "
                                     "or CHROMIUM=path")
    for path in (args.site/"index.html", args.report):
        if not path.is_file(): raise SystemExit(f"there is no {path}: run `make test` first, "
                                                "or name another with --site and --report")
    if not tools:
        pip = [sys.executable, "-m", "pip", "install", "-q", "-c", ROOT/"constraints.txt"]
        subprocess.run([*pip, "-e", f"{ROOT}[browser]"], check=True)
    told = {"EM_REPRO_SITE": args.site, "EM_REPRO_REPORT": args.report, "CHROMIUM": program}
    return subprocess.run([sys.executable, "-m", "pytest", "-q", ROOT/"tests"/"test_browser.py"],
                          env=os.environ | {k: str(v) for k, v in told.items()}).returncode


if __name__ == "__main__": sys.exit(main())
