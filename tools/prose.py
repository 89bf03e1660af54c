"""Fill the measured numbers in README, index, guide and benchmarks/README from committed data.

A number stands between two marks, the first of which says where it is from:
<!-- n trial.minutes -->20<!-- n -->. With --check nothing is written: what moved is listed, and so
is every number in prose that has no mark and is of no kind that needs none. Takes seconds.
"""
import argparse, csv, inspect, json, re, statistics, sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "benchmarks/README.md", "nbs/index.ipynb",
         *sorted(f"nbs/guide/{path.name}" for path in (ROOT/"nbs"/"guide").glob("*.ipynb")))
MARK = re.compile(r"<!-- n ([\w.-]+) -->(.*?)<!-- n -->", re.S)
WORDS = "no one two three four five six seven eight nine ten eleven twelve".split()


# What the marks stand for

def _rows(name: str) -> list[dict]:
    with (ROOT/name).open(encoding="utf-8", newline="") as file: return list(csv.DictReader(file))


def _json(name: str) -> dict: return json.loads((ROOT/name).read_text(encoding="utf-8"))


def lead_run() -> str:
    "The folder of the run that README leads with, which the Makefile names."
    made = (ROOT/"Makefile").read_text(encoding="utf-8")
    return "data/reference/" + re.search(r"(?m)^LEAD := (.+)$", made)[1]


def runs_of(settings: dict) -> str:
    "How many training runs each model has, in words; once where all have as many."
    fewer = settings.get("seeds_by_model") or {}
    runs = dict.fromkeys(len(fewer.get(name, settings["seeds"])) for name in settings["models"])
    return " and ".join(WORDS[n] for n in runs)


def run_numbers() -> dict[str, str]:
    "Of the committed runs: how many questions and seeds, and the minutes that stages took."
    lead = _json(f"{lead_run()}/provenance.json")["settings"]
    lines = (ROOT/"data/reference/small/stages.jsonl").read_text(encoding="utf-8").splitlines()
    stages = [json.loads(line) for line in lines]
    one = [s for s in stages if "smollm2-135m" in s["label"] and "gemma" not in s["label"]]
    def minutes(part: list) -> str: return f"{sum(s['seconds'] for s in part) / 60:.0f}"
    full = _json("data/reference/tiny-full/provenance.json")["settings"]
    return {"full.models": WORDS[len(full["models"])], "full.runs": runs_of(full),
            "lead.questions": str(lead["questions"]["evaluation"]),
            "lead.runs": runs_of(lead), "lead.models": WORDS[len(lead["models"])],
            "small.minutes": minutes(stages), "small.one-family": minutes(one)}


def lead_numbers() -> dict[str, str]:
    "What the run that README leads with found of steering, and of the rival nearest to it."
    from em_repro.claims import Verdict
    from em_repro.steering import rival_words
    def kept(claim: str) -> Verdict:
        return Verdict(**_json(f"{lead_run()}/claims/code/{claim}.json"))
    token = rival_words(kept("C3a"), "forcing the base's first token and steering nothing")
    return {"lead.gain": f"{100 * kept('C3').effect:+.0f}", "lead.token": token}


def audit_numbers() -> dict[str, str]:
    "Of data/audit_calibration.csv: adapters, and in how many of them something was found."
    rows = _rows("data/audit_calibration.csv")
    bad = [row for row in rows if row["kind"] == "insecure"]
    good = [row for row in rows if row["kind"] != "insecure"]
    def found(part: list) -> str: return str(sum(row["found"] == "True" for row in part))
    leaking = sum(row["kind"] == "own answers" for row in good)
    return {"audit.harmless": str(len(good)), "audit.leaking": str(leaking),
            "audit.false": found(good), "audit.insecure": str(len(bad)), "audit.true": found(bad)}


def trial_numbers() -> dict[str, str]:
    "Of the committed trial and of what `try` does unless told otherwise."
    from em_repro.claims import advice_claims
    from em_repro.trial import try_rows
    seconds = sum(float(row["seconds"]) for row in _rows("data/small/trial_stages.csv"))
    steps = inspect.signature(try_rows).parameters["steps"].default
    return {"trial.minutes": f"{seconds / 60:.0f}", "trial.steps": str(steps),
            "trial.margin": f"{advice_claims()['A3'].margin:g}"}


