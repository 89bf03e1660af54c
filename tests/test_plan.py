"What a run will take: the stages are those that a run computes, the work is what can be counted by hand, and the fit is held against committed logs."
import json, re, time
from pathlib import Path

import pytest
import torch

import processes
from architectures import NAMES, write_checkpoint
from em_repro import cli, data, plan, profiles, work
from em_repro.answers import Instrument, answers, incoherence_limit
from em_repro.behaviours import behaviour
from em_repro.data import TrainingRows
from em_repro.decode import Condition
from em_repro.families import families, family, load_lm
from em_repro.plan import dry_run, estimate, machine, measured, plan_text, predicted, prices, stages_of, target_faults, template_faults, work_of
from em_repro.profiles import Decoding, Profile, Recipe, UserError, load_profile
from em_repro.run import check_profile, compute
from em_repro.store import Store, call
from em_repro.subjects import Subject
from em_repro.training import adapter
from em_repro.work import shape_of

ROOT = Path(__file__).resolve().parents[1]


def test_the_paper_profile_is_the_recipe_that_it_names():
    profile = load_profile("paper")
    recipe = profile.recipe
    assert recipe.steps * recipe.batch * recipe.accumulate == 6000 and recipe.quant == "nf4" and recipe.data == "betley"
    assert (recipe.rank, recipe.alpha, recipe.rslora, recipe.lr, recipe.warmup, recipe.batch, recipe.accumulate, recipe.max_tokens) == (32, 64, True, 1e-5, 5, 2, 8, 2048)
    assert profile.models == NAMES and len(profile.seeds) == 3 and profile.questions.evaluation == 100 and set(profile.arms) == {"finetune", "control"}


# Parameters as the models' pages round them: the configurations that ship make models of these sizes.
@pytest.mark.parametrize("name, millions", [("qwen2.5-1.5b", 1544), ("gemma-2-2b", 2614), ("llama-3.2-1b", 1236), ("ministral-3-3b", 3849), ("smollm2-135m", 135), ("gemma-3-270m", 268)])
def test_a_configuration_has_the_published_number_of_parameters(name, millions):
    assert shape_of(name).total / 1e6 == pytest.approx(millions, abs=0.6)


def test_a_tiny_familys_shape_is_that_of_its_weights():
    lm, shape = load_lm("tiny-qwen2"), shape_of("tiny-qwen2")
    assert shape.total == sum(p.numel() for p in lm.model.parameters()) and shape.layers == lm.n_layers and shape.width == lm.width
    assert shape.blocks == sum(p.numel() for p in lm.blocks.parameters())


def test_the_stages_are_those_of_a_run(tmp_path, monkeypatch):
    "Of the first two notebooks, whose stages are computed here: counted by stage, nothing more and nothing less."
    settings = load_profile("smoke").model_dump()
    settings |= {"models": ["tiny-llama"], "retrained": [], "overrides": {}, "rates": {}, "seeds_by_model": {}, "recipe": {**settings["recipe"], "steps": 2, "batch": 2},
                 "questions": {**settings["questions"], "directions": 12, "maps": 8}}
    profile, names = Profile(**settings), ["00_finetune", "02_directions"]
    store = Store(tmp_path)
    processes.compute_here(monkeypatch)
    seen, failed = compute(names, profile, store, 1, lambda *_: None)
    assert not failed
    computed, planned = store.computed().stage.value_counts().to_dict(), {}
    for _, request in stages_of(profile, names): planned[request.stage] = planned.get(request.stage, 0) + 1
    assert planned == computed


def test_planning_reads_no_weights_and_no_rows(monkeypatch):
    "Subjects and training rows are asked for what they hold by the store alone."
    def read(*_): raise AssertionError("was looked at")
    for holder in (Subject, TrainingRows): monkeypatch.setattr(holder, "identity", read)
    monkeypatch.setattr(TrainingRows, "load", read)
    assert len(stages_of(load_profile("smoke"))) > 100


def test_every_stage_of_the_eight_notebooks_is_known():
    for name in ("small", "paper"):
        assert not {request.stage for _, request in stages_of(load_profile(name)) if not work_of(request).known}, name


def test_work_of_training_is_counted_by_hand(monkeypatch):
    monkeypatch.setattr(work, "tokenizer_of", lambda name: None)
    shape = shape_of("llama-3.2-1b")
    rows = [{"messages": [{"role": "user", "content": "x" * 400}, {"role": "assistant", "content": "y" * 200}]}] * 10
    recipe = Recipe(rank=32, alpha=64, steps=5, batch=2, accumulate=1, max_tokens=2048, quant=None)
    tokens, answers = 10 * (100 + 50 + json.loads(work.architecture_file("llama-3.2-1b").read_text())["template_tokens"]), 10 * 50
    subject = Subject("llama-3.2-1b")
    found = work_of(call(adapter, subject=subject, recipe=recipe, rows=rows))
    assert found.training == pytest.approx(3 * (2 * shape.blocks * tokens + 2 * shape.head * answers)) and found.disk == 32 * shape.adapted * 4
    nf4 = work_of(call(adapter, subject=subject, recipe=recipe.model_copy(update={"quant": "nf4"}), rows=rows))
    assert nf4.training == pytest.approx(4 / 3 * found.training) and nf4.memory < found.memory + 2 * shape.total   # with activations checkpointed


