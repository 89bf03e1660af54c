"""Last-block activations of prompts of mixed length: time, and peak memory above the weights in a process of its own."""
import json, sys, warnings

import harness

args = harness.arguments(__doc__, prompts=(1000, "prompts"), sizes=("8,32,128", "batch sizes of the peers"),
                         memory=(200, "prompts when memory is measured"), only=("", "measure the memory of one contender"))
warnings.simplefilter("ignore")

import numpy as np
import torch
from em_repro.activations import collect
from em_repro.data import code_pairs, question_table
from subject import subject

it = subject("")
lm = it.lm
pairs = code_pairs()
asked = (question_table().text.tolist() + pairs.explicit.tolist() + pairs.template.tolist())
asked = [asked[i] for i in np.random.default_rng(0).permutation(len(asked))[:args.prompts]]
texts = [lm.tokenizer.apply_chat_template([{"role": "user", "content": q}], tokenize=False, add_generation_prompt=True) for q in asked]
last = lm.n_layers - 1


def steering_vectors(size: int) -> np.ndarray:
    "Different prompts as the two sides of a pair, so that none is run twice."
    from steering_vectors.train_steering_vector import extract_activations
    with torch.inference_mode():
        first, second = extract_activations(lm.model, lm.tokenizer, list(zip(texts[::2], texts[1::2])), layers=[last], batch_size=size)
    return torch.stack([torch.cat(list(side[last])) for side in (first, second)], 1).flatten(0, 1).numpy()


def repeng(size: int) -> np.ndarray:
    np.float_ = np.float64
    from repeng.extract import batched_get_hiddens
    return batched_get_hiddens(lm.model, lm.tokenizer, texts, [last], size)[last]


def nnsight(size: int) -> np.ndarray:
    from nnsight import TransformersModel
    model, found = TransformersModel(lm.model, tokenizer=lm.tokenizer, task="text-generation"), []
    for start in range(0, len(texts), size):
        batch = lm.tokenizer(texts[start:start + size], return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        with torch.no_grad(), model.trace(dict(batch)) as tracer:
            states = model.model.layers[last].output[:, -1].save()
            tracer.stop()
        found.append(states.clone())
    return torch.cat(found).numpy()


sizes = [int(n) for n in args.sizes.split(",")]
contenders = {"em_repro": lambda: collect(lm, asked).X[:, 0]}
contenders |= {f"{f.__name__}, batches of {n}": lambda f=f, n=n: f(n) for f in (steering_vectors, repeng, nnsight) for n in sizes}
if args.only:
    with harness.PeakMemory() as memory: contenders[args.only]()
    print(json.dumps({"peak": memory.peak}))
    sys.exit()
seconds, out = harness.alternate(contenders, args.repeats)
rows = harness.ratios(seconds, "em_repro")
own = None
for row in rows:
    passed = ["--only", row["contender"], "--threads", str(args.threads), "--prompts", str(args.memory), "--sizes", args.sizes]
    row["peak MiB"] = harness.in_own_process(__file__, *passed)["peak"] / 2 ** 20
    own = own or row["peak MiB"]
    row["memory ratio"] = row["peak MiB"] / own
    # repeng reads the last layer after the final norm, the others before it
    states = out["em_repro"] if not row["contender"].startswith("repeng") else lm.norm(torch.as_tensor(out["em_repro"])).detach().numpy()
    row["largest difference"] = float(abs(out[row["contender"]] - states).max() / abs(states).max())
harness.report("collect", rows, prompts=len(asked), memory_prompts=args.memory, tokens=sum(map(len, lm.encode(asked))))
