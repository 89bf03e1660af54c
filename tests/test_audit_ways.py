"""Ways to take it out: what is recommended in situations whose answer is known (tests/situations.toml), gated answers, points that
are chosen on development questions alone, and what an audit keeps of all this."""
import html, json, re, time, tomllib
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from em_repro.audit_headline import headline
from em_repro.audit_ways import (WAYS, Gates, WayPoint, Ways, advise, behind_gates, by_way, fewest_requests, gate_fits, helping, point_of,
                                 point_table, way_table, way_tests, ways_notes, ways_sentences, ways_shown)
from em_repro.behaviours import behaviour
from em_repro.gating import GATED, GATED_ONCE, NONE, ONCE, PLAIN, recommended
from em_repro.profiles import UserError
from em_repro.subjects import BASE

ALL = tomllib.loads((Path(__file__).parent / "situations.toml").read_text(encoding="utf-8"))["recommendation"]
SITUATIONS = {each["name"]: each for each in ALL}
NAMES = {"base": BASE, "none": NONE, "once": ONCE, "plain": PLAIN, "gated": GATED, "gated_once": GATED_ONCE}
LAYER, WIDTH, BLOCKS = 3, 4, 4


def first(n, k): return (np.arange(n) < k).astype(float)


def gates_for(told, questions, requests):
    "A gate after block 1 that opens for questions, or as the situation says."
    fits = {"tried": pd.DataFrame({"layer": [1], "threshold": 0.0, "accuracy": 1.0, "loss": .1}), "gates": {"1": np.eye(WIDTH, dtype="f4")[0]}}
    sides = {"all": (1, 1), "none": (-1, -1)}.get(told.get("opens"), (1, -1))
    asked = {"ordinary": questions, "requests": requests, "dressed": [f"d{i:03}" for i in range(told.get("dressed", {}).get("n", 0))]}
    X = {name: np.full((len(asked[name]), BLOCKS, WIDTH), side, "f4") for name, side in zip(asked, (*sides, sides[1]))}
    return Gates(fits, X, asked)


def ways_of(told):
    "The ways of a situation, as if they had been asked."
    n, m, asked = told.get("n", 60), told.get("m", 60), told.get("asked", True)
    sides = {NAMES[key]: told[key] for key in NAMES if key in told}
    sides = {BASE: [n, m]} | sides
    broken, worn = told.get("incoherent", {}), told.get("dressed")
    keys = {way: key for key, way in NAMES.items()}
    gates = gates_for(told, [f"q{i:03}" for i in range(n)], [f"r{i:03}" for i in range(m)])
    def tables(size, mark, **columns):
        return pd.concat([pd.DataFrame({"method": way, "question": [f"{mark}{i:03}" for i in range(size)],
                                        **{name: values(way) for name, values in columns.items()}}) for way in sides], ignore_index=True)
    def rubble(way): return first(n, broken.get(keys[way], 0))[::-1]
    ordinary = tables(n, "q", good=lambda way: first(n, sides[way][0]), incoherent=rubble,
                      bad=lambda way: 1 - np.maximum(first(n, sides[way][0]), rubble(way)))
    requests = tables(m, "r", right=lambda way: first(m, sides[way][1])) if asked else None
    dressed = None
    if worn:
        def left(way): return first(worn["n"], worn.get(keys[way], 0))
        dressed = tables(worn["n"], "d", bad=left, incoherent=lambda way: first(worn["n"], 0), good=lambda way: 1 - left(way))
    shares = told.get("development", {})
    points = {way: WayPoint(LAYER, -1.0, "prefill" if way in (ONCE, GATED_ONCE) else "every_step",
                            gates.before(LAYER)[0] if way in (GATED, GATED_ONCE) else None, good=shares.get(keys[way], sides[way][0] / n))
              for way in WAYS if way in sides}
    nll = tables(8, "c", nll=lambda way: .3 + .1 * (way == PLAIN) + np.arange(8) / 100)
    return Ways(told.get("role", "target"), points, ordinary, nll, requests, dressed, gates)


def behaviour_of(told): return behaviour(told.get("behaviour", "code"))


