"""What could explain a direction away: forced first tokens, a constant logit bias, edits deeper inside. Theorems, on the study's four architectures."""
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st

from conftest import ARCHITECTURES, byte_tokenizer, random_lm, random_model
from em_repro import decode
from em_repro.activations import collect
from em_repro.answers import COLUMNS, Instrument, answers, by_question
from em_repro.behaviours import behaviour
from em_repro.claims import claims, decide, hypothesis
from em_repro.decode import Condition, sweep
from em_repro.families import LM, load_lm
from em_repro.forcing import (DEPTHS, FORCED, LOGIT_BIAS, Begun, at_depths, beginnings, best_coefficient, biased_answers, continued, depth_vectors, depths,
                              forced_answers, forced_label, mean_logits, within_bias)
from em_repro.profiles import Decoding, UserError
from em_repro.spoken import signed
from em_repro.steering import (NO_STEERING, alternative_gain, alternatives_shown, alternatives_table, alternatives_tests, alternatives_words, explained_words,
                               rival_words)
from em_repro.subjects import Subject

PROMPTS = ["the tide comes in", "how are you today my friend", "assistant", "a" * 40]
NEW = 12
LIMIT = Decoding(max_new_tokens=NEW)


def own(lm, **how): return sweep(lm, PROMPTS, [Condition()], **{"max_new_tokens": NEW, **how}).token_ids


def push(lm, seed=0):
    v = np.random.default_rng(seed).normal(size=lm.width).astype(np.float32)
    return v * 2 * np.linalg.norm(collect(lm, PROMPTS).X[:, 0], axis=1).mean() / np.linalg.norm(v)


def generated(lm, prompt, begun=(), new=NEW):
    "Greedy tokens that transformers' own generate adds to a prompt and what its answer begins with, those included."
    ids = torch.tensor([[*lm.encode([prompt])[0], *begun]])
    with torch.inference_mode():
        out = lm.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new - len(begun), pad_token_id=lm.pad,
                                eos_token_id=lm.eos)
    said = out[0, ids.shape[1]:].tolist()
    return [*begun, *said[:next((i for i, t in enumerate(said) if t in lm.eos), len(said))]]


def biases(lm, size):
    return np.random.default_rng(1).normal(size=len(lm.head.weight)) * size


# Forced tokens

def test_an_answer_that_is_forced_is_what_generate_adds_to_prompt_and_tokens(lm):
    "By transformers' own loop, token by token, for tokens that the model would not have said."
    begun = [[7, 9, 11], [8, 8, 8], [100, 5, 30], [12, 13, 14]]
    for count in (1, 2, 3):
        found = continued(lm, PROMPTS, begun, count, LIMIT)
        assert found.token_ids == [generated(lm, p, b[:count]) for p, b in zip(PROMPTS, begun)]
        assert [ids[:count] for ids in found.token_ids] == [b[:count] for b in begun]
        frame = found.frame()
        assert list(frame.prompt) == PROMPTS and list(frame.text) == lm.tokenizer.batch_decode(found.token_ids, skip_special_tokens=True)
        assert list(frame.n_tokens) == [len(ids) for ids in found.token_ids] and not frame.cut.any()


def test_no_token_forced_is_no_steering(lm):
    assert continued(lm, PROMPTS, own(lm), 0, LIMIT).token_ids == own(lm)


def test_all_tokens_forced_is_the_other_models_answer(llama):
    "Whatever the model that is forced would say: nothing of it is left."
    other = LM.from_model(random_model("Llama", seed=3), byte_tokenizer())
    said = own(other)
    assert said != own(llama)
    assert continued(llama, PROMPTS, said, NEW, LIMIT).token_ids == said


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2 ** 16), st.floats(.1, 4))
def test_a_prefill_edit_of_the_last_block_is_its_first_token_and_nothing_more(architecture, seed, size):
    "The theorem of the design's section 6: forcing the edit's first token, nothing steered, gives the edit's answer."
    lm = random_lm(architecture)
    edited = sweep(lm, PROMPTS, [Condition(vector=size * push(lm, seed))], when="prefill", max_new_tokens=NEW).token_ids
    assert continued(lm, PROMPTS, edited, 1, LIMIT).token_ids == edited


