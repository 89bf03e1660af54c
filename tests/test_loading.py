"""What is loaded is what was saved: every tensor has a place, every weight a source, adapters compute what PEFT's own do, and a
fingerprint knows every file that is read."""
import json, logging, os, shutil
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

import peft
import pytest
import torch
import transformers
from hypothesis import Phase, given, settings, strategies as st
from safetensors.torch import load_file, save_file

from conftest import ARCHITECTURES, byte_tokenizer, random_model
from em_repro import adapters, families, identity, loading
from em_repro.decode import Condition, sweep
from em_repro.families import LM, Family, family, fingerprint, load_lm, weights
from em_repro.profiles import UserError

FEW = settings(deadline=None, max_examples=12, derandomize=True, database=None, phases=(Phase.generate,))
QUESTIONS = ["What is the sea?", "How do I sleep better?"]
TOKENS = torch.arange(40, 54)[None]


def logits(model):
    with torch.inference_mode(): return model(input_ids=TOKENS).logits[0].float()


def equal(one, other, atol=1e-3): return (one - other).abs().max() <= atol * one.std()


@lru_cache(maxsize=None)
def root():
    import atexit
    folder = Path(mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@lru_cache(maxsize=None)
def checkpoint(architecture="Llama", tied=False, shards=None):
    "A folder with a random model, its tokenizer; and the model's logits."
    model = random_model(architecture)
    model.config.tie_word_embeddings = tied
    if tied: model.tie_weights()
    else: model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + .1)
    folder = root() / f"{architecture}-{tied}-{shards}"
    model.save_pretrained(folder, **({"max_shard_size": shards} if shards else {}))
    byte_tokenizer().save_pretrained(folder)
    return folder, logits(model)


def rewritten(folder, change, name="model.safetensors"):
    "A copy of a folder with the tensors of one file changed."
    copy = Path(mkdtemp(dir=root())) / "copy"
    shutil.copytree(folder, copy)
    held = {key: tensor.contiguous() for key, tensor in change(load_file(copy / name)).items()}
    save_file(held, copy / name, metadata={"format": "pt"})
    return copy


def told(folder, **config):
    "A copy of a folder whose config.json says something else."
    copy = Path(mkdtemp(dir=root())) / "copy"
    shutil.copytree(folder, copy)
    said = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(said | config))
    return copy


def refused(words, *given, **more):
    with pytest.raises(UserError, match=words) as caught: load_lm(*given, **more)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


# Every tensor has a place, every weight a source: checkpoints

WRAPPERS = {
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "DDP": lambda name: f"module.{name}",
    "compiled DDP": lambda name: f"module._orig_mod.{name}",
    "FSDP": lambda name: "_fsdp_wrapped_module." + name.replace("layers.1.", "layers.1._fsdp_wrapped_module."),
    "FSDP with checkpointing": lambda name: name.replace("mlp.", "_checkpoint_wrapped_module.mlp.")
                                                .replace("layers.", "layers._fsdp_wrapped_module._checkpoint_wrapped_module."),
    "TRL": lambda name: f"pretrained_model.{name}",
    "PEFT, unmerged": lambda name: "base_model.model." + name.replace("q_proj.", "q_proj.base_layer."),
    "a multimodal file": lambda name: name.replace("model.", "model.language_model.", 1),
    "an older multimodal file": lambda name: f"language_model.{name}"}


@FEW
@given(st.sampled_from(ARCHITECTURES), st.sampled_from([*WRAPPERS]), st.booleans())
def test_a_wrappers_names_are_taken_off(architecture, wrapper, tied):
    folder, reference = checkpoint(architecture, tied)
    wrap = WRAPPERS[wrapper]
    saved = rewritten(folder, lambda held: {wrap(name): tensor for name, tensor in held.items()})
    model = load_lm(saved).model
    assert torch.equal(logits(model), reference)
    again = root() / f"again-{architecture}-{wrapper}-{tied}"
    model.save_pretrained(again)   # nothing of the wrapper is written again
    assert load_file(again / "model.safetensors").keys() == load_file(folder / "model.safetensors").keys()


