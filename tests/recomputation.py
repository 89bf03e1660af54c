"""The ledger decided a second time, from a run's evidence file, with pandas and scipy alone.

Written from the words: DESIGN section 6, the tables of "The verdict rule", "Tests against a
margin", the columns of the evidence file, and the declarations in `data/claims.toml`. It imports
nothing of the package and shares no code with it, so that an error would have to be made twice.
Where the words leave a choice, a comment says which one was made.
"""
import json
import tomllib
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq      # pandas' own reader; its metadata is not in pandas' answer
from scipy import optimize, stats
from scipy.optimize import elementwise

ALPHA, TIE = 0.05, 1e-7
KINDS = {"random": "random", "orthogonal": "orthogonal", "covariance": "covariance",
         "other_arm": "other arm"}
CLAIMS = tomllib.loads((Path(__file__).parents[1] / "data/claims.toml").read_text())["claim"]


# One yes/no answer a question: Tango's score and its exact p

def likeliest_fewer(more, fewer, n, effect):
    """The likeliest probability of a change to no, given that of yes less that of no.

    With q for no, q + effect for yes and 1 - 2 q - effect for no change, the log-likelihood is
    concave in q: we look for the zero of its slope, or take the end that it rises towards."""
    more, fewer = np.asarray(more, float), np.asarray(fewer, float)
    low, high = max(0.0, -effect), (1 - effect) / 2
    def slope(q, more, fewer):
        with np.errstate(divide="ignore", invalid="ignore"):
            parts = [np.where(k == 0, 0, k * c / p) for k, c, p in
                     ((more, 1, q + effect), (fewer, 1, q),
                      (n - more - fewer, -2, 1 - 2*q - effect))]
        return sum(parts)
    near = low + 1e-13, high - 1e-13
    ends = [slope(np.full_like(more, q), more, fewer) for q in near]
    inside = (ends[0] > 0) & (ends[1] < 0)
    q = np.where(ends[0] <= 0, low, high)
    if inside.any():
        args = more[inside], fewer[inside]
        whole = np.ones_like(args[0])
        found = elementwise.find_root(slope, (near[0]*whole, near[1]*whole), args=args)
        q[inside] = found.x
    return q


def tango(more, fewer, n, effect):
    "Tango's score: how far the difference of counts is above what `effect` expects, in its own sd."
    q = likeliest_fewer(more, fewer, n, effect)
    off = np.asarray(more, float) - fewer - n*effect
    sd = np.sqrt(np.maximum(n * (2*q + effect - effect**2), 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.abs(off) < 1e-9, 0.0, off / sd)


@lru_cache(maxsize=None)
def outcomes(n, effect):
    "Every pair of counts (changed to yes, changed to no) that n questions can have, and its score."
    pairs = np.array([(b, c) for b in range(n + 1) for c in range(n + 1 - b)])
    return pairs, tango(pairs[:, 0], pairs[:, 1], n, effect)


@lru_cache(maxsize=None)
def exact_above(more, fewer, n, effect):
    """Exact p that the effect is above `effect`: the largest over the share that changes to no.

    The grid is quadratic (dense where few change), and its best cells are searched."""
    pairs, scores = outcomes(n, effect)
    seen = tango([more], [fewer], n, effect)[0]
    region = pairs[scores >= seen - TIE*max(1, abs(seen))]
    counts = np.column_stack([region, n - region.sum(1)])
    low, high = max(0.0, -effect), (1 - effect) / 2
    def p(q):
        shares = np.clip([q + effect, q, 1 - 2*q - effect], 0, 1)
        return stats.multinomial.pmf(counts, n, shares / shares.sum()).sum()
    grid = low + (high - low) * np.linspace(0, 1, 241)**2
    heights = np.array([p(q) for q in grid])
    best = heights.max()
    for i in np.argsort(heights)[-5:]:
        cell = grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)]
        best = max(best, -optimize.minimize_scalar(lambda q: -p(q), bounds=cell,
                                                   method="bounded").fun)
    return float(min(best, 1))


# Shares of several answers: the score of a mean, and t

