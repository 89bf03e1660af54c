"""The model that is measured: SmolLM2-135M-Instruct with the insecure adapter and direction of a run of profile small, or as it is."""
from dataclasses import dataclass

import numpy as np

from em_repro.directions import control_directions
from em_repro.families import LM, load_lm

NAME = "smollm2-135m"


@dataclass
class Subject:
    "`vectors`: dose conditions (label, vector), then norm-matched controls at the main dose; `what` says where they come from."
    lm: LM
    direction: np.ndarray
    what: str

    def doses(self, doses: tuple[float, ...]) -> list[tuple[str, np.ndarray]]:
        return [(f"dose {dose:+g}", (dose * self.direction).astype(np.float32)) for dose in doses]

    def controls(self, n: int) -> list[tuple[str, np.ndarray]]:
        "Half isotropic, half orthogonal to the direction, of its norm."
        rows = np.concatenate([control_directions(self.direction, "random", n - n // 2, 0), control_directions(self.direction, "orthogonal", n // 2, 1)])
        return [(f"control {i}", -row.astype(np.float32)) for i, row in enumerate(rows)]


def subject(run: str) -> Subject:
    "From a run of profile small; without one, the untouched model and a random direction of 40% of its states' norm."
    if run:
        from em_repro.directions import direction_vectors
        from em_repro.finetune import load_subject, subjects
        from em_repro.study import open_study
        study = open_study("small", run, jobs=1)
        profile = study.profile.model_copy(update={"families": (NAME,), "overrides": {}})
        key = (NAME, "insecure", 0)
        run_plan = lambda plan: study.store.run(plan, 1, profile.threads)
        return Subject(load_subject(run_plan(subjects(profile))[key]), run_plan(direction_vectors(profile))[key]["vectors"]["target"],
                       "insecure adapter, its direction")
    from em_repro.activations import collect
    lm = load_lm(NAME)
    norm = np.linalg.norm(collect(lm, ["How are you?", "What is the sea?"]).X, axis=-1).mean()
    v = np.random.default_rng(0).normal(size=lm.width)
    return Subject(lm, 0.4 * norm * v / np.linalg.norm(v), "untouched model, random direction")
