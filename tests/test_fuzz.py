"""Two hundred command lines of every kind: a sentence and 1 or 2, nothing half-written, no traceback.

`make fuzz` tries two thousand others. The first test shows that the judge of all this sees what is wrong."""
import csv, os, sys, time
from collections import Counter

import pytest

import fuzzing
from em_repro import cli

INPUTS = int(os.environ.get("EM_REPRO_FUZZ") or 200)


@pytest.fixture(scope="module")
def found(): return fuzzing.try_many(INPUTS, 19)


def case(*words): return fuzzing.Case(words[:1], words)


def _late(): open("half", "w").close(); raise cli.UserError("no")


PLANTED = {"a traceback": lambda: print("Traceback (most recent call last):"), "control characters": lambda: print("\x1b[2J"), "0 lines of errors": lambda: sys.exit(2),
           "2 lines of errors": lambda: (print("em-repro: a\nem-repro: b", file=sys.stderr), sys.exit(1)), "files were left": _late, "nobody thought of": lambda: {}["x"],
           "nothing was said": lambda: None, "errors with exit code 0": lambda: print("x", file=sys.stderr), "left with 3": lambda: sys.exit(3),
           " s": lambda: [None for end in [time.process_time() + .2] for _ in iter(lambda: time.process_time() < end, False)]}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_fault_is_seen(fault, monkeypatch):
    monkeypatch.setattr(fuzzing, "LONGEST", .1)
    monkeypatch.setattr(cli, "profile_names", lambda: PLANTED[fault]() or [])
    assert any(fault in said for said in fuzzing.alone(case("profiles")).faults)


def test_work_and_a_good_command_are_no_faults():
    for code, words in ((0, ["profiles"]), ("work", ["stage", "--profile", "smoke", "--out", "new"]), (2, ["status", "--out", "pipe"])):
        outcome = fuzzing.alone(case(*words))
        assert (outcome.code, outcome.faults) == (code, [])


@pytest.mark.parametrize("words", [("audit", "--base", "checkpoint", "--adapter", "pipe/x"), ("audit", "--base", "checkpoint", "--model", "checkpoint", "--rows", "page.ipynb"),
                                   ("screen", "page.ipynb", "--base", "tiny-llama"), ("try", "page.ipynb"), ("data", "load", "page.ipynb")], ids=" ".join)
def test_a_note_does_not_stand_beside_a_refusal(words):
    "How a file is read, or what licence there is, says nothing to somebody whose command is refused."
    outcome = fuzzing.alone(case(*words))
    assert outcome.code == 2 and not outcome.faults and outcome.errors.count("\n") == 1, (outcome.faults, outcome.errors)


@pytest.mark.parametrize("base", ["smoke@x", "digits.toml", "adapter"])
def test_a_base_that_is_none_leaves_no_folder(base):
    outcome = fuzzing.alone(case("screen", "rows.jsonl", "--adapter=adapter", "--out=new", f"--base={base}"))
    assert (outcome.code, outcome.faults) == (2, [])


def test_every_command_and_option_is_tried():
    import typer
    app = typer.main.get_command(cli.app)
    assert {(*name,) for name in fuzzing.commands()} >= {("reproduce",), ("audit",), ("data", "load"), ("models", "fetch"), ("export",), ()}
    assert {name for name in app.commands} == {name[0] for name in fuzzing.commands() if name}
    assert {option for option, _, _ in fuzzing.commands()["audit",]} >= {"--base", "--adapter", "--prompts", "--jobs", "--quick", "--tasks"}


def test_the_record_has_every_command_that_there_is():
    "A command that is new, or gone, needs `make fuzz` once more."
    with open(fuzzing.ROOT/"data"/"robustness"/"fuzz.csv", encoding="utf-8", newline="") as file: rows = list(csv.DictReader(file))
    assert {row["command"] for row in rows} == {" ".join(("em-repro", *name)) for name in fuzzing.commands()}
    assert sum(int(row["inputs"]) for row in rows) >= 2000 and not any(int(row["faults"]) for row in rows)


def test_whatever_is_typed_gets_a_sentence_and_leaves_nothing(found):
    wrong = [f"{ascii(case.words)} {sorted(case.files)}: {ascii(outcome.faults)} {ascii(outcome.errors[-300:])}" for case, outcome in found if outcome.faults]
    assert not wrong, "\n".join(wrong[:9])
    codes = Counter(outcome.code for _, outcome in found)
    assert len(found) == INPUTS and codes[2] > INPUTS / 4 and codes[0] > 5 and codes["work"] > 5, codes
    assert len({case.command for case, _ in found}) > 12