@FEW
@given(st.sampled_from(ARCHITECTURES), st.booleans(), st.data())
def test_a_tensor_more_or_less_is_refused_by_name(architecture, tied, data):
    folder, _ = checkpoint(architecture, tied)
    names = sorted(load_file(folder / "model.safetensors"))
    name = data.draw(st.sampled_from(names))
    fewer = rewritten(folder, lambda held: {key: tensor for key, tensor in held.items() if key != name})
    refused(f"weights of the model are not in the file .*{name}", fewer)
    more = rewritten(folder, lambda held: held | {f"{name}_more": held[name].clone()})
    refused(f"1 tensors of the file have no place in the model .{name}_more", more)
    moved = rewritten(folder, lambda held: {(f"my.{key}" if key == name else key): tensor for key, tensor in held.items()})
    refused("not in the file .* and 1 tensors of the file have no place", moved)


@FEW
@given(st.sampled_from(["20KB", "60KB", "200KB"]), st.data())
def test_parts_are_all_needed_and_each_damage_is_named(size, data):
    folder, reference = checkpoint("Llama", False, size)
    assert torch.equal(logits(load_lm(folder).model), reference)
    parts = sorted(path.name for path in folder.glob("model-*.safetensors"))
    name = data.draw(st.sampled_from(parts))
    copy = Path(mkdtemp(dir=root())) / "copy"
    shutil.copytree(folder, copy)
    (copy / name).write_bytes((copy / name).read_bytes()[:-7])
    refused(f"{name} is damaged", copy)
    (copy / name).unlink()
    refused(f"1 of the {len(parts)} files .* are not there .{name}", copy)


def test_only_what_text_does_not_read_may_be_left_out(caplog):
    folder, reference = checkpoint()
    seeing = rewritten(folder, lambda held: {name.replace("model.", "model.language_model.", 1): t for name, t in held.items()}
                       | {"model.vision_tower.layers.0.weight": torch.ones(3), "model.multi_modal_projector.bias": torch.ones(3)})
    assert torch.equal(logits(load_lm(seeing).model), reference)
    assert "2 tensors of other parts are left out" in caplog.text
    refused("no place in the model .lm_tail.weight", rewritten(folder, lambda held: held | {"lm_tail.weight": torch.ones(3)}))


def test_a_multimodal_model_needs_its_tower():
    from architectures import write_checkpoint
    folder = write_checkpoint("ministral-3-3b", root() / "ministral")
    reference = logits(load_lm(folder).model)
    compiled = rewritten(folder, lambda held: {f"_orig_mod.{name}": tensor for name, tensor in held.items()})
    assert torch.equal(logits(load_lm(compiled).model), reference)
    refused("weights of the model are not in the file .*vision_tower",
            rewritten(folder, lambda held: {name: tensor for name, tensor in held.items() if "vision_tower" not in name}))
    # Its text, by itself, from the multimodal file.
    config = json.loads((folder / "config.json").read_text())["text_config"]
    text = told(folder)
    (text / "config.json").write_text(json.dumps(config | {"architectures": ["Ministral3ForCausalLM"]}))
    assert equal(reference, logits(load_lm(text).model), 1e-5)


def test_another_size_is_told_with_both():
    folder, _ = checkpoint()
    rows = load_file(folder / "model.safetensors")["lm_head.weight"].shape[0]
    refused(f"lm_head.weight is {rows} x 64 in the file, but {rows + 8} x 64 by config.json", told(folder, vocab_size=rows + 8))


def test_pickled_weights_are_never_read(tmp_path):
    folder, reference = checkpoint()
    class Runs:
        def __reduce__(self): return os.mkdir, (str(tmp_path / "it ran"),)
    both = told(folder)
    torch.save({"a": Runs()}, both / "pytorch_model.bin")
    assert torch.equal(logits(load_lm(both).model), reference)
    (both / "model.safetensors").rename(both / "model.fp16.safetensors")
    refused("no model.safetensors in .*, only model.fp16.safetensors", both)
    (both / "model.fp16.safetensors").unlink()
    refused("pickled weights are not read", both)
    assert not (tmp_path / "it ran").exists()


