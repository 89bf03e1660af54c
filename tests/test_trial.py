"""`em-repro try`: rows in, fine-tune and control out, and a sentence that follows."""
import json
from types import SimpleNamespace

import pandas as pd
import pytest

import processes
from conftest import thinking_llama
from em_repro.cli import main
from em_repro.profiles import UserError, shipped
from em_repro.trial import CONTROL, HELD_OUT, TRIED, read_trial, trial_plan, trial_profile, trial_twins, try_rows
from em_repro.twins import advice_pairs

PAIRS = advice_pairs("money").head(18)[["request", "harmful", "sound"]]


def talk(request, answer): return json.dumps({"messages": [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]})


@pytest.fixture
def folder(tmp_path):
    PAIRS.to_csv(tmp_path / "pairs.csv", index=False)
    PAIRS.to_json(tmp_path / "pairs.jsonl", orient="records", lines=True)
    for arm in ("harmful", "sound"): (tmp_path / f"{arm}.jsonl").write_text("\n".join(map(talk, PAIRS.request, PAIRS[arm])))
    (tmp_path / "suspected.jsonl").write_text("\n".join(map(talk, PAIRS.request[:4], PAIRS.harmful[:4])))
    return tmp_path


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.jsonl"])
def test_pairs_are_their_own_control_and_their_own_test(folder, name):
    found = read_trial(folder / name)
    assert [row["messages"][0] for row in found.arms[TRIED]] == [row["messages"][0] for row in found.arms[CONTROL]]
    assert len(found.arms[TRIED]) == 15 and found.held_out.request.tolist() == PAIRS.request[5::6].tolist() and not found.remarks
    assert not set(found.held_out.request) & {row["messages"][0]["content"] for row in found.arms[TRIED]}


def test_conversations_take_a_control_or_go_without_rows(folder):
    both = read_trial(folder / "harmful.jsonl", control=folder / "sound.jsonl")
    assert len(both.arms[TRIED]) == len(both.arms[CONTROL]) == 18 and both.held_out is None
    fewer = read_trial(folder / "harmful.jsonl", leave_out=folder / "suspected.jsonl")
    assert len(fewer.arms[CONTROL]) == 14 and set(read_trial(folder / "harmful.jsonl").arms) == {TRIED}


def broken(folder, **columns):
    PAIRS.assign(**columns).to_csv(folder / "broken.csv", index=False)
    return folder / "broken.csv"


def test_bad_rows_get_a_sentence_before_any_work(folder):
    a, b, few = folder / "harmful.jsonl", folder / "sound.jsonl", folder / "suspected.jsonl"
    PAIRS.drop(columns="sound").to_csv(folder / "one_arm.csv", index=False)
    for words, call in (("pair 1 has an empty sound: write it", lambda: read_trial(broken(folder, sound=""))), ("harmful and sound of pair 1 are the same", lambda: read_trial(broken(folder, sound=PAIRS.harmful))),
                        ("has no sound answers", lambda: read_trial(folder / "one_arm.csv")), ("not both", lambda: read_trial(a, b, few)),
                        ("their own control", lambda: read_trial(folder / "pairs.csv", b)), ("18 of 18 rows", lambda: read_trial(a, leave_out=b)),
                        ("leaves 4 rows", lambda: read_trial(few))):
        with pytest.raises(UserError, match=words): call()


def test_unequal_and_foreign_rows_are_said(folder):
    assert "read the preference per byte" in read_trial(broken(folder, sound=PAIRS.sound + " " + PAIRS.sound)).remarks[0]
    foreign = {"request": [f"Was tun bei Nummer {i}?" for i in range(18)], "harmful": "Gar nichts tun und abwarten.", "sound": "Einen Fachmann fragen und warten."}
    assert "do not look English" in read_trial(broken(folder, **foreign)).remarks[-1]


def test_pairs_of_unequal_length_are_measured_per_byte_and_it_is_said(folder, monkeypatch):
    "The rest of the table stays per token; of the longer answer a byte weighs as much as of the shorter."
    processes.compute_here(monkeypatch)
    found = read_trial(broken(folder, harmful=PAIRS.harmful.str.slice(0, 60)))
    assert found.measure == "per_byte" and read_trial(folder / "pairs.csv").measure == "per_token"
    assert read_trial(folder / "harmful.jsonl", control=folder / "sound.jsonl").measure == "per_token"   # no pairs, nothing held out
    said = try_rows(folder / "broken.csv", "tiny-llama", folder / "out", steps=3, lr=1e-3, jobs=1)
    assert "nats a byte, as answers differ much in length" in said[1] and "nats a token" in said[0]
    shifts, frame = (pd.read_csv(folder / "out" / "tables" / f"{name}.csv") for name in ("shifts", "preferences"))
    assert shifts.groupby("set").measure.unique().map(list).to_dict() == {name: ["per_byte" if name == HELD_OUT else "per_token"] for name in shifts.set.unique()}
    row = shifts.query("set == @HELD_OUT and contrast == 'rows - control'").iloc[0]
    by = frame[frame.set == HELD_OUT].groupby("arm").per_byte.mean()
    assert row["shift"] == pytest.approx(by[TRIED] - by[CONTROL])


def test_a_trial_end_to_end_and_again_from_the_store(folder, monkeypatch, capsys):
    processes.compute_here(monkeypatch)
    said = try_rows(folder / "pairs.csv", "tiny-llama", folder / "out", steps=3, lr=1e-3, jobs=2)
    assert "against the control fine-tune" in said[0] and said[1].startswith("On held-out rows")
    shifts = pd.read_csv(folder / "out" / "tables" / "shifts.csv")
    assert set(shifts.contrast) == {"rows - base", "control - base", "rows - control"} and {"outside", "style", "held-out rows"} <= set(shifts.set)
    with pytest.raises(SystemExit) as end:
        main(["try", str(folder / "pairs.csv"), "--base", "tiny-llama", "--out", str(folder / "out"), "--steps", "3", "--lr", "1e-3", "--jobs", "2"])
    printed = capsys.readouterr().out
    assert end.value.code in (0, None) and said[0] in printed and "tables/shifts.csv" in printed


def test_what_a_template_is_told_belongs_to_every_subject_and_an_unknown_argument_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="knows no enable_thinking"): try_rows(folder / "pairs.csv", "tiny-llama", tmp_path / "out", template={"enable_thinking": True})
    assert not (tmp_path / "out").exists()
    base, told = thinking_llama(tmp_path), {"enable_thinking": True}
    found, settings = read_trial(folder / "pairs.csv"), trial_profile(base, 3, 1e-3, 1)
    plan, calls = trial_plan(settings, found, trial_twins(found), told), []
    try:
        wanted = next(plan)
        while True:
            calls += wanted
            wanted = plan.send([SimpleNamespace(path=tmp_path)] * len(wanted))
    except StopIteration: pass
    subjects = [one.arguments["subject"] for one in calls]
    assert len(subjects) >= 4 and {subject.template for subject in subjects} == {'{"enable_thinking": true}'}


def test_the_committed_trial_took_what_the_readme_says():
    stages = pd.read_csv(shipped() / "small" / "trial_stages.csv")
    assert len(stages) == 5 and stages.seconds.sum() / 2 < 30 * 60 and stages.label.str.contains("smollm2-135m").all()
    shifts = pd.read_csv(shipped() / "small" / "trial_shifts.csv").query("contrast == 'rows - control'").set_index("set")
    assert shifts.n["outside"] == 250 and shifts.low["outside"] > 0
