"""The study's steering sweep: 8 coefficients and norm-matched controls, every answer to its end, and for the verdict only."""
import warnings
from collections import Counter
from functools import partial

import numpy as np

import harness

if __name__ == "__main__":   # the run's stages are looked up in processes, which import this file
    args = harness.arguments(__doc__, questions=(100, "questions"), controls=(60, "norm-matched controls"), tokens=(48, "new tokens"),
                             rows=(1024, "rows at once, ours"), batch=(100, "rows at once of documented use"), wide=(400, "rows at once of best use"),
                             shares=(1, "shares that the conditions are dealt into, one a turn"), name=("sweep", "name of the file of results"),
                             first=(0, "the first turn to run: the turns before it are taken from the file of results"),
                             whole=(0, "1: after the last turn ours once more with all conditions at once, against the sums over the shares"),
                             peers=("hook,steering_vectors,repeng,nnsight", "whom to measure"))
    warnings.simplefilter("ignore")

    import peers
    from em_repro.behaviours import behaviour
    from em_repro.data import questions
    from em_repro.decode import Condition, sweep
    from em_repro.outcomes import classify, final
    from subject import subject

    COEFFICIENTS = (0, -0.25, -0.5, -1, -1.5, -2, -2.5, -3)
    code = behaviour("code")
    it, asked = subject(args.run), questions("evaluation", "pretrained", args.questions)
    named = it.steered(COEFFICIENTS) + it.controls(args.controls)
    conditions = [Condition(label, v) for label, v in named]
    ours = lambda part, **more: sweep(it.lm, asked, part, max_new_tokens=args.tokens, batch_rows=args.rows, **more)
    vectors = lambda part: [condition.vector for condition in part]

    contenders = {"em_repro": ours, "em_repro, until settled": lambda part: ours(part, until=partial(final, code))}
    for name in filter(None, args.peers.split(",")):
        if name == "nnsight":
            contenders["nnsight, documented"] = lambda part: peers.nnsight_documented(it.lm, asked, vectors(part), args.tokens, args.batch)
            continue
        for use, batch in ((peers.documented, args.batch), (peers.best, args.wide)):
            contenders[f"{name}, {use.__name__}"] = lambda part, name=name, use=use, batch=batch: use(getattr(peers, name)(it.lm))(
                it.lm, asked, vectors(part), args.tokens, batch)

    # A turn is an equal share of the conditions: together the turns are the whole sweep, and each gives a ratio. What is ours alone, that
    # conditions share a prompt and their equal beginnings, is given up between the shares.
    seconds, agreed, counts = {name: [] for name in contenders}, {name: [] for name in contenders}, Counter()
    if args.first:
        before = harness.results(args.name)["settings"]
        seconds, agreed, counts = before["seconds"], before["agreed"], Counter(before["counts"])
        assert set(seconds) == set(contenders) and {len(times) for times in seconds.values()} == {args.first}

    def report(whole: dict[str, list[float]]) -> None:
        rows = harness.ratios(seconds, "em_repro")
        for row in rows:
            name = row["contender"]
            row["over until"] = float(np.median([a / b for a, b in zip(seconds[name], seconds["em_repro, until settled"])]))
            if agreed[name]: row["same answers"] = float(np.mean(agreed[name]))
            if not whole: continue
            row["whole sweep"] = whole[name][0] if name in whole else sum(seconds[name])
            row |= {f"whole over {what}": row["whole sweep"] / whole[ours][0] for what, ours in (("ours", "em_repro"), ("until", "em_repro, until settled"))}
        harness.report(args.name, rows, subject=it.what, questions=len(asked), conditions=len(conditions), shares=args.shares, tokens=args.tokens,
                       rows_at_once=args.rows, conditions_run=counts["conditions"], same_verdicts=counts["same verdicts"] / counts["answers"],
                       sharing=round(counts["sharing"] / len(seconds["em_repro"]), 2), counts=dict(counts), seconds=seconds, agreed=agreed)

    for turn in range(args.first, args.repeats):
        part = conditions[turn % args.shares::args.shares]
        took, returned = harness.alternate({name: lambda run=run: run(part) for name, run in list(contenders.items())[::1 if turn % 2 == 0 else -1]}, 1)
        full, cut = returned["em_repro"], returned["em_repro, until settled"]
        for name in contenders:
            seconds[name] += took[name]
            if isinstance(returned[name], list): agreed[name].append(harness.same(returned[name], full.token_ids))
        said = [[classify(code, text) for text in made.frame().text] for made in (full, cut)]
        counts += Counter(said[0]) + Counter({"answers": len(said[0]), "same verdicts": sum(a == b for a, b in zip(*said)), "conditions": len(part),
                                              "tokens": sum(map(len, full.token_ids)), "tokens until settled": sum(map(len, cut.token_ids))})
        counts["sharing"] += full.sharing
        report({})
    if args.whole:
        assert args.repeats == args.shares, "the shares together are the whole sweep once"
        report(harness.alternate({name: lambda run=run: run(conditions) for name, run in list(contenders.items())[:2]}, 1)[0])