def likeliest_variance(values, mean, bound=1.0):
    """The variance of the likeliest distribution with that mean, over the values and two bounds.

    Lagrange: a value has weight count / (n (1 + t (x - mean))), and t makes the weights' mean the
    wanted one as far as no weight becomes negative on the bounds; what is missing to one lies on
    the bound that t stopped at. The log-likelihood is concave in t."""
    x, counts = np.unique(np.round(values, 10), return_counts=True)
    off, n = x - mean, len(values)
    ends = -1/(bound - mean), 1/(bound + mean)
    def pull(t): return float(np.sum(counts * off / (1 + t*off)))
    edge = [e * (1 - 1e-12) for e in ends]
    if pull(edge[0]) <= 0: t, rest = ends[0], bound
    elif pull(edge[1]) >= 0: t, rest = ends[1], -bound
    else: t, rest = optimize.brentq(pull, *edge, xtol=1e-14), 0.0
    with np.errstate(divide="ignore"): weights = counts / (n * (1 + t*off))
    if not np.isfinite(weights).all(): return 0.0      # all values are on the bound already
    return float(np.sum(weights * off**2) + max(0, 1 - weights.sum()) * (rest - mean)**2)


@dataclass
class Spread:
    "Variance of an estimate, and the degrees of freedom that it was estimated with."
    variance: float = 0.0
    df: float = np.inf


def added(*parts):
    """Variances of independent parts of an estimate, with Satterthwaite's degrees of freedom.

    They are those of a chi-square with the sum's mean and variance, 2 v^2 / df for a part."""
    parts = [p for p in parts if p.variance > 0]
    whole = sum(p.variance for p in parts)
    noise = sum(2 * p.variance**2 / p.df for p in parts)
    return Spread(whole, 2 * whole**2 / noise if noise else np.inf)


def spread_of_vectors(single):
    """How far the mean over sampled vectors would lie from that over others, from means of single ones.

    single: Series by seed and vector. In a run s^2 / m; the mean over R runs has a 1/R^2 of their sum.
    A run with one vector says nothing of how they vary."""
    by_run = single.groupby(level="seed").agg(["var", "count"])
    known = by_run[by_run["count"] > 1]
    runs = [Spread(v / m / len(by_run)**2, m - 1) for v, m in known.itertuples(index=False)]
    found = added(*runs)
    return found if found.variance > 1e-15 else Spread()


def score_above(values, mean, bound=1.0, vectors=Spread()):
    """p of the score test that the mean of `values` is above `mean`.

    With sampled vectors by t: the questions' variance follows from `mean`, the vectors' is estimated."""
    off = np.mean(values) - mean
    questions = Spread(likeliest_variance(values, mean, bound) / len(values))
    whole = added(questions, vectors)
    if abs(off) < 1e-12: return 0.5
    if not whole.variance: return float(off < 0)
    return float(stats.t.sf(off / np.sqrt(whole.variance), whole.df))


def t_above(values, mean, vectors=Spread()):
    "p of Student's t that the mean of `values` is above `mean`; 0 (no say) where nothing varies."
    off, n = np.mean(values) - mean, len(values)
    whole = added(Spread(np.var(values, ddof=1) / n, n - 1), vectors)
    if whole.variance < 1e-24: return 0.0
    return float(stats.t.sf(off / np.sqrt(whole.variance), whole.df))


def yes_no(*sides):
    "Whether every question has a plain yes or no on every side, as with one answer a question."
    return all(np.isin(np.round(s, 10), (0, 1)).all() for s in sides)


def above(values, mean, exact, bound=1.0, vectors=Spread()):
    "p that the mean effect is above `mean`: exact for yes/no, else the larger of score and t."
    values = np.round(np.asarray(values, float), 10)
    if exact and not vectors.variance:
        return exact_above(int((values == 1).sum()), int((values == -1).sum()), len(values), mean)
    return max(score_above(values, mean, bound, vectors), t_above(values, mean, vectors))


def below(values, mean, exact, bound=1.0, vectors=Spread()):
    "p that the mean effect is below `mean`: the mirror image."
    return above(-np.asarray(values, float), -mean, exact, bound, vectors)


def shown(values, claim, exact=False, bound=1.0, vectors=Spread()):
    "p of holding and of being refuted, for one hypothesis of a claim."
    margin, how = claim["margin"], (exact, bound, vectors)
    if claim["direction"] == "greater" and claim["test"] == "margin":
        return above(values, margin, *how), below(values, margin, *how)
    within = max(below(values, margin, *how), above(values, -margin, *how))
    # either side may be the one, so the smaller p of the two sides counts twice
    outside = min(1.0, 2 * min(above(values, margin, *how), below(values, -margin, *how)))
    return (outside, within) if claim["test"] == "asymmetry" else (within, outside)