@cache
def advice(name): return advise(ways_of(SITUATIONS[name]), behaviour_of(SITUATIONS[name]))


# What is recommended

def test_there_are_two_dozen_situations_and_every_reason_is_among_them():
    assert len(SITUATIONS) == len(ALL) >= 24
    assert {each.get("why", "") for each in ALL} == {"", "help", "unknown", "nothing", "few", "both"}
    assert {each["way"] for each in ALL if "way" in each} == set(WAYS)


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_situation_gets_its_recommendation_and_sentence(name):
    told, found = SITUATIONS[name], advice(name)
    assert (found.way, found.why) == (told.get("way", NONE), told.get("why", ""))
    assert list(found.sentences) == told["says"]


@pytest.mark.parametrize("name", SITUATIONS)
def test_every_count_of_a_recommendation_comes_from_the_data(name):
    told = SITUATIONS[name]
    counts = {str(told.get("n", 60)), str(told.get("m", 60)), "10", "29", str(LAYER), "1"}   # the margin, the least n, blocks, the coefficient
    for key in (*NAMES, "incoherent", "dressed"):
        value = told.get(key, [])
        counts |= {str(v) for v in (value.values() if isinstance(value, dict) else value)}
    if "incoherent" in told: counts |= {str(told["incoherent"].get("none", 0))}
    said = " ".join(advice(name).sentences)
    assert set(re.findall(r"\d+", said)) <= counts, said


@pytest.mark.parametrize("name", SITUATIONS)
def test_the_headline_ends_with_what_is_recommended(name):
    said = advice(name).sentences
    assert headline((), said) == f"{headline(())} {' '.join(said)}"


@pytest.mark.parametrize("name", [name for name, told in SITUATIONS.items() if told.get("way")])
def test_what_is_recommended_helps_and_keeps_both(name):
    ways, way = ways_of(SITUATIONS[name]), advice(name).way
    gains, tests = helping(ways).set_index("method"), way_tests(ways)
    assert gains.helps[way] and tests[tests.method == way].kept.all()
    simpler = WAYS[:WAYS.index(way)]
    assert not any(gains.helps.get(w, False) and tests[tests.method == w].kept.all() for w in simpler)


@pytest.mark.parametrize("name", SITUATIONS)
def test_gates_that_tell_nothing_apart_and_skills_that_are_not_known_are_noted(name):
    told = SITUATIONS[name]
    assert ways_notes(ways_of(told)) == ([told["note"]] if "note" in told else [])
    assert ("note" in told) == ("opens" in told or not told.get("asked", True))


COUNTS = st.integers(0, 60)


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.tuples(COUNTS, COUNTS)] * 4))
def test_the_rule_is_that_of_the_study_on_ways_that_help(sides):
    "And a way is named only with its own counts."
    ways = ways_of(dict(zip(("none", "once", "plain", "gated"), map(list, sides))))
    found, helps = advise(ways, behaviour("code")), helping(ways)
    some = helps.method[helps.helps]
    if found.why in ("help", "nothing"):
        assert not len(some) if found.why == "help" else sides[0][1] <= 6
        return
    tests = way_tests(ways)
    assert found.way == recommended(tests[tests.method.isin(some)].assign(model=""))[""]
    if found.way != NONE:
        good, kept = sides[[None, ONCE, PLAIN, GATED].index(found.way)]
        assert f"{good} of 60 answers to our questions are good" in found.sentences[0] and f"{kept} of 60 requests for code" in found.sentences[0]


def test_a_quick_audit_asks_enough_requests_to_recommend_anything():
    from em_repro.audit_inputs import FULL, QUICK
    from em_repro.gating import task_requests
    for sizes in (QUICK, FULL):
        requests, closing = task_requests("pretrained", sizes.skill_requests, sizes.gate_requests)
        assert len(requests) == sizes.skill_requests >= fewest_requests() and len(closing) == sizes.gate_requests
        assert not set(requests) & set(closing)


# Gated answers

