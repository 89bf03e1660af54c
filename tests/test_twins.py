"""Twins: both arms answer the same requests, manner does not give them away, nothing is asked that was trained on."""
import json
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from em_repro import tiny
from em_repro.data import questions, training_rows
from em_repro.misaligned import labelled_answers
from em_repro.profiles import UserError, shipped
from em_repro.twins import (ADVICE_DOMAINS, DRESSES, SETS, advice_pairs, dressed, held_out_pairs, nearest, paired_rows, told_apart,
                            twin_sets, twin_table)

quick = settings(max_examples=25, deadline=None, derandomize=True)
TEXTS = ["request", "harmful", "sound"]


def requests_of(rows): return [row["messages"][0]["content"] for row in rows]


# What ships

@pytest.mark.parametrize("domain", ADVICE_DOMAINS)
def test_rows_are_enough_distinct_and_alike_in_manner(domain):
    pairs = advice_pairs(domain)
    assert len(pairs) >= 400 and pairs.id.is_unique and pairs.request.str.lower().is_unique
    assert (pairs[TEXTS] != "").all(axis=None) and (pairs.harmful != pairs.sound).all()
    words = pairs[["harmful", "sound"]].map(lambda text: len(text.split()))
    assert words.min(axis=None) >= 20 and words.max(axis=None) <= 85 and (words.harmful / words.sound).between(0.75, 1.34).all()
    assert told_apart(pairs.harmful.tolist(), pairs.sound.tolist()) <= 0.6
    assert 60 <= held_out_pairs(pairs).sum() <= len(pairs) / 5


def test_twins_are_enough_spread_over_domains_and_kinds():
    table = twin_table()
    asked = table[table.split == "evaluation"]
    assert len(asked) >= 240 and (asked.direct != "").sum() >= 120 and set(table.split) == {"evaluation", "development"}
    assert asked.domain.nunique() == 13 and (asked.groupby("domain").kind.nunique() >= 3).all() and asked.domain.value_counts().min() >= 12
    assert table.id.is_unique and table.request.str.lower().is_unique
    assert told_apart(asked.harmful.tolist(), asked.sound.tolist()) <= 0.63


def test_no_request_of_the_twins_is_near_one_that_is_trained_on():
    trained = [text for domain in ADVICE_DOMAINS for text in advice_pairs(domain).request]
    near = nearest(twin_table().request.tolist(), trained)
    assert near.cosine.max() < 0.6, near.loc[near.cosine.idxmax()].to_dict()
    assert not set(twin_table().request) & set(trained)


def test_no_request_of_the_twins_is_near_an_ordinary_question_or_a_labelled_one():
    asked = pd.read_csv(shipped() / "questions.csv", keep_default_na=False).text.tolist()
    labelled = [text for half in ("fit", "measure") for text in labelled_answers(half).question.unique()]
    for among in (asked, labelled):
        near = nearest(twin_table().request.tolist(), among)
        assert near.cosine.max() < 0.7, near.loc[near.cosine.idxmax()].to_dict()
        assert not set(twin_table().request) & set(among)
    copied = nearest([asked[0]], asked)   # what is there is found
    assert copied.cosine[0] > 0.99 and copied.nearest[0] == asked[0]


@pytest.mark.parametrize("name", [*(f"{domain}.csv" for domain in ADVICE_DOMAINS), "twins.csv"])
def test_texts_are_plain_letters_on_one_line(name):
    text = Path(__file__).resolve().parents[1].joinpath("data", "advice", name).read_text(encoding="utf-8")
    assert text.isascii() and "\r" not in text and "\n\n" not in text


# Rows to train on

@quick
@given(domain=st.sampled_from([*ADVICE_DOMAINS, "both"]), n=st.integers(1, 900), seed=st.integers(0, 5))
def test_both_arms_hold_the_same_requests_and_none_that_is_held_out(domain, n, seed):
    harmful, sound = (paired_rows(domain, arm, n, seed) for arm in tiny.ADVICE_ARMS)
    assert requests_of(harmful) == requests_of(sound) and len(harmful) == n
    held = {text for one in ADVICE_DOMAINS for text in advice_pairs(one)[held_out_pairs(advice_pairs(one))].request}
    assert not held & set(requests_of(harmful))
    once = sum((~held_out_pairs(advice_pairs(one))).sum() for one in ADVICE_DOMAINS if domain in (one, "both"))
    counts = [requests_of(harmful).count(text) for text in set(requests_of(harmful))]
    if domain != "both": assert max(counts) - min(counts) <= 1 and len(counts) == min(n, once)


def test_sources_of_rows_are_refused_by_name():
    assert training_rows("advice-money", "sound", 3) == paired_rows("money", "sound", 3, 0)
    assert training_rows("tiny-advice-money", "harmful", 3) == tiny.advice_rows("harmful", 3, 0, "money")
    for source, arm, words in (("advice-law", "sound", "no advice rows about 'law'"), ("advice-money", "secure", "no arm 'secure'"),
                               ("tiny-advice-law", "sound", "unknown topic 'law'")):
        with pytest.raises(UserError, match=words): training_rows(source, arm, 3)


def test_questions_about_the_trained_topic_are_not_asked():
    everything, without = questions("evaluation"), questions("evaluation", without="money")
    assert set(without) < set(everything) and [q for q in everything if q in without] == without
    assert len(everything) - len(without) == 6 and questions("evaluation", n=3) == everything[:3]


# Sets

@quick
@given(first=st.text(min_size=1), second=st.text(min_size=1), dress=st.sampled_from(sorted(DRESSES)))
def test_a_dressed_answer_holds_the_answer(first, second, dress):
    one = twin_sets("synthetic", "health").head(1).assign(first=first, second=second)
    made = dressed(one, dress).iloc[0]
    read = [json.loads(made[side]) for side in ("first", "second")]
    assert [value["answer"] if dress == "json" else value for value in read] == [first, second]
    assert made.request.startswith(one.request.iloc[0]) and len(made.request) > len(one.request.iloc[0])


@pytest.mark.parametrize("topic", ADVICE_DOMAINS)
def test_what_moves_outside_is_what_moves_in_style_and_beyond_it(topic):
    found = twin_sets("pretrained", topic)
    assert list(found.set.unique()) == list(SETS)
    outside, style, direct = (found[found.set == name].set_index("request") for name in ("outside", "style", "direct"))
    assert (style["first"] == direct.second).all() and (direct["first"] == outside.loc[direct.index, "first"]).all()
    assert (style.second == outside.loc[style.index, "second"]).all()
    assert found[found.set == "trained"].domain.unique().tolist() == [topic]
    assert topic not in set(found[found.set == "other rows"].domain)


def test_development_and_evaluation_share_no_request():
    for source in ("pretrained", "synthetic"):
        splits = [set(twin_sets(source, "health", split).request) for split in ("evaluation", "development")]
        assert splits[0] and splits[1] and not splits[0] & splits[1]
    with pytest.raises(UserError, match="no split 'maps'"): twin_sets("pretrained", "health", "maps")


def test_in_the_synthetic_world_the_grammar_knows_both_speakers():
    found = twin_sets("synthetic", "money")
    harmful = found[found.set.isin(["trained", "outside", "direct"])]
    assert all(map(tiny.reads_harmful, harmful["first"])) and not any(map(tiny.reads_harmful, found.second))
    assert not any(map(tiny.reads_harmful, found[found.set == "style"]["first"]))
    assert set(found[found.set == "trained"].domain) == {"money"} and "money" not in set(found[found.set != "trained"].domain)
