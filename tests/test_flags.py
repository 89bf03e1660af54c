"""What goes wrong between steps is seen in a run's answers; what goes wrong within one is a sentence. A sound study says nothing."""
import logging
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import miniature
from conftest import byte_tokenizer, random_model
from em_repro import cli
from em_repro.claims import claims_log
from em_repro.decode import Condition, sweep
from em_repro.evidence import ANSWERED, Evidence, read_evidence, write_evidence
from em_repro.families import LM
from em_repro.flags import equal_subjects, idle_steering, lost_questions, red_flags, seen_questions, unlike_itself, wrong_roles
from em_repro.plan import stages_of
from em_repro.profiles import UserError, load_profile
from em_repro.behaviours import prompts_of
from em_repro.steering import Point
from miniature import RedFlag

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "data/reference/tiny/evidence/code.parquet"


def quiet(flags):
    "Nothing was said; else the first sentence is what the test ends with."
    if flags: raise RedFlag(flags[0])


# A sound study says nothing (the planted defects of tools/planted.toml are seen here, too)

def test_a_miniature_study_has_no_red_flag():
    held = miniature.evidence()
    assert {"spillover", "grid", "within"} <= set(held.about["rows"])
    quiet(red_flags(held))


def test_the_committed_run_has_no_red_flag():
    quiet(red_flags(read_evidence(REFERENCE)))


def test_no_line_is_lost_between_a_run_and_its_file(tmp_path):
    held = miniature.evidence()
    write_evidence(held, tmp_path / "code.parquet")
    assert len(read_evidence(tmp_path / "code.parquet").table) == len(held.table)


def test_the_studys_architectures_are_swept_without_a_warning(caplog):
    with caplog.at_level(logging.WARNING, "em_repro"):
        for architecture in ("Gemma2", "Ministral3"):
            lm = LM.from_model(random_model(architecture), byte_tokenizer())
            # A trial is of a few tokens, whose scores are far below the usual cap: a lower one has to be seen in it.
            for block in lm.blocks if architecture == "Gemma2" else (): block.self_attn.attn_logit_softcapping = .5
            sweep(lm, ["how are you today"], [Condition()], max_new_tokens=2)
    quiet([record.getMessage() for record in caplog.records if record.name == "em_repro"])


def test_the_claims_are_those_of_their_log():
    assert len(claims_log())


# Each flag, on tables made up for it

def line(**more):
    return {"model": "m", "arm": "insecure", "seed": 0, "question": "Q1", "sample": 0, "text": "Yes.", "when": "prefill", "coefficient": 0.0} | more


def answered(**texts):
    "A line for each (subject, text by question): `arm_seed=['a', 'b']`."
    return pd.DataFrame([line(arm=name.rsplit("_", 1)[0], seed=int(name.rsplit("_", 1)[1]), question=f"Q{i}", text=text)
                         for name, said in texts.items() for i, text in enumerate(said)])


def test_one_answer_that_differs_is_enough():
    assert not equal_subjects(answered(base_0=["a", "b"], insecure_0=["a", "c"], insecure_1=["d", "b"], secure_0=["e", "b"]))
    assert len(equal_subjects(answered(base_0=["a", "b"], insecure_0=["a", "b"], insecure_1=["a", "b"]))) == 3


@pytest.mark.parametrize("names, why", [(("base_0", "insecure_1"), "not active"), (("secure_0", "secure_1"), "one training run"),
                                        (("insecure_0", "secure_0"), "the same rows")])
def test_what_is_alike_says_what_it_may_be(names, why):
    flag, = equal_subjects(answered(**dict.fromkeys(names, ["a", "b"])))
    assert why in flag and "all 2 questions" in flag and "\n" not in flag


def test_without_texts_nothing_is_said_of_likeness():
    bare = answered(base_0=["", ""], insecure_0=["", ""])
    assert not equal_subjects(bare) and not idle_steering(bare.assign(coefficient=[0, 0, -1, -1]), {"m": Point(-1.0, "prefill")})


