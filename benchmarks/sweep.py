"""The study's steering sweep: 8 doses and norm-matched controls, every answer to its end, and for the verdict only."""
import warnings
from collections import Counter

import numpy as np

import harness

if __name__ == "__main__":   # the run's stages are looked up in processes, which import this file
    args = harness.arguments(__doc__, questions=(100, "questions"), controls=(60, "norm-matched controls"), tokens=(48, "new tokens"),
                             rows=(1024, "rows at once, ours"), batch=(100, "rows at once of documented use"), wide=(400, "rows at once of best use"),
                             peers=("hook,steering_vectors,repeng,nnsight", "whom to measure"))
    warnings.simplefilter("ignore")

    import peers
    from em_repro.data import questions
    from em_repro.decode import Condition, sweep
    from em_repro.spillover import classify_answer, settled
    from subject import subject

    DOSES = (0, -0.25, -0.5, -1, -1.5, -2, -2.5, -3)
    it, asked = subject(args.run), questions("evaluation", "shipped", args.questions)
    named = it.doses(DOSES) + it.controls(args.controls)
    conditions, vectors = [Condition(label, v) for label, v in named], [v for _, v in named]

    contenders = {"em_repro": lambda: sweep(it.lm, asked, conditions, max_new_tokens=args.tokens, batch_rows=args.rows),
                  "em_repro, until settled": lambda: sweep(it.lm, asked, conditions, max_new_tokens=args.tokens, batch_rows=args.rows, until=settled)}
    for name in filter(None, args.peers.split(",")):
        if name == "nnsight": contenders["nnsight, documented"] = lambda: peers.nnsight_documented(it.lm, asked, vectors, args.tokens, args.batch); continue
        for use, batch in ((peers.documented, args.batch), (peers.best, args.wide)):
            contenders[f"{name}, {use.__name__}"] = lambda name=name, use=use, batch=batch: use(getattr(peers, name)(it.lm))(it.lm, asked, vectors, args.tokens, batch)

    seconds, returned = harness.alternate(contenders, args.repeats)
    full, cut = returned["em_repro"], returned["em_repro, until settled"]
    verdicts = [[classify_answer(text).value for text in out.frame().text] for out in (full, cut)]
    rows = harness.ratios(seconds, "em_repro")
    for row in rows:
        ids = returned[row["contender"]]
        row["over until"] = float(np.median([a / b for a, b in zip(seconds[row["contender"]], seconds["em_repro, until settled"])]))
        if isinstance(ids, list): row["same answers"] = harness.same(ids, full.token_ids)
    harness.report("sweep", rows, subject=it.what, questions=len(asked), conditions=len(conditions), tokens=args.tokens,
                   answer_tokens=sum(map(len, full.token_ids)), sharing=round(full.sharing, 2), same_verdicts=float(np.mean([a == b for a, b in zip(*verdicts)])),
                   verdicts=dict(Counter(verdicts[0])))
