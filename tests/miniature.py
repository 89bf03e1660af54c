"""A study small enough for a test, computed in this process: one tiny model, two runs of each arm, ten questions.

Where EM_REPRO_MINIATURE names a folder, its store is kept there, so that a second look computes only what other code asks for."""
import os, tempfile
from functools import lru_cache
from pathlib import Path

from em_repro.evidence import gather
from em_repro.profiles import UserError, load_profile, part_of
from em_repro.store import Store

ALSO = {"spillover", "chosen_points", "steering_study", "compared"}   # what red flags are read from


class RedFlag(Exception):
    "What a user would be told, where a sound package says nothing."


@lru_cache(maxsize=1)
def profile():
    "The smallest profile, smaller."
    smoke = part_of(load_profile("smoke"), ("tiny-llama",))
    steering = smoke.steering.model_copy(update={"coefficients": (0, -1.0), "samples": 2, "control_samples": 1, "skill_requests": 2, "nll_answers": 2})
    return smoke.model_copy(update={"seeds": (0, 1), "retrained": (), "rates": type(smoke.rates)(), "overrides": {}, "steering": steering,
                                    "recipe": smoke.recipe.model_copy(update={"steps": 8})})


def computed(plan, store, settings=None):
    "The value of a plan whose stages are computed one after the other, here."
    running, entries = plan(settings or profile()), None
    while True:
        try: requests = running.send(entries)
        except StopIteration as end: return end.value
        entries = [store.get(request) for request in requests]


@lru_cache(maxsize=1)
def evidence():
    "What the miniature's verdicts would rest on."
    folder = os.environ.get("EM_REPRO_MINIATURE") or tempfile.mkdtemp()
    store = Store(Path(folder) / "store")
    def compute(plan):
        if plan.__name__ not in ALSO: raise UserError("left out of the miniature")
        try: return computed(plan, store)
        except UserError as error: raise RedFlag(str(error)) from error   # which would pass for a table that a run has no use for
    return gather(profile(), compute)
