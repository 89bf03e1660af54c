"""Evidence of runs that never were: answers drawn at rates that a test declares."""
import numpy as np
import pandas as pd

MODELS, ARMS = ("tiny-qwen2", "tiny-gemma2", "tiny-llama"), ("insecure", "secure")
KINDS = ("random", "orthogonal", "covariance")
NOTHING = {"behaviour": "code", "table": "", "model": "", "arm": "insecure", "seed": 0, "donor": "", "contrast": "", "what": "", "vector": "",
           "vector_sample": -1, "layer": pd.NA, "coefficient": 0.0, "when": "", "recipe": "", "lr": np.nan, "question": "", "sample": 0,
           "outcome": "", "role": "", "value": np.nan, "null": np.nan, "text": ""}
KINDS_OF_COLUMN = {"seed": "int64", "vector_sample": "int64", "sample": "int64", "layer": "Int64", "coefficient": "float64", "lr": "float64",
                   "value": "float64", "null": "float64"}


class MadeUp:
    """A table of evidence whose rates are declared: `rates(table, model, vector, donor)` is the share of good answers.

    Answers to a question share most of their luck, so that conditions are alike where rates are. For spillover
    and shared_rate the "vector" is the arm; for separability it is the arm or "null", and the share is an accuracy.
    asked: of which models only the first so many evaluation questions were asked."""

    def __init__(self, rates, n=100, runs=2, samples=20, points=None, seed=0, scatter=0.0, models=MODELS, ranked=True, asked=()):
        self.rates, self.n, self.samples, self.scatter, self.models, self.ranked = rates, n, samples, scatter, models, ranked
        self.asked = dict(asked)
        self.seeds = {m: range(runs if isinstance(runs, int) else runs[m]) for m in models}
        self.points = points or dict.fromkeys(models, (-1.0, "prefill"))
        self.rng, self.questions = np.random.default_rng(seed), [f"question {i}" for i in range(n)]
        self.luck, self.parts = self.rng.random(n), []

    def yes(self, rate):
        "Whether each question is answered well: its own luck, in one of five answers another."
        rate = np.clip(rate + self.scatter * self.rng.standard_normal(), 0, 1)
        return np.where(self.rng.random(self.n) < .8, self.luck, self.rng.random(self.n)) < rate

    def said(self, table, model, vector, label=None, donor="", **place):
        good = self.yes(self.rates(table, model, label or vector, donor))
        role = np.where(good, "good", np.where(self.rng.random(self.n) < .1, "incoherent", "target"))
        self.parts.append(pd.DataFrame({**NOTHING, "table": table, "model": model, "vector": vector, "donor": donor, "layer": -1,
                                        "question": self.questions, "role": role, "outcome": np.where(role == "target", "code", role)}).assign(**place))

    def number(self, table, model, **columns):
        self.parts.append(pd.DataFrame({**NOTHING, "table": table, "model": model, "question": self.questions}).assign(**columns))

    def unsteered(self, table, model):
        self.said(table, model, "", "base", arm="base", when="every_step", recipe="shared" if table == "shared_rate" else "", layer=-1)
        for seed, arm in [(s, a) for s in self.seeds[model] for a in ARMS]:
            self.said(table, model, "", arm, arm=arm, seed=seed, when="every_step", recipe="shared" if table == "shared_rate" else "")
            if table == "shared_rate" and seed != self.seeds[model][0]: self.parts.pop()   # one run alone; drawn, so that all else stays as it was

    def separable(self, model):
        for seed, arm in [(s, a) for s in self.seeds[model] for a in ARMS]:
            right, chance = (self.yes(self.rates("separability", model, a, "")) / 2 + self.yes(self.rates("separability", model, a, "")) / 2 for a in (arm, "null"))
            self.number("separability", model, arm="", contrast=f"{arm} - base", seed=seed, value=right, null=chance)

    def grid(self, model):
        for seed, when, c in [(s, w, c) for s in self.seeds[model] for w in ("prefill", "every_step") for c in (0.0, -0.5, -1.0)]:
            vector = "direction" if c else ""
            self.said("grid", model, vector, seed=seed, when=when, coefficient=c)
            for cost in ("cost_nll", "cost_skill"): self.number(cost, model, seed=seed, when=when, coefficient=c, vector=vector, value=1.0)

    def development(self, model):
        "Good at the model's point and nowhere else."
        questions = [f"development {q}" for q in self.questions[:12]]
        for seed, when, c in [(s, w, c) for s in self.seeds[model] for w in ("prefill", "every_step") for c in (0.0, -0.5, -1.0)]:
            role = "good" if (c, when) == self.points[model] else "target"
            self.parts.append(pd.DataFrame({**NOTHING, "table": "development", "model": model, "seed": seed, "layer": -1, "when": when, "coefficient": c,
                                            "vector": "direction" if c else "", "question": questions, "role": role, "outcome": "code" if role == "target" else role}))

    def at_best(self, model):
        "Each vector stands where its development answers alone are good: at one of four points, in each run another."
        places = [(c, w) for w in ("prefill", "every_step") for c in (-0.5, -1.0)]
        questions = [f"development {q}" for q in self.questions[:6]]
        vectors = [("direction", -1), *((v, i) for v in KINDS for i in range(self.samples))]
        for seed in self.seeds[model]:
            for at, (vector, i) in enumerate(vectors):
                c, when = places[(at + seed) % len(places)]
                self.said("own_best", model, vector, seed=seed, when=when, coefficient=c, vector_sample=i)
                for place in places:
                    role = "good" if place == (c, when) else "target"
                    self.parts.append(pd.DataFrame({**NOTHING, "table": "candidates", "model": model, "seed": seed, "layer": -1, "when": place[1], "coefficient": place[0],
                                                    "vector": vector, "vector_sample": i, "question": questions, "role": role, "outcome": "code" if role == "target" else role}))

    def within(self, model):
        c, when = self.points[model]
        for seed in self.seeds[model]:
            self.said("within", model, "", seed=seed, when=when)
            for vector in ("direction", "other_arm"): self.said("within", model, vector, seed=seed, when=when, coefficient=c)
            for vector, i in [(v, i) for v in KINDS for i in range(self.samples)]:
                self.said("within", model, vector, seed=seed, when=when, coefficient=c, vector_sample=i)

    def away(self, model):
        c, when = self.points[model]
        conditions = [("", "no steering", 0.0, "every_step"), ("direction", "direction", c, "prefill"), ("direction", "direction", c, "every_step"),
                      ("base's first tokens", "base's first token", 1.0, "prefill"), ("logit bias", "logit bias", -0.5, "every_step")]
        for seed, (vector, what, c, w) in [(s, x) for s in self.seeds[model] for x in conditions]:
            self.said("alternatives", model, vector, seed=seed, what=what, coefficient=c, when=w)

    def across(self, donor, model):
        c, when = self.points[model]
        for seed in sorted({*self.seeds[model]} & {*self.seeds[donor]}):
            self.said("across", model, "", seed=seed, when=when, donor=donor)
            self.said("across", model, "mapped", seed=seed, when=when, donor=donor, coefficient=c)
            for i in range(self.samples):
                self.said("across", model, "mapped_random", seed=seed, when=when, donor=donor, coefficient=c, vector_sample=i)

    def table(self):
        "The whole table."
        for model in self.models:
            for table in ("spillover", "shared_rate"): self.unsteered(table, model)
            for part in (self.separable, self.grid, self.development, self.away, self.within): part(model)
            if self.ranked: self.at_best(model)
            for donor in self.models:
                if donor != model: self.across(donor, model)
        whole = pd.concat([p.astype({"layer": "Int64"}) for p in self.parts], ignore_index=True)
        whole.loc[whole.table == "shared_rate", "lr"] = 1e-4
        for model, n in self.asked.items():
            whole = whole[(whole.model != model) | (whole.table == "separability") | ~whole.question.isin(self.questions[n:])]
        return whole.astype(dict.fromkeys(whole.columns.difference(list(KINDS_OF_COLUMN)), "str") | KINDS_OF_COLUMN)


def everything_works(table, model, vector, donor):
    "The paper's world, but for asymmetry: each direction does much, and every other vector does nothing."
    if table in ("spillover", "shared_rate"): return {"base": .98, "insecure": .2, "secure": .7}[vector]
    if table == "separability": return {"insecure": .98, "secure": .5, "null": .5}[vector]
    return .8 if vector in ("direction", "mapped") else .3


def nothing_works(table, model, vector, donor):
    "No spillover, no direction: every vector does the same; what could explain one away leaves no room for more."
    return {"spillover": .7, "shared_rate": .7, "alternatives": .95}.get(table, .5)


def one_model_works(table, model, vector, donor):
    "The paper's world in the first model, and nothing in the others."
    return (everything_works if model == MODELS[0] else nothing_works)(table, model, vector, donor)


def first_gives(table, model, vector, donor):
    "The first model's direction travels and no other does; any vector leaves some answers good."
    if table == "across" and vector == "mapped": return .8 if donor == MODELS[0] else .3
    return everything_works(table, model, vector, donor)
