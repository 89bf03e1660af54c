"""Preferences of twins under 40 conditions against one plain scoring pass of the same answers."""
import warnings

import harness

if __name__ == "__main__":   # the run's stages are looked up in processes, which import this file
    args = harness.arguments(__doc__, twins=(240, "twins"), conditions=(40, "conditions"), base=("smollm2-135m", "the model"))
    warnings.simplefilter("ignore")

    import numpy as np
    from em_repro.decode import Condition, score
    from em_repro.families import load_lm
    from em_repro.preference import preference
    from em_repro.twins import twin_sets

    lm, twins = load_lm(args.base), twin_sets("pretrained", "money").query("set == 'outside'").head(args.twins)
    rng = np.random.default_rng(0)
    ways = [Condition(f"v{i}", vector=10 * rng.normal(size=lm.width)) for i in range(args.conditions)]
    sides = [twins[side].tolist() for side in ("first", "second")]
    asked = twins.request.tolist() * 2

    contenders = {"40 conditions": lambda: preference(lm, twins, ways), "one condition": lambda: preference(lm, twins),
                  "plain score": lambda: score(lm, asked, sides[0] + sides[1])}
    seconds, out = harness.alternate(contenders, args.repeats)
    plain = out["plain score"].nll[:, 0]
    harness.report("preference", harness.ratios(seconds, "plain score"), subject=args.base, twins=len(twins), conditions=len(ways),
                   largest_difference=float(abs(plain[len(twins):] - plain[:len(twins)] - out["one condition"].per_token[:, 0]).max()))
