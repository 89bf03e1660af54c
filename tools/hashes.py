"""The hash of every distribution that `constraints.txt` pins, into `requirements.lock`.

pip itself asks the index, without this machine's configuration, folders and caches of wheels: what
stands in the lock is what anybody gets. Asked twice: for the pins alone, and for what this package
with its developer's tools needs of them, so that what nothing pins (torch's libraries for GPUs) is
locked too. Nothing is installed. The hashes are those of one platform and Python, those of the
Dockerfile; elsewhere `constraints.txt` says the same versions. Takes five minutes.
"""
import argparse, json, os, platform, re, subprocess, sys, tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PIN = re.compile(r"(?m)^([A-Za-z0-9][\w.-]*)==(\S+)$")
HEAD = """# Written by tools/hashes.py from constraints.txt: {platform}, Python {python}.
# pip install --require-hashes --no-deps -r requirements.lock
# No dependency is looked up: what is needed stands here, and the extra for Inspect and this pin of
# fsspec do not agree.
"""
# The machine's own answers to "where from": folders of wheels, other indexes, other versions.
OWN = ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT", "PIP_NO_INDEX",
       "PIP_REQUIRE_HASHES", "PIP_NO_BINARY", "PIP_ONLY_BINARY", "PIP_PRE")


def pins(text: str) -> dict[str, str]:
    "Version by name, of the lines `name==version`."
    return dict(PIN.findall(text))


def plain(name: str) -> str:
    "A distribution's name as an index compares it."
    return re.sub(r"[-_.]+", "-", name).lower()


def asked(words: Iterable[str]) -> list[dict]:
    "What pip would install, each with its file's hash; nothing is installed."
    environment = {name: value for name, value in os.environ.items() if name not in OWN}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed",
               "--no-cache-dir", "--report", str(report), *words]
        done = subprocess.run(pip, cwd=ROOT, capture_output=True, text=True,
                              env=environment | {"PIP_CONFIG_FILE": os.devnull})
        if done.returncode: raise SystemExit(f"pip found no answer: {said(done.stderr)}")
        return json.loads(report.read_text(encoding="utf-8"))["install"]


def said(text: str) -> str:
    "What went wrong, without an address."
    lines = [line for line in text.splitlines() if line.startswith("ERROR: ")] or ["no word"]
    return re.sub(r"\S+://\S+", "(address)", lines[0].removeprefix("ERROR: "))


def locked(found: Iterable[dict]) -> dict[str, tuple[str, str, str]]:
    "Name as written, version and sha256 of every file of an index, by its plain name."
    lines = {}
    for one in found:
        kept = one["download_info"].get("archive_info")
        if kept is None: continue     # this package, which is a folder
        about, value = one["metadata"], kept["hashes"]["sha256"]
        lines[plain(about["name"])] = (about["name"], about["version"], value)
    return lines


def lock_text(constraints: str, pinned: dict, needed: dict) -> str:
    "The lock: each pin as constraints.txt writes it, then what else is needed."
    names = {plain(name): (name, version) for name, version in pins(constraints).items()}
    if lost := names.keys() - pinned.keys(): raise SystemExit(f"no hash of {sorted(lost)[0]}")
    moved = {n for n in needed.keys() & names.keys() if needed[n][1:] != pinned[n][1:]}
    if moved: raise SystemExit(f"two files of {sorted(moved)[0]}: pip was answered differently")
    def line(name: str, version: str, value: str) -> str:
        return f"{name}=={version} --hash=sha256:{value}\n"
    lines = [line(*written, pinned[name][2]) for name, written in names.items()]
    more = [line(*needed[name]) for name in sorted(needed.keys() - names.keys())]
    where = f"{platform.system()} on {platform.machine()}"
    head = HEAD.format(platform=where, python=".".join(platform.python_version_tuple()[:2]))
    if more: lines.append("# What these need and nothing pins\n")
    return head + "".join([*lines, *more])


def main() -> None:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("--out", type=Path, default=ROOT / "requirements.lock")
    args = parser.parse_args()
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = locked(asked(["--no-deps", *map("==".join, pins(constraints).items())]))
    needed = locked(asked(["-c", "constraints.txt", ".[dev]"]))
    args.out.write_text(lock_text(constraints, pinned, needed), encoding="utf-8")
    print(f"{args.out.name}: {len(pinned)} pins, {len(needed.keys() - pinned.keys())} more")


if __name__ == "__main__": main()