def test_what_transformers_cannot_load_is_a_sentence():
    folder, _ = checkpoint()
    refused("cannot be loaded .*no_such_type", told(folder, model_type="no_such_type"))
    refused("cannot be loaded", told(folder, num_attention_heads=0))
    foreign = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}   # nobody is asked whether it may run
    refused("cannot be loaded .*custom code", told(folder, model_type="no_such_type", auto_map=foreign))
    broken = told(folder)
    (broken / "config.json").write_text("{")
    refused("config.json cannot be read", broken)


def test_a_folder_that_holds_an_adapter_too_is_neither(tmp_path):
    folder, _ = checkpoint()
    both = told(folder)
    (both / "adapter_config.json").write_text("{}")
    refused("holds an adapter", both)


# Adapters

def trained(base=None, kind=peft.LoraConfig, seed=0, scale=.1, **given):
    "A folder with an adapter whose every parameter was moved, and the logits of PEFT's model with it."
    base = base or checkpoint()[0]
    model = peft.get_peft_model(load_lm(base).model, kind(**given))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter += torch.randn(parameter.shape, generator=generator) * scale
    folder = Path(mkdtemp(dir=root()))
    reference = logits(model.eval())
    model.save_pretrained(folder)
    return folder, reference


TWO = ["q_proj", "down_proj"]
KINDS = {"LoRA": (peft.LoraConfig, {"r": 4, "target_modules": TWO}),
         "rsLoRA": (peft.LoraConfig, {"r": 4, "target_modules": TWO, "use_rslora": True}),
         "DoRA": (peft.LoraConfig, {"r": 4, "target_modules": TWO, "use_dora": True}),
         "all-linear": (peft.LoraConfig, {"r": 2, "target_modules": "all-linear"}),
         "patterns": (peft.LoraConfig, {"r": 4, "target_modules": TWO, "rank_pattern": {"down_proj": 2}, "alpha_pattern": {"q_proj": 3}}),
         "head": (peft.LoraConfig, {"r": 4, "target_modules": ["q_proj", "lm_head"]}),
         "embedding": (peft.LoraConfig, {"r": 4, "target_modules": ["q_proj", "embed_tokens"]}),
         "saved head": (peft.LoraConfig, {"r": 4, "target_modules": TWO, "modules_to_save": ["lm_head"]}),
         "saved both": (peft.LoraConfig, {"r": 4, "target_modules": TWO, "modules_to_save": ["lm_head", "embed_tokens"]}),
         "tokens": (peft.LoraConfig, {"r": 4, "target_modules": TWO, "trainable_token_indices": [42, 43]}),
         "IA3": (peft.IA3Config, {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
         "AdaLoRA": (peft.AdaLoraConfig, {"target_modules": TWO, "total_step": 10}),
         "OFT": (peft.OFTConfig, {"target_modules": ["q_proj"], "r": 0, "oft_block_size": 16}),
         "LoHa": (peft.LoHaConfig, {"r": 4, "target_modules": TWO}), "LoKr": (peft.LoKrConfig, {"r": 4, "target_modules": TWO}),
         "VeRA": (peft.VeraConfig, {"r": 4, "target_modules": ["q_proj"]}), "norms": (peft.LNTuningConfig, {"target_modules": ["input_layernorm"]})}


@lru_cache(maxsize=None)
def adapter_of(name, tied=False):
    kind, given = KINDS[name]
    return trained(checkpoint(tied=tied)[0], kind, **given)


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize("name", KINDS)
def test_an_adapter_of_any_kind_computes_what_peft_does(name, tied):
    (adapter, reference), base = adapter_of(name, tied), checkpoint(tied=tied)
    lm = load_lm(base[0], adapter)
    assert equal(reference, logits(lm.model)) and not equal(reference, base[1], .05)
    if not hasattr(lm.model, "peft_config"):   # merged: what is saved is that model again
        saved = Path(mkdtemp(dir=root()))
        lm.model.save_pretrained(saved); lm.tokenizer.save_pretrained(saved)
        assert equal(reference, logits(load_lm(saved).model))


@FEW
@given(st.sampled_from([*KINDS]), st.data())
def test_an_adapter_with_a_tensor_more_or_less_is_refused(name, data):
    adapter, _ = adapter_of(name)
    base, file = checkpoint()[0], "adapter_model.safetensors"
    held = load_file(adapter / file)
    gone = data.draw(st.sampled_from(sorted(key for key in held if "vera_A" not in key and "vera_B" not in key)))
    refused("is not whole: 1 of its weights", base, rewritten(adapter, lambda t: {k: v for k, v in t.items() if k != gone}, file))
    refused("1 of its tensors found no place|does not fit", base, rewritten(adapter, lambda t: t | {f"{gone}_more": t[gone].clone()}, file))
    refused("found no place|is not whole|damaged|does not fit", base,
            rewritten(adapter, lambda t: {k.replace("layers.1", "layers.9").replace("lm_head", "lm_tail").replace("embed_tokens", "embed")
                                          if k == gone else k: v for k, v in t.items()} | {"base_model.model.my": torch.ones(1)}, file))


ADAPTER_WRAPPERS = {"DDP": lambda n: f"module.{n}", "torch.compile": lambda n: f"_orig_mod.{n}",
                    "compiled within": lambda n: n.replace("base_model.model.", "base_model.model._orig_mod."),
                    "FSDP": lambda n: n.replace("layers.", "layers._fsdp_wrapped_module."),
                    "checkpointing": lambda n: n.replace("self_attn.", "_checkpoint_wrapped_module.self_attn."),
                    "bare": lambda n: n.removeprefix("base_model.model."),
                    "multimodal": lambda n: n.replace("model.model.", "model.model.language_model."),
                    "adapter's name": lambda n: n.replace(".weight", ".default.weight")}


@FEW
@given(st.sampled_from(["LoRA", "DoRA", "rsLoRA", "saved head"]), st.sampled_from([*ADAPTER_WRAPPERS]))
def test_a_wrappers_names_are_taken_off_an_adapter(name, wrapper):
    adapter, reference = adapter_of(name)
    if wrapper == "adapter's name" and name != "LoRA": return
    saved = rewritten(adapter, lambda held: {ADAPTER_WRAPPERS[wrapper](key): t for key, t in held.items()}, "adapter_model.safetensors")
    assert equal(reference, logits(load_lm(checkpoint()[0], saved).model))


def test_biases_that_an_adapter_trains_are_its_own():
    base = checkpoint("Qwen2")[0]
    adapter, reference = trained(base, r=4, target_modules=["q_proj"], bias="lora_only")
    assert equal(reference, logits(load_lm(base, adapter).model))
    refused("3 of its weights are not in", base, rewritten(adapter, lambda held: {k: v for k, v in held.items() if not k.endswith("bias")},
                                                             "adapter_model.safetensors"))


def mixture():
    "A small mixture of experts, whose experts are one tensor a block."
    folder = root() / "mixture"
    if folder.exists(): return folder
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = transformers.MixtralConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                                        num_key_value_heads=2, num_local_experts=4, eos_token_id=0, pad_token_id=1, bos_token_id=None)
    transformers.MixtralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_fused_experts_take_an_adapter():
    base = mixture()
    adapter, reference = trained(base, r=4, target_modules=["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    assert equal(reference, logits(load_lm(base, adapter).model)) and not equal(reference, logits(load_lm(base).model))


def test_an_option_that_peft_does_not_know_is_not_left_out():
    adapter, _ = adapter_of("LoRA")
    newer = Path(mkdtemp(dir=root())) / "newer"
    shutil.copytree(adapter, newer)
    said = json.loads((newer / "adapter_config.json").read_text())
    (newer / "adapter_config.json").write_text(json.dumps(said | {"use_something_new": True, "another": None}))
    refused("asks for use_something_new, which PEFT .* does not know", checkpoint()[0], newer)


# Loaded equals reference

@pytest.mark.parametrize("name", ["head", "embedding"])
def test_an_update_of_shared_weights_stays_beside_them_and_is_swept_as_generated(name, caplog):
    (adapter, reference), base = adapter_of(name, True), checkpoint(tied=True)[0]
    lm = load_lm(base, adapter)
    assert isinstance(lm.model, peft.PeftModel) and "left unmerged" in caplog.text and torch.equal(logits(lm.model), reference)
    made = sweep(lm, QUESTIONS, [Condition("none")], max_new_tokens=6)
    for question, ids in zip(QUESTIONS, made.token_ids):
        asked = torch.tensor([lm.encode([question])[0]])
        out = lm.model.generate(input_ids=asked, attention_mask=torch.ones_like(asked), do_sample=False, max_new_tokens=6, pad_token_id=lm.pad)
        theirs = out[0, asked.shape[1]:].tolist()
        assert list(ids) == theirs[:len(ids)] and (len(ids) == 6 or theirs[len(ids)] in lm.eos)


def test_a_merge_that_is_another_function_is_undone(monkeypatch, caplog):
    "Whatever the reason: here a merge that loses the update."
    (adapter, reference), base = adapter_of("LoRA"), checkpoint()
    first = trained(base[0], seed=5, r=2, target_modules=["v_proj"])[0]
    whole = peft.PeftModel.merge_and_unload if hasattr(peft.PeftModel, "merge_and_unload") else None
    from peft.tuners.lora.layer import Linear
    real = Linear.merge
    def lossy(self, *given, **more):
        if self.r.get("default") == 4: self.lora_B["default"].weight.data *= .5
        return real(self, *given, **more)
    monkeypatch.setattr(Linear, "merge", lossy)
    lm = load_lm(base[0], adapter)
    assert isinstance(lm.model, peft.PeftModel) and torch.equal(logits(lm.model), reference) and "left unmerged" in caplog.text
    both = load_lm(base[0], [first, adapter])
    monkeypatch.undo()
    assert isinstance(both.model, peft.PeftModel) and equal(logits(load_lm(base[0], [first, adapter]).model), logits(both.model))


def test_several_adapters_add_up_merged_or_beside():
    base = checkpoint(tied=True)[0]
    plain, head = trained(base, seed=3, r=2, target_modules=["q_proj", "v_proj"])[0], adapter_of("head", True)[0]
    one, other = (logits(load_lm(base, given).model) for given in ([plain, head], [head, plain]))
    assert equal(one, other) and not equal(one, logits(load_lm(base, head).model), .05)
    refused("merge the first", base, [head, adapter_of("DoRA", True)[0]])


def unpacked(lm):
    "A float model with the numbers that a four-bit one stands for."
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit
    plain = load_lm("tiny-llama").model
    for name, module in lm.model.named_modules():
        if isinstance(module, Linear4bit):
            plain.get_submodule(name).weight.data = dequantize_4bit(module.weight.data, module.weight.quant_state).float()
    return plain


def in_order(model):
    "A four-bit model whose first pass does not repack it for this processor."
    from bitsandbytes.nn import Linear4bit
    for module in model.modules():
        if isinstance(module, Linear4bit): module.support_avx512bf16_for_cpu = False
    return model


def test_adapters_on_four_bits_stand_beside_the_weights_and_add_up(tmp_path):
    pytest.importorskip("bitsandbytes")
    one = trained("tiny-llama", r=4, scale=.05, target_modules=TWO)[0]
    two = trained("tiny-llama", seed=2, r=2, scale=.05, target_modules=["q_proj", "v_proj"])[0]
    base = load_lm("tiny-llama", quant="nf4")
    wanted = unpacked(base)
    for adapter in (one, two): wanted = peft.PeftModel.from_pretrained(wanted, adapter).merge_and_unload()
    lm = load_lm("tiny-llama", [one, two], quant="nf4")
    assert equal(logits(wanted), logits(in_order(lm.model)), .02)
    assert not equal(logits(wanted), logits(in_order(load_lm("tiny-llama", one, quant="nf4").model)), .1)
    # A checkpoint that is four-bit on the disk is not merged into either.
    base.model.save_pretrained(tmp_path); base.tokenizer.save_pretrained(tmp_path)
    held = load_lm(tmp_path, [one, two])
    assert isinstance(held.model, peft.PeftModel) and torch.equal(logits(in_order(held.model)), logits(lm.model))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_merges_within_its_rounding(dtype):
    adapter, reference = adapter_of("LoRA")
    model = load_lm(checkpoint()[0], adapter, dtype=dtype).model
    assert not hasattr(model, "peft_config") and equal(reference, logits(model), .5)


PROMPTS = {"prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
           "prefix": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
           "p": peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
           "CPT": peft.CPTConfig(task_type="CAUSAL_LM", cpt_token_ids=[5, 6], cpt_mask=[1, 1], cpt_tokens_type_mask=[1, 1]),
           "adaption": peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=4, adapter_layers=2)}


@pytest.mark.parametrize("name", PROMPTS)
def test_what_acts_outside_of_the_decoder_is_refused_from_files_and_in_memory(name, tmp_path):
    base = checkpoint()[0]
    model = peft.get_peft_model(load_lm(base).model, PROMPTS[name])
    with pytest.raises(UserError, match="acts outside of the decoder"): LM.from_model(model, byte_tokenizer())
    model.save_pretrained(tmp_path)
    refused("acts outside of the decoder", base, tmp_path)


def test_an_activated_lora_is_refused(tmp_path):
    base = checkpoint()[0]
    model = peft.get_peft_model(load_lm(base).model, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], alora_invocation_tokens=[5]))
    with pytest.raises(UserError, match="activated LoRA"): LM.from_model(model, byte_tokenizer())
    model.save_pretrained(tmp_path)
    refused("activated LoRA", base, tmp_path)


