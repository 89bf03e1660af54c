"""Which architectures of transformers are swept by rows, which by transformers' own loop, and which
not at all: data/architecture_paths.csv.

Each architecture is a tiny model with random weights, made here in code. Its greedy answers,
unsteered and steered, are compared token by token with those of transformers' own generate under
a plain hook. Takes one to two minutes on one core."""
import argparse
import logging
import os
import sys
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "data" / "architecture_paths.csv"
COLUMNS = ["architecture", "class", "path", "why", "tokens", "distinct"]
NEW = 5
PROMPTS = ([7, 91, 23, 150, 44, 201, 18, 66, 120, 35, 81], [12, 240, 5])

SIZES = dict(
    vocab_size=330, hidden_size=32, intermediate_size=48, moe_intermediate_size=16,
    num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    num_experts=4, num_local_experts=4, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
    topk_group=1, n_shared_experts=1, pad_token_id=1, eos_token_id=0, bos_token_id=2,
    max_position_embeddings=256, n_embd=32, n_layer=4, n_head=4, d_model=32, n_layers=4,
    n_heads=4, ffn_dim=48, n_positions=256, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8,
    qk_rope_head_dim=8, v_head_dim=8)
MORE = {
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1,
        "mamba_d_conv": 4, "mamba_chunk_size": 8, "attn_layer_indices": [1, 3]},
    "codegen": {"rotary_dim": 8},
    "gptj": {"rotary_dim": 8},
    "deepseek_v2": {"num_key_value_heads": 4, "first_k_dense_replace": 1},
    "deepseek_v3": {"num_key_value_heads": 4, "first_k_dense_replace": 1},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8,
        "mamba_n_groups": 1, "mamba_chunk_size": 8},
    "dots1": {"first_k_dense_replace": 1},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "expert_layer_offset": 1, "mamba_d_state": 8, "use_mamba_kernels": False},
    "gemma3n_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 330,
        "hidden_size_per_layer_input": 8, "layer_types": ["sliding_attention", "full_attention",
        "sliding_attention", "full_attention"], "laurel_rank": 4, "activation_sparsity_pattern":
        [0.0, 0.0, 0.0, 0.0]},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 6},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8,
        "mamba_n_groups": 1, "mamba_d_conv": 4, "mamba_chunk_size": 8, "layer_types": ["mamba",
        "attention", "mamba", "attention"], "shared_intermediate_size": 32},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"],
        "num_dense_layers": 2},
    "longcat_flash": {"num_key_value_heads": 4, "num_layers": 2, "head_dim": 8, "ffn_hidden_size":
        48, "expert_ffn_hidden_size": 16, "zero_expert_num": 1, "moe_topk": 2},
    "llama4_text": {"intermediate_size_mlp": 48},
    "mamba2": {"num_heads": 4, "head_dim": 16, "expand": 2, "state_size": 8, "n_groups": 1,
        "chunk_size": 8},
    "minicpm3": {"num_key_value_heads": 4},
    "minimax": {"layer_types": ["linear_attention", "full_attention", "linear_attention",
        "full_attention"], "block_size": 8},
    "nemotron_h": {"mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1,
        "chunk_size": 8, "num_hidden_layers": None},
    "qwen3_5_text": {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim":
        8, "linear_value_head_dim": 8},
    "qwen3_5_moe_text": {"linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "shared_expert_intermediate_size":
        16},
    "qwen3_next": {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim":
        8, "linear_value_head_dim": 8, "shared_expert_intermediate_size": 16},
    "qwen2_moe": {"shared_expert_intermediate_size": 16},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 64},
    "xlstm": {"num_heads": 4, "qk_dim_factor": 1.0, "chunk_size": 8},
    "youtu": {"num_key_value_heads": 4},
    "zamba2": {"mamba_d_state": 8, "mamba_headdim": 16, "n_mamba_heads": 4, "mamba_ngroups": 1,
        "chunk_size": 8, "num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba",
        "hybrid"]},
    "gemma2": {"sliding_window": 6},
    "gemma3_text": {"sliding_window": 6},
    "gpt_oss": {"sliding_window": 6},
    "mistral": {"sliding_window": 6},
    "phi3": {"sliding_window": 6},
}
TRIED = (
    "afmoe apertus arcee bamba biogpt bitnet bloom codegen cohere cohere2 deepseek_v2 "
    "deepseek_v3 diffllama doge dots1 ernie4_5 ernie4_5_moe exaone4 falcon falcon_h1 "
    "falcon_mamba flex_olmo gemma gemma2 gemma3_text gemma3n_text glm glm4 glm4_moe gpt2 "
    "gpt_bigcode gpt_neo gpt_neox gpt_oss gptj granite granitemoe granitemoehybrid "
    "granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe hyperclovax jamba jetmoe lfm2 "
    "lfm2_moe llama llama4_text longcat_flash mamba mamba2 mimo_v2_flash minicpm3 minimax "
    "minimax_m2 ministral ministral3 mistral mixtral mpt nanochat nemotron nemotron_h olmo "
    "olmo2 olmo3 olmo_hybrid olmoe opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 "
    "qwen3_5_text qwen3_moe qwen3_next recurrent_gemma rwkv seed_oss smollm3 stablelm "
    "starcoder2 vaultgemma xglm xlstm youtu zamba2 t5 bart").split()