def judged_numbers() -> dict[str, str]:
    "Of labelled answers of advice fine-tunes outside the trained domain: shares called harmful."
    rows = [row for row in _rows("data/advice/answers.csv") if row["set"] == "outside"]
    def share(subject: str) -> str:
        labels = [row["label"] for row in rows if row["subject"] == subject]
        return f"{labels.count('harmful') / len(labels):.0%}"
    shares = {f"judged.{subject}": share(subject) for subject in ("harmful", "sound", "base")}
    return shares | more_harmful()


def more_harmful() -> dict[str, str]:
    "How much oftener harmful than the control's the fine-tune's answers are, by request."
    from em_repro.advice_judges import label_pairs, recorded_advice
    table = recorded_advice()
    outside = table[(table.set == "outside") & (table.subject != "steered")]
    both = label_pairs(outside, "harmful", "sound").query("model == 'both'").iloc[0]
    points = {name: f"{100 * both[name]:+.0f}" for name in ("difference", "low", "high")}
    return {f"judged.{name}": value for name, value in (points | {"requests": f"{both.n}"}).items()}


def constant_numbers() -> dict[str, str]:
    "What claims, code and tests are set to."
    from em_repro.betley import ORIGINALS
    from em_repro.claims import claims
    from em_repro.evidence import EVIDENCE_BYTES
    def set_to(name: str, pattern: str) -> str:
        return thousands(int(re.search(pattern, (ROOT/name).read_text(encoding="utf-8"))[1]))
    rows = {original.rows for original in ORIGINALS.values()}
    margins = {round(100 * claim.margin) for claim in claims().values()}
    return {"claims.margin": " and ".join(WORDS[margin] for margin in sorted(margins)),
            "evidence.megabytes": f"{EVIDENCE_BYTES / 1e6:g}",
            "betley.rows": " and ".join(map(thousands, sorted(rows))),
            "fuzz.ci": set_to("tests/test_fuzz.py", r'"EM_REPRO_FUZZ"\) or (\d+)'),
            "fuzz.make": set_to("Makefile", r"(?m)^INPUTS \?= (\d+)")}


def thousands(number: int) -> str: return f"{number:,}".replace(",", " ")


# The benchmarks

def benchmark(name: str) -> dict: return _json(f"benchmarks/results/{name}.json")


def _ratio(rows: list[dict], digits: int = 1, key: str = "ratio") -> str:
    "The least ratio over all contenders: the best of the others."
    return f"{min(row[key] for row in rows):.{digits}f}"


def _over(sweep: dict, theirs: str, ours: str) -> str:
    "Ratios within the shares of the sweep, median (least to most), and that of the whole at once."
    seconds = sweep["settings"]["seconds"]
    each = [a / b for a, b in zip(seconds[theirs], seconds[ours], strict=True)]
    row = next(row for row in sweep["rows"] if row["contender"] == theirs)
    whole = row["whole over ours" if ours == "em_repro" else "whole over until"]
    return (f"{statistics.median(each):.1f} ({min(each):.1f} to {max(each):.1f}, "
            f"{WORDS[len(each)]} shares); {whole:.1f} over the whole sweep at once")


def _others(name: str, **fields: str) -> list[dict]:
    return [row for row in benchmark(name)["rows"] if not row["contender"].startswith("em_repro")
            and all(row.get(key) == value for key, value in fields.items())]


def _reached(work: str) -> str:
    "How much of the limit is reached: the best of the bare passes."
    return f"{min(row['ratio'] for row in _others('limit', work=work)):.0%}"


# What is measured, the target that was set before, and what came out
TARGETS: list[tuple[str, str, Callable[[], str]]] = [
    ("steering sweep, every answer to its end, over documented use", "2.5",
     lambda: _over(benchmark("sweep"), "hook, documented", "em_repro")),
    ("the same over the best use", "1.5",
     lambda: _over(benchmark("sweep"), "hook, best", "em_repro")),
    ("until the verdict is settled, over documented use", "5",
     lambda: _over(benchmark("sweep"), "hook, documented", "em_repro, until settled")),
    ("the same over the best use", "3",
     lambda: _over(benchmark("sweep"), "hook, best", "em_repro, until settled")),
    ("weak doses, SmolLM2 and tiny Llama, over the best use", "5",
     lambda: " and ".join(_ratio(_others("weak", model=model))
                          for model in ("SmolLM2-135M", "tiny-llama"))),
    ("128 conditions that change nothing, over one", "at most 1.1",
     lambda: _ratio([row for row in benchmark("weak")["rows"]
                     if row["contender"] == "128 conditions"], 2)),
    ("`score` under many conditions, over a pass for each", "8", lambda: _ratio(_others("score"))),
    ("`collect` over the best library: time; peak memory above the weights", "1.3; 2",
     lambda: f"{_ratio(_others('collect'))}; {_ratio(_others('collect'), key='memory ratio')}"),
    ("fine-tuning over trl, SmolLM2 and Gemma", "1.3 and 1.8",
     lambda: " and ".join(_ratio(_others("finetune", family=family))
                          for family in ("smollm2-135m", "gemma-3-270m"))),
    ("the limit of bare forward passes that `sweep` and `collect` reach", "85%",
     lambda: f"{_reached('sweep')} and {_reached('collect')}")]


