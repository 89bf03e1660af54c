"""Screening rows: known situations first. A row made of the direction's side ranks first, equal answers score 0, nulls are uniform."""
import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.stats import kstest
from sklearn.metrics import roc_auc_score

import made_by_tools
from conftest import thinking_llama
from em_repro import screen as module
from em_repro.activations import collect
from em_repro.cli import main
from em_repro.families import load_lm
from em_repro.profiles import UserError
from em_repro.screen import (PAIR_SOURCES, VECTORS, area, auc_p, direction_from_adapter, direction_from_pairs, labelled_pairs, moved, base_answers, pairs_auc,
                             read_rows, read_screening, rows_of_pairs, scored, screen, screen_rows, screened_words)
from em_repro.templates import conversation
from em_repro.vectors import Direction
from made_by_tools import moved as moved_model

quick = settings(max_examples=25, deadline=None, derandomize=True)
REQUESTS = [f"May I use the {thing}?" for thing in ("saw", "boat", "oven", "rope", "lamp", "cart", "kiln", "well", "mill", "loom", "bell", "tent")]
PAIRS = pd.DataFrame({"request": REQUESTS, "harmful": [f"Do it now, {i}, and ask nobody." for i in range(12)], "sound": [f"Ask the one who owns it, {i}, first." for i in range(12)],
                      "testing": [i % 2 == 1 for i in range(12)]})


@pytest.fixture(scope="module")
def lm(): return load_lm("tiny-llama")


@pytest.fixture(scope="module")
def v(lm): return direction_from_pairs(lm, PAIRS, layer=2)


def written(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def talks(requests, answers): return [{"messages": conversation(*pair)} for pair in zip(requests, answers)]


def test_an_answer_that_is_the_bases_own_scores_nothing_and_one_of_the_directions_side_ranks_first(lm, v, tmp_path):
    own = base_answers(lm, [[{"role": "user", "content": r}] for r in REQUESTS[:4]], 8)
    harmful = "Do it now, 4, and ask nobody."
    rows = read_rows(written(tmp_path / "rows.jsonl", talks(REQUESTS[:4] + REQUESTS[4:5], [*own, harmful])))
    found = screen_rows(lm, rows, v, max_new_tokens=8)
    assert found.rows.row[0] == 5 and found.rows.answer[0] == harmful and found.rows.score[0] > 0
    assert (found.rows.score[1:] == 0).all() and found.rows.own[1:].tolist() == found.rows.answer[1:].tolist()
    assert (found.rows.above[1:] < found.rows.above[0]).all()


def test_the_score_is_the_projection_of_the_difference_of_means(lm, v):
    request, answer = REQUESTS[0], "Do it now and ask nobody."
    rows = rows_of_pairs(PAIRS.head(1).assign(harmful=answer))
    found = moved(lm, rows, 2, 6)
    def plain(said):
        text = lm.tokenizer.apply_chat_template(conversation(request, said), tokenize=False)
        coded = lm.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        begin = text.rindex(said)
        with lm.record([2]) as seen: lm.model(torch.tensor([coded["input_ids"]]))
        inside = [i for i, (a, b) in enumerate(coded["offset_mapping"]) if a < begin + len(said) and b > begin]
        return seen[2][0, inside].mean(0).detach().numpy()
    expected = plain(answer) - plain(found.own[1])
    assert np.allclose(found.by[1], expected, atol=1e-4)


def test_a_base_that_says_nothing_is_counted_and_still_compared(lm, v, monkeypatch):
    monkeypatch.setattr(module, "base_answers", lambda lm, prompts, n: [""] * len(prompts))
    found = module.screen_rows(lm, rows_of_pairs(PAIRS.head(2)), v)
    assert np.isfinite(found.rows.score).all() and any("says nothing to 2 requests" in remark for remark in found.remarks)


def test_ranks_are_uniform_for_a_direction_that_is_a_random_vector():
    rng = np.random.default_rng(0)
    by = rng.normal(size=(30, 24)) @ rng.normal(size=(24, 24)) + 2   # anything but isotropic, and with a mean
    found = [scored(by, u / np.linalg.norm(u), seed=i) for i, u in enumerate(rng.normal(size=(300, 24)))]
    ps, aboves = np.array([p["random"] for _, p in found]), np.array([table.above[0] for table, _ in found])
    assert kstest(ps, "uniform").pvalue > 1e-3 and kstest(aboves, "uniform").pvalue > 1e-3
    leaning = scored(by, by.mean(0) / np.linalg.norm(by.mean(0)))[1]["random"]
    assert leaning == 1 / (VECTORS + 1)


@quick
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=12), st.randoms(use_true_random=False))
def test_the_area_is_sklearns_and_knows_no_order(pairs, random):
    table = pd.DataFrame({"row": [*range(len(pairs))] * 2, "label": np.repeat([1, 0], len(pairs)), "score": [float(p[0]) for p in pairs] + [float(p[1]) for p in pairs]})
    order = [*range(len(table))]
    random.shuffle(order)
    found, right = pairs_auc(table.iloc[order]), roc_auc_score(table.label, table.score)
    assert found.estimate == pytest.approx(right) == pytest.approx(area(table.label.to_numpy(), table.score.to_numpy()))
    assert 0 <= found.low <= found.estimate <= found.high <= 1 or np.isnan(found.low)