@pytest.mark.parametrize("how", [{"when": "every_step"}, {"when": "prefill", "layer": 1}])
def test_other_edits_are_more_than_their_first_token(lm, how):
    "Otherwise the theorem would hold for an engine that edits nothing but first tokens."
    edited = sweep(lm, PROMPTS, [Condition(vector=push(lm))], max_new_tokens=NEW, **how).token_ids
    assert continued(lm, PROMPTS, edited, 1, LIMIT).token_ids != edited


@settings(max_examples=15, deadline=None)
@given(st.integers(0, NEW + 3), st.lists(st.lists(st.integers(6, 300), max_size=NEW + 3), min_size=4, max_size=4))
def test_answers_begin_as_told_end_where_told_and_are_no_longer_than_told(count, begun):
    lm = random_lm("Llama")
    found = continued(lm, PROMPTS, begun, count, LIMIT).token_ids
    for said, ids in zip(found, begun):
        assert said[:count] == ids[:count][:NEW] and len(said) <= NEW
        if len(ids) < count: assert said == ids[:NEW]   # its model had ended it


def test_samples_go_on_from_the_same_tokens_each_in_its_own_way(llama):
    drawn = Decoding(max_new_tokens=NEW, samples=3, temperature=1.0)
    begun = [[9], [], [9], [10]]   # the second had ended before its first token
    found = continued(llama, PROMPTS, begun, 1, drawn)
    assert list(found.frame()["sample"]) == [0, 1, 2] * 4 and list(found.frame().prompt) == [p for p in PROMPTS for _ in range(3)]
    assert found.token_ids[3:6] == [[]] * 3 and len({tuple(ids) for ids in found.token_ids[:3]}) > 1
    assert {ids[0] for ids in found.token_ids[:3]} == {9} and continued(llama, PROMPTS, begun, 1, drawn).token_ids == found.token_ids
    assert continued(llama, PROMPTS, begun, 0, drawn).token_ids == own(llama, samples=3, temperature=1.0)


def test_a_begun_model_is_the_model_and_knows_its_prompts(llama):
    begun = Begun(llama, [[1], [2, 3]])
    assert begun.model is llama.model and begun.eos == llama.eos and begun.encode(["a", "b"]) == [llama.encode(["a"])[0] + [1], llama.encode(["b"])[0] + [2, 3]]
    with pytest.raises(ValueError): begun.encode(["a"])


# A constant logit bias

@pytest.mark.parametrize("size", [0, 1, 10])
@pytest.mark.parametrize("screened", [False, True])
def test_biased_answers_are_those_of_generate_with_the_bias(lm, size, screened, monkeypatch):
    "Token by token, where the fast engine would screen the head in bfloat16 too."
    if screened:
        monkeypatch.setattr(decode, "SCREENED_FROM", 1)
        monkeypatch.setattr(decode, "_multiplies_bfloat16", lambda: True)
    bias, plain = biases(lm, size), own(lm)
    with within_bias(lm, bias):
        found = own(lm)
        assert found == [generated(lm, p) for p in PROMPTS]
    assert (found != plain) == (size > 0) and own(lm) == plain


