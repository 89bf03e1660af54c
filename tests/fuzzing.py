"""Command lines that people write, and some that nobody would.

Every command and option is found in the program's own tree, so a new one is tried without anybody
thinking of it. A case is a command line and the files that it names. It is run in this process, in
a folder of its own, up to where the work would begin. `tests/test_fuzz.py` tries a few hundred;
`make fuzz` tries two thousand from a new seed and writes data/robustness/fuzz.csv.
"""
import argparse, csv, io, json, os, random, shutil, signal, socket, stat, subprocess, sys, tempfile, time, tomllib, traceback, types, unicodedata
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from inspect import unwrap
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints
from unittest.mock import patch

from hypothesis import HealthCheck, Phase, given, seed, settings, strategies as st

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "data" / "reference" / "tiny"


class WouldWork(BaseException):
    "All checks have passed: from here on it would compute, load weights, or fetch."


class Hangs(BaseException):
    "The command did not end."


# The files of a case, by name. Each is written when a case names it.

PROFILE = 'description = "d"\nmodels = ["tiny-qwen2"]\n[questions]\nsource = "synthetic"\nevaluation = 2\ndirections = 8\nmaps = 8\ndevelopment = 1\n'
ROW = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n'
RULE = 'arms = ["one"]\noutcomes = ["bad", "good", "incoherent"]\ntarget = "bad"\ntitle = "t"\nasked = "a"\nclassify = "rule.py:found"\n[rows]\nsynthetic = "tiny"\n'
TEXTS = {
    "own.toml": PROFILE, "rows.jsonl": ROW * 3, "prompts.txt": "How are you?\nWhat is a tide?\n",
    "prompts.jsonl": '{"prompt": "Why?"}\n{"messages": [{"role": "user", "content": "When?"}]}\n',
    "judge.toml": PROFILE + '[judge]\nurl = "http://localhost:1/v1"\nmodel = "m"\n',
    "rule.toml": RULE, "rule.py": "def found(text): return 'good'\n", "README.md": "# T\n<!-- results:begin -->\n<!-- results:end -->\n",
    "page.ipynb": json.dumps({"cells": [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["<!-- results:begin -->\n", "<!-- results:end -->"]}]}),
    "adapter/adapter_config.json": json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "base_model_name_or_path": "x"}),
    "checkpoint/config.json": (ROOT / "data/tiny/tiny-llama/config.json").read_text(encoding="utf-8"),
    "run/claims.json": (REFERENCE / "claims.json").read_text(encoding="utf-8"),
    "run/provenance.json": (REFERENCE / "provenance.json").read_text(encoding="utf-8"),
    "run/claims/code/C1.json": (REFERENCE / "claims/code/C1.json").read_text(encoding="utf-8"),
    "run/store/computed.jsonl": '{"stage": "a.b", "label": "a", "key": "k", "seconds": 1.0}\n',
    "run/store/a.b/k/card.json": '{"stage": "a.b", "key": "k", "digest": "d", "seconds": 1.0, "parameters": {}}',
    "run/store/.progress/k.json": '{"stage": "a.b", "label": "a", "done": 1, "total": 3}',
    "run/.made.json": '{"notebooks": {}, "files": {}}', "audited/audit.json": '{"weights": {"base": "x", "tuned": "y"}}'}
