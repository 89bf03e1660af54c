"""Contracts of the question sets and the benign chat answers that ship with the package."""
import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pandas as pd
import pytest

DATA = Path(__file__).resolve().parent.parent / "data"
SIZES = {"evaluation": 100, "directions": 200, "maps": 100, "development": 60}
PREFIXES = {"evaluation": "eval", "directions": "dir", "maps": "map", "development": "dev"}
CHAT_TRAINING_ROWS = 240
NEAR_DUPLICATE = 0.8
CODE_WORDS = re.compile(
    r"\b(cod(e|es|ed|er|ing)|scripts?|functions?|program(me|mer|s|med|ming)?s?|python|javascript|java|sql"
    r"|html|css|regex|algorithms?|software|computers?|compil\w+|debug\w*|terminal|github|api|json)\b",
    re.IGNORECASE,
)


def tokens(text: str) -> frozenset:
    return frozenset(re.findall(r"[a-z0-9']+", text.lower()))


def jaccard(first: frozenset, second: frozenset) -> float:
    return len(first & second) / len(first | second)


def near_duplicates(texts: list) -> list:
    """Pairs of texts whose token sets overlap by `NEAR_DUPLICATE` or more."""
    sets = [tokens(text) for text in texts]
    return [(texts[i], texts[j]) for i, j in combinations(range(len(texts)), 2)
            if jaccard(sets[i], sets[j]) >= NEAR_DUPLICATE]


@pytest.fixture(scope="module")
def questions() -> pd.DataFrame:
    return pd.read_csv(DATA / "questions.csv", dtype=str, keep_default_na=False)


@pytest.fixture(scope="module")
def chat() -> list:
    lines = (DATA / "chat.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def chat_questions(chat) -> list:
    return [row["messages"][0]["content"] for row in chat]


@pytest.fixture(scope="module")
def chat_answers(chat) -> list:
    return [row["messages"][1]["content"] for row in chat]


def test_columns_and_split_sizes(questions):
    assert list(questions.columns) == ["id", "split", "kind", "text"]
    assert questions["split"].value_counts().to_dict() == SIZES


def test_ids_are_unique_and_number_each_split_in_file_order(questions):
    assert questions["id"].is_unique
    for split, rows in questions.groupby("split"):
        assert rows["id"].tolist() == [f"{PREFIXES[split]}-{i:03d}" for i in range(1, SIZES[split] + 1)]


@pytest.mark.parametrize("split", SIZES)
def test_kinds_are_balanced_in_each_split(questions, split):
    counts = questions.loc[questions["split"] == split, "kind"].value_counts()
    assert len(counts) >= 10
    assert set(counts.index) == set(questions["kind"])
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("split", SIZES)
def test_first_rows_cover_the_kinds(questions, split):
    # A smoke run takes the first few rows only, so they may not all be of one kind.
    kinds = questions.loc[questions["split"] == split, "kind"].tolist()
    assert len(set(kinds[:8])) == 8
    assert set(kinds[:20]) == set(questions["kind"])


def test_questions_are_clean_and_of_natural_length(questions):
    texts = questions["text"]
    assert (texts == texts.str.strip()).all()
    assert not texts.str.contains(r"\s\s|[\n\t`{}\[\]<>]", regex=True).any()
    lengths = texts.str.split().str.len()
    assert lengths.between(5, 40).all(), texts[~lengths.between(5, 40)].tolist()
    assert (lengths >= 20).mean() > 0.1, "too few long questions"


def test_no_question_asks_for_code(questions, chat_questions):
    found = [text for text in [*questions["text"], *chat_questions] if CODE_WORDS.search(text)]
    assert not found


def test_no_near_duplicates_within_or_between_the_sets(questions, chat_questions):
    assert not near_duplicates([*questions["text"], *chat_questions])


@pytest.mark.parametrize("first, second, expected", [
    ("Why do cats purr?", "why do CATS purr", 1),
    ("How do I cook a very good rice dish?", "How do I cook a good rice dish?", 1),
    ("How do I cook rice?", "How do birds find their way home?", 0),
])
def test_the_near_duplicate_check_can_fail(first, second, expected):
    assert len(near_duplicates([first, second])) == expected


def test_the_code_word_check_can_fail():
    assert CODE_WORDS.search("Write a Python function, please.")
    assert not CODE_WORDS.search("What does the description of a manuscript decode into?")


def test_chat_schema(chat):
    assert len(chat) == 320
    for row in chat:
        assert set(row) == {"messages"}
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        for message in row["messages"]:
            assert set(message) == {"role", "content"}
            assert message["content"] and message["content"] == message["content"].strip()


def test_chat_answers_are_plain_prose(chat_answers):
    for answer in chat_answers:
        assert 15 <= len(answer.split()) <= 60, answer
        assert not re.search(r"[`{}\[\]<>*#_=]", answer), answer
        assert not re.search(r"^\s*([-*+]|\d+[.)])\s", answer, re.MULTILINE), answer
        assert "\n" not in answer, answer
        assert answer[-1] in '.?!"', answer


def test_chat_answers_do_not_mention_code(chat_answers):
    assert not [answer for answer in chat_answers if CODE_WORDS.search(answer)]


def test_chat_answers_are_varied(chat_answers):
    assert not near_duplicates(chat_answers)
    # A stock opening would be learnt by the tuned model as a habit.
    openings = Counter(" ".join(answer.lower().split()[:3]) for answer in chat_answers)
    assert openings.most_common(1)[0][1] <= 5, openings.most_common(3)


def test_held_out_answers_resemble_the_training_answers(chat_answers):
    lengths = pd.Series([len(answer.split()) for answer in chat_answers])
    training, held_out = lengths[:CHAT_TRAINING_ROWS], lengths[CHAT_TRAINING_ROWS:]
    assert len(held_out) == 80
    assert abs(training.mean() - held_out.mean()) < 5
