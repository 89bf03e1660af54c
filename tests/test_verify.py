"""What `em-repro verify` sees: copies of the committed tiny run, each with one thing changed."""
import json, math, shutil
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from em_repro import cli, run
from em_repro import verify as module
from em_repro.folders import RunFolder
from em_repro.profiles import UserError, shipped
from em_repro.verify import (LOST, MOVED, SAME, WITHIN, Cells, Tolerance, Verification, compare_cells, environment_differences, file_damage, file_digests, number_in,
                             read_cells, shipped_references, tolerances, verify)
from test_folders import contents

TINY = shipped() / "reference" / "tiny"
CARD = json.loads((TINY / "provenance.json").read_text(encoding="utf-8"))
RATES = "tables/code/spillover.csv"
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def sealed(folder, **changes):
    "Write the card of a run as `conclude` does: with the digests of what is there."
    place = RunFolder(folder)
    card = CARD | {"files": file_digests(place)} | changes
    place.provenance.write_text(json.dumps(card), encoding="utf-8")
    return Path(folder)


@pytest.fixture
def copy(tmp_path):
    "A run of its own, the same as the reference."
    return sealed(shutil.copytree(TINY, tmp_path / "run", ignore=shutil.ignore_patterns("*.svg", "*.ipynb", "*.jsonl")))


def replaced(file, old, new, count=1):
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, count), encoding="utf-8")


# What must not pass

def refused(words, *arguments):
    with pytest.raises(UserError, match=words) as wrong: verify(*arguments)
    assert "\n" not in str(wrong.value)


def test_a_run_is_not_compared_with_itself(copy, tmp_path):
    (tmp_path / "link").symlink_to(copy)
    for other in (copy, tmp_path / "link", copy / "tables" / ".."): refused("with itself", copy, other)


def test_another_profile_is_refused(copy):
    refused("a run of profile tiny, and .*small of small: compare two runs of one profile", copy, shipped() / "reference" / "small")
    sealed(copy, profile="smoke")
    refused(r"no reference of profile smoke ships \(there are small, .*tiny.*\): give the folder of a run with --against", copy)


def test_an_older_layout_is_refused(copy):
    for file in (copy / "tables" / "code").iterdir(): file.rename(copy / "tables" / file.name)
    refused("a run of the old layout", copy)
    refused("a run of the old layout", TINY, copy)


def test_what_is_no_concluded_run_is_refused(copy, tmp_path):
    refused("no run in", tmp_path / "nowhere")
    refused("no run in", copy / "claims.json")
    for text in ("", "[]", "{}", '{"profile": 3}', "{" * 9000):
        (copy / "provenance.json").write_text(text)
        refused("no whole provenance.json", copy)
    (copy / "provenance.json").unlink()
    refused("no whole provenance.json", copy)


def test_a_run_whose_notebooks_failed_is_refused(copy):
    sealed(copy, failed=["03_steering"])
    refused("03_steering failed in", copy)


def test_a_run_still_going_is_refused(copy):
    with FileLock(RunFolder(copy).lock): refused("a process is reproducing into", copy)
    assert verify(copy).word == SAME


def test_a_reference_without_anything_is_refused(copy, tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "provenance.json").write_text(json.dumps(CARD))
    refused("neither tables nor verdicts", copy, tmp_path / "bare")


# What is planted is found, by its name and with its word

def in_table(old, new, table="spillover"):
    return lambda folder: replaced(folder / f"tables/code/{table}.csv", old, new)


def in_verdict(name, **changes):
    def change(folder):
        file = folder / f"claims/code/{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return change


def cut(folder, at):
    file = folder / RATES
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:at]))