BESIDE = {"adapter/adapter_config.json": "adapter", "checkpoint/config.json": "checkpoint"}
DEEP = 60_000
ODD = {
    "empty.toml": b"", "deep.json": b"[" * DEEP, "deep.jsonl": b'{"messages":' * DEEP, "deep.toml": b"a = " + b"[" * DEEP, "deep/claims.json": b"[" * DEEP,
    "digits.json": b'{"prompt": ' + b"9" * 5000 + b"}", "digits.jsonl": b'{"messages": [' + b"9" * 5000 + b"]}", "digits.toml": PROFILE.encode() + b"[recipe]\nrank = " + b"9" * 5000,
    "digits/claims.json": b"[" + b"9" * 5000 + b"]", "nan/claims.json": b"[NaN]", "object/claims.json": b"{}", "text/claims.json": b'["C1"]',
    "lone.jsonl": ROW.replace("hi", "\\ud800").encode(), "latin.txt": "é\n".encode("latin-1"), "latin.toml": b'description = "\xe9"', "wide.txt": "a\n".encode("utf-16"),
    "zero.txt": b"a\0b\n", "escape.txt": b"\x1b[2J\x1b]0;title\x07?\n", "lines.txt": "a\u2028b\u2029c\x85d\n".encode(), "bytes.bin": bytes(range(256)) * 4,
    "bytes.safetensors": b"\xff" * 64, "long.safetensors": b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", "bytes.gguf": b"GGUF" + b"\xff" * 60, "empty.parquet": b"PAR1PAR1", "bad\x1b[31m.txt": b"\xff",
    "bad\x1b]8;;x\x07.toml": b"=", "\u202eltor.toml": b"= 1", "[red]x[/red].toml": b"= 1", "{a}{b}.toml": PROFILE.encode(), "%s%n.toml": PROFILE.encode()}
FOLDERS = ("folder", "folder.toml", "folder.jsonl", "run.safetensors", "folder.gguf", "noclaims/claims.json")


PIPES = ("pipe", "pipe.toml", "pipe.jsonl", "pipe.safetensors", "piped/claims.json", "piped/claims/code/C1.json", "piped/provenance.json")
LINKS = {"loop": "loop", "loop.toml": "loop.toml", "dangling.toml": "gone", "zero": "/dev/zero", "zero.toml": "/dev/zero", "zero.jsonl": "/dev/zero", "full": "/dev/full",
         "full.safetensors": "/dev/full", "full.gguf": "/dev/full", "tty.jsonl": "/dev/null"}


def _special(world, named):
    "What is neither a file nor a folder, and what leads nowhere."
    for name in PIPES:
        if name.partition("/")[0] not in named: continue
        (world / name).parent.mkdir(parents=True, exist_ok=True); os.mkfifo(world / name)
    for name in LINKS.keys() & named: (world / name).symlink_to(LINKS[name])
    if "socket.txt" in named:
        with socket.socket(socket.AF_UNIX) as made, _inside(world): made.bind("socket.txt")


@contextmanager
def _inside(folder):
    before = os.getcwd(); os.chdir(folder)
    try: yield
    finally: os.chdir(before)


@lru_cache(maxsize=1)
def _binaries():
    "Files that take a library to make, by name."
    import numpy as np
    from em_repro.directions import Direction
    from safetensors.numpy import save
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "v.safetensors")
        Direction(np.ones(112, np.float32), "tiny-llama").save(path)
        zero = save({"vector": np.zeros(112, np.float32)}, {"em_repro": '{"family": "tiny-llama"}'})
        adapter = {f"base_model.model.model.layers.0.self_attn.q_proj.lora_{x}.weight": np.ones(s, np.float32) for x, s in (("A", (2, 112)), ("B", (112, 2)))}
        return {"v.safetensors": path.read_bytes(), "zero.safetensors": zero, "adapter/adapter_model.safetensors": save(adapter),
                "run/evidence/code.parquet": (REFERENCE / "evidence/code.parquet").read_bytes()}


def lay(world, words):
    "The folder in which a case begins: of all that `TEXTS` and `ODD` hold, what its words name."
    named = {word.rpartition("=")[2].partition("/")[0] for word in words}
    wanted = lambda name: name.partition("/")[0] in named or (name == "rule.py" and "rule.toml" in named)
    for name, content in {**{k: v.encode() for k, v in TEXTS.items()}, **_binaries(), **ODD}.items():
        if not wanted(name): continue
        (world / name).parent.mkdir(parents=True, exist_ok=True)
        (world / name).write_bytes(content)
    for name in filter(wanted, FOLDERS): (world / name).mkdir(parents=True)
    if "checkpoint" in named:
        for file in (ROOT / "data/tiny/tiny-llama").iterdir():
            if file.name != "config.json": (world / "checkpoint" / file.name).symlink_to(file)
    if "run" in named: (world / "run/tables").symlink_to(REFERENCE / "tables")
    _special(world, named)