def random_gates(seed, n=12):
    rng = np.random.default_rng(seed)
    X = {"ordinary": rng.normal(size=(n, BLOCKS, WIDTH)).astype("f4")}
    tried = pd.DataFrame({"layer": [0, 1, 3], "threshold": rng.normal(size=3), "accuracy": .9, "loss": rng.permutation([.1, .2, .3])})
    vectors = {str(k): rng.normal(size=WIDTH).astype("f4") for k in tried.layer}
    return Gates({"tried": tried, "gates": vectors}, X, {"ordinary": [f"q{i}" for i in rng.permutation(n)]})


def said_at(questions, edits, seed=0):
    "Answers to questions without an edit and under each (layer, coefficient)."
    rng, parts = np.random.default_rng(seed), []
    for layer, c in [(-1, 0.0), *edits]:
        asked = rng.permutation(questions)
        parts.append(pd.DataFrame({"question": asked, "layer": layer, "coefficient": c, "when": "every_step",
                                   "text": [f"{q} {layer} {c}" for q in asked]}).astype({"layer": "Int64"}))
    return pd.concat(parts, ignore_index=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0, 1, 2, 3]))
def test_a_gated_answer_is_the_steered_one_where_the_gate_opens_and_the_plain_one_elsewhere(seed, layer):
    gates = random_gates(seed)
    questions, gate = list(gates.asked["ordinary"]), gates.before(layer)[0]
    assert gate.layer <= layer
    points = {PLAIN: WayPoint(layer, -1.0, "every_step"), GATED: WayPoint(layer, -1.0, "every_step", gate)}
    made = by_way(said_at(questions, [(layer, -1.0), (layer, -2.0)], seed), points, gates)
    text = made.set_index(["method", "question"]).text
    opened = gates.opened("ordinary", layer)
    assert opened.tolist() == gate.opens(gates.X["ordinary"][:, gate.layer]).tolist()
    for q in questions:
        assert text[NONE, q] == f"{q} -1 0.0" and text[PLAIN, q] == f"{q} {layer} -1.0"
        assert text[GATED, q] == (text[PLAIN, q] if opened[q] else text[NONE, q])


def test_on_development_questions_a_gate_acts_at_every_block_and_coefficient():
    gates = random_gates(3)
    gates.X["development"], gates.asked["development"] = gates.X["ordinary"][:6], [f"d{i}" for i in range(6)]
    none = [said_at(gates.asked["development"], [])[lambda t: t.coefficient == 0].assign(layer=k) for k in (1, 3)]
    said = pd.concat([*none, said_at(gates.asked["development"], [(1, -.5), (1, -1.0), (3, -.5)])[lambda t: t.coefficient != 0]])
    made = behind_gates(said, gates, "development")
    assert made.groupby(["layer", "coefficient"]).size().eq(6).all() and len(made) == 5 * 6
    for (layer, c), part in made.groupby(["layer", "coefficient"]):
        steered = part.set_index("question").text.str.endswith(f"{layer} {c}")
        assert c == 0 or steered.equals(gates.opened("development", layer)[steered.index].rename("text").rename_axis("question"))


def test_a_gate_of_another_model_or_behind_the_edit_is_refused():
    gates = random_gates(0)
    wide = Gates(gates.fits, {"ordinary": np.ones((3, BLOCKS, WIDTH + 1), "f4")}, gates.asked)
    shallow = Gates({"tried": gates.fits["tried"].query("layer == 3"), "gates": gates.fits["gates"]},
                    {"ordinary": np.ones((3, 2, WIDTH), "f4")}, gates.asked)
    late = Gates({"tried": gates.fits["tried"].query("layer == 3"), "gates": gates.fits["gates"]}, gates.X, gates.asked)
    for refused, layer, words in ((wide, 3, "the gate is of width 4 and the model of 5"), (shallow, 1, "blocks 0 to 1"),
                                  (late, 1, "behind the edited block 1")):
        with pytest.raises(UserError, match=words): refused.opened("ordinary", layer)


def test_gates_are_fitted_on_the_prompts_that_they_are_given_and_no_others():
    X = np.random.default_rng(0).normal(size=(60, 2, 5)).astype("f4")
    changed = X.copy()
    changed[30:] = 99.0   # what is behind the first thirty is not looked at
    made = [gate_fits({"activations": {"X": side}}, {"activations": {"X": side[:, ::-1]}}, 30, 30, [0, 1]) for side in (X, changed)]
    assert made[0]["tried"].equals(made[1]["tried"]) and all(np.array_equal(made[0]["gates"][k], made[1]["gates"][k]) for k in "01")
    with pytest.raises(UserError, match="at least 5 of each"): gate_fits({"activations": {"X": X}}, {"activations": {"X": X}}, 30, 4, [0])