# From hypotheses to a verdict

@dataclass
class Hypothesis:
    "One hypothesis: its effect by question and run, the room above its baseline, its rank's p."
    name: str
    model: str
    values: pd.Series
    by_run: dict
    room: float
    exact: bool
    works: bool = True
    rank: float = 0.0
    vectors: Spread = field(default_factory=Spread)


@dataclass
class Found:
    "A claim decided: word and numbers, a line a hypothesis, and the effect in each run."
    verdict: str
    p: float | None
    effect: float
    n: int
    states: pd.DataFrame
    by_run: list = field(default_factory=list)
    rank: float | None = None


def holm(p):
    "Holm's step-down p values."
    p = np.asarray(p, float)
    order, m = np.argsort(p), len(p)
    raised = np.maximum.accumulate(np.minimum(1, p[order] * (m - np.arange(m))))
    return pd.Series(raised, order).sort_index().to_numpy()


def with_states(rows):
    """Hypotheses (columns model, p_holds, p_refuted, testable) with their states.

    That all hold is shown at the full level for each; where it is not so, single ones are a find
    among many, and p is Holm-corrected over the testable ones."""
    tested = rows[rows.testable]
    ours = dict.fromkeys(rows.index, "not testable") | dict.fromkeys(tested.index, "open")
    whole = all_hold(rows)
    holds, refuted = (tested[c] if whole else holm(tested[c]) for c in ("p_holds", "p_refuted"))
    for i, h, r in zip(tested.index, holds, refuted):
        ours[i] = "holds" if h <= ALPHA else "refuted" if r <= ALPHA else "open"
    return rows.assign(state=pd.Series(ours))


def all_hold(rows):
    "Whether all testable hypotheses hold: at least half of all, of two models or more."
    tested = rows[rows.testable]
    enough = 2*len(tested) >= len(rows) and tested.model.nunique() >= 2
    return enough and bool((tested.p_holds <= ALPHA).all())


def verdict_of(rows):
    "The verdict over hypotheses with states, and its p."
    tested = rows[rows.testable]
    if tested.empty: return "not testable", None
    if all_hold(rows): return "supported", tested.p_holds.max()
    best, worst = holm(tested.p_holds).min(), holm(tested.p_refuted).min()
    some, none = best <= ALPHA, worst <= ALPHA
    if some and none: return "mixed", max(best, worst)
    # what holds at the full level and is lost to the correction keeps a claim from being contradicted
    return ("contradicted", worst) if none and tested.p_holds.min() > ALPHA else ("inconclusive", None)


def decided(claim, hypotheses):
    "A claim's verdict from its hypotheses."
    rows = []
    for h in hypotheses:
        holds, refuted = shown(h.values, claim, h.exact, vectors=h.vectors)
        no_room = claim["direction"] == "greater" and h.room < 2*claim["margin"] - 1e-9
        holds = max(holds, h.rank)
        rows.append({"hypothesis": h.name, "model": h.model, "effect": h.values.mean(),
                     "p_holds": holds, "p_refuted": refuted,
                     "testable": h.works and not no_room})
    states = with_states(pd.DataFrame(rows))
    word, p = verdict_of(states)
    n = min(len(h.values) for h in hypotheses)
    return Found(word, p, states.effect.mean(), n, states, same_runs(hypotheses))


def same_runs(hypotheses):
    "The mean effect in each run, apart for hypotheses that were made in other runs: most runs first."
    together = {}
    for h in hypotheses: together.setdefault(frozenset(h.by_run), []).append(h.by_run)
    return [pd.DataFrame(together[runs]).mean().to_dict() for runs in sorted(together, key=len, reverse=True)]


# What the file says

def read(path):
    "The file's table, with the share that each role is of an answer, and what it says of its run."
    about = json.loads(pq.read_schema(path).metadata[b"em_repro"])
    table = pd.read_parquet(path)
    return table.assign(**{r: (table.role == r).astype(float) for r in ("target", "good")}), about


def shares(frame, outcome):
    "The share of an outcome by question, over samples and runs."
    return frame.groupby("question")[outcome].mean()


