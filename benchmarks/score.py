"""Log-probabilities of given answers under 12 conditions: one pass against twelve."""
import warnings

import harness

if __name__ == "__main__":   # the run's stages are looked up in processes, which import this file
    args = harness.arguments(__doc__, answers=(40, "held-out good answers"), conditions=(12, "conditions"))
    warnings.simplefilter("ignore")

    import numpy as np
    import torch
    from em_repro.data import chat_rows
    from em_repro.decode import Condition, score
    from em_repro.families import pad_ids
    from peers import hook
    from subject import subject

    it = subject(args.run)
    good = chat_rows("held_out", "pretrained", args.answers)
    asked, told = [row["messages"][0]["content"] for row in good], [row["messages"][-1]["content"] for row in good]
    named = it.steered(tuple(np.linspace(-3, 0, args.conditions).round(2)))

    @torch.inference_mode()
    def one_by_one() -> np.ndarray:
        "A hooked forward pass of the whole model a condition, all answers in one batch, log-softmax at the answers' tokens."
        heads = it.lm.encode(asked)
        tails = [it.lm.tokenizer(t, add_special_tokens=False)["input_ids"] for t in told]
        ids, mask = pad_ids([h + t for h, t in zip(heads, tails)], it.lm.pad, "right")
        found = np.zeros((len(asked), len(named)))
        for c, (_, vector) in enumerate(named):
            with hook(it.lm)(torch.as_tensor(vector)) as model: logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            for i, (h, t) in enumerate(zip(heads, tails)):
                here = slice(len(h) - 1, len(h) + len(t) - 1)
                found[i, c] = logits[i, here].float().log_softmax(-1).gather(-1, ids[i, len(h):len(h) + len(t), None]).double().sum()
        return found

    seconds, out = harness.alternate({"em_repro": lambda: score(it.lm, asked, told, [Condition(label, v) for label, v in named]).logprob,
                                      "a pass each": one_by_one}, args.repeats)
    harness.report("score", harness.ratios(seconds, "em_repro"), subject=it.what, answers=len(asked), conditions=len(named),
                   largest_difference=float(abs(out["em_repro"] - out["a pass each"]).max()))