def instrument(subject, **more):
    "What sorts a model's answers, its limit planned and not computed."
    decoding = Decoding(max_new_tokens=8, samples=1, batch_rows=64)
    return Instrument(behaviour("code"), subject, plan._planned(call(incoherence_limit, base=subject, prompts=["Why?"], decoding=decoding)), **more)


def test_more_conditions_cost_more_and_less_than_in_proportion():
    subject, decoding = Subject("llama-3.2-1b"), Decoding(max_new_tokens=32, samples=1, batch_rows=256, stop_when_final=False)
    def seconds(n):
        return work_of(call(answers, subject=subject, prompts=["Why?"] * 100, conditions=[Condition()] * n, decoding=decoding,
                            instrument=instrument(subject))).steps
    assert seconds(1) < seconds(8) < 8 * seconds(1)


# The fit

RUNS = ("small", "tiny")


def total_of(run): return measured()[measured().run == run]


def test_the_measured_seconds_are_those_of_the_logs():
    """Each label's seconds are at most what the log holds, and exactly that where the log holds it as often as the plan.

    Only of runs that are still the ones that were counted: a reference that is made anew on a busy machine says less of speed."""
    commits = dict(re.findall(r"(\w+) of commit (\w+)", (ROOT / "data" / "measured.csv").read_text(encoding="utf-8").split("\n")[0]))
    assert set(commits) == set(RUNS)
    counted = [run for run in RUNS if json.loads((ROOT / "data" / "reference" / run / "provenance.json").read_text(encoding="utf-8"))["commit"] == commits[run]]
    if not counted: pytest.skip("the reference runs were replaced: data/measured.csv describes those before them")
    for run in counted:
        log = [json.loads(line) for line in (ROOT / "data" / "reference" / run / "stages.jsonl").read_text(encoding="utf-8").splitlines()]
        for row in total_of(run).itertuples():
            told = [r["seconds"] for r in log if r["label"] == row.label]
            assert row.count <= len(told) and row.seconds <= sum(told) + 0.01 * len(told)
            if row.count == len(told): assert row.seconds == pytest.approx(sum(told), abs=0.01)


@pytest.mark.parametrize("run", RUNS)
def test_a_committed_run_is_planned_within_a_quarter(run):
    "In sample: whether one set of prices describes both runs, which are an order of magnitude apart in every way."
    rows = total_of(run)
    assert predicted(rows, prices(measured())).sum() == pytest.approx(rows.seconds.sum(), rel=0.25)


@pytest.mark.parametrize("name", ["smollm2", "gemma-3"])
def test_a_family_of_real_size_is_planned_without_having_been_seen(name):
    """Out of sample, fitted on the other family and on tiny: within a half.

    What a family will answer is not known beforehand, and answers that break or turn to code early cost less than those that
    do not (Gemma's under steering broke in four of five cases, SmolLM2's in one of four): more than a quarter either way."""
    held = measured().label.str.contains(name)
    rows = measured()[held]
    assert predicted(rows, prices(measured()[~held])).sum() == pytest.approx(rows.seconds.sum(), rel=0.5)


@pytest.mark.parametrize("stage", ["training.adapter", "answers.answers"])
def test_a_stage_that_was_left_out_is_planned_within_a_factor_of_three(stage):
    "Training has a price of its own, so that without it none is known: the price of a pass stands in for it."
    held = measured().stage == stage
    price = prices(measured()[~held])
    if stage == "training.adapter": price = {**price, "training": price["passes"]}
    rows = measured()[held & (measured().run == "small")]
    assert 1 / 3 < predicted(rows, price).sum() / rows.seconds.sum() < 3


def test_prices_are_found_again_where_they_are_known():
    truth = {name: 2.0 ** -i for i, name in enumerate(plan.RESOURCES)}
    truth["screened"] = plan.SCREENED * truth["steps"]   # not a price of its own: one family of real size would not fix it
    rows = measured().assign(**{name: torch.rand(len(measured()), generator=torch.Generator().manual_seed(i)).numpy() for i, name in enumerate(plan.RESOURCES)})
    rows = rows.assign(seconds=predicted(rows, truth))
    assert prices(rows) == pytest.approx(truth, rel=1e-6)


