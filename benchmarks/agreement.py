"""Token-by-token agreement of the sweep with transformers' own loop and a hook, in float32 and in bfloat16."""
import warnings

import harness

args = harness.arguments(__doc__, questions=(20, "questions"), controls=(4, "norm-matched controls"), tokens=(48, "new tokens"), batch=(20, "rows at once of generate"))
warnings.simplefilter("ignore")

import numpy as np
import peers
from em_repro import tiny
from em_repro.activations import collect
from em_repro.data import questions
from em_repro.decode import Condition, sweep
from em_repro.families import load_lm
from subject import Subject


def first_difference(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


rows = []
for name, asked in ((harness.MODEL, questions("evaluation", "pretrained", args.questions)), ("tiny-llama", tiny.synthetic_questions("evaluation")[:args.questions])):
    for dtype in ("float32", "bfloat16"):
        lm = load_lm(name, dtype=dtype)
        norm = np.linalg.norm(collect(lm, asked[:8]).X, axis=-1).mean()
        v = np.random.default_rng(0).normal(size=lm.width)
        it = Subject(lm, 0.4 * norm * v / np.linalg.norm(v), "untouched model, random direction")
        named = it.steered((0, -0.5, -1)) + it.controls(args.controls)
        ours = sweep(lm, asked, [Condition(k, v) for k, v in named], max_new_tokens=args.tokens).token_ids
        theirs = peers.documented(peers.hook(lm))(lm, asked, [v for _, v in named], args.tokens, args.batch)
        again = peers.documented(peers.hook(lm))(lm, asked, [v for _, v in named], args.tokens, max(1, args.batch // 4))   # the loop against itself
        for what, one, two in (("sweep against the loop", ours, theirs), ("the loop against itself in other batches", again, theirs)):
            places = [first_difference(a, b) for a, b in zip(one, two) if a != b]
            rows.append({"model": name, "dtype": dtype, "compared": what, "answers": len(one), "same answers": harness.same(one, two),
                         "median first difference": float(np.median(places)) if places else float("nan")})
harness.report("agreement", rows, questions=args.questions, conditions=3 + args.controls, tokens=args.tokens)