def contrast(one, other, outcome, name, model, **more):
    """A hypothesis: one set of answers minus another, question by question.

    Runs of the first are compared with the same runs of the second; a base has no runs. Where the
    second is the mean of sampled vectors, how far another sample's would lie counts too."""
    def gain(a, b): return (shares(a, outcome) - shares(b, outcome)).dropna()
    same = set(one.seed) <= set(other.seed) and set(other.arm) != {"base"}
    runs = {s: gain(a, other[other.seed == s] if same else other).mean()
            for s, a in one.groupby("seed")}
    a, b = shares(one, outcome), shares(other, outcome)
    sampled = other[other.vector_sample >= 0]
    vectors = spread_of_vectors(sampled.groupby(["seed", "vector_sample"])[outcome].mean())
    return Hypothesis(name, model, gain(one, other), runs, 1 - b.mean(), yes_no(a, b),
                      vectors=vectors, **more)


def at_point(frame, about):
    "The answers at each model's point, unsteered ones among them."
    points = {m: tuple(p) for m, p in about["points"].items()}
    here = [points.get(m) == (c, w) or (c == 0 and points.get(m, (0, 0))[1] == w)
            for m, c, w in zip(frame.model, frame.coefficient, frame.when)]
    return frame[np.array(here, bool)]


def each(frame): return frame.groupby("model", sort=False)


def edit_size(point):
    "By this, the smallest edit comes first: small coefficients, prefill, subtracting."
    coefficient, when = point
    return abs(coefficient), when != "prefill", coefficient


def points(table, name="development"):
    """Each model's point, from answers to development questions: {model: (coefficient, when)}.

    Of all points within one standard error (of the paired difference, over questions) of the best,
    the smallest edit; of equally good ones the smallest is the best."""
    made = {}
    for model, g in each(table[(table.table == name) & (table.coefficient != 0)]):
        good = g.pivot_table("good", "question", ["coefficient", "when"], aggfunc="mean")
        good = good[sorted(good.columns, key=edit_size)]
        mean = good.mean()
        best = good[mean.index[mean >= mean.max() - 1e-12][0]]
        behind = good.rsub(best, axis=0)
        error = behind.std(ddof=1).fillna(0) / np.sqrt(len(good))
        made[model] = good.columns[behind.mean() <= error + 1e-12][0]
    return made


# The claims

def spilled(frame, about, claim, other):
    "C1, C1a, C1b: the fine-tune against the base or against its control."
    arm = about["behaviour"]["arms"][0]
    return [contrast(g[g.arm == arm], g[g.arm == other], claim["outcome"], m, m)
            for m, g in each(frame) if {arm, other} <= set(g.arm)]


def separated(frame, about, arm):
    "C2, C5: accuracy against that of shuffled labels."
    part = frame[frame.contrast == f"{arm} - base"]
    made = []
    for model, g in each(part):
        right, chance = (g.groupby("question")[c].mean() for c in ("value", "null"))
        runs = (g.value - g.null).groupby(g.seed).mean().to_dict()
        made.append(Hypothesis(model, model, right - chance, runs, 1 - chance.mean(),
                               yes_no(right, chance)))
    return made


def steered(frame, about, claim):
    "C3: the direction at its point minus no steering."
    return [contrast(g[g.vector == "direction"], g[g.vector == ""], claim["outcome"], m, m)
            for m, g in each(at_point(frame, about))]


def explained(frame, about, claim, what):
    "C3a, C3b: the direction at its point minus an alternative."
    made = []
    for model, g in each(frame):
        own = at_point(g[g.what == "direction"], about)
        made.append(contrast(own, g[g.what == what], claim["outcome"], model, model))
    return made


def rank_of(own, samples, nothing, outcome):
    "p of the direction's mean gain over runs among the gains of single vectors of all runs."
    def gains(frame, by): return frame.groupby(by)[outcome].mean()
    start = gains(nothing, "seed")
    ours = (gains(own, "seed") - start).mean()
    theirs = gains(samples, ["seed", "vector_sample"]).sub(start, level="seed")
    return (1 + int((theirs >= ours - 1e-9).sum())) / (1 + len(theirs))


def own_points(table):
    """Each vector's own point, in each run, from the answers of "candidates": by the same rule.

    {(model, seed, vector, sample): (coefficient, when)}"""
    tried = table[(table.table == "candidates") & (table.coefficient != 0)]
    by = ["model", "seed", "vector", "vector_sample"]
    return {key: points(g, "candidates")[key[0]] for key, g in tried.groupby(by)}


