"""The model that is measured, SmolLM2-135M-Instruct unless another is named: with the insecure adapter and direction of a run, or as it is."""
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from em_repro.controls import control_directions
from em_repro.families import LM, load_lm
from harness import MODEL


@dataclass
class Subject:
    "`vectors`: steering conditions (label, vector), then norm-matched controls at the main coefficient; `what` says where they come from."
    lm: LM
    direction: np.ndarray
    what: str

    def steered(self, coefficients: tuple[float, ...]) -> list[tuple[str, np.ndarray]]:
        return [(f"direction {c:+g}", (c * self.direction).astype(np.float32)) for c in coefficients]

    def controls(self, n: int) -> list[tuple[str, np.ndarray]]:
        "Half isotropic, half orthogonal to the direction, of its norm."
        rows = np.concatenate([control_directions(self.direction, "random", n - n // 2, 0), control_directions(self.direction, "orthogonal", n // 2, 1)])
        return [(f"control {i}", -row.astype(np.float32)) for i, row in enumerate(rows)]


def newest(run: str, label: str, form: str | None = None) -> Path:
    "Folder of the newest entry of a run's store with this label; `form`: of the adapters that were trained on this form of prompt."
    store = Path(run) / "store"
    found = [store / stage["stage"] / stage["key"] for stage in map(json.loads, (store / "computed.jsonl").read_text().splitlines())
             if stage["label"] == label]
    found = [folder for folder in found if (folder / "card.json").is_file()]
    if form is not None:   # the study trains a subject's adapter again on other forms, under the same label
        found = [folder for folder in found if json.loads((folder / "card.json").read_text())["parameters"]["recipe"]["prompt_format"] == form]
    if not found: raise SystemExit(f"no {label} in {store}: give the folder of a run that has it")
    return found[-1]


def subject(run: str, model: str = MODEL) -> Subject:
    """A model from a run that has it; without one, the untouched model and a random direction of 40% of its states' norm.

    The newest adapter and direction of the run's store are taken, by whatever code they were made: what is measured is not them."""
    if run:
        from safetensors.numpy import load_file
        lm = load_lm(model, newest(run, f"training.adapter {model} insecure seed 0", "plain") / "adapter")
        vectors = load_file(newest(run, f"vectors.vectors {model} insecure, {model} secure seed 0") / "vectors.safetensors")
        return Subject(lm, vectors["direction"], "insecure adapter, its direction")
    from em_repro.activations import collect
    lm = load_lm(model)
    norm = np.linalg.norm(collect(lm, ["How are you?", "What is the sea?"]).X, axis=-1).mean()
    v = np.random.default_rng(0).normal(size=lm.width)
    return Subject(lm, 0.4 * norm * v / np.linalg.norm(v), "untouched model, random direction")
