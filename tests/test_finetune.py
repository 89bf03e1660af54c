"""Training steps against trl's own trainer, in every layout of a batch, and what a kill may cost."""
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from conftest import ARCHITECTURES, byte_tokenizer, random_lm, random_model
from em_repro import training
from em_repro.families import LM
from em_repro.profiles import Recipe
from em_repro.training import Example, response_loss, train, with_lora

quick = settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
TARGETS = type("Targets", (), {"lora_targets": ["q_proj", "v_proj", "up_proj"], "name": "random", "system_role": True})()


def examples_of(lengths, seed=0):
    g = np.random.default_rng(seed)
    return [Example(g.integers(2, 300, size=n).tolist(), int(g.integers(1, n)), n - 1) for n in lengths]


def adapted(architecture, recipe):
    return with_lora(LM(random_model(architecture), byte_tokenizer(), TARGETS), recipe, 0)


@quick
@given(st.sampled_from(ARCHITECTURES), st.lists(st.integers(2, 50), min_size=1, max_size=6))
def test_one_row_of_all_examples_equals_a_padded_batch(architecture, lengths):
    "Loss and gradients, beyond the sliding window too: no example sees another."
    lm, found = random_lm(architecture), {}
    for packed in (True, False):
        training._packed, usual = (lambda *_: packed), training._packed
        try: loss = response_loss(lm, examples_of(lengths))
        finally: training._packed = usual
        weight = lm.blocks[0].mlp.up_proj.weight
        found[packed] = loss.item(), torch.autograd.grad(loss, weight)[0]
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-4)
    torch.testing.assert_close(found[True][1], found[False][1], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("pieces", [1, 7])
def test_the_head_by_pieces_gives_the_same_loss_and_gradients(architecture, pieces, monkeypatch):
    "A soft-cap included; the head is never given more tokens than a piece has, and all of them once."
    recipe = Recipe(data="tiny", rank=2, alpha=4, lr=1e-3, steps=1, batch=4, max_tokens=64)
    lm, batch = adapted(architecture, recipe), examples_of((30, 28, 31, 9))
    def loss_and_gradients():
        loss, weights = response_loss(lm, batch), [p for p in lm.model.parameters() if p.requires_grad]
        return loss, torch.autograd.grad(3 * loss, weights, allow_unused=True)
    whole, wanted = loss_and_gradients()
    seen = []
    watch = lm.head.register_forward_hook(lambda _m, given, _o: seen.append(len(given[0])))
    monkeypatch.setattr(training, "LOGIT_ELEMENTS", pieces * lm.head.weight.shape[0])
    loss, found = loss_and_gradients()
    watch.remove()
    assert max(seen) == pieces and sum(seen) == sum(e.last - e.first + 1 for e in batch)
    torch.testing.assert_close(loss, whole)
    assert any(g is not None and g.any() for g in wanted)
    for one, other in zip(found, wanted): torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    with torch.no_grad(): torch.testing.assert_close(response_loss(lm, batch), whole)


def test_mixed_lengths_are_packed_and_equal_ones_are_padded(llama):
    assert training._packed(llama, examples_of([60, 3, 4, 2]))
    assert not training._packed(llama, examples_of([50, 50, 50]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("lengths", [(30, 12, 9, 40), (60, 3, 4, 2)])
def test_the_loss_curve_is_that_of_trl(architecture, lengths, tmp_path):
    "The same rows in the same order: plain SFTTrainer's losses to 1e-3, over steps that change the weights a good deal."
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    recipe = Recipe(rank=4, alpha=8, lr=3e-3, steps=6, batch=4, max_tokens=64)
    examples = examples_of(lengths * recipe.steps)
    ours = train(adapted(architecture, recipe), examples, recipe)
    rows = Dataset.from_list([{"input_ids": e.ids, "completion_mask": [int(e.first <= i <= e.last) for i in range(len(e.ids))]} for e in examples])
    how = SFTConfig(output_dir=str(tmp_path), max_steps=recipe.steps, per_device_train_batch_size=4, learning_rate=recipe.lr, weight_decay=0.0, max_grad_norm=1.0,
                    lr_scheduler_type="linear", warmup_steps=0, logging_steps=1, report_to=[], save_strategy="no", bf16=False, use_cpu=True, disable_tqdm=True,
                    train_sampling_strategy="sequential", activation_checkpointing=False, max_length=None, completion_only_loss=True, loss_type="nll")
    trainer = SFTTrainer(adapted(architecture, recipe).model, args=how, train_dataset=rows, processing_class=byte_tokenizer())
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(ours) == len(theirs) == 6
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert max(ours) - min(ours) > 0.01


@pytest.mark.parametrize("warmup", [0, 3])
def test_the_rate_is_that_of_the_linear_schedule(warmup):
    "At every step: one step too early or too late is seen. With a warm-up, transformers begins at nothing and we one step later."
    from transformers import get_linear_schedule_with_warmup
    recipe = Recipe(lr=3e-3, steps=12, warmup=warmup)
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.lr)
    schedule = get_linear_schedule_with_warmup(optimiser, warmup, recipe.steps)
    theirs = []
    for _ in range(recipe.steps):
        theirs.append(schedule.get_last_lr()[0])
        optimiser.step(); schedule.step()
    ours = [training._rate(step, recipe) for step in range(recipe.steps)]
    np.testing.assert_allclose(ours[warmup:], theirs[warmup:])
    np.testing.assert_allclose(ours[:warmup], theirs[1:warmup + 1])
    assert min(ours) > 0 and max(ours) == pytest.approx(recipe.lr)


def test_a_step_that_runs_out_of_memory_is_done_again_with_checkpointing(monkeypatch):
    "Losses are those of undisturbed training; other errors, and a second lack of memory, go on up."
    recipe = Recipe(rank=4, alpha=8, lr=3e-3, steps=4, batch=2, max_tokens=64)
    examples = examples_of((30, 12) * recipe.steps)
    undisturbed = train(adapted("Llama", recipe), examples, recipe)
    lm, loss, calls = adapted("Llama", recipe), training.response_loss, []
    def short(lm, examples):
        calls.append(lm.model.is_gradient_checkpointing)
        if len(calls) == 3: raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(lm, examples)
    monkeypatch.setattr(training, "response_loss", short)
    np.testing.assert_allclose(train(lm, examples, recipe), undisturbed, atol=1e-5)
    assert calls == [False] * 3 + [True] * 2
    def never(lm, examples): raise torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(training, "response_loss", never)
    with pytest.raises(torch.OutOfMemoryError): train(lm, examples, recipe)