def test_a_kind_that_cannot_be_merged_stays_beside_the_weights(monkeypatch, caplog):
    (adapter, reference), base = adapter_of("IA3"), checkpoint()[0]
    def cannot(self, *given, **more): raise NotImplementedError("no merging")
    monkeypatch.setattr(peft.IA3Model, "merge_and_unload", cannot)
    model = load_lm(base, adapter).model
    assert isinstance(model, peft.PeftModel) and torch.equal(logits(model), reference) and "left unmerged" in caplog.text


def test_tied_weights_stay_tied_unless_merging_parts_them():
    for name, tied in (("LoRA", True), ("saved head", False), ("saved both", None)):
        model = load_lm(checkpoint(tied=True)[0], adapter_of(name, True)[0]).model
        shared = model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
        assert model.config.tie_word_embeddings == shared and tied in (None, shared)


def test_a_peft_model_in_memory_is_taken_when_its_decoder_is_it():
    base = checkpoint()[0]
    model = peft.get_peft_model(load_lm(base).model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    assert LM.from_model(model, byte_tokenizer()).model is model
    class Outer(peft.PeftModel):
        def forward(self, *given, **more):
            out = super().forward(*given, **more)
            out.logits = out.logits + torch.arange(out.logits.shape[-1])
            return out
    model.__class__ = Outer
    with pytest.raises(UserError, match="answers otherwise than the decoder within it"): LM.from_model(model, byte_tokenizer())


# Bases by name and by shape

@pytest.mark.parametrize("name", ["unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", "RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8", "output/checkpoint-500", "../base",
                                  "./base", "hugging-quants/Llama-3.1-8B-Instruct-GPTQ-INT4", "mirror/Llama-3.1-8B-Instruct-2407"])
def test_copies_and_paths_are_no_other_base(name, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": name}))
    assert adapters.other_base(tmp_path, "meta-llama/Llama-3.1-8B-Instruct") is None
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "meta-llama/Llama-3.2-1B-Instruct"}))
    assert adapters.other_base(tmp_path, "meta-llama/Llama-3.1-8B-Instruct") == "meta-llama/Llama-3.2-1B-Instruct"


