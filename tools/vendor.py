"""Fetch the plotting library that reports carry, at the version in data/report/vendored.json.

Needs npm and takes seconds. For another version change `version` in that file, run this, and put
the digest that it prints into `sha256`: tests/test_report.py compares them. It is kept packed, as
NAME.gz.
"""
import argparse, gzip, hashlib, json, shutil, subprocess, tarfile, tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1]/"data"/"report"


def main() -> None:
    show = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=show).parse_args()
    if not shutil.which("npm"): raise SystemExit("no npm on the PATH: install Node.js")
    named = json.loads((FOLDER/"vendored.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        source = f"{named['package']}@{named['version']}"
        subprocess.run(["npm", "pack", "--silent", source], cwd=folder, check=True,
                       stdout=subprocess.DEVNULL)
        archive, = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as packed: packed.extractall(folder, filter="data")
        program = (Path(folder)/"package"/named["file"]).read_bytes()
        (FOLDER/f"{named['file']}.gz").write_bytes(gzip.compress(program, 9, mtime=0))
        shutil.copyfile(Path(folder)/"package"/"LICENSE", FOLDER/"plotly-LICENSE.txt")
    digest = hashlib.sha256(program).hexdigest()
    known = "" if digest == named["sha256"] else ", which is not that of vendored.json"
    print(f"{source}: {digest}{known}")


if __name__ == "__main__": main()