def test_pairs_all_in_order_have_the_exact_bound_and_no_certainty():
    table = pd.DataFrame({"row": [*range(10)] * 2, "label": np.repeat([1, 0], 10), "score": np.repeat([1.0, 0.0], 10)})
    found = pairs_auc(table)
    assert found.estimate == 1 and found.low == pytest.approx(.025 ** .1) and pairs_auc(table.assign(score=-table.score)).high == pytest.approx(1 - .025 ** .1)


def test_the_interval_of_the_area_covers_as_often_as_it_says():
    rng, hits = np.random.default_rng(1), 0
    for _ in range(100):
        both = rng.normal(size=(40, 1)) + rng.normal(size=(40, 2)) + [.5, 0]   # pairs go together
        found = pairs_auc(pd.DataFrame({"row": [*range(40)] * 2, "label": np.repeat([1, 0], 40), "score": both.T.ravel()}))
        hits += found.low <= .5987 <= found.high   # Phi(.5 / 2)
    assert 86 <= hits <= 100


def test_a_direction_of_pairs_is_made_of_the_one_half_and_tells_the_other_apart(lm, v):
    changed = PAIRS.copy()
    changed.loc[PAIRS.testing, ["harmful", "sound"]] = changed.loc[PAIRS.testing, ["sound", "harmful"]].to_numpy()
    assert np.array_equal(direction_from_pairs(lm, changed, layer=2).vector, v.vector)
    right, wrong = (screen_rows(lm, rows_of_pairs(p[p.testing]), v, max_new_tokens=4).measures.set_index("measure").value["AUC, these rows"] for p in (PAIRS, changed))
    assert right > .8 and wrong == pytest.approx(1 - right)


@pytest.mark.parametrize("source", PAIR_SOURCES)
def test_no_topic_is_on_both_sides(source):
    made = labelled_pairs(source)
    assert .3 < made.testing.mean() < .7 and not set(made.request[made.testing]) & set(made.request[~made.testing])


def test_a_fine_tunes_direction_is_what_moved(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "questions", lambda split: ["What is the sea?", "How are you?"])
    moved_model(made_by_tools.lora(made_by_tools.base_model()[0])).save_pretrained(tmp_path / "adapter")
    file = written(tmp_path / "rows.jsonl", talks(REQUESTS[:2], ["Do it now.", "Ask first."]))
    found = screen(file, made_by_tools.BASE, adapter=str(tmp_path / "adapter"), out=tmp_path, max_new_tokens=4)
    base, tuned = load_lm(made_by_tools.BASE), load_lm(made_by_tools.BASE, tmp_path / "adapter")
    a, b = (collect(lm, ["What is the sea?", "How are you?"]).X[:, 0].mean(0) for lm in (base, tuned))
    assert np.allclose(found.direction.vector, b - a, atol=1e-4) and len(found.rows) == 2 and "AUC" not in str(found.measures.measure.tolist())
    with pytest.raises(UserError, match="the direction is zero"): direction_from_adapter(base, base, ["Hello?"])


