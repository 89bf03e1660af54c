"""What every benchmark here shares: contenders that take turns, ratios within a turn, a table and a JSON file."""
import argparse, gc, json, os, platform, re, statistics, subprocess, sys, threading, time
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
MODEL = "smollm2-135m"   # the one that is measured unless another is named


def arguments(description: str, **more: tuple) -> argparse.Namespace:
    "The command line: --threads, --repeats, --run and the given (default, help) options."
    parser = argparse.ArgumentParser(description=description)
    more = {"threads": (2, "torch threads"), "repeats": (3, "turns that each contender gets"),
            "run": ("", "folder of a run that has the model: its insecure adapter and direction are used"), **more}
    for name, (default, text) in more.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{text} ({default!r})")
    chosen = parser.parse_args()
    import torch
    torch.set_num_threads(chosen.threads)
    return chosen


def machine() -> dict:
    "Processor, threads and versions; nothing that names a place."
    import torch, transformers
    cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.processor()) \
        if Path("/proc/cpuinfo").is_file() else platform.processor()
    return {"processor": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "python": platform.python_version(),
            "torch": torch.__version__, "transformers": transformers.__version__,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"}


def alternate(contenders: dict[str, Callable], repeats: int, setup: Callable[[], object] | None = None) -> tuple[dict[str, list[float]], dict[str, object]]:
    """Seconds of each contender in each turn, and what it returned last. The order is reversed every other turn.

    With `setup`, each call is given what `setup()` makes, which is not timed."""
    seconds, returned = {name: [] for name in contenders}, {}
    for turn in range(repeats):
        for name in list(contenders)[::1 if turn % 2 == 0 else -1]:
            given = () if setup is None else (setup(),)
            gc.collect()
            start = time.perf_counter()
            returned[name] = contenders[name](*given)
            seconds[name].append(time.perf_counter() - start)
            print(f"  turn {turn + 1} of {repeats}: {name} {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    return seconds, returned


def ratios(seconds: dict[str, list[float]], ours: str) -> list[dict]:
    "A line for each contender: median seconds, and median, least and largest of its time over ours in the same turn."
    rows = []
    for name, times in seconds.items():
        ratio = [theirs / own for theirs, own in zip(times, seconds[ours])]
        rows.append({"contender": name, "seconds": statistics.median(times), "ratio": statistics.median(ratio),
                     "least": min(ratio), "most": max(ratio), "turns": len(times)})
    return rows


def result_name(name: str, model: str = MODEL) -> str:
    "What a result's file is called: of the usual model by the benchmark, of another by its name too, so that neither takes the other's place."
    if model == MODEL: return name
    plain = re.sub(r"[^\w.-]+", "-", model).strip("-.")
    return f"{name}-{plain}"


def report(name: str, rows: list[dict], model: str = MODEL, **settings: object) -> None:
    "Print a table and write results/<name>.json, or <name>-<model>.json of another model, with the settings and the machine."
    import pandas as pd
    name, settings = result_name(name, model), settings if model == MODEL else {"model": model, **settings}
    print(f"\n{name}: " + ", ".join(f"{k} {v}" for k, v in settings.items() if k not in ("seconds", "agreed")))
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda x: f"{x:.3g}"))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"name": name, "settings": settings, "machine": machine(), "rows": rows}, indent=1) + "\n")


def results(name: str) -> dict:
    "What an earlier run wrote."
    return json.loads((RESULTS / f"{name}.json").read_text())


def same(a: list[list[int]], b: list[list[int]]) -> float:
    "Share of answers that are equal token by token."
    assert len(a) == len(b)
    return sum(x == y for x, y in zip(a, b)) / len(a)


class PeakMemory:
    "Within it `.peak` becomes the largest resident size above that at the start, in bytes (sampled every 5 ms)."
    def __enter__(self) -> "PeakMemory":
        import psutil
        gc.collect()
        self._process, self.peak, self._on = psutil.Process(), 0, True
        self._start = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while self._on:
            self.peak = max(self.peak, self._process.memory_info().rss - self._start)
            time.sleep(0.005)

    def __exit__(self, *_: object) -> None:
        self._on = False
        self._thread.join()


def in_own_process(script: str, *options: str) -> dict:
    "The JSON that another run of a script prints as its last line: memory is measured in a process that has done nothing else."
    done = subprocess.run([sys.executable, script, *options], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])
