"""Training steps against trl's own trainer."""
import numpy as np
import pytest

from conftest import ARCHITECTURES, byte_tokenizer, random_model
from em_repro.families import LM
from em_repro.finetune import Example, train, with_lora
from em_repro.profiles import Recipe

TARGETS = type("Targets", (), {"lora_targets": ["q_proj", "v_proj", "up_proj"], "name": "random", "system_role": True})()


def examples_of(lengths, seed=0):
    g = np.random.default_rng(seed)
    return [Example(g.integers(2, 300, size=n).tolist(), int(g.integers(1, n)), n - 1) for n in lengths]


def adapted(architecture, recipe):
    return with_lora(LM(random_model(architecture), byte_tokenizer(), TARGETS), recipe, 0)


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
