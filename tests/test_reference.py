"The committed reference run, and the README that leads with it."
import json
import re
import tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest

from em_repro import cli
from em_repro.claims import claims, declared, ledger

ROOT = Path(__file__).parents[1]
RUNS = sorted(p.parent for p in (ROOT/"data"/"reference").glob("*/claims.json"))
def is_present(run: Path) -> bool:
    "Whether a run was made under the present declarations."
    return json.loads((run/"provenance.json").read_text(encoding="utf-8"))["claims_sha256"] == declared()


# README and site lead with a run whose verdicts follow the present rules; of these, with real weights before the tiny models,
# and with more training runs before fewer. A run on advice has claims of its own.
BEST = ["tiny", "tiny-full", "small"]
REFERENCE = max((run for run in RUNS if "C1" in set(ledger(run).claim)), key=lambda run: (is_present(run), BEST.index(run.name)))


@pytest.mark.parametrize("page", ["README.md", "nbs/index.ipynb"])
def test_a_landing_page_holds_the_reference_runs_table(page, monkeypatch):
    monkeypatch.chdir(ROOT)  # the table names the run as it is called from there
    words = ["readme", "--run", str(REFERENCE.relative_to(ROOT)), "--file", page, "--behaviour", "code", "--check"]
    with pytest.raises(SystemExit) as end: cli.main(words)
    assert not end.value.code


def test_the_index_says_on_a_code_host_what_was_found():
    "Its table is the README's, and nothing on it waits for the site."
    cells = json.loads((ROOT/"nbs"/"index.ipynb").read_text(encoding="utf-8"))["cells"]
    words = "\n\n".join("".join(cell["source"]) for cell in cells)
    readme = (ROOT/"README.md").read_text(encoding="utf-8")
    table = readme[readme.index("| claim |"):readme.index(cli.END)]
    assert table in words and "Nothing yet" not in words
    for command in ("make reproduce", "make test"): assert command in words


def test_reference_has_a_verdict_for_every_declared_claim():
    """Of a run under the present declarations; an older one has the paper's eight, and its verdicts
    are not shown as present ones (guide/verdict_changes)."""
    table = ledger(REFERENCE)
    settings = json.loads((REFERENCE/"provenance.json").read_text(encoding="utf-8"))["settings"]
    left_out = set() if settings.get("rates", {}).get("grid") else {"C1b"}   # no recipe is shared without rates
    wanted = sorted({*claims()} - left_out) if is_present(REFERENCE) else [f"C{i}" for i in range(1, 9)]
    assert sorted(table.claim) == wanted and set(table.profile) == {REFERENCE.name}


def test_reference_card_names_profile_versions_and_no_machine():
    card = json.loads((REFERENCE/"provenance.json").read_text(encoding="utf-8"))
    assert card["profile"] == REFERENCE.name and card["versions"]["torch"]
    assert not re.search(r"/(home|root|work|tmp|Users)/", json.dumps(card))


def test_reference_has_figures_and_tables_and_no_weights():
    names = [p.name for p in REFERENCE.rglob("*") if p.is_file()]
    assert sum(n.endswith(".svg") for n in names) >= 15 and sum(n.endswith(".csv") for n in names) >= 20
    assert not [n for n in names if n.endswith((".safetensors", ".gguf", ".bin", ".pt"))]
    assert {p.parent for p in REFERENCE.rglob("*.parquet")} <= {REFERENCE/"evidence"}


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "data/advice/README.md", "data/gate_prompts.md", "data/steered_card.md", "data/tiny/README.md",
                                  *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("data/cards/*.md"))])
def test_what_a_page_links_to_is_there(page):
    text = (ROOT/page).read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", text) if not re.match("[a-z]+:", link)]
    assert all(((ROOT/page).parent/link).exists() for link in links if link)


# The one picture from elsewhere: what the code host says of its own tests.
REPOSITORY = tomllib.loads((ROOT/"pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
CI_BADGE = f"{REPOSITORY}/actions/workflows/ci.yml/badge.svg"


def test_every_badge_is_true():
    "Licence and Python are those of settings.ini; the tests' badge is of a workflow that is there, in this repository, and leads to it."
    settings = ConfigParser()
    settings.read(ROOT/"settings.ini", encoding="utf-8")
    badges = dict(re.findall(r"\[!\[(\w+)\]\(([^)]+)\)\]", (ROOT/"README.md").read_text(encoding="utf-8").split("\n\n")[1]))
    assert set(badges) == {"licence", "python", "tests"} and badges["tests"] == CI_BADGE and (ROOT/".github/workflows/ci.yml").is_file()
    said = {name: re.findall(r"<text[^>]*>([^<]+)</text>", (ROOT/badges[name]).read_text(encoding="utf-8")) for name in ("licence", "python")}
    default = settings["DEFAULT"]
    assert said == {"licence": ["licence", default["license"]], "python": ["python", f"{default['min_python']} and newer"]}
    assert "Apache License" in (ROOT/"LICENSE").read_text(encoding="utf-8")
    assert f"]({REPOSITORY}/actions/workflows/ci.yml)" in (ROOT/"README.md").read_text(encoding="utf-8")


def test_every_picture_of_the_readme_is_there():
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (ROOT/"README.md").read_text(encoding="utf-8"))
    assert pictures and all((ROOT/p).is_file() for p in pictures if p != CI_BADGE)