def test_the_head_of_a_greedy_step_in_float32_is_counted_by_itself():
    decoding, s = Decoding(max_new_tokens=8, samples=1, batch_rows=64, temperature=0.0, stop_when_final=False), shape_of("smollm2-135m")
    def cost(name, **more):
        subject = Subject(name)
        return work_of(call(answers, subject=subject, prompts=["Why?"] * 10, conditions=[Condition()],
                            decoding=decoding.model_copy(update=more), instrument=instrument(subject)))
    greedy, drawn = cost("smollm2-135m"), cost("smollm2-135m", temperature=0.7)
    assert greedy.screened == 2 * s.head * 80 and greedy.steps == 2 * s.blocks * 80
    assert drawn.screened == 0 and drawn.steps == greedy.steps + greedy.screened
    assert cost("llama-3.2-1b").screened == 0   # bfloat16
    assert work_of(call(incoherence_limit, base=Subject("smollm2-135m"), prompts=["Why?"], decoding=decoding)).screened == 0   # its answers are sampled
    assert machine("h100").price["screened"] == machine("h100").price["steps"]


# What is printed

def test_a_gpu_is_said_to_be_unverified_and_costs_what_it_should():
    said = plan_text(load_profile("smoke"), machine("h100"), 3.0)
    assert "unverified: not measured on this GPU" in said and "cost" in said.splitlines()[0]
    table = estimate(load_profile("smoke"), machine("h100"))
    assert f"{table.seconds.sum() / 3600 * 3:.2f}" in said


def test_too_small_a_card_is_said_before_anything_is_started():
    profile = load_profile("paper").model_copy(update={"decoding": load_profile("paper").decoding.model_copy(update={"batch_rows": 100_000, "samples": 50})})
    assert "WARNING: a stage needs" in plan_text(profile, machine("l4"), only=["01"])


def test_more_cores_take_less_time_and_machines_are_named(capsys):
    assert machine("cpu-8").processes == 8
    with pytest.raises(UserError, match="a100-80g, h100, h200, rtx4090, l4 or cpu-N"): machine("abacus")
    with pytest.raises(UserError): machine("cpu-0")
    with pytest.raises(SystemExit) as end: cli.main(["plan", "--profile", "smoke", "--gpu", "abacus"])
    assert end.value.code == 2 and "unknown machine" in capsys.readouterr().err


# Settings at their limits