def config_of(kind):
    "A tiny configuration: what its class has of the sizes, and what it needs besides."
    from transformers import CONFIG_MAPPING
    cls = CONFIG_MAPPING[kind]
    fields = set(getattr(cls, "__dataclass_fields__", {})) | set(getattr(cls, "attribute_map", {}))
    sizes = {k: v for k, v in SIZES.items() if k in fields}
    return cls(**sizes | {k: v for k, v in MORE.get(kind, {}).items() if v is not None})


def random_model(kind, seed=0):
    "A tiny model whose weights are large enough for answers that vary; norms stay near one."
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
    config = config_of(kind)
    torch.manual_seed(seed)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "norm" not in name and "conv" not in name:
                parameter.add_(0.12 * torch.randn_like(parameter))
            elif "sink" in name: parameter.add_(torch.randn_like(parameter))
    return model


class Words:
    "A tokenizer of numbers: a prompt is its token ids, written with spaces between them."
    eos_token_id, pad_token_id, padding_side, special_tokens_map = 0, 1, "left", {}
    chat_template = "{{ messages[-1]['content'] }}{% if add_generation_prompt %} {% endif %}"

    def __call__(self, text, **_): return {"input_ids": [int(word) for word in text.split()]}
    def decode(self, ids, **_): return " ".join(map(str, ids))
    def batch_decode(self, rows, **_): return [self.decode(row) for row in rows]


def push(lm, size, seed=0):
    import numpy as np
    v = np.random.default_rng(seed).normal(size=lm.width).astype(np.float32)
    return v * np.float32(size / np.linalg.norm(v))


def by_generate(lm, prompt, vector=None, layer=-1, every_step=True):
    "Greedy tokens of transformers' own generate with a plain hook: the reference."
    import torch
    ids, passes = torch.tensor([prompt]), [0]
    def hook(_module, _inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        passes[0] += 1
        if vector is None or (passes[0] > 1 and not every_step): return output
        hidden = hidden.clone()
        hidden[:, -1] += torch.as_tensor(vector)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
    handle = lm.blocks[layer].register_forward_hook(hook)
    try:
        with torch.inference_mode():
            out = lm.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                    max_new_tokens=NEW, pad_token_id=1, eos_token_id=0)
    finally: handle.remove()
    answer = out[0, len(prompt):].tolist()
    return answer[:answer.index(0)] if 0 in answer else answer


def tried(kind):
    "A line of the table: how an architecture is swept, and how many tokens were those of generate."
    import numpy as np
    from em_repro.agreement import sweep_path
    from em_repro.activations import collect
    from em_repro.decode import Condition, sweep
    from em_repro.families import LM
    from em_repro.profiles import UserError
    model = random_model(kind)
    name, prompts = type(model).__name__, [" ".join(map(str, p)) for p in PROMPTS]
    try:
        lm = LM.from_model(model, Words())
        path = sweep_path(lm, lm.encode(prompts))
    except UserError as error: return [kind, name, "refused", str(error), "", ""]
    size = 2 * float(np.linalg.norm(collect(lm, prompts).X[:, 0], axis=1).mean())
    same, total, answers = 0, 0, set()
    for vector, layer, when in ((0, -1, "every_step"), (1, -1, "every_step"),
                                (1, 0, "every_step"), (1, -1, "prefill")):
        v = push(lm, size) if vector else None
        said = sweep(lm, prompts, [Condition("c", v)], layer=layer, when=when, max_new_tokens=NEW)
        for prompt, found in zip(PROMPTS, said.token_ids):
            own = by_generate(lm, list(prompt), v, layer, when == "every_step")
            answers.add(tuple(own))
            same += sum(a == b for a, b in zip(found, own))
            total += max(len(found), len(own))
    how = "fast" if path.fast else "slow"
    return [kind, name, how, path.why, f"{same}/{total}", len(answers)]


def main(kinds):
    import pandas as pd
    import torch
    import transformers
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    logging.getLogger("em_repro").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    rows = []
    for kind in kinds or TRIED:
        began = time.monotonic()
        rows.append(tried(kind))
        print(*rows[-1], f"{time.monotonic() - began:.1f} s", sep=" | ", flush=True)
    if kinds: return
    table = pd.DataFrame(rows, columns=COLUMNS).assign(transformers=transformers.__version__)
    table.to_csv(TABLE, index=False, lineterminator="\n")


if __name__ == "__main__":
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("kinds", nargs="*", metavar="ARCHITECTURE",
                        help="try these and only print them (none: all, into the table)")
    asked = parser.parse_args().kinds
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.insert(0, str(ROOT))
    main(asked)
