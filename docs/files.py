"""What the site keeps of a run: the files beside each figure and page, their addresses, and the line of links that names them."""
import base64, hashlib, json, posixpath, re, shutil, tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from em_repro.figures import table_of
from em_repro.folders import RunFolder

REPOSITORY = tomllib.loads((Path(__file__).resolve().parents[1]/"pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
WORDS = {"svg": "svg", "png": "png", "csv": "table (csv)", "answers": "answers by question (parquet)"}


@dataclass(frozen=True)
class Kept:
    "A run, and the folder of the site that has its files."
    run: Path
    folder: str = "results"
    origin: tuple[tuple[str, str], ...] = ()       # the banner's words: profile, n, commit, date

    def address(self, path: Path) -> str:
        "Where the site has a file of the run, from its landing page."
        return f"{self.folder}/{quote(path.relative_to(self.run).as_posix())}"

    def keep(self, path: Path, site: Path) -> None:
        "Put a file of the run in its place below `site`; a figure's png that the run has not is taken from the notebook that drew it."
        place = site/self.folder/path.relative_to(self.run)
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_file(): return
        if path.is_file(): shutil.copyfile(path, place)
        else: place.write_bytes(base64.b64decode(self._pictures[path.parent.name][path.stem]))

    def source(self, name: Path) -> list[str]:
        "A link to a notebook at the commit that the run was made from; none where that is not known."
        commit = dict(self.origin).get("commit", "")
        if not re.fullmatch("[0-9a-f]{7,40}[+]?", commit): return []
        own = " (the run had uncommitted changes)" * commit.endswith("+")
        return [f"[its source at that commit]({REPOSITORY}/blob/{commit.removesuffix('+')}/nbs/{name.as_posix()}){own}"]

    @cached_property
    def _stems(self) -> dict[str, tuple[set[str], list[str]]]:
        "The figures and the tables of each behaviour."
        kept = RunFolder(self.run)
        return {name: ({path.stem for path in kept.figures(name).glob("[!.]*.svg")} | {path.stem for path in kept.figures(name).glob("[!.]*.png")},
                       [path.stem for path in kept.tables(name).glob("[!.]*.csv")]) for name in kept.behaviours()}

    @cached_property
    def _pictures(self) -> dict[str, dict[str, str]]:
        "Figures that executed notebooks show as png, in base64, by behaviour: committed runs keep svg alone."
        found, kept = {}, RunFolder(self.run)
        for behaviour in kept.behaviours():
            drawn = found.setdefault(behaviour, {})
            for path in sorted(kept.notebooks(behaviour).rglob("[!.]*.ipynb")):
                if path.name.endswith(".failed.ipynb"): continue
                for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
                    shown = [o["data"]["image/png"] for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
                    stem = self.figure("".join(cell["source"]), behaviour) if len(shown) == 1 else ""
                    if stem: drawn.setdefault(stem, "".join(shown[0]))
        return found

    def figure(self, code: str, behaviour: str) -> str:
        "The figure that a cell's code saves, by the name that it gives in quotes; empty where it is none of the run's."
        stems, _ = self._stems.get(behaviour, (set(), []))
        return next((word for word in reversed(re.findall(r"""["']([\w.-]+)["']""", code)) if word in stems), "")

    def of_figure(self, stem: str, behaviour: str) -> dict[str, Path]:
        "The files of a figure that `keep` can put on the site: svg, png, the csv of its table, and the answers by question."
        kept, (_, tables) = RunFolder(self.run), self._stems.get(behaviour, (set(), []))
        table = table_of(stem, tables)
        found = {"svg": kept.figures(behaviour)/f"{stem}.svg", "png": kept.figures(behaviour)/f"{stem}.png",
                 "csv": kept.tables(behaviour)/f"{table}.csv", "answers": kept.evidence(behaviour)}
        drawn = stem in self._pictures.get(behaviour, {})
        return {kind: path for kind, path in found.items() if path.is_file() or (kind == "png" and drawn)}

    def links(self, stem: str, behaviour: str, here: str = "", *more: str) -> str:
        """The line below a figure: its files as seen from the folder `here`, `more`, and where they come from.

        The table's digest is that of the csv file, whose numbers the figure draws."""
        files = self.of_figure(stem, behaviour)
        said = [f"[{WORDS[kind]}]({posixpath.relpath(self.address(path), here or '.')})" for kind, path in files.items()]
        card = dict(self.origin)
        source = [f"{key} `{card[key]}`" for key in ("profile", "commit") if card.get(key)]
        if "csv" in files: source.append(f"sha256 of the table `{digest(files['csv'])[:12]}`")
        return " · ".join([*said, *more]) + (f"\\\n{', '.join(source)}" if source else "")


def digest(path: Path) -> str: return hashlib.sha256(path.read_bytes()).hexdigest()