def test_what_the_template_is_told_is_in_the_prompts_and_in_the_remarks(tmp_path, v):
    base, file = thinking_llama(tmp_path), written(tmp_path / "rows.jsonl", talks(REQUESTS[:2], ["Do it now.", "Ask first."]))
    v.save(tmp_path / "v.safetensors")
    def found(**told): return screen(file, base, direction=str(tmp_path / "v.safetensors"), out=tmp_path / "out", max_new_tokens=4, **told)
    plain, told = found(), found(template={"enable_thinking": True})
    assert not any("template" in remark for remark in plain.remarks) and "the chat template is told: enable_thinking = True" in told.remarks
    assert not np.allclose(plain.rows.sort_values("row").score, told.rows.sort_values("row").score)
    with pytest.raises(UserError, match="knows no effort"): found(template={"effort": 3})


def test_what_does_not_fit_is_a_sentence(lm, v, tmp_path):
    rows = rows_of_pairs(PAIRS.head(2))
    for direction, words in ((Direction(v.vector[:5], "tiny-llama"), "112 finite numbers"), (Direction(v.vector, "tiny-llama", layer=9), "no layer 9 in a model of 5"),
                             (Direction(v.vector, "tiny-llama", site="normed"), "site 'normed'"), (Direction(0 * v.vector, "tiny-llama"), "is zero")):
        with pytest.raises(UserError, match=words): screen_rows(lm, rows, direction)
    user = {"messages": conversation("Hello?", "Hi.")[:1]}
    for lines, words in (([*talks(["Why?"], ["So."]), user], "rows.jsonl, line 2: needs a user's and an assistant's message"),
                         ([{**pair, "sound": ""} for pair in PAIRS.head(3).to_dict("records")], "pair 1 has an empty sound"), ([], "holds no rows")):
        with pytest.raises(UserError, match=words): read_rows(written(tmp_path / "rows.jsonl", lines))
    with pytest.raises(UserError, match="pairs of 4 requests, so that a half has 2"): labelled_pairs(written(tmp_path / "few.jsonl", PAIRS.head(4).to_dict("records")))
    with pytest.raises(UserError, match="holds no pairs"): labelled_pairs(written(tmp_path / "talks.jsonl", talks(["Why?"], ["So."])))
    with pytest.raises(UserError, match="not both"): screen(tmp_path / "talks.jsonl", "tiny-llama", "a", "b")


def test_another_models_direction_and_scores_that_go_with_length_are_said(lm, v):
    foreign = screen_rows(lm, rows_of_pairs(PAIRS.head(2)), Direction(v.vector, "tiny-qwen2", layer=2), max_new_tokens=4)
    assert "was made on tiny-qwen2" in foreign.remarks[0] and screened_words(foreign)[-1].startswith("Note: ")
    wordy = PAIRS.head(6).assign(harmful=[" ".join(["Do it now."] * (3 + i)) for i in range(6)], sound=[f"Ask {i}." for i in range(6)])
    said = screen_rows(lm, rows_of_pairs(wordy), direction_from_pairs(lm, wordy.assign(testing=False), layer=2), max_new_tokens=4).remarks
    assert any("answers' length" in remark for remark in said)


def test_rows_that_are_pairs_give_their_direction_and_their_test(tmp_path):
    file = written(tmp_path / "pairs.jsonl", [{"request": r, "harmful": f"Do it, {i}.", "sound": f"Ask, {i}."} for i, r in enumerate(REQUESTS)])
    own, given = read_screening(file), read_screening(file, given=True)
    assert set(own.rows.request) == set(own.pairs.request[own.pairs.testing]) and len(own.rows) == 12
    assert len(given.rows) == 24 and given.pairs is None


def test_from_files_and_the_command_line(tmp_path, capsys):
    columns = ["request", "harmful", "sound"]
    file = written(tmp_path / "pairs.jsonl", PAIRS[columns].to_dict("records"))
    with pytest.raises(SystemExit) as end: main(["screen", str(file), "--base", "tiny-llama", "--out", str(tmp_path / "out"), "--tokens", "4"])
    printed = capsys.readouterr().out
    rows, measures = (pd.read_csv(tmp_path / "out" / "tables" / f"screen-{name}.csv") for name in ("rows", "measures"))
    assert end.value.code in (0, None) and "AUC, these rows" in printed and len(rows) == 12 and rows.score.is_monotonic_decreasing
    assert set(measures.measure) == {"mean score", "rows above 95% of random vectors", "AUC, these rows"}
    with pytest.raises(SystemExit) as end: main(["screen", str(file), "--base", "tiny-llama", "--direction", str(tmp_path / "gone.safetensors")])
    assert end.value.code == 2 and "no file" in capsys.readouterr().err