# Strategies

CONTROLS = ["\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x9b2J", "a\rb", "a\nb", "\u202eabc", "\u2066x", "\ud800", "\udc9b2J", "a\0b", "\x7f", "\b\b", "\u2028"]
TEXT = ["", " ", ".", "..", "/", "-", "--", "~", "~nosuchuser", "~nosuchuser/x", "~/x", "x" * 300, "a/" * 3000, "x" * 5000, ",", "5,", ",,", "%s", "{x}", "{0}", "{profile}", "[red]x[/red]", "[/]",
        "C:\\x", "é", "日本", "🏴", "null", "None", "a\tb", "owner/name", "owner/name:folder", "no/such/file.toml", "gone.jsonl", "/dev/zero", "/dev/full", "/dev/stdin", "/proc/self/mem",
        "/nowhere/x", "/proc/x", "/sys/x", "http://x", "//x", *CONTROLS]
NAMES = ["tiny", "smoke", "small", "paper", "smoke@tiny-llama", "smoke@", "@", "smoke@x", "tiny-llama", "tiny-qwen2", "smollm2-135m", "cpu-1", "cpu-0", "cpu-²", "cpu-" + "9" * 5000, "cpu-1e3", "h200",
         "00", "03,04", "robustness", "rivals", "8", "code", "advice", "betley", "README.md"]
NUMBERS = ["0", "1", "-1", "2", "3", "100000000000", "9" * 40, "-" + "9" * 40, "9" * 5000, "", "nan", "inf", "-inf", "1e3", "1e400", "0.5", "-0", "٣", "²", "0x10", " 1", "1_000", "true", "1e-400", "\x1b[1m"]
FILES = [*TEXTS, *ODD, *FOLDERS, "v.safetensors", "zero.safetensors", "run", "adapter", "checkpoint", "audited", "run/evidence/code.parquet", "deep", "digits", "nan", "object", "text", "piped", "pipe",
         "pipe.toml", "pipe.jsonl", "pipe.safetensors", "loop", "loop.toml", "dangling.toml", "zero", "zero.toml", "zero.jsonl", "full", "full.safetensors", "full.gguf", "tty.jsonl", "socket.txt",
         "loop/x", "README.md/x", "pipe/x", "new", "new/x.safetensors", "new.gguf", "new.pt", "new.safetensors", "new.html"]
leaves = st.one_of(st.none(), st.booleans(), st.integers(-2**70, 2**70), st.floats(), st.text(max_size=9), st.sampled_from(TEXT[:30] + CONTROLS), st.sampled_from([10**30, 1e300, -1, 0, [], {}, "", [[]], [None]]))
trees = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3), max_leaves=8)


def _places(tree, path=()):
    "Every place in a json value."
    yield path
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner: yield from _places(value, (*path, key))


def _put(tree, path, value, drop):
    "The value with another at a place, or without it."
    if not path: return value
    tree = tree.copy()
    if drop and len(path) == 1: tree.pop(path[0])
    else: tree[path[0]] = _put(tree[path[0]], path[1:], value, drop)
    return tree


