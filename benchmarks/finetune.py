"""A LoRA step on insecure code: ours against trl's plain SFTTrainer on the same rows, in the same order, with the same settings."""
import tempfile, warnings

import harness

args = harness.arguments(__doc__, families=("smollm2-135m,gemma-3-270m", "families"), steps=(4, "steps a turn"))
warnings.simplefilter("ignore")

import numpy as np
from em_repro.data import training_rows
from em_repro.families import load_lm
from em_repro.profiles import load_profile
from em_repro.training import example, train, with_lora


def by_trl(lm, examples, recipe):
    "Losses of SFTTrainer; response tokens only, no packing, no activation checkpointing, float32, linear decay."
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    rows = Dataset.from_list([{"input_ids": e.ids, "completion_mask": [int(e.first <= i <= e.last) for i in range(len(e.ids))]} for e in examples])
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(output_dir=folder, max_steps=recipe.steps, per_device_train_batch_size=recipe.batch, learning_rate=recipe.lr, weight_decay=0.0,
                             lr_scheduler_type="linear", warmup_steps=0, max_grad_norm=1.0, logging_steps=1, report_to=[], save_strategy="no", bf16=False, fp16=False,
                             use_cpu=lm.device.type == "cpu", train_sampling_strategy="sequential", activation_checkpointing=False, max_length=None,
                             completion_only_loss=True, loss_type="nll", disable_tqdm=True, optim="adamw_torch")
        trainer = SFTTrainer(lm.model, args=settings, train_dataset=rows, processing_class=lm.tokenizer)
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


profile, rows = load_profile("small"), []
for name in args.families.split(","):
    recipe = profile.recipe_for(name).model_copy(update={"steps": args.steps})
    lm = load_lm(name)
    examples = [example(lm, row["messages"], recipe.max_tokens) for row in training_rows(recipe.data, "insecure", recipe.steps * recipe.batch, 0, recipe.prompt_format)]
    seconds, losses = harness.alternate({"em_repro": lambda lm: train(lm, examples, recipe), "trl SFTTrainer": lambda lm: by_trl(lm, examples, recipe)},
                                        args.repeats, setup=lambda: with_lora(load_lm(name), recipe, 0))
    difference = float(np.abs(np.subtract(losses["em_repro"], losses["trl SFTTrainer"])).max())
    rows += [{"family": name, **row, "seconds a step": row["seconds"] / recipe.steps, "largest loss difference": difference} for row in harness.ratios(seconds, "em_repro")]
harness.report("finetune", rows, steps=args.steps, batch=recipe.batch, max_tokens=recipe.max_tokens)