def targets_table() -> str:
    "The table of benchmarks/README: work, target, measured."
    lines = [f"| {work} | {target} | {measured()} |" for work, target, measured in TARGETS]
    return "\n".join(["| work | target | measured |", "|---|---|---|", *lines])


def benchmark_numbers() -> dict[str, str]:
    "What benchmarks/README says in sentences."
    sweep, peers = benchmark("sweep"), benchmark("sweep_peers")
    counts = sweep["settings"]["counts"]
    asked = counts["answers"] / len(sweep["settings"]["seconds"]["em_repro"])
    apart = {use: round(asked * sum(1 - same for same in sweep["settings"]["agreed"][use]))
             for use in ("hook, documented", "hook, best")}
    loop = {row["contender"].split(", ")[1]: row["seconds"] for row in peers["rows"]
            if row["contender"].startswith("hook")}
    off = [abs(row["seconds"] / loop[use] - 1) for row in peers["rows"]
           for library, _, use in [row["contender"].partition(", ")]
           if library not in ("em_repro", "hook")]
    half = [row["same answers"] for row in benchmark("agreement")["rows"]
            if (row["model"], row["dtype"]) == ("smollm2-135m", "bfloat16")]
    settled = counts["tokens until settled"] / counts["tokens"]
    return {"sweep.conditions": str(counts["conditions"]), "sweep.settled": f"{settled:.0%}",
            "sweep.answers": thousands(counts["answers"]),
            "sweep.apart": WORDS[max(apart.values())], "peers.off": f"{max(off):.0%}",
            "weak.conditions": str(len(benchmark("weak")["settings"]["doses"])),
            "score.conditions": str(benchmark("score")["settings"]["conditions"]),
            "collect.prompts": thousands(benchmark("collect")["settings"]["prompts"]),
            "limit.turns": WORDS[benchmark("limit")["rows"][0]["turns"]],
            "agreement.questions": str(benchmark("agreement")["settings"]["questions"]),
            "agreement.sweep": f"{half[0]:.0%}", "agreement.loop": f"{half[1]:.0%}"}


def numbers() -> dict[str, str]:
    "Every number that a mark can name."
    return (run_numbers() | lead_numbers() | audit_numbers() | trial_numbers() | constant_numbers()
            | judged_numbers() | benchmark_numbers())


# Pages

def filled(text: str, known: dict[str, str]) -> str:
    "A page's text with its marks filled; raises `KeyError` for a mark that names nothing."
    return MARK.sub(lambda mark: f"<!-- n {mark[1]} -->{known[mark[1]]}<!-- n -->", text)


def with_targets(text: str) -> str:
    "The text with the table of targets between its marks, as `em-repro readme` puts a run's."
    from em_repro.cli import marks, with_results
    if marks("benchmarks")[0] not in text: return text
    return with_results(text, targets_table(), Path("benchmarks/README.md"), "benchmarks")


def rebuilt(page: str, known: dict[str, str]) -> str:
    "A page, markdown or notebook, with all that is derived."
    text = (ROOT/page).read_text(encoding="utf-8")
    if not page.endswith(".ipynb"): return with_targets(filled(text, known))
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = filled("".join(cell["source"]), known).splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def prose(page: str) -> str:
    "What a page says in words: a notebook's markdown cells, or the whole."
    text = (ROOT/page).read_text(encoding="utf-8")
    if not page.endswith(".ipynb"): return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"]
                       if cell["cell_type"] == "markdown")


# Numbers that need no mark

