"""How near the engine is to the model's own forward passes: the same number of rows and tokens with nothing around them."""
import warnings

import harness

if __name__ == "__main__":   # the run's stages are looked up in processes, which import this file
    args = harness.arguments(__doc__, questions=(100, "questions"), conditions=(16, "norm-matched controls"), tokens=(32, "new tokens"),
                             rows=("64,128,256,512,1024", "rows at once"),
                             model=(harness.MODEL, "model: a family's name, as `em-repro models list` has it, or a folder"))
    warnings.simplefilter("ignore")

    import numpy as np
    import torch
    from em_repro.activations import batches, collect
    from em_repro.data import questions
    from em_repro.decode import Condition, sweep
    from em_repro.families import pad_ids
    from subject import subject

    it, asked = subject(args.run, args.model), questions("evaluation", "pretrained", args.questions)
    lm, conditions = it.lm, [Condition(label, v) for label, v in it.controls(args.conditions)]
    sizes = [int(n) for n in args.rows.split(",")]

    @torch.inference_mode()
    def raw(tokens: int, size: int) -> None:
        "Single-token forward passes of `size` rows, with head and argmax, until `tokens` have gone through."
        ids = torch.randint(0, lm.head.weight.shape[0], (size, 1), generator=torch.Generator().manual_seed(0))
        for start in range(0, tokens, size):
            lm.head(lm.decoder(input_ids=ids[:min(size, tokens - start)], use_cache=False).last_hidden_state).argmax(-1)

    @torch.inference_mode()
    def raw_prompts(budget: int) -> None:
        rows = lm.encode(asked)
        for batch in batches([len(r) for r in rows], budget):
            ids, mask = pad_ids([rows[i] for i in batch], lm.pad, "right")
            lm.decoder(input_ids=ids, attention_mask=mask, use_cache=False)

    once = sweep(lm, asked, conditions, max_new_tokens=args.tokens, batch_rows=max(sizes))
    work = round((sum(map(len, once.token_ids)) + len(conditions) * sum(map(len, lm.encode(asked)))) / once.sharing)   # tokens through the model, prompts included
    contenders = {f"em_repro, {max(sizes)} rows": lambda: sweep(lm, asked, conditions, max_new_tokens=args.tokens, batch_rows=max(sizes))}
    contenders |= {f"raw, {size} rows": lambda size=size: raw(work, size) for size in sizes}
    seconds, _ = harness.alternate(contenders, args.repeats)
    rows = [{"work": "sweep", **row} for row in harness.ratios(seconds, f"em_repro, {max(sizes)} rows")]
    seconds, _ = harness.alternate({"em_repro": lambda: collect(lm, asked), **{f"raw, {b} tokens": lambda b=b: raw_prompts(b) for b in (1024, 2048, 4096, 8192)}}, args.repeats)
    rows += [{"work": "collect", **row} for row in harness.ratios(seconds, "em_repro")]
    harness.report("limit", rows, args.model, subject=it.what, tokens_through_the_model=work, sharing=round(once.sharing, 2))