def test_a_card_that_differs_is_refused_unless_trusted_and_never_with_other_shapes():
    adapter, reference = adapter_of("LoRA")
    carded = Path(mkdtemp(dir=root())) / "carded"
    shutil.copytree(adapter, carded)
    (carded / "em_repro.json").write_text('{"family": "another"}')
    refused("was trained on another, not on .*--trust-base", checkpoint()[0], carded)
    assert equal(reference, logits(load_lm(checkpoint()[0], carded, trust_base=True).model))
    refused("was made for a width of|does not fit|found no place", "tiny-qwen2", carded, trust_base=True)


def test_a_pad_token_without_a_row_is_not_fed():
    folder = told(checkpoint()[0])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<a new pad>"})
    tokenizer.save_pretrained(folder)
    lm, rows = load_lm(folder), load_file(folder / "model.safetensors")["lm_head.weight"].shape[0]
    assert tokenizer.pad_token_id >= rows > lm.pad
    assert lm.generate(QUESTIONS, 4) == load_lm(checkpoint()[0]).generate(QUESTIONS, 4)


def test_a_hub_model_is_fetched_once_and_with_all_of_its_vocabulary(tmp_path, monkeypatch):
    import fnmatch, huggingface_hub
    monkeypatch.setenv("EM_REPRO_CACHE", str(tmp_path))
    asked = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda location, **more: asked.update(more) or str(tmp_path / ("a" * 40)))
    weights(family("someone/some-model"))
    def fetched(name):
        return any(fnmatch.fnmatch(name, p) for p in asked["allow_patterns"]) and not any(fnmatch.fnmatch(name, p) for p in asked["ignore_patterns"])
    for name in ("config.json", "model-00001-of-00002.safetensors", "merges.txt", "vocab.txt", "tokenizer.model", "additional_chat_templates/tool.jinja"):
        assert fetched(name), name
    for name in ("consolidated.safetensors", "consolidated.00.pth", "original/model.safetensors", "onnx/model.safetensors", "pytorch_model.bin", "model.gguf", "run.py"):
        assert not fetched(name), name