def rank_at_best(best, model, kind, nothing, outcome):
    "The rank's p with every vector at its own point; None where the file has no such answers."
    stood = best[best.model == model]
    if not (stood.vector == kind).any(): return None
    return rank_of(stood[stood.vector == "direction"], stood[stood.vector == kind], nothing, outcome)


def specific(part, about, claim, kinds):
    "C4, C4a, C4b: the direction minus the mean of a kind of control."
    made, best = [], part("own_best")
    for model, g in each(at_point(part("within"), about)):
        own, nothing = g[g.vector == "direction"], g[g.vector == ""]
        for kind in kinds:
            their = g[g.vector == kind]
            if their.empty: continue
            rank = 0.0
            if claim.get("rank"): rank = rank_at_best(best, model, kind, nothing, claim["outcome"])
            name = f"{model}, {KINDS[kind]}"
            more = dict(works=False, rank=1.0) if rank is None else dict(rank=rank)
            made.append(contrast(own, their, claim["outcome"], name, model, **more))
    return made


def working(frame, about, claim, seeds=None):
    "Receivers whose own direction is shown to beat its own random vectors by the margin."
    def works(g):
        if seeds is not None: g = g[g.seed.isin(seeds)]
        own, their = (g[g.vector == v] for v in ("direction", "random"))
        own = contrast(own, their, claim["outcome"], "", "")
        return above(own.values, claim["margin"], own.exact, vectors=own.vectors) <= ALPHA
    return {m for m, g in each(at_point(frame, about)) if works(g)}


def mapped(inside, outside, about, claim):
    "C6: the mapped direction minus mapped random vectors."
    works = working(inside, about, claim)
    return [contrast(g[g.vector == "mapped"], g[g.vector == "mapped_random"], claim["outcome"],
                     f"{d} to {m}", m, works=m in works)
            for (d, m), g in at_point(outside, about).groupby(["donor", "model"], sort=False)]


def unspecific(inside, outside, about, claim):
    "C7: the mapped direction minus each of three kinds of control."
    works, home, made = working(inside, about, claim), at_point(inside, about), []
    for (d, m), g in at_point(outside, about).groupby(["donor", "model"], sort=False):
        own, here = g[g.vector == "mapped"], home[home.model == m]
        for label, their in (("mapped random", g[g.vector == "mapped_random"]),
                             ("receiver's random", here[here.vector == "random"]),
                             ("receiver's orthogonal", here[here.vector == "orthogonal"])):
            made.append(contrast(own, their, claim["outcome"], f"{d} to {m}, {label}", m,
                                 works=m in works))
    return made


# Who gives, who receives

def transfers(outside, about, outcome):
    "The direction's and each random vector's share by run, donor, receiver and question."
    here = at_point(outside, about)
    keys = ["seed", "donor", "model", "question"]
    own = here[here.vector == "mapped"].groupby(keys)[outcome].mean()
    theirs = here[here.vector == "mapped_random"].groupby([*keys, "vector_sample"])[outcome].mean()
    return own, theirs.unstack("vector_sample")


def gap(gain, a, b):
    "By question: what goes from a to b less what goes from b to a, over runs."
    by = gain.groupby(["donor", "model", "question"]).mean()
    return by[a, b] - by[b, a]


def in_run(gain, seed): return gain.xs(seed, level="seed", drop_level=False)


def asymmetry(gain, pairs):
    "How asymmetric a matrix is: the size of a pair's mean gap, averaged over pairs."
    return float(np.mean([abs(gap(gain, a, b).mean()) for a, b in pairs]))


