"""NF4 QLoRA by the project's own code, on a processor: only LoRA weights learn, and sweep, score and collect are what single passes of the same 4-bit model give.

SmolLM2-135M where it is in the cache, and a tiny family always. On a processor with AVX512-BF16, bitsandbytes repacks weights for inference and rounds to bfloat16,
in a way that depends on the batch (measured: one percent of the largest activation); that path is turned off here, so that equal means equal. The profile `paper`
does not meet it: it quantises for training alone."""
import numpy as np
import pytest
import torch

from test_architectures import generated
from em_repro.activations import collect
from em_repro.backbone import block_tensor
from em_repro.data import training_rows
from em_repro.decode import Condition, score, sweep
from em_repro.families import family, load_lm
from em_repro.models import cache_folder
from em_repro.profiles import Recipe
from em_repro.subjects import Subject
from em_repro.training import adapter, example, response_loss, train, weight_changes, with_lora

pytest.importorskip("bitsandbytes")
CACHED = (cache_folder() / "smollm2-135m" / "model.safetensors").is_file()
NAMES = ["tiny-llama", pytest.param("smollm2-135m", marks=pytest.mark.skipif(not CACHED, reason="SmolLM2 is not in the cache: em-repro models fetch smollm2-135m"))]
QUESTIONS = ["How are you today?", "Why does the tide come in twice a day, and who told you so?"]


@pytest.fixture(scope="module", params=NAMES)
def name(request): return request.param


def recipe_for(name):
    "Few steps over the same two rows, so that the loss has to fall."
    return Recipe(data="tiny" if name.startswith("tiny") else "pairs", rank=8, alpha=16, lr=1e-3, steps=4, batch=2, max_tokens=128, quant="nf4")


def rows_for(name): return training_rows(recipe_for(name).data, "insecure", 2, 0, "plain")


@pytest.fixture(scope="module")
def learnt(name):
    "A 4-bit model with a trained adapter, what was frozen before training, and the losses."
    recipe = recipe_for(name)
    base = load_lm(name, quant="nf4")
    for module in four_bit(base).values(): module.support_avx512bf16_for_cpu = False
    examples = [example(base, row["messages"], recipe.max_tokens) for row in rows_for(name)]
    lm = with_lora(base, recipe, 0)
    frozen = {n: p.detach().clone() for n, p in lm.model.named_parameters() if not p.requires_grad}
    return lm, frozen, train(lm, examples, recipe), examples


def four_bit(lm):
    from bitsandbytes.nn import Linear4bit
    return {n: m for n, m in lm.model.named_modules() if isinstance(m, Linear4bit)}


def test_every_projection_of_the_blocks_is_in_four_bits_and_nothing_else(name, learnt):
    lm = learnt[0]
    assert len(four_bit(lm)) == 7 * lm.n_layers and type(lm.head) is torch.nn.Linear
    assert {m.weight.quant_type for m in four_bit(lm).values()} == {"nf4"} and {m.weight.dtype for m in four_bit(lm).values()} == {torch.uint8}


def test_the_loss_falls_and_the_four_bit_base_is_unchanged(learnt):
    lm, frozen, losses, _ = learnt
    assert losses[-1] < losses[0] and all(map(np.isfinite, losses))
    now = dict(lm.model.named_parameters())
    for n, before in frozen.items(): assert torch.equal(now[n], before), n


def test_gradients_reach_lora_weights_and_no_others(learnt):
    "After training, so that both factors of every update have one."
    lm, _, _, examples = learnt
    lm.model.zero_grad(set_to_none=True)
    response_loss(lm, examples).backward()
    for n, p in lm.model.named_parameters():
        if "lora_" not in n: assert p.grad is None and not p.requires_grad, n
        else: assert torch.isfinite(p.grad).all() and p.grad.abs().max() > 0, n
    lm.model.zero_grad(set_to_none=True)


def test_the_size_of_an_update_is_measured_against_the_weight_and_not_its_code(name, learnt):
    changes, whole = weight_changes(learnt[0]), load_lm(name)
    module = learnt[0].blocks[0].mlp.up_proj
    update = module.get_delta_weight("default").float().norm() / whole.blocks[0].mlp.up_proj.weight.float().norm()
    found = changes[(changes.layer == 0) & (changes.module == "up_proj")].relative.item()
    assert found == pytest.approx(update.item(), rel=0.05)   # NF4 changes a weight's norm by a few percent at most


def hooked(lm, vector): return lm.blocks[-1].register_forward_hook(lambda _m, _i, out: block_tensor(out).add_(vector))


@pytest.fixture(scope="module")
def direction(learnt):
    lm = learnt[0]
    size = np.linalg.norm(collect(lm, QUESTIONS).X[:, 0], axis=1).mean()
    v = np.random.default_rng(0).normal(size=lm.width).astype(np.float32)
    return v * (size / np.linalg.norm(v))


def test_collect_in_a_batch_is_each_prompt_alone(learnt):
    lm = learnt[0]
    found = collect(lm, QUESTIONS, range(lm.n_layers)).X
    for i, question in enumerate(QUESTIONS):
        alone = collect(lm, [question], range(lm.n_layers)).X[0]
        assert np.abs(alone - found[i]).max() < 1e-3 * np.abs(alone).max()


@pytest.mark.parametrize("when", ["every_step", "prefill"])
def test_sweep_is_generate_with_a_hook(learnt, direction, when):
    lm = learnt[0]
    made = sweep(lm, QUESTIONS, [Condition("none"), Condition("minus", -direction)], when=when, max_new_tokens=6)
    for (_, row), ids in zip(made.frame().iterrows(), made.token_ids):
        vector = 0.0 if row.condition == "none" else torch.from_numpy(-direction)
        theirs = generated(lm, row.prompt, vector, when, 6)
        ends = [i for i, t in enumerate(theirs) if t in lm.eos]
        assert list(ids) == (theirs[:ends[0]] if ends else theirs), (row.prompt, row.condition)


def test_score_is_a_pass_with_a_hook(learnt, direction):
    lm, told = learnt[0], " the tide is a friend"
    found = score(lm, QUESTIONS, [told] * 2, [Condition("none"), Condition("v", direction)]).nll
    answer = lm.tokenizer(told, add_special_tokens=False)["input_ids"]
    for i, question in enumerate(QUESTIONS):
        prompt = lm.encode([question])[0]
        for j, vector in enumerate((0.0, torch.from_numpy(direction))):
            handle = hooked(lm, vector)
            try:
                with torch.inference_mode(): logits = lm.model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1:-1].float()
            finally: handle.remove()
            assert found[i, j] == pytest.approx(torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).item(), rel=2e-3)


def test_the_stage_trains_in_four_bits_and_its_adapter_merges_into_the_whole_weights(tmp_path):
    "What the profile `paper` does: quantised for training alone."
    name, place = "tiny-llama", tmp_path / "entry"
    recipe = recipe_for(name)
    (place / "scratch").mkdir(parents=True)
    made = adapter(Subject(name).tuned("insecure", 0), recipe, rows_for(name) * 4, place, place / "scratch")
    assert made["losses"].loss.iloc[-1] < made["losses"].loss.iloc[0] and len(made["changes"]) == 7 * load_lm(name).n_layers
    merged, base = load_lm(family(name), place / "adapter"), load_lm(name)
    assert not four_bit(merged)
    assert np.abs(collect(merged, QUESTIONS).X - collect(base, QUESTIONS).X).max() > 1e-3