FIRST = next(iter(read_cells(TINY / RATES).lines))
PLANTED = {     # what is done, to what, and the word that it gets
    "a rate moved": (in_table(f",{FIRST['rate']},", f",{float(FIRST['rate']) + .06:g},"), "code/spillover.csv", MOVED),
    "a rate is nearly the same": (in_table(f",{FIRST['rate']},", f",{float(FIRST['rate']) + .04:g},"), "code/spillover.csv", WITHIN),
    "a rate is missing": (in_table(f",{FIRST['rate']},", ",,"), "code/spillover.csv", MOVED),
    "a rate is infinite": (in_table(f",{FIRST['rate']},", ",inf,"), "code/spillover.csv", MOVED),
    "other questions": (in_table(",100\n", ",60\n"), "code/spillover.csv", MOVED),
    "another model": (in_table("tiny-llama,", "tiny-mamba,"), "code/spillover.csv", MOVED),
    "a hypothesis changed its state": (in_table(",holds,", ",open,", "spillover-tests"), "code/spillover-tests.csv", MOVED),
    "a text for readers": (in_table("+66*", "+66", "steering-grid-shown"), "code/steering-grid-shown.csv", MOVED),
    "a table lost its last line": (lambda folder: cut(folder, -1), "code/spillover.csv", MOVED),
    "a column has another name": (in_table(",rate,", ",share,"), "code/spillover.csv", LOST),
    "a table is empty": (lambda folder: cut(folder, 0), "code/spillover.csv", LOST),
    "a table is gone": (lambda folder: (folder / RATES).unlink(), "code/spillover.csv", LOST),
    "another verdict": (in_verdict("C4", verdict="mixed"), "C4", MOVED),
    "another effect": (in_verdict("C3", effect=.2), "C3", MOVED),
    "nearly the same effect": (in_verdict("C3", effect=.67), "C3", WITHIN),
    "a p across 0.05": (in_verdict("C1", p=.09), "C1", MOVED),
    "another p on the same side": (in_verdict("C1", p=.03), "C1", WITHIN),
    "a hypothesis less": (in_verdict("C6", detail="of 12: 1 holds, 6 refuted, 5 open"), "C6", MOVED),
    "another point": (in_verdict("C3", protocol="coefficient -2 at prefill"), "C3", MOVED),
    "a damaged verdict": (lambda folder: (folder / "claims/code/C2.json").write_text("{"), "C2", LOST),
    "a verdict is gone": (lambda folder: (folder / "claims/code/C2.json").unlink(), "C2", LOST)}


@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_is_found_alone(copy, what):
    "With digests written afterwards, so that nothing but the comparison can see it."
    change, name, word = PLANTED[what]
    change(copy)
    found = verify(sealed(copy))
    assert {part.what: part.word for part in (*found.claims, *found.tables) if part.word != SAME} == {name: word}
    assert found.word == word and not found.files and name in str(found)
    assert found.exit_code == {WITHIN: 0, MOVED: 1, LOST: 2}[word]


def test_the_gravest_word_is_the_runs(copy):
    for what in ("nearly the same effect", "a rate moved"): PLANTED[what][0](copy)
    assert verify(sealed(copy)).word == MOVED
    PLANTED["a verdict is gone"][0](copy)
    assert verify(sealed(copy)).word == LOST


def test_how_far_it_moved_is_said(copy):
    in_verdict("C3", effect=.2)(copy)
    effect = json.loads((TINY / "claims/code/C3.json").read_text(encoding="utf-8"))["effect"]
    assert f"C3   moved: effect 0.2, in the reference {effect:.9g} (allowed: 0.05)\n" in str(verify(copy))


def test_another_order_of_lines_moves_nothing(copy):
    for file in (copy / "tables" / "code").glob("*.csv"):
        head, *lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        if not any('"' in line for line in lines): file.write_text(head + "".join(reversed(lines)), encoding="utf-8")
    assert verify(sealed(copy)).word == SAME


def test_a_copy_is_the_same_and_comparing_changes_nothing(copy):
    before = contents(copy), contents(TINY)
    found = verify(copy)
    assert found.word == SAME and found.exit_code == 0 and found.sealed
    assert len(found.claims) == len(list((TINY / "claims/code").iterdir())) and len(found.tables) == len(list((TINY / "tables/code").iterdir()))
    assert (contents(copy), contents(TINY)) == before


def test_two_runs_without_digests_are_compared_and_it_is_said(copy, tmp_path):
    bare = tmp_path / "older"
    shutil.copytree(TINY, bare)
    for run in (copy, bare): (run / "provenance.json").write_text(json.dumps({k: v for k, v in CARD.items() if k not in ("files", "evidence")}))
    found = verify(copy, bare)
    assert found.word == SAME and not found.sealed and "no digests were recorded" in str(found)


# Damage

