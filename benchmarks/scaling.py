"""How time and memory grow: with prompts, conditions, length of the answer, and activations streamed from disk."""
import json, sys, tempfile, time, warnings
from pathlib import Path

import harness

args = harness.arguments(__doc__, prompts=("10,30,100,300,1000", "numbers of prompts"), conditions=("1,2,4,8,16,32,64,128", "numbers of conditions"),
                         lengths=("32,64,128,256,512", "new tokens"), activations=("1000,10000,100000,1000000", "rows of activations"),
                         only=("", "measure one point: axis=size"))
warnings.simplefilter("ignore")

import numpy as np


def decoding(axis: str, size: int):
    "A sweep of which one size varies: 20 prompts, 4 controls of the direction's norm and 16 tokens otherwise."
    from em_repro.data import code_pairs, question_table
    from em_repro.decode import Condition, sweep
    from subject import subject
    it = subject(args.run)
    n = {"prompts": 20, "conditions": 4, "lengths": 16, axis: size}
    asked = (question_table().text.tolist() + code_pairs().explicit.tolist())[:n["prompts"]]
    conditions = [Condition(label, v) for label, v in it.controls(n["conditions"])]
    it.lm.eos = []   # every answer as long as it is asked to be
    return lambda: sum(map(len, sweep(it.lm, asked, conditions, max_new_tokens=n["lengths"], batch_rows=512).token_ids))


def streaming(size: int):
    "Mean and covariance of rows of width 576, read from a file in pieces."
    from em_repro.activations import Moments
    path = Path(tempfile.mkdtemp()) / "x.npy"
    X = np.lib.format.open_memmap(path, "w+", np.float32, (size, 576))
    g = np.random.default_rng(0)
    for start in range(0, size, 20000): X[start:start + 20000] = g.normal(size=X[start:start + 20000].shape)
    X.flush()
    del X
    def run() -> int:
        X, moments = np.load(path, mmap_mode="r"), Moments(576)
        for start in range(0, size, 8192): moments.update(X[start:start + 8192])
        path.unlink(); path.parent.rmdir()
        return moments.n
    return run


if args.only:
    axis, size = args.only.split("=")
    run = streaming(int(size)) if axis == "activations" else decoding(axis, int(size))
    with harness.PeakMemory() as memory:
        start = time.perf_counter()
        done = run()
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "done": done, "peak": memory.peak}))
    sys.exit()

rows = []
for axis in ("prompts", "conditions", "lengths", "activations"):
    sizes = [int(n) for n in getattr(args, axis).split(",")]
    points = []
    for size in sizes:
        found = [harness.in_own_process(__file__, "--only", f"{axis}={size}", "--threads", str(args.threads), "--run", args.run) for _ in range(args.repeats)]
        points.append(sorted(found, key=lambda f: f["seconds"])[len(found) // 2])
        print(f"  {axis} {size}: {points[-1]['seconds']:.2f} s", file=sys.stderr, flush=True)
    exponent = float(np.polyfit(np.log(sizes), np.log([p["seconds"] for p in points]), 1)[0])
    rows += [{"axis": axis, "size": size, "seconds": p["seconds"], "per second": p["done"] / p["seconds"], "peak MiB": p["peak"] / 2 ** 20, "exponent": exponent}
             for size, p in zip(sizes, points)]
harness.report("scaling", rows)
