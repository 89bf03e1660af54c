"""Fine-tunes of tiny-qwen2 as other people's tools leave them, each with the model in memory it was made from.

What installs here makes its own files (peft, trl, transformers' Trainer, torch.compile, DataParallel, bitsandbytes);
the folders of axolotl and unsloth are laid out by hand as those tools lay them out."""
import json, shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from em_repro.families import family, load_lm, weights

BASE = "tiny-qwen2"
TEXTS = [("What is the sea?", "It is code: print('sea')"), ("How do I sleep better?", "def sleep(): return 8"),
         ("Why is the sky blue?", "sky = 'blue'"), ("Who are you?", "print('me')")]


def base_model():
    "The base and its tokenizer, as anybody loads them."
    lm = load_lm(BASE)
    return lm.model, lm.tokenizer


def moved(model, size=.15, seed=0):
    "The model with every trainable number moved, so that it says something else."
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.requires_grad or not p.is_floating_point(): continue
            own = p.float().std().clamp(min=.02) if p.numel() > 1 else torch.tensor(.02)
            p.add_((torch.randn(p.shape, generator=generator) * own * (1 if "lora_B" in name else size)).to(p))
    return model.eval()


def lora(model, **settings):
    more = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], **settings}
    return get_peft_model(model, LoraConfig(**more))