def test_the_bias_is_added_before_the_cap_and_left_behind_by_nobody(lm):
    bias, h = biases(lm, 1), torch.randn(3, lm.width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = lm.head(lm.norm(h)) + torch.tensor(bias, dtype=torch.float32)
        if lm.softcap: wanted = lm.softcap * torch.tanh(wanted / lm.softcap)
        with within_bias(lm, bias):
            assert torch.allclose(lm.logits(h), wanted, atol=1e-4)
            with pytest.raises(ZeroDivisionError), within_bias(lm, bias): 1 / 0   # nested: both act, the inner one is taken off
            assert torch.allclose(lm.logits(h), wanted, atol=1e-4)
    assert lm.head.bias is None and not [n for n, _ in lm.model.named_parameters() if n.endswith("head.bias")]


def test_a_huge_bias_on_one_token_forces_it(lm):
    bias = np.zeros(len(lm.head.weight)); bias[42] = 1e6
    with within_bias(lm, bias): assert own(lm) == [[42] * NEW] * len(PROMPTS)


def test_a_huge_bias_on_the_end_says_nothing(lm):
    bias = np.zeros(len(lm.head.weight)); bias[lm.eos] = 1e6
    with within_bias(lm, bias): assert own(lm) == [[]] * len(PROMPTS)


def test_a_bias_that_does_not_fit_is_refused_before_anything_is_changed(llama):
    with pytest.raises(UserError, match="each of its tokens"), within_bias(llama, np.zeros(5)): pass
    assert llama.head.bias is None


def test_mean_logits_are_the_mean_of_logits(lm):
    h = np.random.default_rng(0).normal(size=(9, lm.width)).astype(np.float32)
    with torch.inference_mode(): one_by_one = lm.head(lm.norm(torch.tensor(h))).mean(0).numpy()
    assert mean_logits(lm, h).dtype == np.float32 and np.allclose(mean_logits(lm, h), one_by_one, atol=1e-4)


# Deeper inside

@given(st.integers(1, 200))
def test_depths_are_inner_blocks_in_order_each_once(n):
    found = depths(n)
    blocks = list(found.values())
    assert blocks == sorted(set(blocks)) and all(0 <= k < n - 1 for k in blocks) and list(found) == [w for w in DEPTHS if w in found]
    for words, block in found.items(): assert abs((block + 1) / n - DEPTHS[words]) <= 1 / n
    if n >= 4: assert len(found) == 3


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 9), st.integers(1, 3), st.integers(0, 5))
def test_vectors_at_depths_are_that_blocks_own_shift_and_random_ones_are_of_its_norm(layers, samples, seed):
    a, b = np.random.default_rng(seed).normal(size=(2, 12, layers, 6)).astype(np.float32)
    made = depth_vectors({"activations": {"X": a}}, {"activations": {"X": b}}, samples=samples, seed=seed)
    conditions = at_depths(made["index"], -.5, "prefill")
    assert [c.key for c in conditions] == list(made["vectors"]) and len(conditions) == (samples + 1) * len(depths(layers))
    for c in conditions:
        v, shift = made["vectors"][c.key], (b - a)[:, c.layer].mean(0)
        assert np.isclose(np.linalg.norm(v), np.linalg.norm(shift), rtol=1e-4) and c.coefficient == -.5 and c.when == "prefill"
        if c.sample is None: assert np.allclose(v, shift, atol=1e-5)
    rows = [v for name, v in made["vectors"].items() if name.startswith("random")]
    assert len({v.tobytes() for v in rows}) == len(rows)   # no random vector comes twice


def test_the_best_coefficient_has_most_good_answers_and_is_the_smallest_of_equals():
    table = pd.DataFrame({"coefficient": [-1.] * 3 + [-.25] * 3 + [-.5] * 3, "role": ["good", "good", "target"] * 2 + ["incoherent"] * 3})
    assert best_coefficient(table) == -.25 and best_coefficient(table.iloc[::-1]) == -.25


# Stages and the study's tables

BASE, ASKED = Subject("tiny-llama"), ["How are you?", "What is a tide?", "Who was your first teacher?"]
SHORT = Decoding(max_new_tokens=8)


def instrument(): return Instrument(behaviour("code"), BASE, {"limit": {"threshold": 5.0}}, exact=True)


def plain(decoding=SHORT): return answers(BASE, ASKED, [Condition()], decoding, instrument())