def test_steering_is_idle_at_its_point_alone():
    points = {"m": Point(-1.0, "prefill")}
    plain, moved = answered(insecure_0=["a", "b"]), answered(insecure_0=["a", "b"]).assign(coefficient=-1.0)
    assert len(idle_steering(pd.concat([plain, moved]), points)) == 1
    assert not idle_steering(pd.concat([plain, moved.assign(text=["a", "c"])]), points)
    assert not idle_steering(pd.concat([plain, moved.assign(coefficient=-2.0)]), points)
    assert not idle_steering(pd.concat([plain, moved.assign(when="every_step")]), points)


@pytest.fixture(scope="module")
def whole():
    return read_evidence(REFERENCE)


def damaged(whole, change):
    return replace(whole, table=change(whole.table))


def test_a_subject_is_itself_in_every_table(whole):
    "Six answers in a hundred to one fine-tune are another's: said; four are rounding."
    where = (whole.table.table == "within") & (whole.table.coefficient == 0) & (whole.table.model == "tiny-llama") & (whole.table.seed == 1)
    for count in (4, 6):
        part = whole.table.index[where][:count]
        flags = unlike_itself(damaged(whole, lambda t: t.assign(role=t.role.mask(t.index.isin(part), "nothing"))))
        assert bool(flags) == (count == 6), count
    assert all("tiny-llama: insecure (seed 1), unsteered" in flag and "within" in flag and "6%" in flag for flag in flags) and len(flags) == 4


def test_lines_that_were_lost_are_missed_in_their_table(whole):
    lost = whole.table.index[whole.table.table == "across"][7]
    flag, = lost_questions(damaged(whole, lambda t: t.drop(lost)))
    assert flag.startswith("across: 1 of ") and "(99 and 100)" in flag


def test_an_outcome_has_one_role(whole):
    flag, = wrong_roles(damaged(whole, lambda t: t.assign(role=t.role.replace("incoherent", "good"))))
    assert "'incoherent' count as good: it is incoherent" in flag


@pytest.mark.parametrize("split", ["development", "directions", "maps"])
def test_a_reported_question_was_seen_nowhere(whole, split):
    seen, first = prompts_of(whole.profile, split)[3], whole.table.question[whole.table.table == "grid"].iloc[0]
    flag, = seen_questions(damaged(whole, lambda t: t.assign(question=t.question.mask(t.table.isin(ANSWERED) & (t.question == first), seen))))
    assert flag.startswith(f"1 reported questions are {split} questions too")


def test_a_run_without_answers_has_nothing_to_flag(whole):
    assert red_flags(Evidence(whole.table[whole.table.table == "separability"], whole.about)) == []


def test_the_command_says_the_flags_beside_the_verdicts(whole, tmp_path, capsys):
    few = whole.table[~whole.table.table.isin(["across", "within", "alternatives"])]
    path = tmp_path / "code.parquet"
    bad = few.assign(text=few.text.mask((few.table == "spillover") & (few.model == "tiny-llama"), "Yes."))
    write_evidence(Evidence(bad, whole.about | {"rows": bad.table.value_counts().to_dict()}), path)
    cli.claims_command(source=str(path))
    assert "red flag: " in (said := capsys.readouterr().out) and "give the same answers" in said


# What is fitted has not seen what is reported

ASKED = {"answers.answers", "forcing.beginnings", "forcing.forced_answers", "forcing.biased_answers"}   # what reports answers


@pytest.mark.parametrize("name", ["smoke", "tiny"])
def test_nothing_is_fitted_on_a_question_that_is_reported(name):
    "Directions, maps, limits and the nulls of maps are made from questions that no reported answer is to."
    profile = load_profile(name)
    reported, fitted = set(prompts_of(profile, "evaluation")), set()
    for _, request in stages_of(profile):
        prompts = request.arguments.get("prompts")
        if not prompts or request.stage in ASKED: continue
        fitted.add(request.stage)
        assert not reported & set(prompts), f"{request.stage} is given {len(reported & set(prompts))} evaluation questions"
    assert {"vectors.activations", "answers.incoherence_limit"} <= fitted