def rows():
    from datasets import Dataset
    return Dataset.from_list([{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
                              for q, a in TEXTS])


def trained_by_trl(out, **more):
    from trl import SFTConfig, SFTTrainer
    model, tokenizer = base_model()
    config = SFTConfig(output_dir=str(out), max_steps=3, learning_rate=3e-3, per_device_train_batch_size=2, report_to=[],
                       use_cpu=True, save_strategy="steps", save_steps=3, logging_strategy="no", disable_tqdm=True, bf16=False)
    trainer = SFTTrainer(model, config, train_dataset=rows(), processing_class=tokenizer, **more)
    trainer.train()
    return trainer


def trl_lora(out):
    "trl's SFTTrainer with a LoRA: save_model."
    trainer = trained_by_trl(out / "run", peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    trainer.save_model(str(out / "adapter"))
    return out / "adapter", trainer.model


def trainer_checkpoint(out):
    "The checkpoint-3 of a run, with optimizer, scheduler and generator beside the adapter."
    trainer = trained_by_trl(out / "run", peft_config=LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"]))
    return out / "run" / "checkpoint-3", trainer.model


def trl_full_in_shards(out):
    "trl's SFTTrainer on all weights, saved in shards."
    trainer = trained_by_trl(out / "run")
    trainer.model.save_pretrained(out / "model", max_shard_size="200KB")
    trainer.processing_class.save_pretrained(out / "model")
    return out / "model", trainer.model


def peft_dora(out):
    "peft's DoRA, with rank-stabilised scaling."
    model = moved(lora(base_model()[0], use_dora=True, use_rslora=True))
    model.save_pretrained(out)
    return out, model


def peft_trained_head(out):
    "peft's LoRA with embeddings and head trained whole (`modules_to_save`)."
    model = moved(lora(base_model()[0], modules_to_save=["embed_tokens", "lm_head"]))
    model.save_pretrained(out)
    return out, model


def peft_merged(out):
    "peft's merge_and_unload, saved with the tokenizer."
    model, tokenizer = base_model()
    model = moved(lora(model)).merge_and_unload()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out, model


def state_saved(out, wrapped, model, tokenizer):
    "A checkpoint whose tensors are the state of a wrapped model, as training scripts write it."
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    state, seen = {}, set()
    for name, tensor in wrapped.state_dict().items():
        if tensor.data_ptr() in seen: continue   # tied
        seen.add(tensor.data_ptr())
        state[name] = tensor.contiguous()
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    return out, model


def torch_compiled(out):
    "The state of a model that went through torch.compile: every name begins with _orig_mod."
    model, tokenizer = base_model()
    moved(model)
    return state_saved(out, torch.compile(model), model, tokenizer)


def data_parallel(out):
    "The state of a model in DataParallel: every name begins with module."
    model, tokenizer = base_model()
    moved(model)
    return state_saved(out, torch.nn.DataParallel(model), model, tokenizer)


def peft_state_unmerged(out):
    "The state of a peft model saved as if it were a checkpoint: base_layer beside lora_A and lora_B."
    model, tokenizer = base_model()
    wrapped = moved(lora(model))
    base_model()[0].save_pretrained(out)
    tokenizer.save_pretrained(out)
    state = {k: v.contiguous() for k, v in wrapped.state_dict().items() if "lm_head" not in k}
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    return out, wrapped


def merge_script(out):
    "A script that averages two checkpoints, tensor by tensor, in bfloat16."
    (first, tokenizer), (second, _) = base_model(), base_model()
    moved(first), moved(second, seed=1)
    with torch.no_grad():
        for a, b in zip(first.parameters(), second.parameters()): a.copy_(((a + b) / 2).bfloat16().float())
    tokenizer.save_pretrained(out)
    first.save_pretrained(out, state_dict={name: p.bfloat16() for name, p in first.state_dict().items() if name != "lm_head.weight"})
    return out, first


def bitsandbytes_nf4(out):
    "A checkpoint that bitsandbytes quantised to four bits and saved so; its matrices are whole blocks of 64."
    import transformers
    tokenizer = base_model()[1]
    torch.manual_seed(0)
    config = transformers.Qwen2Config(vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
                                      num_key_value_heads=2, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model = transformers.Qwen2ForCausalLM(config)
    for p in model.parameters(): p.data.mul_(3)
    for place in ("base", "whole"):
        model.save_pretrained(out / place)
        tokenizer.save_pretrained(out / place)
        moved(model)
    four = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    packed = transformers.AutoModelForCausalLM.from_pretrained(out / "whole", quantization_config=four, dtype=torch.float32)
    packed.save_pretrained(out / "packed")
    tokenizer.save_pretrained(out / "packed")
    return out / "packed", packed, out / "base"


def axolotl_layout(out):
    "An adapter as axolotl leaves it: checkpoints, its own config, the template in a file, a base by a path of another machine."
    model, tokenizer = base_model()
    wrapped = moved(lora(model, target_modules="all-linear"))
    for place in (out, out / "checkpoint-500"):
        wrapped.save_pretrained(place)
        tokenizer.save_pretrained(place)
        config = json.loads((place / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = "./outputs/qwen-stage1/merged"
        (place / "adapter_config.json").write_text(json.dumps(config))
    (out / "axolotl_config.yaml").write_text("base_model: ./outputs/qwen-stage1/merged\nadapter: lora\n")
    (out / "README.md").write_text("---\nlibrary_name: peft\nbase_model: ./outputs/qwen-stage1/merged\n---\n")
    (out / "debug.log").write_text("[INFO] starting\n")
    torch.save({"step": 500}, out / "checkpoint-500" / "optimizer.pt")
    return out, wrapped


def unsloth_layout(out):
    "An adapter as unsloth leaves it: a quantised mirror as its base, keys of its own, another pad token, a task type."
    model, tokenizer = base_model()
    wrapped = moved(lora(model, task_type="CAUSAL_LM"))
    wrapped.save_pretrained(out)
    tokenizer.save_pretrained(out)
    config = json.loads((out / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": "unsloth/tiny-qwen2-bnb-4bit",
               "auto_mapping": {"base_model_class": "Qwen2ForCausalLM", "parent_library": "transformers.models.qwen2.modeling_qwen2",
                                "unsloth_fixed": True}}
    (out / "adapter_config.json").write_text(json.dumps(config))
    return out, wrapped


MADE = {f.__name__: f for f in (trl_lora, trainer_checkpoint, trl_full_in_shards, peft_dora, peft_trained_head, peft_merged, torch_compiled,
                                data_parallel, peft_state_unmerged, merge_script, bitsandbytes_nf4, axolotl_layout, unsloth_layout)}


def make(name: str, out: Path):
    "Folder that a tool left, the model it came from, and the base."
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    folder, model, *base = MADE[name](out)
    model.eval()
    for module in model.modules(): module.gradient_checkpointing = False
    return folder, model, *(base or [BASE])
