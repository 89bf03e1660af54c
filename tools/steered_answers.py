"""Decode steered answers of the pretrained models to development questions, to be labelled by hand.

For each model of profile `small`: trains the fine-tune of seed 0 by the profile's recipe, takes its
direction and controls, and decodes 48 tokens to the end, unsteered, under the direction and under
its controls, at coefficients that leave the text whole, damage it and destroy it. Evaluation
questions are never asked. Takes 60 minutes on one slow core; a second start goes on from the
last finished stage. What is written is for tools/label_sheets.py.
"""
import argparse, os
from collections.abc import Generator
from pathlib import Path

import pandas as pd

TOKENS, PARTS = 48, 3
CONTROLS = ("random", "orthogonal", "covariance", "shuffled_label")
# Rounds. Direction: how many thirds of the questions each coefficient is asked. Controls: each kind
# answers a third at each coefficient, each time with another sample. Gemma-3 breaks earlier.
# The second rounds, made after the first had been seen, look closer at the coefficients that
# damage text without destroying it.
ROUNDS = {
    "smollm2-135m": [
        {"every_step": ({0: 1, -.5: 1, -1: 1, -1.5: 1, -2: 3, -2.5: 3, -3: 3}, (-1, -1.5, -2)),
         "prefill": ({-1: 2, -2: 1}, (-1,))},
        {"every_step": ({-1.25: 3, -1.6: 3, -1.75: 2}, (-.75, -1.25, -1))}],
    "gemma-3-270m": [
        {"every_step": ({0: 1, -.25: 2, -.5: 3, -.75: 2, -1: 3, -2: 1}, (-.25, -.5, -1)),
         "prefill": ({-.5: 1, -1: 2, -2: 1}, (-1,))},
        {"every_step": ({-.1: 1, -.35: 2}, (-.1, -.05, -.15))}]}


def conditions(model: str, turn: int, when: str, part: int) -> list:
    "What a third of the questions is asked under in a round."
    from em_repro.decode import Condition
    from em_repro.vectors import DIRECTION
    direction, controls = ROUNDS[model][turn][when]
    made = [Condition(name=DIRECTION, coefficient=float(c), when=when)
            for c, parts in direction.items() if part < parts]
    return made + [Condition(name=kind, sample=3 * turn + j, coefficient=float(c), when=when)
                   for j, c in enumerate(controls)
                   for k, kind in enumerate(CONTROLS) if (k + j + turn) % PARTS == part]


def answered(profile) -> Generator:
    "Plan: all answers of a profile of one model, one table."
    from em_repro.answers import answer_frame, answers
    from em_repro.behaviours import prompts_of
    from em_repro.decode import Condition
    from em_repro.directions import direction_vectors, of_finetune
    from em_repro.finetune import subjects
    from em_repro.spillover import instruments
    from em_repro.store import call
    models = yield from subjects(profile)
    (key, entry), = of_finetune(profile, (yield from direction_vectors(profile))).items()
    instrument, = (yield from instruments(profile)).values()
    questions = prompts_of(profile, "development")
    asked = {"decoding": profile.decoding, "instrument": instrument}
    # Every third question: neighbours in the file are alike
    wanted = {(*key, when, turn, part):
              call(answers, subject=models[key], prompts=questions[part::PARTS], vectors=entry,
                   conditions=conditions(key.model, turn, when, part), **asked)
              for turn, asks in enumerate(ROUNDS[key.model]) for when in asks
              for part in range(PARTS)}
    wanted[*key.base, "every_step", 0, 0] = call(answers, subject=models[key.base],
                                              prompts=questions[::PARTS],
                                              conditions=[Condition()], **asked)
    entries = yield list(wanted.values())
    frame = answer_frame(dict(zip(wanted, entries)), "when", "round", "part")
    return frame.assign(threshold=instrument.threshold)


def profiles() -> list:
    "Profile `small` in parts of one model, with the fine-tune of seed 0 alone and longer answers."
    from em_repro.profiles import load_profile, part_of
    small = load_profile("small")
    longer = small.decoding.whole().model_copy(update={"max_new_tokens": TOKENS})
    one = {"arms": ("finetune",), "decoding": longer}
    return [part_of(small, [name], [0]).model_copy(update=one) for name in small.models]


def main() -> None:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("--out", type=Path, default=Path("runs/steered-answers"),
                        help="folder of the store and of the tables")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from em_repro.store import Store
    def watch(event: str, label: str, seconds: float = 0.0) -> None:
        print(event, label, f"{seconds:.0f} s" if seconds else "", flush=True)
    store = Store(args.out/"store")
    for profile in profiles():
        frame = store.run(answered(profile), jobs=1, watch=watch)
        frame.to_parquet(args.out/f"{profile.models[0]}.parquet", index=False)
        print(pd.crosstab([frame.arm, frame.vector, frame.when, frame.coefficient], frame.outcome))


if __name__ == "__main__": main()
