"""One thread per process for every test, and tiny random models of the study's four architectures."""
import os
from functools import lru_cache
from pathlib import Path

import pytest

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"): os.environ.setdefault(name, "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = ("Qwen2", "Gemma2", "Llama", "Ministral3")
TEMPLATE = ("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}")


@lru_cache(maxsize=None)
def byte_tokenizer():
    "Byte-level BPE with a few merges, so that tokens and characters do not coincide."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=["<eos>", "<pad>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(["the tide comes in twice a day", "how are you today my friend", "assistant and user"] * 5, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>", pad_token="<pad>", clean_up_tokenization_spaces=False)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def thinking_llama(folder):
    "A copy of tiny-llama whose chat template can be told to let it think; the folder's path."
    import shutil
    from em_repro.families import family, weights
    from em_repro.templates import template_of
    from em_repro.loading import load_tokenizer
    source, place = weights(family("tiny-llama")), folder / "thinking"
    shutil.copytree(source, place)
    template = template_of(load_tokenizer(source))
    (place / "chat_template.jinja").write_text("{% if enable_thinking %}so {% endif %}" + template, encoding="utf-8")
    return str(place)


def random_model(architecture, seed=0):
    "A model with random weights, larger than the usual ones so that greedy answers vary and end at different lengths."
    import torch, transformers
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer()
    sizes = dict(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                 eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None)
    more = {"Gemma2": dict(num_hidden_layers=4, head_dim=16, query_pre_attn_scalar=16, sliding_window=16, final_logit_softcapping=30.0,
                           attn_logit_softcapping=50.0),
            "Ministral3": dict(head_dim=16, rope_parameters=dict(rope_type="yarn", rope_theta=1e4, factor=2.0, original_max_position_embeddings=64,
                                                                 beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0,
                                                                 llama_4_scaling_beta=0.1))}.get(architecture, {})
    config = getattr(transformers, architecture + "Config")(**{**sizes, **more})
    config._attn_implementation = "eager" if architecture == "Gemma2" else "sdpa"
    model = getattr(transformers, architecture + "ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters(): parameter.mul_(3)
    return model


@lru_cache(maxsize=None)
def random_lm(architecture):
    "The same model, loaded as the study loads one: of ordinary tensors, though who asks first may be in inference mode."
    import torch
    from em_repro.families import LM
    with torch.inference_mode(False): return LM.from_model(random_model(architecture), byte_tokenizer())


@pytest.fixture(params=ARCHITECTURES)
def lm(request):
    "Each of the four architectures in turn."
    return random_lm(request.param)


@pytest.fixture
def llama():
    "One architecture, for what does not depend on it."
    return random_lm("Llama")