def test_forced_answers_of_the_same_model_are_its_own_and_sorted_as_all_are():
    own = plain()
    begun = beginnings(BASE, ASKED, 4)
    made = forced_answers(BASE, ASKED, [1, 2, 4], begun, SHORT, instrument())
    table = made["answers"]
    assert list(table) == list(COLUMNS) and list(table.coefficient) == [1, 2, 4] * 3 and table.layer.isna().all()
    for count, part in table.groupby("coefficient"):
        assert set(part.condition) == {forced_label(int(count))} and set(part.vector) == {FORCED}
        for column in ("question", "text", "outcome", "role", "n_tokens"): assert list(part[column]) == list(own["answers"][column])
    assert [list(i) for i in made["tokens"].token_ids[::3]] == [list(i) for i in own["tokens"].token_ids]


def test_no_share_of_a_bias_is_no_steering():
    "And another share is another answer."
    shift = {"shift": {"logits": np.random.default_rng(0).normal(size=len(load_lm("tiny-llama").head.weight)) * 30}}
    table = biased_answers(BASE, ASKED, [0.0, -1.0], shift, SHORT, instrument())["answers"]
    own, none, all_of_it = plain()["answers"], table[table.coefficient == 0], table[table.coefficient == -1]
    assert list(none.text) == list(own.text) and list(none.role) == list(own.role) and set(none.vector) == {""}
    assert list(all_of_it.text) != list(own.text) and set(all_of_it.vector) == {LOGIT_BIAS}


def test_what_cannot_be_forced_is_refused():
    begun = beginnings(BASE, ASKED, 2)
    with pytest.raises(UserError, match="3 tokens cannot be forced of 2"): forced_answers(BASE, ASKED, [1, 3], begun, SHORT, instrument())
    with pytest.raises(UserError, match="give one for each"): forced_answers(BASE, ASKED[:2], [1], begun, SHORT, instrument())
    with pytest.raises(UserError, match="a number from 0 on"): continued(random_lm("Llama"), PROMPTS, [[1]] * 4, -1, LIMIT)


def toy_answers(runs=2):
    "Answers to three questions of one model: what was done decides how many are good."
    how = {NO_STEERING: ("", ["every_step"], 0, -1), "direction": ("direction", ["every_step", "prefill"], -1, -1),
           "base's first token": (FORCED, ["prefill"], 1, pd.NA), "logit bias": (LOGIT_BIAS, ["every_step"], -.5, pd.NA),
           "direction at half the depth": ("direction at half the depth", ["every_step", "prefill"], -1, 2)}
    rows = []
    for n, (what, (vector, whens, c, layer)) in enumerate(how.items()):
        for when, seed, question in itertools.product(whens, range(runs), "abc"):
            good = float((n + seed + (when == "prefill")) % 3 > "abc".index(question))
            rows.append({"model": "m", "arm": "x", "seed": seed, "what": what, "vector": vector, "when": when, "coefficient": float(c), "layer": layer,
                         "question": question, "good": good, "target": 1 - good, "incoherent": 0.0})
    return pd.DataFrame(rows).astype({"layer": "Int64"})


def test_a_gain_is_the_difference_of_gains_and_edits_are_compared_at_the_same_time():
    frame = toy_answers()
    def good(what, when): return by_question(frame[(frame.what == what) & (frame.when == when)], "good")
    none = good(NO_STEERING, "every_step")
    for when in ("every_step", "prefill"):
        for name, other in (("base's first token", "prefill"), ("logit bias", "every_step"), ("direction at half the depth", when)):
            wanted = (good("direction", when) - none) - (good(name, other) - none)
            assert np.allclose(alternative_gain(frame, "m", name, when), wanted), (name, when)