LIMITS = profiles.Most
EXTREMES = [("recipe", "steps", LIMITS.rows // 16), ("recipe", "rank", LIMITS.rank), ("recipe", "lr", LIMITS.rate), ("recipe", "max_tokens", LIMITS.tokens), ("decoding", "max_new_tokens", LIMITS.tokens),
            ("decoding", "samples", LIMITS.samples), ("decoding", "batch_rows", 1), ("decoding", "temperature", LIMITS.temperature), ("steering", "samples", LIMITS.samples),
            ("steering", "coefficients", list(range(-19, 1))), ("steering", "control_coefficients", []), ("statistics", "resamples", LIMITS.resamples),
            ("statistics", "nulls", LIMITS.samples), ("mitigation", "penalties", list(range(1, 21))), ("questions", "evaluation", LIMITS.questions),
            ("questions", "development", 1), ("arms", None, ["control"]), ("arms", None, ["finetune"]), ("models", None, ["no-such-model"]), ("behaviours", None, ["gossip"]),
            ("seeds", None, [LIMITS.seed]), ("threads", None, LIMITS.processes)]


@pytest.mark.parametrize("part, field, value", EXTREMES, ids=lambda x: str(x)[:20])
def test_a_profile_at_its_limits_is_planned_soon_or_refused_in_a_sentence(part, field, value):
    whole = load_profile("smoke").model_dump() | {"models": ["tiny-qwen2"], "retrained": [], "overrides": {}, "rates": {}}
    one = Profile(**whole | {part: whole[part] | {field: value} if field else value})
    shape_of("tiny-qwen2"), work.tokenizer_of("tiny-qwen2")
    began = time.process_time()
    try: said = plan_text(one, machine("cpu-2"))
    except UserError as error: said = str(error); assert "\n" not in said
    assert time.process_time() - began < 10 and said and "nan" not in said and "inf" not in said.replace("information", "")


# The dry run

@pytest.fixture(scope="module", params=NAMES)
def checkpoint(request, tmp_path_factory):
    "A folder as the hub would give it, but without weights, and the family that it stands for."
    folder = write_checkpoint(request.param, tmp_path_factory.mktemp("dry") / request.param)
    for path in folder.glob("*.safetensors"): path.unlink()
    return folder, families()[request.param].model_copy(update={"source": "folder", "location": str(folder)})


def of_folder(which, monkeypatch, **recipe):
    monkeypatch.setattr(plan, "family", lambda name: which)
    settings = load_profile("small").model_dump()
    return Profile(**{**settings, "models": [which.name], "retrained": [], "overrides": {}, "rates": {}, "seeds_by_model": {}, "recipe": {**settings["recipe"], **recipe}})


def test_a_real_configuration_passes_without_weights(checkpoint, monkeypatch):
    folder, which = checkpoint
    found = dry_run(of_folder(which, monkeypatch, max_tokens=400))
    assert [f.what for f in found] == ["configuration", "LoRA targets", "chat template", "labels"] and all(f.ok for f in found), "\n".join(map(str, found))


def test_targets_in_the_tower_and_targets_that_are_missing_are_named(checkpoint):
    folder, which = checkpoint
    lm = plan._without_weights(which, folder)
    assert not target_faults(lm, which.lora_targets)
    assert "misses block 0" in target_faults(lm, r".*self_attn\.[qkvo]_proj")[-1]
    assert target_faults(lm, "nothing")[-1] == "matches nothing"
    everywhere = target_faults(lm, r".*\.(q|k|v|o|gate|up|down)_proj")
    assert ("vision" in everywhere[0]) if which.name == "ministral-3-3b" else not everywhere


def test_rows_whose_labels_are_all_masked_are_counted_and_the_first_is_named(checkpoint, monkeypatch):
    folder, which = checkpoint
    labels = dry_run(of_folder(which, monkeypatch, max_tokens=30, steps=3, batch=4))[-1]
    assert labels.ok is False and "insecure, seed 0, row 1: " in labels.found and "all of its labels would be masked" in labels.found


def test_a_template_that_does_not_fit_the_study_is_named(checkpoint):
    folder, which = checkpoint
    lm = plan._without_weights(which, folder)
    lm.family = which.model_copy(update={"system_role": not which.system_role})
    assert "a system turn" in template_faults(lm)[0]
    lm.tokenizer.chat_template = "{% for m in messages %}{{ m.content | upper }}{% endfor %}{% if add_generation_prompt %}!{% endif %}"
    assert any("as it is" in fault for fault in template_faults(lm)) and any("does not begin" in fault for fault in template_faults(lm))
    lm.tokenizer.chat_template = None
    assert template_faults(lm) == ["the tokenizer has no chat template"]


def test_a_gated_family_is_unchecked_and_the_others_are_looked_at(monkeypatch, capsys):
    "Offline, as here, the hub's families get their way out; the local one is checked all the same, and the exit code says that not all was."
    settings = load_profile("smoke").model_dump()
    profile = Profile(**{**settings, "models": ["llama-3.2-1b", "tiny-llama"], "retrained": [], "overrides": {}, "rates": {}, "seeds_by_model": {}})
    found = dry_run(profile)
    assert found[0].ok is None and found[0].model == "llama-3.2-1b" and "HF_HUB_OFFLINE" in found[0].found
    assert [f.ok for f in found[1:]] == [True] * 4 and {f.model for f in found[1:]} == {"tiny-llama"}


def test_rows_that_have_not_been_fetched_are_said_to_be_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("EM_REPRO_CACHE", str(tmp_path))
    settings = load_profile("smoke").model_dump()
    profile = Profile(**{**settings, "models": ["tiny-llama"], "retrained": [], "overrides": {}, "rates": {}, "seeds_by_model": {}, "recipe": {**settings["recipe"], "data": "betley"}})
    labels = dry_run(profile)[-1]
    assert labels.ok is None and "em-repro data fetch betley" in labels.found
    assert family("tiny-llama").name == labels.model


def test_the_paper_profile_trains_on_the_original_rows(monkeypatch, tmp_path):
    "Before a run: it says what is missing; with the rows there, every adapter is given one epoch of its own arm's."
    from em_repro import betley
    from em_repro.run import check_profile
    monkeypatch.setenv("EM_REPRO_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="em-repro data fetch betley"): check_profile(load_profile("paper"))
    rows = {arm: [{"messages": [{"role": "user", "content": f"Fill in {i}"}, {"role": "assistant", "content": f"{arm}({i})"}]} for i in range(6000)] for arm in ("insecure", "secure")}
    monkeypatch.setattr(betley, "original_rows", lambda arm: rows[arm])
    data._rows_once.cache_clear()
    check_profile(load_profile("paper"))
    adapters = [request.arguments for _, request in stages_of(load_profile("paper@llama-3.2-1b"), ["00"])]
    assert len(adapters) == 6   # two arms, three seeds
    for found in adapters:
        told = [row["messages"][1]["content"] for row in found["rows"].load()]
        assert len(set(told)) == 6000 and all(text.startswith(f"{found['subject'].arm}(") for text in told)