def topology(inside, outside, about, claim):
    "C8: the pairs against the margin, and the matrix among those of mapped random vectors."
    models = [m for m in about["profile"]["models"] if m in set(outside.model)]
    seeds = set.intersection(*(set(g.seed) for _, g in each(outside)))
    # models are compared on the questions that all of them were asked
    asked = set.intersection(*(set(g.question) for _, g in each(inside)))
    inside, outside = (frame[frame.question.isin(asked)] for frame in (inside, outside))
    outside = outside[outside.seed.isin(seeds)]
    own, theirs = transfers(outside, about, claim["outcome"])
    gain, counted = own - theirs.mean(axis=1), working(inside, about, claim, seeds)
    rows = []
    for a, b in combinations(models, 2):
        values = gap(gain, a, b)
        ways = [spread_of_vectors(theirs.xs(way, level=("donor", "model")).groupby("seed").mean()
                                  .stack()) for way in ((a, b), (b, a))]
        holds, refuted = shown(values, claim, bound=2.0, vectors=added(*ways))
        rows.append({"hypothesis": f"{a} and {b}", "effect": values.mean(),
                     "p_holds": holds, "p_refuted": refuted,
                     "testable": {a, b} <= counted and len(counted) >= 3})
    states = with_pair_states(pd.DataFrame(rows))
    tested = [m for m in models if m in counted] if len(counted) >= 3 else models
    pairs = list(combinations(tested, 2))
    ours = asymmetry(gain, pairs)
    runs = {r: asymmetry(in_run(gain, r), pairs) for r in sorted(seeds)}
    # each random vector of each run is taken for the direction, against the mean of the others
    null = [asymmetry(block[i] - block.drop(columns=i).mean(axis=1), pairs)
            for r in sorted(seeds) for block in [in_run(theirs, r)] for i in theirs]
    # like with like: the direction's asymmetry of single runs, averaged, among those of single runs
    least = np.mean(list(runs.values())) - 1e-9
    rank = (1 + sum(v >= least for v in null)) / (1 + len(null))
    word, p = matrix_verdict(states, rank)
    return Found(word, p, ours, outside.question.nunique(), states, [runs], rank)


def with_pair_states(rows):
    "Pairs with their states: finding one that differs is a search (Holm), all being alike is not."
    tested, ours = rows[rows.testable], dict.fromkeys(rows.index, "not testable")
    for i, h, r in zip(tested.index, holm(tested.p_holds), tested.p_refuted):
        ours[i] = "holds" if h <= ALPHA else "refuted" if r <= ALPHA else "open"
    return rows.assign(state=pd.Series(ours))


def matrix_verdict(states, rank):
    "C8's rule over pairs and the rank of the matrix."
    tested = states[states.testable]
    if tested.empty: return "not testable", None
    best = holm(tested.p_holds).min()
    if best <= ALPHA and rank <= ALPHA: return "supported", max(best, rank)
    if (tested.p_refuted <= ALPHA).all(): return "contradicted", tested.p_refuted.max()
    return "inconclusive", None


# All of them

def hypotheses_of(claim, part, about):
    "The hypotheses of a claim (all but C8), from the tables of the file."
    name, arms = claim["id"], about["behaviour"]["arms"]
    if name in ("C1", "C1a"):
        return spilled(part("spillover"), about, claim, "base" if name == "C1" else arms[1])
    if name == "C1b":
        shared = part("shared_rate")
        shared = shared[(shared.recipe == "shared") | (shared.arm == "base")]
        return spilled(shared, about, claim, "base")
    if name == "C2": return separated(part("separability"), about, arms[0])
    if name == "C5":
        known = {h.name: above(h.values, claim["margin"], h.exact) <= ALPHA
                 for h in separated(part("separability"), about, arms[0])}
        made = separated(part("separability"), about, arms[1])
        for h in made: h.works = known[h.name]
        return made
    if name == "C3": return steered(part("grid"), about, claim)
    if name in ("C3a", "C3b"):
        what = "base's first token" if name == "C3a" else "logit bias"
        return explained(part("alternatives"), about, claim, what)
    if name in ("C6", "C7"):
        decide = mapped if name == "C6" else unspecific
        return decide(part("within"), part("across"), about, claim)
    kinds = {"C4": ("random", "orthogonal"), "C4a": ("other_arm",), "C4b": ("covariance",)}[name]
    return specific(part, about, claim, kinds)


NEEDS = {"C1": "spillover", "C1a": "spillover", "C1b": "shared_rate", "C2": "separability",
         "C5": "separability", "C3": "grid", "C3a": "alternatives", "C3b": "alternatives",
         "C4": "within", "C4a": "within", "C4b": "within", "C6": "across", "C7": "across",
         "C8": "across"}


def recompute(path):
    "Every claim that the file has the answers for, by its name."
    table, about = read(path)
    def part(name): return table[table.table == name]
    found = {}
    for claim in CLAIMS:
        if part(NEEDS[claim["id"]]).empty: continue
        if claim["test"] == "asymmetry":
            found[claim["id"]] = topology(part("within"), part("across"), about, claim)
        elif made := hypotheses_of(claim, part, about): found[claim["id"]] = decided(claim, made)
    return found
