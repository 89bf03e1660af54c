"""Bring run folders of the old layout to the present: tables/x.csv becomes tables/code/x.csv.

Files are moved, never changed; a folder of the present layout is left as it is. Takes seconds.

    python tools/convert_run.py runs/tiny runs/small
"""
import argparse, sys
from pathlib import Path

from em_repro.folders import KINDS, RunFolder, files_in
from em_repro.profiles import UserError


def moves(run: RunFolder) -> list[tuple[Path, Path]]:
    "What has to be moved, from where to where. `UserError` when another file stands there."
    found = []
    for path in [path for kind in KINDS for path in files_in(run.root/kind)]:
        target = path.parent/"code"/path.name
        if target.exists() and target.read_bytes() != path.read_bytes():
            raise UserError(f"{path} and {target} differ: delete the one that is out of date")
        found.append((path, target))
    return found


def convert(folder: Path) -> int:
    "Convert a run's folder and return how many files were moved; nothing is, unless all can be."
    if not folder.is_dir(): raise UserError(f"there is no run in {folder}: give the folder of one")
    run = RunFolder(folder)
    found = moves(run)
    for path, target in found:
        target.parent.mkdir(exist_ok=True)
        path.replace(target)
    if found: run.made.unlink(missing_ok=True)     # it names files by their old places
    return len(found)


def main() -> None:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("folders", nargs="+", type=Path)
    try:
        for folder in parser.parse_args().folders: print(f"{folder}: {convert(folder)} files moved")
    except UserError as error: sys.exit(f"convert_run: {error}")


if __name__ == "__main__": main()
