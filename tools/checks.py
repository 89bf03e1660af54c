"""What each check of a model costs, measured on SmolLM2-135M, into data/robustness/checks.csv.

Processor time of one thread, the least of five; fetches SmolLM2-135M the first time. Takes two
minutes. `benchmarks/` say what whole sweeps cost.
"""
import argparse, csv, logging, tempfile, time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT/"data"/"robustness"/"checks.csv"
FIELDS = ("check", "catches", "when", "function", "ms")
NAME = "smollm2-135m"


def least(what: Callable, times: int = 5) -> float:
    "Processor time of a call in milliseconds, the least of some."
    def once() -> float:
        start = time.process_time()
        what()
        return 1000 * (time.process_time() - start)
    return min(once() for _ in range(times))


def an_adapter(folder: Path) -> Path:
    "A LoRA on all linear layers whose updates are not zero."
    import peft, torch
    from em_repro.families import load_lm
    config = peft.LoraConfig(r=16, target_modules="all-linear")
    model, seed = peft.get_peft_model(load_lm(NAME).model, config), torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        if "lora_B" in name: p.data.normal_(std=.01, generator=seed)
    model.save_pretrained(folder)
    return folder


def of_files(adapter: Path) -> dict[str, float]:
    "Milliseconds of the checks that read files or lay an adapter on, by function."
    from em_repro import adapters, identity, loading
    from em_repro.families import family, load_lm, weights
    folder, model = weights(family(NAME)), load_lm(NAME).model
    laid = adapters.laid_on(load_lm(NAME).model, adapter)
    def account() -> None:
        loading.wrapper_renames(loading.tensor_shapes(loading.weight_files(folder)))
        loading.check_accounted(folder, [], [])
    def placed() -> None:
        adapters.check_options(adapter)
        with adapters.named_plainly(adapter, model) as place:
            adapters.check_shapes(adapter, model, place)
    def hashed() -> None:
        identity._content.cache_clear()
        identity.folder_hash(folder)
    return {"loading.check_accounted": least(account), "adapters.check_shapes": least(placed),
            "loading.probe_logits": 2 * least(lambda: loading.probe_logits(laid)),
            "adapters.check_inside": least(lambda: adapters.check_inside(laid)),
            "identity.folder_hash": least(hashed)}


def of_prompts() -> dict[str, float]:
    "Milliseconds of the checks of a prompt, of a first sweep and of a stored card, by function."
    from em_repro import agreement, store, templates
    from em_repro.data import questions
    from em_repro.families import load_lm
    lm, asked = load_lm(NAME), questions("evaluation")
    ids = lm.encode(asked)
    def written(write: Callable, **more: bool) -> float:
        told = [[{"role": "user", "content": question}] for question in asked]
        return least(lambda: [write(lm.tokenizer, one, **more) for one in told]) / len(asked)
    def trial() -> None:
        lm.paths.clear()
        agreement.sweep_path(lm, ids)
    card = {"stage": "a", "parameters": {}, "seconds": 1.0, "versions": {}, "key": "k",
            "digest": "d"}
    more = written(templates.prompt_text) - written(templates.chat_text, add_generation_prompt=True)
    return {"templates.prompt_text": more, "agreement.sweep_path": least(trial),
            "store.Store.find": least(lambda: store._seal(card))}


# Function -> the check, what it catches, when it is made.
CHECKS = {
    "loading.check_accounted": (
        "every tensor has a place, every weight a source",
        "random or left-over weights; wrappers' names; missing shards", "each load"),
    "adapters.check_shapes": (
        "every tensor of an adapter has a place",
        "half-loaded adapters; another base's shapes; unknown options", "each load of an adapter"),
    "loading.probe_logits": (
        "merged equals unmerged (two passes)", "tied weights; quantised weights; low precision",
        "each merge of an adapter"),
    "adapters.check_inside": (
        "nothing acts outside of the decoder", "prompt, prefix and p-tuning",
        "each load of an adapter that stays unmerged"),
    "identity.folder_hash": (
        "identity covers every file", "a changed tokenizer, template or merge list",
        "first use of a folder"),
    "templates.prompt_text": (
        "the prompt is the question",
        "templates that drop the question, the system's words or the turn", "each prompt"),
    "agreement.sweep_path": (
        "the fast path is the model", "attention that the rows do not know; numbers that are none",
        "first sweep of a loaded model"),
    "store.Store.find": (
        "a stored result is that of its key (without the digest of its files, as before)",
        "swapped, cut or edited entries", "each entry that is read"),
}


def rows(adapter: Path) -> list[tuple]:
    "Each check: its name, what it catches, when it is made, its function, milliseconds."
    found = of_files(adapter) | of_prompts()
    return [(*CHECKS[function], function, found[function]) for function in CHECKS]


def main() -> None:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    import torch
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as place:
        found = rows(an_adapter(Path(place)/"adapter"))
    with args.out.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(FIELDS)
        table.writerows((*row[:-1], f"{row[-1]:.3g}") for row in found)
    for row in found: print(f"{row[-1]:8.3g} ms  {row[0]}")


if __name__ == "__main__": main()