@quick
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_seen(copy, data):
    card = json.loads((copy / "provenance.json").read_text())
    name = data.draw(st.sampled_from(sorted(card["files"] | card["evidence"])))
    whole = (copy / name).read_bytes()
    if not whole: return
    at, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    (copy / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1:])
    try: assert [part.what for part in file_damage(RunFolder(copy), card, "here")] == [name]
    finally: (copy / name).write_bytes(whole)


def test_damage_is_named_and_leaves_with_2(copy):
    replaced(copy / RATES, "0.", "0.0")
    found = verify(copy)
    assert [part.what for part in found.files] == [RATES] and found.exit_code == 2
    assert verify(TINY, copy).exit_code == 2 and "is not what was written in the reference" in str(verify(TINY, copy))


def test_a_copy_without_answers_figures_and_notebooks_is_whole(copy):
    "As it travels with the package; a lost table is another matter."
    sealed(copy, files=file_digests(RunFolder(TINY)))
    shutil.rmtree(copy / "evidence")
    assert not verify(copy).files
    (copy / RATES).unlink()
    assert [part.what for part in verify(copy).files] == [RATES]


@pytest.mark.parametrize("name", ["/etc/hostname", "../other.csv", "tables/../../x.csv", "\0", "x" * 400])
def test_a_card_leads_nowhere_else(copy, name):
    sealed(copy, files={name: "0" * 64})
    assert not verify(copy).files


# Tables of any shape

cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), max_size=6)
numbers = st.floats(-1e6, 1e6).map("{:.9g}".format)


@st.composite
def tables(draw):
    header = draw(st.lists(st.sampled_from(["model", "rate", "n", "p", "norm", "state", "nobody knows"]), min_size=1, unique=True))
    kind = {"model": cells, "state": cells}
    lines = draw(st.lists(st.fixed_dictionaries({name: kind.get(name, numbers) for name in header}), max_size=5))
    return Cells(tuple(header), tuple(lines))


@quick
@given(tables(), st.randoms())
def test_a_table_is_the_same_as_itself_in_any_order_of_different_models(table, random):
    assert compare_cells("t", table, table).word == SAME
    if "model" in table.header and len({line["model"] for line in table.lines}) == len(table.lines):
        turned = random.sample(table.lines, len(table.lines))
        assert compare_cells("t", Cells(table.header, tuple(turned)), table).word == SAME


@quick
@given(st.sampled_from(sorted((TINY / "tables/code").glob("*.csv"))), st.data())
def test_no_beginning_of_a_table_passes_for_it(tmp_path, file, data):
    whole = file.read_bytes()
    (tmp_path / file.name).write_bytes(whole[:data.draw(st.integers(0, len(whole) - 1))])
    try: part = read_cells(tmp_path / file.name)
    except ValueError: return
    assert compare_cells(file.name, part, read_cells(file)).word in (MOVED, LOST)