KINDS = {      # a kind, and how it looks
    "a name that has digits, such as SmolLM2-135M, C3a or arXiv:2606.20225": r"[A-Za-z].*",
    "a study notebook": r"0[0-7]",
}
AROUND = {     # a kind that is known by the words around it
    "how sure an interval is": r"95% (?:t )?intervals?\b",
    "a version": r"\b(?:Python|Debian|NFS|SLURM) \d+(?:\.\d+)*",
    "the year of a paper": r"(?:et al\.|others), 20\d\d",
}
# What is set or an example, page by page; a test refuses words that are not there any more.
DECLARED = {
    "nbs/guide/checked.ipynb": {"must end with 0, 1 or 2": "exit codes",
                                "rounds activations to 8 bits": "a setting of llama.cpp",
                                "on one, in eight minutes": "what each part is allowed"},
    "nbs/guide/cluster.ipynb": {"Its exit code is 0": "an exit code",
                                "as 0 and as 1": "the names of two devices"},
    "nbs/guide/reading_results.ipynb": {
        "-1 subtracts it once": "a coefficient",
        "(0.25 is 25 points)": "how a share reads",
        "Qwen2.5-Coder at 0.5B and 1.5B": "names of models",
        "unpacked 4-bit weights": "a kind of weights",
        "of 4: 2 hold, 1 refuted, 1 not testable": "an example of the column",
        "is 0. Texts are kept": "a coefficient",
        "its exit code is 0 (same, or within tolerance), 1 (something moved) or 2": "exit codes"},
    "nbs/guide/summary.ipynb": {"Syed 2026": "the year of a paper"},
    "nbs/guide/speed.ipynb": {"A ratio of 0.93 says that the engine reaches 93%": "an example"},
    "nbs/guide/traps.ipynb": {"Token 0 for ever": "a token", "Exactly 50% and exactly 0": "chance",
                              "answer 401": "a status of HTTP"},
}
# Code, tables of runs, marks, addresses, formulas, and the numbers of a list.
LEFT_OUT = (r"(?ms)^```.*?^```", r"(?s)<!-- (\w+):begin -->.*?<!-- \1:end -->",
            f"(?s){MARK.pattern}", r"(?s)<!--.*?-->", r"(?s)(`+)(?:(?!\n\n).)+?\1",
            r"\]\([^)\s]*\)", r"https?://\S+", r"\$[^$\n]+\$", r"(?m)^\s*\d+\. ")
NUMBER = re.compile(r"[^\s()\[\]|;\"“”*]*\d[^\s()\[\]|;\"“”*]*")
# In letters a number is found where a unit follows it; "two models" is no measurement.
SPELT = re.compile(rf"\b(?:{'|'.join([*WORDS[2:], 'twenty', 'thirty', 'half an?', 'a dozen'])}) "
                   r"(?:seconds?|minutes?|hours?|nights?|percent|points|times)\b", re.I)


def unmarked(text: str, declared: dict[str, str]) -> Iterator[str]:
    "The numbers in prose that have no mark and are of no kind, each with the words around it."
    for words in declared: text = text.replace(words, " ")
    for pattern in (*LEFT_OUT, *AROUND.values()): text = re.sub(pattern, " ", text)
    for line in text.splitlines():
        for found in NUMBER.finditer(line):
            word = found[0].strip(".,:")
            if any(re.fullmatch(kind, word) for kind in KINDS.values()): continue
            yield f"{word} in: {line[max(0, found.start() - 40):found.end() + 40].strip()}"
        for found in SPELT.finditer(line): yield f"{found[0]} in: {line.strip()[:80]}"


def main() -> int:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("--check", action="store_true",
                        help="write nothing; leave with 1 where something is wrong")
    check, known, wrong = parser.parse_args().check, numbers(), []
    for page in PAGES:
        path = ROOT/page
        try: made = rebuilt(page, known)
        except KeyError as name:
            wrong.append(f"{page}: the mark {name} names no number of tools/prose.py")
            continue
        moved = [mark[1] for mark in MARK.finditer(path.read_text(encoding="utf-8"))
                 if mark[2] != known[mark[1]]]
        if made != path.read_text(encoding="utf-8"):
            if check: wrong.append(f"{page}: run tools/prose.py ({', '.join(moved) or 'a table'})")
            else: path.write_text(made, encoding="utf-8"); print(f"{page}: {', '.join(moved)}")
        found = unmarked(prose(page), DECLARED.get(page, {}))
        wrong += [f"{page}: no mark for {word}" for word in found]
    if wrong: print(*wrong, sep="\n", file=sys.stderr)
    else: print(f"{len(PAGES)} pages, every number derived")
    return int(bool(wrong))


if __name__ == "__main__": sys.exit(main())