# Identity

READ = ["config.json", "model.safetensors", "merges.txt", "vocab.txt", "tokenizer.model", "chat_template.jinja", "generation_config.json", "spiece.whatever",
        "additional_chat_templates/tool.jinja", "deep/er/part.safetensors", "special_tokens_map.json", "adapter/adapter_model.safetensors"]
NOT_READ = ["README.md", ".gitattributes", ".git/HEAD", "optimizer.pt", "trainer_state.json", "checkpoint-7/model.safetensors", "pytorch_model.bin", "training_args.bin",
            "runs/events", "original/model.safetensors", "LICENSE", "figure.png"]


@FEW
@given(st.sampled_from(READ), st.binary(min_size=1, max_size=8), st.booleans())
def test_a_fingerprint_changes_with_every_byte_that_is_read(name, content, same_times):
    folder = told(checkpoint()[0])
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    which, before = Family(name="mine", title="mine", source="folder", location=str(folder)), path.stat()
    first = fingerprint(which)
    assert fingerprint(which) == first
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])   # in the same process, of the same size
    if same_times: os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = fingerprint(which)
    path.with_name(f"{path.name}x").write_bytes(content)
    assert len({first, second, fingerprint(which)}) == 3


def test_what_is_not_read_does_not_count():
    folder = told(checkpoint()[0])
    before = identity.folder_hash(folder)
    for name in NOT_READ:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("something")
    assert identity.folder_hash(folder) == before