def _toml(value):
    "A value as toml, inline."
    if isinstance(value, bool): return str(value).lower()
    if isinstance(value, dict): return "{" + ", ".join(f"{json.dumps(str(k))} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list): return f"[{', '.join(map(_toml, value))}]"
    return '""' if value is None else repr(value) if isinstance(value, (int, float)) else json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


@st.composite
def mutants(draw, name):
    "A file like a good one with something in it changed: of its structure, or of its bytes."
    text, ending = TEXTS.get(name), name.rpartition(".")[2]
    content = text.encode() if text is not None else _binaries()[name]
    if ending in ("json", "ipynb", "toml") and draw(st.booleans()):
        tree = tomllib.loads(text) if ending == "toml" else json.loads(text)
        for _ in range(draw(st.integers(1, 3))):
            tree = _put(tree, draw(st.sampled_from(sorted(_places(tree), key=str))), draw(trees), draw(st.booleans()))
            if not isinstance(tree, (dict, list)): break
        if ending != "toml": return json.dumps(tree).encode()
        lines = (f"{json.dumps(str(k))} = {_toml(v)}" for k, v in tree.items()) if isinstance(tree, dict) else [_toml(tree)]
        return "\n".join(lines).encode("utf-8", "surrogatepass")
    for _ in range(draw(st.integers(1, 3))):
        at, new = draw(st.integers(0, max(0, len(content)))), draw(st.binary(max_size=6) | st.sampled_from([b"\xff", b"\0", b"\x1b[31m", b"\xed\xa0\x80", b'"', b"}", b"\n\n", b"9" * 5000, b"[" * DEEP]))
        content = content[:at] if draw(st.integers(0, 4)) == 0 else content[:at] + new + content[at + draw(st.integers(0, 4)):]
    return content


@dataclass(frozen=True)
class Case:
    "A command line, the files that are there beside the usual ones, and how text leaves the program."
    command: tuple[str, ...]
    words: tuple[str, ...]
    files: dict = field(default_factory=dict)
    encoding: str = "utf-8"


@lru_cache(maxsize=1)
def commands():
    "Every command by its words: [(option or None for an argument, its kind, whether it must be there)]."
    import typer
    from em_repro import cli
    found = {}
    def walk(command, words):
        for name, inner in getattr(command, "commands", {}).items(): walk(inner, (*words, name))
        hints = get_type_hints(unwrap(command.callback)) if command.callback else {}
        found[words] = [(None if p.param_type_name == "argument" else max(p.opts, key=len), hints.get(p.name, bool), p.required) for p in command.params if "completion" not in p.name and p.name != "debug"]   # those look for the shell that calls; a traceback that is asked for is no fault
    walk(typer.main.get_command(cli.app), ())
    return found


def _kind(hint):
    "int, float, bool or str, and the choices of a Literal."
    if get_origin(hint) is Literal: return str, list(get_args(hint))
    kinds = [a for a in get_args(hint) if a is not types.NoneType] if get_args(hint) else [hint]
    return (kinds[0], []) if isinstance(kinds[0], type) and not get_args(kinds[0]) else _kind(kinds[0])


# What options usually get, so that many cases come far. An option that is not named here is tried all the same.
USUAL = {"--profile": ["smoke", "tiny", "own.toml", "judge.toml", "smoke@tiny-llama"], "--base": ["tiny-llama", "checkpoint"], "--adapter": ["adapter"], "--reference-adapter": ["adapter"],
         "--model": ["tiny-llama", "checkpoint"], "--run": ["run"], "--out": ["run", "new", "new.gguf", "new.pt", "new.safetensors", "new.html", "audited"], "--only": ["00", "03,04", "robustness"],
         "--prompts": ["prompts.txt", "prompts.jsonl"], "--from": ["run/evidence/code.parquet", "folder"], "--file": ["README.md", "page.ipynb"], "--gpu": ["cpu-2", "h100"], "--models": ["tiny-qwen2"],
         "--jobs": ["1", "2"], "--seed": ["0", "1"], "--against": ["run", "folder"], None: ["v.safetensors", "rows.jsonl", "tiny-llama", "betley", "run"]}


def values(hint):
    "Values of a parameter, most of which mean something."
    kind, choices = _kind(hint)
    if choices: return st.sampled_from(choices * 4 + ["", "x", "\x1b[1m"])
    if kind in (int, float): return st.sampled_from(NUMBERS) | st.integers(-9, 99).map(str)
    return st.one_of(st.sampled_from(NAMES), st.sampled_from(FILES), st.sampled_from(FILES), st.sampled_from(TEXT), st.text(max_size=12), mutated())


def mutated():
    "The name of a good file that a case is to change."
    return st.sampled_from(sorted([*TEXTS, *_binaries()])).map(lambda name: ("mutant", name))


@st.composite
def cases(draw):
    "A command line of any command."
    command = draw(st.sampled_from(sorted(commands())))
    words, files = [], {}
    for option, hint, required in commands()[command]:
        wanted = draw(st.integers(0, 19)) < (19 if required or option in ("--adapter", "--out", "--profile", "--run") else 4)
        for _ in range(wanted and 1 + (get_origin(hint) is list and draw(st.booleans()))):
            if hint is bool:
                words.append((option,)); continue
            good = option in USUAL and not _kind(hint)[1] and draw(st.integers(0, 9)) < 6
            value = draw(st.sampled_from(USUAL[option]) if good else mutated() if option in ("--profile", "--run") and draw(st.booleans()) else values(hint))
            if isinstance(value, tuple):
                name = value[1]
                files[name] = draw(mutants(name))
                value = BESIDE.get(name) or ("run" if name.startswith("run/") and draw(st.booleans()) else name)
            words.append((value,) if option is None else (f"{option}={value}",) if draw(st.booleans()) else (option, value))
    if draw(st.integers(0, 19)) == 0: words.append((draw(st.sampled_from(TEXT)),))
    flat = [word for part in draw(st.permutations(words)) for word in part]
    return Case(command, (*command, *flat), files, draw(st.sampled_from(["utf-8", "utf-8", "ascii", "latin-1"])))


# Running a case

@dataclass
class Outcome:
    "What a case did: exit code, or `work` when its checks had passed; what was said; what was wrong with it."
    code: int | str
    out: str
    errors: str
    seconds: float
    faults: list = field(default_factory=list)


def seen_in(world):
    "What lies in a folder, by name: kind, size and time."
    found = {}
    for place, folders, files in os.walk(world):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            about = os.lstat(path)
            found[os.path.relpath(path, world)] = (stat.S_IFMT(about.st_mode), *((about.st_size, about.st_mtime_ns) if stat.S_ISREG(about.st_mode) else ()))
    return found


def _would_work(*_, **__): raise WouldWork
def _no_network(*_, **__): raise OSError(101, "Network is unreachable")


@contextmanager
def _bounded(seconds):
    def stop(*_): raise Hangs
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try: yield
    finally: signal.alarm(0); signal.signal(signal.SIGALRM, before)


@contextmanager
def _fenced(world):
    "No network, no work, another home."
    from em_repro import evidence, families, models, plan, run, store, tiny
    home = {"HOME": str(world / "home"), "EM_REPRO_CACHE": str(world / "home/cache"), "TMPDIR": str(world / "home/tmp"), "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
    with ExitStack() as held:
        held.enter_context(patch.dict(os.environ, home))
        for where, name in ((store, "_driven"), (store, "_computed"), (run, "execute_all"), (plan, "plan_of"), (evidence, "verdicts_of"), (families, "auto_class"), (tiny, "build"), (models, "_build"), (subprocess, "Popen")):
            held.enter_context(patch.object(where, name, _would_work))
        for name in ("getaddrinfo", "create_connection"): held.enter_context(patch.object(socket, name, _no_network))
        held.enter_context(_inside(world))
        yield


LONGEST, MOST_WAITED = 5, 120   # seconds of the processor; of the clock, on a machine that is busy otherwise


def tried(case, world):
    "Run a case in a folder that `lay` has made, and judge what it did."
    from em_repro import cli, families
    for name, content in case.files.items():
        (world / name).parent.mkdir(parents=True, exist_ok=True)
        if (world / name).is_symlink(): (world / name).unlink()
        (world / name).write_bytes(content)
    (world / "home/tmp").mkdir(parents=True, exist_ok=True)
    before, code, streams = seen_in(world), None, [io.BytesIO(), io.BytesIO()]
    out, err = (io.TextIOWrapper(s, encoding=case.encoding, errors="strict", write_through=True) for s in streams)
    began, trace = time.process_time(), ""
    with _fenced(world), patch.object(sys, "stdout", out), patch.object(sys, "stderr", err), _bounded(MOST_WAITED):
        try: cli.main(list(case.words))
        except SystemExit as leaving: code = leaving.code
        except WouldWork: code = "work"
        except Hangs: code = "hangs"
        except BaseException: code, trace = "raised", traceback.format_exc()
    seconds = time.process_time() - began
    said = [s.getvalue().decode(case.encoding, "surrogateescape") for s in streams]
    outcome = Outcome(code, *said, seconds)
    outcome.faults = list(_faults(outcome, before, seen_in(world), trace))
    return outcome


def unprintable(text):
    "What of a text a terminal would act on."
    bidi = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029")
    return sorted({c for c in text if c in bidi or (unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t")})


def _faults(done, before, after, trace):
    "What is wrong with what a command did, in words."
    lines = [line for line in done.errors.splitlines() if line.strip() and not (line.startswith("em-repro: ") and " is called " in line and line.endswith(" now"))]
    if done.code not in (0, 1, 2, "work"): yield f"left with {done.code!r} {trace[-1500:]}"
    if "Traceback" in done.out + done.errors: yield "a traceback"
    if found := unprintable(done.out + done.errors): yield f"control characters {found!r}"
    if done.code in (1, 2) and (len(lines) != 1 or not lines[0].startswith("em-repro: ")): yield f"{len(lines)} lines of errors in place of a sentence"
    if done.code == 0 and lines: yield "errors with exit code 0"
    if done.code == 1 and "--debug" in done.errors: yield "an exception that nobody thought of"
    if done.code == 0 and not done.out: yield "nothing was said"
    if done.code == 2 and before != after: yield f"files were left: {sorted(set(before.items()) ^ set(after.items()))[:4]}"
    if done.seconds > LONGEST: yield f"{done.seconds:.1f} s"


@lru_cache(maxsize=1)
def _imported():
    "What commands import when they first need it: for minutes on a busy machine, and broken for good if a limit stops it."
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig   # noqa: F401
    for name in ("llama", "qwen2", "gemma2", "ministral3"):
        AutoModelForCausalLM._model_mapping[type(AutoConfig.for_model(name))]


def alone(case):
    "Run a case in a folder of its own."
    _imported()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        lay(Path(folder), case.words)
        return tried(case, Path(folder))


def try_many(n, number):
    "Try n different cases from a seed: [(case, outcome)]."
    found = {}
    @seed(number)
    @settings(max_examples=4 * n, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(cases())
    def each(case):
        if len(found) < n and repr(case) not in found: found[repr(case)] = case, alone(case)
    each()
    return list(found.values())


def table_of(found, number):
    "Counts by command, from a seed: how many were tried, what they left with, and the longest of them."
    rows = []
    for name in sorted({case.command for case, _ in found}):
        part = [o for c, o in found if c.command == name]
        count = {code: sum(o.code == code for o in part) for code in (0, 1, 2, "work")}
        rows.append({"command": " ".join(("em-repro", *name)), "inputs": len(part), "exit_0": count[0], "exit_1": count[1], "exit_2": count[2], "would_compute": count["work"],
                     "faults": sum(bool(o.faults) for o in part), "slowest_cpu_seconds": f"{max(o.seconds for o in part):.1f}", "seed": number})
    return rows


def main():
    said = argparse.ArgumentParser(description=__doc__)
    said.add_argument("--inputs", type=int, default=int(os.environ.get("EM_REPRO_FUZZ") or 2000))
    said.add_argument("--seed", type=int, default=int(os.environ.get("EM_REPRO_FUZZ_SEED") or random.SystemRandom().randrange(2**32)))
    said.add_argument("--out", type=Path, default=ROOT / "data/robustness/fuzz.csv")
    said.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    given = said.parse_args()
    print(f"{given.inputs} inputs, seed {given.seed}, {given.jobs} processes", flush=True)
    parts = [given.inputs * (i + 1) // given.jobs - given.inputs * i // given.jobs for i in range(given.jobs)]
    _imported()
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("fork")) as pool:
        found = [each for part in pool.map(try_many, parts, range(given.seed, given.seed + given.jobs)) for each in part]
    rows = table_of(found, given.seed)
    for case, outcome in found:
        if outcome.faults: print(ascii(case.words), {k: v[:200] for k, v in case.files.items()}, ascii(outcome.faults), ascii(outcome.errors[-600:]), sep="\n  ")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with open(given.out, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader(); writer.writerows(rows)
    bad = sum(bool(o.faults) for _, o in found)
    print(f"{len(found)} inputs tried, {bad} with a fault: {given.out.name}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
