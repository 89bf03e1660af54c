"""The same steered answers by the libraries one would otherwise use: as each one's documentation shows, and in the best way that it allows.

Every function returns the answers' token ids by prompt, then condition. All are given the same model in memory, with adapters merged.
"""
from collections.abc import Callable, Sequence

import numpy as np
import torch

from em_repro.families import LM, pad_ids

Ids = list[list[int]]


def _answers(lm: LM, out: torch.Tensor, width: int) -> Ids:
    "Generated ids up to the end token."
    rows = out[:, width:].tolist()
    return [row[:next((i for i, t in enumerate(row) if t in lm.eos), len(row))] for row in rows]


def _generate(model: object, lm: LM, ids: torch.Tensor, mask: torch.Tensor, new: int) -> Ids:
    with torch.inference_mode():
        out = model.generate(input_ids=ids.to(lm.device), attention_mask=mask.to(lm.device), do_sample=False, max_new_tokens=new, pad_token_id=lm.pad, eos_token_id=lm.eos)
    return _answers(lm, out, ids.shape[1])


def _by_prompt(by_condition: Sequence[Ids]) -> Ids:
    return [answers[p] for p in range(len(by_condition[0])) for answers in by_condition]


def _one_by_one(steer: Callable, lm: LM, prompts: Sequence[str], vectors: Sequence[np.ndarray], new: int, batch: int) -> Ids:
    "One generate a condition and batch of prompts: what documentation shows."
    rows, found = lm.encode(prompts), []
    for vector in vectors:
        answers = []
        for start in range(0, len(rows), batch):
            ids, mask = pad_ids(rows[start:start + batch], lm.pad, "left")
            with steer(torch.as_tensor(vector).to(lm.device, lm.head.weight.dtype)) as model: answers += _generate(model, lm, ids, mask, new)
        found.append(answers)
    return _by_prompt(found)


def _side_door(steer: Callable, lm: LM, prompts: Sequence[str], vectors: Sequence[np.ndarray], new: int, batch: int) -> Ids:
    "Prompts repeated, a vector for each row, sorted by length: as many rows at once as are fastest."
    rows, found = lm.encode(prompts), {}
    lanes = sorted(((p, c) for p in range(len(rows)) for c in range(len(vectors))), key=lambda lane: -len(rows[lane[0]]))
    for start in range(0, len(lanes), batch):
        part = lanes[start:start + batch]
        ids, mask = pad_ids([rows[p] for p, _ in part], lm.pad, "left")
        each = torch.as_tensor(np.stack([vectors[c] for _, c in part])).to(lm.device, lm.head.weight.dtype)[:, None]
        with steer(each) as model: found.update(zip(part, _generate(model, lm, ids, mask, new)))
    return [found[p, c] for p in range(len(rows)) for c in range(len(vectors))]


def hook(lm: LM) -> Callable:
    "transformers alone: a forward hook of one's own on the last block."
    from contextlib import contextmanager
    @contextmanager
    def steer(vector: torch.Tensor):
        handle = lm.blocks[-1].register_forward_hook(lambda _m, _i, out: (out[0] + vector, *out[1:]) if isinstance(out, tuple) else out + vector)
        try: yield lm.model
        finally: handle.remove()
    return steer


def steering_vectors(lm: LM) -> Callable:
    from contextlib import contextmanager
    from steering_vectors import SteeringVector
    @contextmanager
    def steer(vector: torch.Tensor):
        layer, each = lm.n_layers - 1, vector.ndim > 1
        applied = SteeringVector({layer: torch.zeros(lm.width) if each else vector})
        with applied.apply(lm.model, operator=(lambda _original, _vector: vector) if each else None): yield lm.model
    return steer


def repeng(lm: LM) -> Callable:
    from contextlib import contextmanager
    np.float_ = np.float64   # repeng 0.4.0 asks for a name that numpy 2 no longer has
    from repeng import ControlModel, ControlVector
    @contextmanager
    def steer(vector: torch.Tensor):
        layer = lm.n_layers - 1
        controlled = ControlModel(lm.model, [layer])
        try:
            if vector.ndim > 1: controlled.set_raw_control({layer: vector})
            else: controlled.set_control(ControlVector(lm.model.config.model_type, {layer: vector.numpy()}), 1.0)
            yield controlled
        finally:
            controlled.reset(); controlled.unwrap()
    return steer


def documented(steer: Callable) -> Callable[..., Ids]:
    return lambda *arguments: _one_by_one(steer, *arguments)


def best(steer: Callable) -> Callable[..., Ids]:
    return lambda *arguments: _side_door(steer, *arguments)


def nnsight_documented(lm: LM, prompts: Sequence[str], vectors: Sequence[np.ndarray], new: int, batch: int) -> Ids:
    "nnsight traces its own source: the loop has to be written out in a file."
    from nnsight import TransformersModel
    model, rows, found = TransformersModel(lm.model, tokenizer=lm.tokenizer, task="text-generation"), lm.encode(prompts), []
    for vector in vectors:
        answers = []
        for start in range(0, len(rows), batch):
            ids, mask = pad_ids(rows[start:start + batch], lm.pad, "left")
            add = torch.as_tensor(vector)
            with torch.no_grad(), model.generate(max_new_tokens=new, do_sample=False, pad_token_id=lm.pad, eos_token_id=lm.eos) as tracer:
                with tracer.invoke({"input_ids": ids, "attention_mask": mask}):
                    for _ in tracer.iter[:new]:
                        model.model.layers[lm.n_layers - 1].output[:] += add
                with tracer.invoke():
                    out = tracer.result.save()
            answers += _answers(lm, out, ids.shape[1])
        found.append(answers)
    return _by_prompt(found)