@quick
@given(st.binary(max_size=200) | st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_bytes_are_a_table_or_a_reason(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    try: table = read_cells(tmp_path / "t.csv")
    except ValueError as why: assert str(why) and "\n" not in str(why)
    else: assert all(tuple(line) == table.header for line in table.lines)


# Tolerances

@quick
@given(st.sampled_from(sorted(tolerances().kinds)), numbers, numbers)
def test_a_distance_is_none_from_itself_and_the_same_both_ways(kind, a, b):
    tolerance = tolerances().kinds[kind]
    assert tolerance.apart(a, a) == 0 and tolerance.apart(a, b) == tolerance.apart(b, a) >= 0


@quick
@given(st.floats(-1, 1), st.floats(0, .2))
def test_a_share_is_within_tolerance_up_to_half_the_margin(a, distance):
    share = tolerances().of("spillover", "rate")
    if abs(distance - .05) < 1e-6: return
    assert (share.apart(f"{a:.9g}", f"{a + distance:.9g}") <= 1) == (distance < .05)


def test_two_runs_within_tolerance_are_within_the_declared_margin_of_each_other():
    from em_repro.claims import claims
    assert {2 * tolerances().of("", "effect").absolute} == {claim.margin for claim in claims().values()}


@pytest.mark.parametrize("run", sorted(shipped_references()))
def test_every_column_of_a_committed_table_has_a_tolerance_of_its_own(run):
    unnamed = {(file.stem, column) for file in (shipped() / "reference" / run / "tables").rglob("*.csv")
               for column in read_cells(file).header if tolerances().of(file.stem, column).kind == "other"}
    assert not unnamed


def test_what_is_compared_as_a_number_is_one():
    "No measured column holds words, which would move with every run, and no word is taken for a number."
    for file in (TINY / "tables" / "code").glob("*.csv"):
        table = read_cells(file)
        for column in table.header:
            if tolerances().of(file.stem, column).how != "number": continue
            for line in table.lines: assert line[column] == "" or number_in(line[column]) is not None, (file.name, column, line[column])


def test_nothing_counts_as_within_a_tolerance_of_nothing():
    exact = Tolerance(kind="k", what="w")
    assert exact.apart("1", "1.0") == 0 and exact.apart("1", "1.0000001") == math.inf


# Environments

GRADED = {("versions", "torch"): "may move digits", ("versions", "em_repro"): "will move results", ("machine", "python"): "harmless",
          ("machine", "instructions"): "may move digits", ("machine", "accelerator"): "may move digits", ("machine", "processes"): "harmless",
          ("machine", "threads"): "may move digits", ("settings", "share_cores"): "may move digits",
          ("settings", "threads"): "may move digits", ("settings", "description"): "harmless", ("settings", "seeds"): "will move results",
          ("", "claims_sha256"): "will move results", ("code", "data"): "may move digits"}
MADE = CARD | {"machine": {"python": "3.12.3", "system": "Linux", "architecture": "x86_64", "accelerator": "none", "processes": "2", "instructions": "AVX2"},
               "code": {"package": "a", "data": "b"}}


@pytest.mark.parametrize("part, name", GRADED)
def test_one_difference_is_graded_and_alone(part, name):
    value = {"threads": 4, "share_cores": True, "seeds": [0], "torch": "2.12.0"}.get(name, "other")
    other = MADE | ({part: MADE[part] | {name: value}} if part else {name: value})
    found = [one for one in environment_differences(other, MADE) if one.word != SAME]
    assert [one.word for one in found] == [GRADED[part, name]], found


def test_another_commit_is_harmless_where_the_code_is_the_same():
    def grade(ours, theirs): return next(one.word for one in environment_differences(ours, theirs) if one.what == "code")
    assert grade(MADE | {"commit": "other"}, MADE) == "harmless"
    bare = {name: value for name, value in MADE.items() if name != "code"}
    assert grade(bare, MADE) == SAME and grade(bare | {"commit": "other"}, MADE) == "may move digits"
    assert grade(bare | {"commit": "a+"}, bare | {"commit": "a+"}) == "may move digits"


def test_settings_of_an_older_release_are_read_by_their_names_of_today():
    old = {("families" if name == "models" else name): value for name, value in MADE["settings"].items() if name != "studies"}
    found = environment_differences(MADE | {"settings": old}, MADE)
    assert {one.what: one.word for one in found}["settings"] == SAME


trees = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                     lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6)


@quick
@given(st.dictionaries(st.sampled_from([*MADE, "files"]), trees, max_size=4))
def test_a_card_of_any_shape_is_compared(copy, changes):
    card = MADE | changes
    assert all(one.word in module.GRADES for one in environment_differences(card, MADE))
    assert all(isinstance(str(one), str) for one in file_damage(RunFolder(copy), card, "here"))


# The command

def test_the_command_says_one_word_and_leaves_with_its_code(copy, capsys):
    def left(*words):
        with pytest.raises(SystemExit) as end: cli.main(["verify", *map(str, words)])
        return end.value.code or 0, capsys.readouterr()
    code, said = left(copy)
    assert code == 0 and said.out.endswith("result: same\n") and not said.err
    in_verdict("C4", verdict="mixed")(copy)
    code, said = left(sealed(copy))
    assert code == 1 and said.out.endswith("result: moved\n") and said.err == f"em-repro: {copy}: moved, as listed above\n"
    (copy / RATES).unlink()
    assert left(copy)[0] == 2 and left(copy, "--against", copy)[0] == 2


def test_it_is_the_runners_too():
    assert run.verify is verify and Verification.__doc__
