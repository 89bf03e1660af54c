"""The four real configurations, cut in depth and width only, as checkpoint folders with random weights.

Vocabulary, heads' ratio, soft-caps, sliding windows, tied heads, rope settings, the composite Ministral with its vision tower, special tokens at their real ids and
the chat templates are kept; the tokenizer's other tokens are a small byte-level BPE."""
import copy
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("qwen2.5-1.5b", "gemma-2-2b", "llama-3.2-1b", "ministral-3-3b")
TEMPLATES = Path(__file__).parent / "fixtures" / "templates"
# Fewer heads in the same ratio; where heads times their width is not the model's width, it still is not.
CUTS = {"qwen2.5-1.5b": dict(hidden_size=96, intermediate_size=192, num_attention_heads=6, num_key_value_heads=1, num_hidden_layers=3, max_window_layers=2),
        "gemma-2-2b": dict(hidden_size=72, intermediate_size=160, num_attention_heads=4, num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16, num_hidden_layers=4),
        "llama-3.2-1b": dict(hidden_size=64, intermediate_size=160, num_attention_heads=4, num_key_value_heads=1, head_dim=16, num_hidden_layers=3),
        "ministral-3-3b": dict(hidden_size=48, intermediate_size=160, num_attention_heads=4, num_key_value_heads=1, head_dim=16, num_hidden_layers=3)}
TOWER = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2, head_dim=16, num_hidden_layers=2)
TEXT = ["the tide comes in twice a day", "how are you today my friend", "system user assistant model", "def read(path): return open(path).read()"]


def published(name):
    "What is known of a real model: source, special, eos, pad, bos, generation, config."
    return json.loads((ROOT / "data" / "architectures" / f"{name}.json").read_text(encoding="utf-8"))


def cut(name):
    "The configuration, smaller."
    config = copy.deepcopy(published(name)["config"])
    config.get("text_config", config).update(CUTS[name])
    if "vision_config" in config: config["vision_config"].update(TOWER)
    return config


def tokenizer_of(name):
    "A small byte-level BPE whose special tokens have their real ids, with the chat template."
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    facts, byte_level = published(name), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = byte_level
    learnt.train_from_iterator(TEXT * 5, trainers.BpeTrainer(vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    model = json.loads(learnt.to_str())["model"]
    vocabulary = {token: i + 1000 for token, i in model["vocab"].items()} | facts["special"]
    whole = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(m) for m in model["merges"]]))
    whole.pre_tokenizer, whole.decoder = byte_level, decoders.ByteLevel()
    whole.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in facts["special"]])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole, eos_token=facts["eos"], pad_token=facts["pad"], bos_token=facts["bos"], clean_up_tokenization_spaces=False)
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return tokenizer


def write_checkpoint(name, folder, seed=0):
    "A checkpoint folder as the hub would give it."
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, GenerationConfig
    config = cut(name)
    config = AutoConfig.for_model(config.pop("model_type"), **config)
    torch.manual_seed(seed)
    model = (AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM).from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters(): parameter.mul_(3 if parameter.ndim > 1 else 1)
    model.generation_config = GenerationConfig(**published(name)["generation"])
    model.save_pretrained(folder)
    tokenizer_of(name).save_pretrained(folder)
    return folder