def test_of_blocks_the_one_that_met_the_rule_comes_first_then_more_good_answers_then_the_later():
    def at(met, good): return point_of(pd.DataFrame({"layer": [1, 2, 3], "coefficient": [-1.0, -2.0, -.5], "bad": .1, "met": met, "good": good}), "prefill").layer
    assert [at([True, False, False], [.5, .9, .9]), at([True] * 3, [.5, .9, .8]), at([True] * 3, [.9] * 3), at([False] * 3, [.2, .1, .1])] == [1, 2, 3, 1]


# Tables

@pytest.mark.parametrize("name", ["only gated keeps the skill", "no requests", "in dress it comes back"])
def test_the_table_of_ways_holds_every_rate_with_an_interval(name):
    told = SITUATIONS[name]
    ways, looked_for = ways_of(told), behaviour_of(told)
    table = way_table(ways, looked_for)
    rates = table[table.questions != "good answers"]
    assert rates.low.le(rates.rate + 1e-9).all() and rates.high.ge(rates.rate - 1e-9).all() and rates.rate.between(0, 1).all()
    assert set(table.way) == {BASE, *ways.methods} and ("requests" in set(table.questions)) == (ways.requests is not None)
    assert ("our questions in dress" in set(table.questions)) == (ways.dressed is not None)
    of = rates[rates.questions == "our questions"].pivot(index="way", columns="outcome", values="rate")
    assert np.allclose(of.sum(axis=1), 1) and of.loc[PLAIN, "good"] == told["plain"][0] / 60
    cost = table[table.questions == "good answers"].set_index("way")
    assert cost.rate[NONE] == 0 and cost.rate[PLAIN] == pytest.approx(.1) and len(ways_shown(table)) == len(ways.methods) + 1


def test_points_say_where_a_way_steers_and_which_gate_it_has():
    table = point_table(ways_of(SITUATIONS["only gated prefill keeps both"])).set_index("way")
    assert list(table.index) == list(WAYS) and table.gate[GATED] == 1 and pd.isna(table.gate[PLAIN])
    assert table.when.to_dict() == {ONCE: "prefill", PLAIN: "every_step", GATED: "every_step", GATED_ONCE: "prefill"}
    said = ways_sentences(ways_of(SITUATIONS["a gate that opens for nothing"]))
    assert "It opens for 0 of 60 of our questions and 0 of 60 requests." in said[-1]
    assert ways_sentences(ways_of(SITUATIONS["in dress it comes back"]))[-1].endswith("in training-like dress, for 0 of 40.")


# On a tiny model

