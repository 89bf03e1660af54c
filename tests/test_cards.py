"""Every text and label that ships has a card in one form, which says of its files what is true of them."""
import json, re, tomllib
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data"
INDEX = DATA / "cards/README.md"
CARDS = sorted({*DATA.glob("cards/*.md")} - {INDEX}) + [DATA / name for name in ("advice/README.md", "steered_card.md", "gate_prompts.md", "tiny/README.md")]
FORM = ["What.", "What for.", "Who wrote it.", "How it was checked.", "Files.", "What it cannot tell.", "Licence."]
each_card = pytest.mark.parametrize("card", CARDS, ids=lambda p: p.relative_to(DATA).as_posix())


def text_of(card): return card.read_text(encoding="utf-8")


def described():
    "(file, number, word for what there are, what is said of its columns) of every card."
    for card in CARDS:
        for name, n, word, said in re.findall(r"(?m)^- `([\w./]+)`, (\d+) (\w+): (.*(?:\n  .*)*)", text_of(card)): yield name, int(n), word, said


def columns(said): return re.findall(r"`(\w+)`", said)


@each_card
def test_a_card_has_its_parts_in_their_order(card):
    heads = [head for head in re.findall(r"(?m)^\*\*([^*]+)\*\*", text_of(card)) if head in FORM]
    assert heads == FORM
    assert text_of(card).startswith("# ")


@each_card
def test_a_card_says_who_made_texts_and_labels(card):
    "A person, a language model (without a name), a small model whose outputs they are, a program; or that it is not recorded."
    part = re.search(r"\*\*Who wrote it\.\*\*(.*?)\n\n", text_of(card), re.S)[1]
    assert re.search(r"language model|not recorded|small models|Built by", part)
    assert not re.search(r"\b(GPT|ChatGPT|Claude|OpenAI|Anthropic|Gemini|Copilot|Mistral AI)\b", text_of(card))


@each_card
def test_the_licence_is_the_repositorys(card):
    settings = ConfigParser()
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    assert f"**Licence.** {settings['DEFAULT']['license']}" in text_of(card)


ALL = list(described())


@pytest.mark.parametrize("name, n, word, said", ALL, ids=[one[0] for one in ALL])
def test_a_file_has_the_rows_and_columns_of_its_card(name, n, word, said):
    path = DATA / name
    if path.suffix == ".toml":
        patterns = tomllib.loads(text_of(path))["pattern"]
        assert (word, len(patterns)) == ("patterns", n) and {len(p["variants"]) for p in patterns} == {16}
        if said != "as above": assert set(columns(said)) == {*patterns[0]}
        return
    if path.suffix == ".jsonl": table = pd.DataFrame(json.loads(line) for line in text_of(path).splitlines())
    else: table = pd.read_csv(path, keep_default_na=False)
    assert (word, len(table)) == ("rows", n)
    if said != "as above": assert columns(said)[:len(table.columns)] == list(table) or set(columns(said)) == {*table}


def test_same_columns_are_said_once():
    "`as above` stands below a file with the same columns."
    assert list(pd.read_csv(DATA / "advice/money.csv")) == list(pd.read_csv(DATA / "advice/health.csv"))
    keys = {tuple(sorted(p)) for path in DATA.glob("pairs/*.toml") for p in tomllib.loads(text_of(path))["pattern"]}
    assert len(keys) == 1


def test_counts_within_cards_are_the_files():
    questions, labelled, recorded = (pd.read_csv(DATA / f"{name}.csv", keep_default_na=False) for name in ("questions", "answers_labelled", "detector_recorded"))
    assert questions.kind.nunique() == 15 and "`kind`, of fifteen" in text_of(DATA / "cards/questions.md")
    fit = labelled[labelled.half == "fit"]
    assert fit.question.nunique() == 140 and (fit.groupby("question").label.nunique() == 2).all() and "each of 140 questions" in text_of(DATA / "cards/answers_labelled.md")
    assert {*labelled.label} == {"aligned", "misaligned"} and {*labelled.source} == {"written", "recorded"}
    assert {*recorded.label} == {"code", "prose", "broken", "unclear"}
    hard = pd.read_csv(DATA / "gate_prompts.csv")
    assert hard.kind.value_counts().tolist() == [24, 24] and "all 24 of `code`" in text_of(DATA / "gate_prompts.md")
    steered = pd.read_csv(DATA / "steered_labelled.csv", keep_default_na=False)
    real = steered[steered.kind != "planted"].model.value_counts()
    assert f"576 answers of SmolLM2-135M-Instruct ({real['smollm2-135m']}) and of Gemma-3-270M ({real['gemma-3-270m']})" in text_of(DATA / "steered_card.md") and real.sum() == 576


def test_the_card_of_the_tiny_models_is_theirs():
    rows = re.findall(r"\| `(tiny-\w+)` \| (\w+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|", text_of(DATA / "tiny/README.md"))
    assert {name for name, *_ in rows} == {p.name for p in DATA.glob("tiny/tiny-*")}
    for name, architecture, *numbers in rows:
        folder = DATA / "tiny" / name
        config = json.loads(text_of(folder / "config.json"))
        with safe_open(folder / "model.safetensors", "np") as file: size = sum(int(np.prod(file.get_slice(key).get_shape())) for key in file.keys())
        assert [architecture] == config["architectures"]
        assert list(map(int, numbers)) == [config["num_hidden_layers"], config["hidden_size"], config["vocab_size"], size]
        assert {stage: len(losses) for stage, losses in json.loads(text_of(folder / "losses.json")).items()} == {"pretraining": 850, "instruction": 350}
        assert {p.name for p in folder.iterdir()} == set(re.findall(r"`([\w.]+\.(?:json|jinja|safetensors))`", text_of(DATA / "tiny/README.md").split("**Files.**")[1])) - {"recipes.json"}


# Tables, by the script that makes them, or settings
SETTINGS = {"behaviours.toml", "claims.toml", "claims_advice.toml", "claims_log.toml", "families.toml", "machines.toml", "tolerances.toml"}


def test_every_file_of_data_is_in_a_card_or_says_what_makes_it():
    files = {p.relative_to(DATA).as_posix() for p in DATA.rglob("*") if p.suffix in (".csv", ".jsonl", ".toml") and p.relative_to(DATA).parts[0] not in ("reference", "profiles", "tiny")}
    made = dict(re.findall(r"(?m)^\| `([\w./]+\.csv)` \| (.*) \|$", text_of(INDEX)))
    in_cards = {name for name, *_ in ALL}
    assert not in_cards & {*made} and in_cards | {*made} | SETTINGS == files
    for name, maker in made.items():
        for script in re.findall(r"`((?:tools|tests)/\w+\.py)`", maker): assert (ROOT / script).is_file(), name


def test_the_index_links_every_card():
    linked = {(INDEX.parent / place).resolve() for place in re.findall(r"\]\(([^)]+)\)", text_of(INDEX))}
    assert linked == {card.resolve() for card in CARDS}