def test_the_table_has_a_line_for_everything_that_was_done():
    frame = toy_answers()
    table = alternatives_table(frame, behaviour("code"), 200)
    assert len(table) == len(frame.groupby(["what", "when"])) and set(table.n) == {3} and set(table.runs) == {2}
    assert np.allclose(table.code + table.incoherent + table.good, 1) and (table["good low"] <= table.good).all() and (table.good <= table["good high"]).all()
    first = table.iloc[0]
    assert first.what == NO_STEERING and first.when == "" and np.isnan(first.change) and np.isnan(first.coefficient)
    assert np.allclose(table.change[1:], table.good[1:] - first.good)
    assert table.set_index("what").layer.to_dict() == {NO_STEERING: "", "direction": "last", "base's first token": "", "logit bias": "",
                                                      "direction at half the depth": "2"}
    shown = alternatives_shown(table, behaviour("code"))
    assert shown.change[0] == "-" and shown.good[1].startswith(f"{100 * table.good[1]:.0f} [")


def test_tests_are_of_the_gains_and_their_words_count_them():
    tests = alternatives_tests(toy_answers(), 200)
    assert len(tests) == 6 and not set(tests.against) & {NO_STEERING, "direction"}
    for _, row in tests.iterrows():
        assert row.advantage == pytest.approx(alternative_gain(toy_answers(), "m", row.against, row.when).mean())
        assert row.direction - row.alternative == pytest.approx(row.advantage) and row.low <= row.advantage <= row.high
    said = alternatives_words(tests[tests.when == "prefill"])
    assert len(said) == 3 and all("of 1 models" in words for words in said)


# What the two simpler edits leave of the direction's success, in words

def decided_on(claim, *good, n=200):
    "A verdict from how many answers are good under the direction and under a rival, by model."
    def yes(k): return (np.arange(n) < k).astype(float)
    rows = [hypothesis(f"model {i}", yes(a), yes(b), claims()[claim]) for i, (a, b) in enumerate(good)]
    return decide(claims()[claim], rows, "known", "none")[0]


CASES = {"as well": ([(190, 190), (188, 190)], "not testable", "it does as well as the direction, within 10 points in every model"),
         "as well, low": ([(60, 60), (62, 60)], "contradicted", "it does as well as the direction, within 10 points in every model"),
         "better": ([(150, 40), (160, 40)], "supported", "the direction does better than it, by more than 10 points in every model that could show it"),
         "better in one": ([(150, 40), (60, 60)], "mixed", "the direction does better than it by more than 10 points in some models, and is shown not to in others"),
         "worse": ([(40, 100), (40, 110)], "contradicted", "the direction is shown not to do better than it by 10 points in some models, and shown to in none"),
         "as well in one": ([(190, 190), (120, 100)], "inconclusive", "whether it does as well as the direction is not shown"),
         "worse, no room": ([(120, 190), (110, 190)], "not testable", "whether it does as well as the direction is not shown"),
         "not shown": ([(80, 60), (80, 60)], "inconclusive", "whether it does as well as the direction is not shown")}


@pytest.mark.parametrize("case", CASES)
def test_a_rivals_words_follow_from_its_verdict(case):
    good, verdict, words = CASES[case]
    found = decided_on("C3a", *good)
    assert found.verdict == verdict and rival_words(found, "it") == words


def test_a_verdict_of_before_says_nothing_of_likeness():
    assert "not shown" in rival_words(decided_on("C3a", (190, 190)).model_copy(update={"p_within": None}), "it")


def test_the_sentence_on_rivals_says_what_was_found():
    token, bias = decided_on("C3a", *CASES["as well"][0]), decided_on("C3b", *CASES["better"][0])
    said = explained_words(decided_on("C3", (190, 20), (188, 20)), token, bias)
    assert said == ("Forcing the base's first token and steering nothing does as well as the direction, within 10 points in every model; the direction's advantage "
                    f"is -0 points [{100 * token.low:+.0f}, {100 * token.high:+.0f}] of good answers (C3a, **not testable**). The direction does better than adding a "
                    "constant to the logits, by more than 10 points in every model that could show it; the direction's advantage is "
                    f"{signed(bias.effect, bias.low, bias.high, 0, 100, ' points')} of good answers (C3b, **supported**), for these adapters.")
    idle = explained_words(decided_on("C3", (20, 20), (20, 20)), token, bias)
    assert idle == f"That there is a success to explain is not shown: C3 is **contradicted**. {said}"