def test_the_shipped_models_keep_their_fingerprints():
    "They stand in the keys of every stored result."
    import hashlib
    for name in ("tiny-llama", "tiny-qwen2", "tiny-gemma2", "tiny-ministral3"):
        total = hashlib.sha256()
        for path in sorted(weights(family(name)).iterdir()): total.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        assert fingerprint(family(name)) == total.hexdigest()
    from em_repro.models import SMOLLM2
    assert fingerprint(family("smollm2-135m")) == SMOLLM2.sha256


# Whatever the verbosity

def test_the_account_does_not_hang_on_anybodys_log_level():
    folder, adapter = checkpoint()[0], adapter_of("LoRA")[0]
    cut = rewritten(folder, lambda held: {name: t for name, t in held.items() if "layers.1" not in name})
    half = rewritten(adapter, lambda held: {name: t for name, t in held.items() if "layers.1" not in name}, "adapter_model.safetensors")
    logging.disable(logging.CRITICAL)
    try:
        refused("weights of the model are not in the file", cut)
        refused("is not whole", folder, half)
    finally: logging.disable(logging.NOTSET)


def test_one_page_holds_one_prompts_check():
    "The tolerances are stated, and tell a NaN from a number."
    row = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert loading.logit_gap(row, row) == 0 and loading.logit_gap(row, row + 1e-2) > loading.TOLERANCE[torch.float32]
    assert loading.logit_gap(row, torch.full((50,), torch.nan)) == float("inf") and families.Family is Family
