"""Conditions that change little or nothing: what sharing histories is worth."""
import warnings

import harness

if __name__ == "__main__":   # the run's stages are looked up in processes, which import this file
    args = harness.arguments(__doc__, questions=(50, "questions"), tokens=(48, "new tokens"), rows=(1024, "rows at once, ours"), wide=(400, "rows at once, best use"))
    warnings.simplefilter("ignore")

    import numpy as np
    import peers
    from em_repro import tiny
    from em_repro.data import questions
    from em_repro.decode import Condition, sweep
    from em_repro.families import load_lm
    from subject import Subject, subject

    def against_best_use(which, it, asked, weak):
        conditions, vectors = [Condition(label, v) for label, v in weak], [v for _, v in weak]
        seconds, out = harness.alternate({
            "em_repro": lambda: sweep(it.lm, asked, conditions, max_new_tokens=args.tokens, batch_rows=args.rows),
            **{f"{name}, best": lambda name=name: peers.best(getattr(peers, name)(it.lm))(it.lm, asked, vectors, args.tokens, args.wide)
               for name in ("hook", "steering_vectors", "repeng")}}, args.repeats)
        same = {k: harness.same(v, out["em_repro"].token_ids) for k, v in out.items() if isinstance(v, list)}
        return [{"model": which, "sharing": out["em_repro"].sharing, **row, "same answers": same.get(row["contender"])} for row in harness.ratios(seconds, "em_repro")]

    real = subject(args.run)
    small = tuple(np.linspace(-0.06, 0.05, 12).round(3).tolist())   # 12 coefficients around none
    lm = load_lm("tiny-llama")
    pushed = Subject(lm, np.random.default_rng(0).normal(size=lm.width), "tiny family, random direction")
    rows = against_best_use("SmolLM2-135M", real, questions("evaluation", "pretrained", args.questions), real.steered(small))
    rows += against_best_use("tiny-llama", pushed, tiny.synthetic_questions("evaluation"), pushed.steered(small))

    asked = questions("evaluation", "pretrained", args.questions)
    nothing = [Condition(str(i), 1e-6 * v) for i, (_, v) in enumerate(real.controls(128))]
    seconds, out = harness.alternate({"1 condition": lambda: sweep(real.lm, asked, nothing[:1], max_new_tokens=args.tokens, batch_rows=args.rows),
                                      "128 conditions": lambda: sweep(real.lm, asked, nothing, max_new_tokens=args.tokens, batch_rows=args.rows)}, args.repeats)
    rows += [{"model": "SmolLM2-135M, vectors of no effect", "sharing": out[row["contender"]].sharing, **row} for row in harness.ratios(seconds, "1 condition")]
    harness.report("weak", rows, subject=real.what, doses=list(small), tokens=args.tokens)