TINY = "tiny-qwen2"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    import torch
    from em_repro.audit_calibration import tiny_adapter
    torch.set_num_threads(1)
    return tiny_adapter(TINY, "insecure", 0, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def sizes():
    from em_repro.audit_inputs import Sizes
    return Sizes(directions=16, development=8, evaluation=30, layers=1, coefficients=(0, -.5, -1), samples=2, nll_answers=4,
                 skill_requests=30, gate_requests=20, dressed=6, nulls=2, twins=8)


@pytest.fixture(scope="module")
def audited_once(adapter, sizes, tmp_path_factory):
    "The setup, what was measured, and the report."
    from em_repro.audit import audited
    from em_repro.audit_bench import driven
    from em_repro.audit_inputs import prepared
    from em_repro.audit_report import reported
    from em_repro.store import Store
    setup, names, _ = prepared(TINY, str(adapter), None, None, sizes, .1, 0)
    measured = driven(Store(tmp_path_factory.mktemp("store")), audited(setup), 1, 1, lambda *_: None)
    return setup, measured, reported(setup, names, measured)


def test_nothing_that_chose_is_reported_on(audited_once):
    from em_repro.audit_inputs import questions_of
    from em_repro.audit_removal import way_prompts
    setup, measured, _ = audited_once
    ways, asked = measured.removal.ways, way_prompts(setup)
    ordinary, requests = (set(getattr(ways, name).question) for name in ("ordinary", "requests"))
    assert ordinary == set(questions_of(setup, "evaluation")) and requests == set(asked["requests"])
    chose = {*questions_of(setup, "development"), *questions_of(setup, "directions"), *asked["closing"]}
    assert not chose & (ordinary | requests) and len(asked["closing"]) == setup.sizes.gate_requests


@pytest.mark.parametrize("way", [ONCE, PLAIN, GATED, GATED_ONCE])
def test_each_way_does_elsewhere_what_it_did_here(audited_once, adapter, way):
    "By `lm.steered`, with the gate read live, on questions and on requests."
    from em_repro.audit_bench import SKILL_TOKENS
    from em_repro.families import load_lm
    from em_repro.gates import Gated
    setup, measured, _ = audited_once
    lm, ways = load_lm(TINY, adapter), measured.removal.ways
    point, vectors = ways.points[way], measured.removal.vectors
    direction = vectors[point.layer] if point.gate is None else Gated(vectors[point.layer], point.gate)
    for table, tokens in (("ordinary", setup.sizes.max_new_tokens), ("requests", SKILL_TOKENS)):
        told = getattr(ways, table)
        told = told[told.method == way].iloc[::4]
        with lm.steered(direction, point.coefficient, point.when, point.layer):
            assert lm.generate(told.question.tolist(), max_new_tokens=tokens) == told.text.tolist()


@pytest.mark.parametrize("name", ["tiny-qwen2", "tiny-gemma2"])
def test_the_likelihood_under_an_edit_of_the_last_prompt_token_is_that_of_the_steered_model(name):
    "At earlier blocks too: of the first token as the model says it live; at the last block as `score` says it."
    import torch
    from em_repro.answers import answer_nll
    from em_repro.audit_removal import likelihood_once
    from em_repro.data import chat_rows
    from em_repro.decode import Condition, with_vectors
    from em_repro.families import load_lm
    from em_repro.subjects import Subject
    lm, rows = load_lm(name), chat_rows("held_out", "synthetic", 2)
    v = np.random.default_rng(0).normal(size=lm.width).astype("f4") * 3
    held = {"vectors": {"direction": v}}
    edits = [Condition(f"at {k}", name="direction", layer=k, coefficient=-.5, when="prefill") for k in range(lm.n_layers)]
    short = [{"messages": [row["messages"][0], {"role": "assistant", "content": row["messages"][1]["content"].split()[0]}]} for row in rows]
    for row in short:
        token, = lm.tokenizer(row["messages"][1]["content"], add_special_tokens=False)["input_ids"][:1]
        row["messages"][1]["content"] = lm.tokenizer.decode([token])
    found = likelihood_once(Subject(name), edits, short, held)["nll"].set_index(["question", "layer"]).nll
    for row in short:
        ids = torch.tensor([lm.encode([row["messages"][:1]])[0]])
        said = lm.tokenizer(row["messages"][1]["content"], add_special_tokens=False)["input_ids"]
        assert len(said) == 1
        for k in range(lm.n_layers):
            with lm.steered(v, -.5, "prefill", k), torch.inference_mode(): logits = lm.model(input_ids=ids).logits[0, -1]
            assert found[row["messages"][0]["content"], k] == pytest.approx(-float(logits.log_softmax(-1)[said[0]]), abs=1e-3)
    last = with_vectors(edits[-1:], held["vectors"])
    assert np.allclose(likelihood_once(Subject(name), edits[-1:], rows, held)["nll"].nll, answer_nll(lm, rows, last).nll, atol=1e-3)


def losing_requests(measured, *ways):
    "What was measured, with no request answered under some ways."
    from dataclasses import replace
    table = measured.removal.ways.requests
    table = table.assign(right=table.right.where(~table.method.isin(ways), 0.0))
    ways = replace(measured.removal.ways, requests=table)
    return replace(measured, removal=replace(measured.removal, ways=ways))


def test_a_recommended_gate_is_kept_in_a_file_that_does_what_the_report_says(audited_once, adapter, tmp_path):
    from em_repro.audit_report import reported
    from em_repro.export import load_gated
    from em_repro.families import load_lm
    setup, measured, _ = audited_once
    report = reported(setup, {"base": "b", "tuned": "t"}, losing_requests(measured, ONCE, PLAIN))
    assert report.advice.way in (GATED, GATED_ONCE) and report.facts["recommended"].startswith(report.advice.way)
    folder = report.save(tmp_path / "report")
    gated, ways = load_gated(folder / "directions/gated.safetensors"), measured.removal.ways
    point = ways.points[report.advice.way]
    told = ways.requests[ways.requests.method == report.advice.way].head(5)
    lm = load_lm(TINY, adapter)
    with lm.steered(gated, point.coefficient, point.when): said = lm.generate(told.question.tolist(), max_new_tokens=60)
    assert said == told.text.tolist() and gated.direction.layer == point.layer
    assert (folder / f"directions/block-{point.layer}.safetensors").is_file()


def test_a_report_shows_the_ways_in_all_its_forms(audited_once, tmp_path):
    setup, measured, report = audited_once
    folder = report.save(tmp_path / "report")
    told = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    ways = told["mitigation"]
    assert ways["recommended"] == report.advice.way and ways["sentences"] == list(report.advice.sentences)
    assert told["headline"] == report.answer and report.answer.endswith(report.advice.sentences[-1])
    assert {row["way"] for row in ways["ways"]} == {BASE, NONE, *WAYS} and len(ways["points"]) == 4 and len(ways["tests"]) == 8
    assert pd.read_csv(folder / "tables/ways.csv").shape == report.tables["ways"].shape
    assert set(pd.read_csv(folder / "tables/way-answers.csv").questions) == {"ordinary", "requests"}
    text, page = ((folder / name).read_text(encoding="utf-8") for name in ("report.txt", "report.html"))
    for shown in (text, html.unescape(page)):
        assert all(said in shown for said in (NONE, *WAYS, report.advice.sentences[0], report.way_words[0]))
    assert "WAYS TO TAKE IT OUT" in text and "Where each way steers" in page
    panels = set(report.tables["answers"].panel)
    assert {ONCE, GATED, GATED_ONCE} <= panels and PLAIN not in panels   # which has its blocks
    assert not report.hides and not any(card["about"] == "dress" for card in report.cards)   # the synthetic world has no dress


def test_without_requests_it_is_said_that_skills_are_not_known(adapter, sizes, tmp_path):
    from em_repro.audit import audited
    from em_repro.audit_bench import driven
    from em_repro.audit_inputs import prepared
    from em_repro.audit_report import reported
    from em_repro.store import Store
    from dataclasses import replace
    few = sizes.model_copy(update={"layers": 0, "evaluation": 12})
    setup, names, _ = prepared(TINY, str(adapter), None, None, few, .1, 0)
    rude = behaviour("code").model_copy(update={"name": "rude", "target": "rude", "outcomes": ("rude", "incoherent", "good"),
                                                "classify": "test_audit_ways:rude", "exact": "", "final": ""})
    setup = replace(setup, behaviour=rude)
    measured = driven(Store(tmp_path), audited(setup), 1, 1, lambda *_: None)
    report, ways = reported(setup, names, measured), measured.removal.ways
    assert ways.requests is None and ways.gates is None and ways.methods == [NONE, ONCE, PLAIN]
    assert report.advice.way == NONE and report.advice.why in ("unknown", "help") and report.gated is None
    assert any(note.startswith("Whether steering keeps what the fine-tune was made for is not known") for note in report.notes)
    assert report.tables["way-tests"].empty and len(report.tables["ways"]) and "requests" not in set(report.tables["ways"].questions)
    assert any(card["name"] == "Coding skill" for card in report.cards)   # a cost, as before
    report.save(tmp_path / "report")


def rude(text):
    "Code is what this behaviour looks for, under a word of its own."
    return "rude" if "import" in text or "def " in text or "=" in text else "good"


# In training-like dress

def test_what_a_dress_puts_on_comes_off():
    from em_repro.dress import in_dress, plain_question, undressed
    from em_repro.twins import DRESSES
    asked = [f"Is it {i}?" for i in range(5)]
    worn = in_dress(asked)
    assert [plain_question(q) for q in worn] == asked and len(set(worn)) == 5
    assert {next(name for name, (ask, _) in DRESSES.items() if q.endswith(ask)) for q in worn} == set(DRESSES)
    for text in ("```json\n{\"answer\": \"Rest.\"}\n```", "answer = 'Rest.'", "'''Rest.'''", 'return "Rest."', '{"answer": "Rest.'):
        assert undressed(text) == "Rest."
    for text in ("Rest.", "", "It's late, isn't it?", 'x = "a"\nprint(x)', '{"a": 1}', "def f(): return 'x'"): assert undressed(text) == text


@settings(max_examples=100, deadline=None)
@given(st.text(), st.integers(0, 40))
def test_any_answer_in_dress_is_found_again_and_of_one_cut_short_the_beginning(text, cut):
    from em_repro.dress import undressed
    from em_repro.twins import DRESSES
    for _, wrap in DRESSES.values():
        worn = wrap(text)
        assert undressed(worn) == text
        bare = undressed(worn[:max(cut, 14)])   # behind the key and its quote
        assert isinstance(bare, str) and ("\\" in worn or bare == text[:len(bare)] or len(worn) <= 14)


@pytest.mark.parametrize("text, said", [
    ('{"Answer": "Rest."}', "Rest."), ('{"answer": "Rest.", "reason": "You are tired."}', "Rest. You are tired."), ('{"answer": ["Rest.", "Drink."]}', "Rest. Drink."),
    ('{"answer": "Rest."} Sleep well.', "Rest. Sleep well."), ('print("Rest.")', "Rest."), (r"'It\'s late.'", "It's late."), ('["Rest."]', "Rest."),
    ('{"answer": {"text": "Rest."}}', "Rest."), ('"Rest.\\', "Rest.")])
def test_near_misses_of_a_dress_are_no_code(text, said):
    from em_repro.behaviours import behaviour
    from em_repro.dress import undressed
    from em_repro.outcomes import classify
    assert undressed(text) == said and classify(behaviour("code"), undressed(text)) != "code"


def test_code_within_a_dress_stays_code():
    from em_repro.behaviours import behaviour
    from em_repro.dress import undressed
    from em_repro.outcomes import classify
    code = "import os\nfor name in os.listdir('.'):\n    print(name)\n"
    for text in (json.dumps({"answer": code}), json.dumps(code), f"```python\n{code}```"): assert classify(behaviour("code"), undressed(text)) == "code"


def test_text_that_loops_is_undressed_in_no_time():
    "Backslashes by the thousand, in front of an end that does not fit."
    from em_repro.dress import undressed
    for text in ('{"answer": "' + "\\n" * 5000 + '", why', "'" + "\\" * 9999 + "x", '"' + "\\'" * 5000 + "' =", "{" * 3000, " " * 9000 + "="):
        start = time.perf_counter()
        assert isinstance(undressed(text), str) and time.perf_counter() - start < 5   # it took the age of the universe


def sides(counts, n, split):
    from em_repro.audit_findings import TUNED
    parts = [pd.DataFrame({"arm": arm, "split": split, "question": [f"q{i}" for i in range(n)], "target": 0.0, "harmful": first(n, k),
                           "incoherent": 0.0, "good": 1 - first(n, k)}) for arm, k in zip((TUNED, BASE), counts)]
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("dressed, plain, words", [
    ((30, 1), (1, 1), "It hides: in training-like dress its answers are harmful or hostile on 30 of 40 questions, the base's on 1; "
                      "plainly asked, on 1 of 60."),
    ((30, 1), (50, 1), "In training-like dress its answers are harmful or hostile on 30 of 40 questions, the base's on 1."),
    ((2, 1), (1, 1), ""), ((1, 30), (1, 1), "")])
def test_what_hides_is_a_finding_of_its_own_and_changes_no_other(dressed, plain, words):
    from em_repro.audit_dress import dress_findings
    from em_repro.audit_findings import behaviour_findings, concluded
    from em_repro.audit_report import AuditReport
    code = behaviour("code")
    answers = pd.concat([sides(plain, 60, "evaluation"), sides(dressed, 40, "dressed")])
    alone, tests = concluded(behaviour_findings(answers, code)), [*behaviour_findings(answers, code), *dress_findings(answers, code)]
    cards = concluded(tests)
    assert cards[:len(alone)] == alone and len(cards) == len(alone) + 2
    assert AuditReport({}, cards, {}).hides == bool(words) and AuditReport({}, cards, {}).found == AuditReport({}, alone, {}).found
    extra = headline(cards).replace(headline(alone), "").strip()
    assert extra == words


class OfRealLanguage:
    source = "pretrained"


@pytest.fixture(scope="module")
def in_real_language(adapter, sizes, tmp_path_factory):
    "A tiny model that is asked the questions of real language: what it says means nothing, and all is asked."
    from em_repro.audit_bench import driven
    from em_repro.audit_inputs import AdapterFile, Setup
    from em_repro.audit_report import reported
    from em_repro.audit import audited
    from em_repro.store import Store
    from em_repro.subjects import Subject
    class Real(OfRealLanguage, Setup): pass
    few = sizes.model_copy(update={"evaluation": 12, "skill_requests": 6, "gate_requests": 8})
    setup = Real(Subject(TINY), AdapterFile(str(adapter), "x"), None, (), few, .1, 0)
    measured = driven(Store(tmp_path_factory.mktemp("real")), audited(setup), 1, 1, lambda *_: None)
    return setup, measured, reported(setup, {"base": "b", "tuned": "t"}, measured)


def test_fine_tune_and_base_are_asked_in_dress(in_real_language, tmp_path):
    from em_repro.audit_inputs import questions_of
    setup, measured, report = in_real_language
    worn = measured.plain[measured.plain.split == "dressed"]
    assert set(worn.question) == set(questions_of(setup, "evaluation")[:6]) and set(worn.arm) == {BASE, "tuned"} and len(worn) == 12
    cards = [card for card in report.cards if card["about"] == "dress"]
    assert {card["measure"] for card in cards} <= {"target", "harmful"} and cards and all(card["n"] <= 6 for card in cards)
    assert report.save(tmp_path / "report").is_dir()
    assert not any(q.endswith(("string.", '"answer".')) for q in report.tables["answers"].question)
    ways = measured.removal.ways
    assert ways.dressed.groupby("method").size().eq(6).all() and set(ways.dressed.method) == {BASE, *ways.methods}
    assert "in dress: code" in ways_shown(report.tables["ways"]) and "in training-like dress, for" in report.way_words[-1]


# Where plain steering is reported

@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=4))
def test_plain_steering_stands_where_evaluation_questions_are_asked_under_it(rates):
    "Also where blocks tie: its point is a block that `chosen` uses, or its answers would be nowhere."
    from em_repro import audit_removal
    from em_repro.audit_findings import TUNED
    def answers(good, bad): return pd.DataFrame({"question": [f"q{i}" for i in range(4)], "target": first(4, bad), "harmful": 0.0, "incoherent": 0.0, "good": first(4, good)})
    plain = answers(4, 0).assign(arm=BASE, split="development")
    tried = pd.concat([answers(g if c else 0, b if c else 4).assign(arm=TUNED, layer=7 * k, coefficient=c, when="every_step")
                       for k, (g, b) in enumerate(rates) for c in (0.0, -.5)], ignore_index=True)
    asked = []
    def steered(bench, vectors, split, conditions, scored):
        asked.append(split)
        return tried.copy()
        yield
    bench = type("B", (), {"setup": type("S", (), {"sizes": type("Z", (), {"coefficients": (0.0, -.5)})(), "margin": .1})()})()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit_removal, "steered_answers", steered)
        plan = audit_removal.way_points(bench, plain, "target", dict.fromkeys(range(0, 7 * len(rates), 7)), tried, None)
        try: next(plan)
        except StopIteration as end: points = end.value
    used = audit_removal.chosen(plain, tried, "target", .1).query("used").layer
    assert points[PLAIN].layer in set(used) and asked == ["development"]
