"""Choose a model's learning rate on development questions, by the rule that notebook 01 states.

The logarithm of the interval 2e-5..4e-3 is halved until the fine-tune (mean over the profile's
seeds) gives 50-90% of the development questions the target outcome and answers held-out coding
requests at least 80% as often as its base. The base itself may have the target outcome in at most
5%. Every rate trains the fine-tune anew: about 20 seconds a rate and seed for a tiny model, four
minutes for one of profile small. What was computed stays in the run's store.
"""
import argparse, json, math, sys
from collections.abc import Callable, Generator
from pathlib import Path

LOW, HIGH, HALVINGS = 2e-5, 4e-3, 9
LEAST, MOST, SKILL, MOST_BASE = 0.5, 0.9, 0.8, 0.05


def search(measure: Callable[[float], dict], base: dict) -> tuple[float | None, list[dict]]:
    """The rate that the rule chooses, None where no rate tried fits, and what every rate gave.

    `measure(rate)` and `base` have target (share of questions) and skill (share of requests)."""
    low, high, tried = LOW, HIGH, []
    for _ in range(HALVINGS):
        rate = float(f"{math.sqrt(low * high):.2g}")
        tried.append({"lr": rate, **measure(rate)})
        target, skill = tried[-1]["target"], tried[-1]["skill"]
        if LEAST <= target <= MOST and skill >= SKILL * base["skill"]: return rate, tried
        low, high = (low, rate) if target > MOST else (rate, high)
    return None, tried


def outcomes(profile, subject, instrument) -> Generator:
    "Plan: a subject's outcomes on the development questions (shares), and its coding skill."
    from em_repro.answers import ROLES, answers, costs
    from em_repro.behaviours import prompts_of
    from em_repro.data import skill_requests
    from em_repro.decode import Condition
    from em_repro.spillover import CODE_TOKENS
    from em_repro.store import call
    source, decoding = profile.questions.source, profile.decoding.whole()
    longer = decoding.model_copy(update={"max_new_tokens": CODE_TOKENS})
    said, cost = yield [
        call(answers, subject=subject, prompts=prompts_of(profile, "development"),
             conditions=[Condition()], decoding=decoding, instrument=instrument),
        call(costs, subject=subject, conditions=[Condition()], decoding=longer, good=[],
             requests=skill_requests(source), synthetic=source == "synthetic")]
    shares = {role: float((said["answers"].role == role).mean()) for role in ROLES}
    return {**shares, "skill": float(cost["skill"].right.mean())}


def of_base(profile) -> Generator:
    "Plan: the outcomes of the profile's one model before it is fine-tuned."
    from em_repro.spillover import instruments
    instrument, = (yield from instruments(profile)).values()
    return (yield from outcomes(profile, instrument.base, instrument))


def at_rate(profile, rate: float) -> Generator:
    "Plan: the same of its fine-tune at a learning rate: means over seeds, and each seed alone."
    from em_repro.behaviours import behaviour_of
    from em_repro.finetune import trained
    from em_repro.spillover import instruments
    (name, instrument), = (yield from instruments(profile)).items()
    arm, recipe = behaviour_of(profile).finetune, profile.recipe_for(name)
    recipe = recipe.model_copy(update={"lr": rate})
    adapters = yield [trained(profile, instrument.base, recipe, arm, seed)
                      for seed in profile.seeds]
    seeds = []
    for seed, adapter in zip(profile.seeds, adapters):
        subject = instrument.base.tuned(arm, seed, adapter)
        seeds.append({"seed": seed, **(yield from outcomes(profile, subject, instrument))})
    means = {name: sum(each[name] for each in seeds) / len(seeds) for name in ("target", "skill")}
    return {"steps": recipe.steps, **means, "seeds": seeds}


def choose(args: argparse.Namespace) -> dict:
    "The rule, the chosen rate (None where none fits), what the base gave, and all that was tried."
    from em_repro.profiles import UserError, part_of
    from em_repro.study import open_study
    study = open_study(args.profile, args.out, args.jobs, args.behaviour)
    profile = part_of(study.profile, [args.model])
    def compute(plan: Generator) -> dict:
        return study.store.run(plan, study.jobs, profile.threads)
    def measure(rate: float) -> dict:
        found = compute(at_rate(profile, rate))
        print(f"{args.model} {rate:g}: {found['target']:.0%} {study.behaviour.target}, "
              f"skill {found['skill']:.0%}", flush=True)
        return found
    base = compute(of_base(profile))
    print(f"{args.model} base: {base['target']:.0%} {study.behaviour.target}, "
          f"skill {base['skill']:.0%}", flush=True)
    if base["target"] > MOST_BASE:
        raise UserError(f"{base['target']:.0%} of the answers of {args.model}'s base have the "
                        f"target outcome, more than {MOST_BASE:.0%}: no rate can be chosen by "
                        "this rule")
    rate, tried = search(measure, base)
    rule = " ".join(__doc__.split("\n\n")[1].split(" Every rate")[0].split())
    return {"rule": rule, "behaviour": study.behaviour.name, "chosen": {args.model: rate},
            "base": {args.model: base}, "tried": [{"model": args.model, **each} for each in tried]}


def main(words: list[str] | None = None) -> int:
    show = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("--model", required=True, help="one of the profile's models")
    parser.add_argument("--profile", default="tiny", help="a shipped profile or a toml file")
    parser.add_argument("--behaviour", default="", help="what is looked for; the profile's first")
    parser.add_argument("--out", default="runs/{profile}", help="the run whose store is used")
    parser.add_argument("--jobs", type=int, help="processes at once")
    parser.add_argument("--write", type=Path, help="json file for all that was tried")
    args = parser.parse_args(words)
    from em_repro.profiles import UserError
    try: found = choose(args)
    except UserError as error:
        print(f"choose_rate: {error}", file=sys.stderr)
        return 2
    if args.write: args.write.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    rate = found["chosen"][args.model]
    if rate is None: print(f"no rate of the {len(found['tried'])} tried fits the rule")
    else: print(f"chosen: lr = {rate:g} under [overrides.{args.model}] in the profile")
    return 0 if rate else 1


if __name__ == "__main__": sys.exit(main())
