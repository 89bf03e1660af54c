"""The store: computed once, recomputed when and only when it must be, never half-written, whoever else is at work."""
import json, logging, os, random, shutil, subprocess, sys, textwrap, threading, time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from em_repro import store as store_module
from em_repro.profiles import UserError
from em_repro.store import Call, Entry, RunError, Store, call, code_hash, echo, label, places_of, progress
from em_repro.subjects import Subject

quick = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
ROOT = Path(store_module.__file__).resolve().parent.parent

STAGES = '''
"""Stages for the tests."""
import os, time
import numpy as np
import pandas as pd
from em_repro.store import progress, stage


def kinds(n):
    table = pd.DataFrame({"i": range(n), "word": [str(i) for i in range(n)]})
    return {"table": table, "arrays": {"x": np.arange(n, dtype=np.float32)}, "plain": {"n": n}}


def slow(seconds, note):
    with open(note, "a") as file: file.write("x")
    time.sleep(seconds)
    return {"seconds": seconds}


def dies(folder, scratch, flag):
    (folder / "half.txt").write_text("half")
    (scratch / "checkpoint").write_text("kept")
    if not os.path.exists(flag):
        open(flag, "w").close()
        os._exit(9)
    return {"resumed": (scratch / "checkpoint").read_text()}


def fails(how):
    raise ValueError(how)


def sum_of(parts, extra=0):
    return {"total": sum(part["plain"]["n"] for part in parts) + extra}


def own_file(folder):
    (folder / "weights").mkdir()
    (folder / "weights" / "a.bin").write_bytes(bytes(range(200)))


def _ten(i, note): return {"memory": 10}


@stage(_ten)
def heavy(i, note):
    begin = time.monotonic(); time.sleep(.15)
    with open(note, "a") as file: file.write(f"{begin} {time.monotonic()}\\n")
    return {"i": i}


def _thrice(before): return {"memory": 10 * before.request.arguments["i"]}


@stage(_thrice)
def after_heavy(before): return {"i": before["i"]}


def killed(): os.kill(os.getpid(), 9)


def reports():
    progress(1, 2, "half")
    return {"done": True}
'''


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    "A module of stages that other processes can import too."
    folder = tmp_path_factory.mktemp("modules")
    (folder / "stages_for_tests.py").write_text(STAGES)
    sys.path.insert(0, str(folder))
    import stages_for_tests
    yield stages_for_tests
    sys.path.remove(str(folder))


@pytest.fixture
def store(tmp_path): return Store(tmp_path / "store")


def again(store): return Store(store.root)


def conversation():
    first, second = yield [call(echo, text="one"), call(echo, text="two")]
    third, = yield [call(echo, text="three", before=first)]
    fourth, = yield [call(echo, text="four", before=third)]
    return fourth["said"]["text"], second["said"]["text"]


def by_hand(store, plan):
    "Drive a plan in this process."
    try:
        calls = next(plan)
        while True: calls = plan.send([store.get(c) for c in calls])
    except StopIteration as end: return end.value


def computed(store): return store.computed().key.tolist()


# Once

def test_a_second_run_computes_nothing(store):
    value = by_hand(store, conversation())
    assert value == ("one three four", "two") and len(computed(store)) == 4
    before = sorted((str(p), p.stat().st_mtime_ns) for p in store.root.rglob("*") if p.is_file())
    assert by_hand(again(store), conversation()) == value
    assert again(store).run(conversation(), jobs=1) == value
    assert before == sorted((str(p), p.stat().st_mtime_ns) for p in store.root.rglob("*") if p.is_file())


@pytest.mark.parametrize("text, before", [("one", None), ("two", None), ("three", "one")])
def test_a_deleted_entry_is_recomputed_and_nothing_else(store, text, before):
    by_hand(store, conversation())
    entry = store.get(call(echo, text=text, **({"before": store.get(call(echo, text=before))} if before else {})))
    shutil.rmtree(entry.path)
    fresh = again(store)
    assert by_hand(fresh, conversation()) == ("one three four", "two")
    assert computed(fresh)[4:] == [entry.path.name]


def test_a_changed_input_recomputes_what_depends_on_it(store, stages):
    parts = [store.get(call(stages.kinds, n=n)) for n in (2, 3)]
    assert store.get(call(stages.sum_of, parts=parts))["total"] == 5
    other = [parts[0], store.get(call(stages.kinds, n=4))]
    assert store.get(call(stages.sum_of, parts=other))["total"] == 6
    assert store.get(call(stages.sum_of, parts=parts, extra=1))["total"] == 6
    assert len(computed(store)) == 6


def test_the_key_follows_the_inputs_values_not_their_history(store, stages):
    "Two calls that came out the same are the same input."
    a, b = store.get(call(echo, text="x x")), store.get(call(echo, text="x", times=2))
    assert a.path != b.path and a.digest == b.digest
    assert store.key(call(echo, text="y", before=a)) == store.key(call(echo, text="y", before=b))


@quick
@given(st.dictionaries(st.text(max_size=3), st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                                                         lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)), max_size=3))
def test_the_key_does_not_depend_on_the_order_of_a_dict(tmp_path, value):
    store = Store(tmp_path / "store")
    turned = dict(reversed(value.items()))
    assert store.key(Call(echo, {"text": value})) == store.key(Call(echo, {"text": turned}))
    assert store.key(Call(echo, {"text": [value]})) != store.key(Call(echo, {"text": value}))


@pytest.mark.parametrize("value", [np.float32(1), np.arange(3), {1, 2}, Path("x"), object()])
def test_an_argument_must_be_plain(store, value):
    with pytest.raises(TypeError, match="must be plain"): store.key(call(echo, text=value))


def test_a_stage_must_be_found_by_other_processes(store):
    def nested(text): return {}
    with pytest.raises(UserError, match="inside another function"): call(nested, text="x")
    with pytest.raises(UserError, match="inside another function"): call(lambda text: {}, text="x")


# Damage

@pytest.mark.parametrize("harm", ["truncate", "flip", "delete", "add"])
@pytest.mark.parametrize("name", ["table.parquet", "arrays.safetensors", "plain.json", "card.json"])
def test_a_damaged_entry_is_set_aside_and_computed_anew(store, stages, name, harm, caplog):
    entry = store.get(call(stages.kinds, n=5))
    dependent = store.get(call(stages.sum_of, parts=[entry]))
    file = entry.path / name
    data = file.read_bytes()
    if harm == "truncate": file.write_bytes(data[:len(data) // 2])
    elif harm == "flip": file.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    elif harm == "delete": file.unlink()
    elif name != "card.json": (entry.path / f"extra-{name}").write_bytes(b"extra")
    else: file.write_text(json.dumps({**entry.card, "digest": "0" * 64}))
    fresh = again(store)
    with caplog.at_level(logging.WARNING, "em_repro"): repaired = fresh.get(call(stages.kinds, n=5))
    assert "is damaged" in caplog.text and "set aside" in caplog.text
    assert repaired.digest == entry.digest and repaired["plain"] == {"n": 5} and repaired["table"].i.tolist() == list(range(5))
    assert len(list((store.root / ".damaged").iterdir())) == 1
    assert fresh.get(call(stages.sum_of, parts=[repaired])).path == dependent.path
    assert len(computed(fresh)) == 3


def test_swapped_entries_are_not_used(store, caplog):
    "Each of two whole entries in the other's place: both are set aside and computed anew."
    one, two = (store.get(call(echo, text=text)) for text in ("one", "two"))
    one.path.rename(store.root / "between"); two.path.rename(one.path); (store.root / "between").rename(two.path)
    fresh = again(store)
    with caplog.at_level(logging.WARNING, "em_repro"):
        assert [fresh.get(call(echo, text=text))["said"]["text"] for text in ("one", "two")] == ["one", "two"]
    assert caplog.text.count("it is the entry of another key") == 2 and len(list((store.root / ".damaged").iterdir())) == 2


def test_a_card_of_another_entry_is_not_used(store):
    "Even where both hold the same values."
    one, two = store.get(call(echo, text="x x")), store.get(call(echo, text="x", times=2))
    (one.path / "card.json").write_bytes((two.path / "card.json").read_bytes())
    assert again(store).get(call(echo, text="x x")).card["key"] == one.path.name and len(computed(store)) == 3


def test_no_flipped_bit_of_a_card_is_used(store):
    "Every bit of every tenth byte: the card says what it said, or the entry is computed anew."
    request = call(echo, text="x")
    entry = store.get(request)
    whole, used = (entry.path / "card.json").read_bytes(), 0
    for at in range(0, len(whole), 10):
        for bit in range(8):
            (entry.path / "card.json").write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1:])
            found = store.find(request, entry.path.name)
            if found is not None: used += 1; assert found.card == entry.card
            else: shutil.move(next((store.root / ".damaged").iterdir()), entry.path)
            assert found is None or entry.path.is_dir()
    (entry.path / "card.json").write_bytes(whole)
    assert store.find(request, entry.path.name).card == entry.card and used < 20


def old(entry):
    "The card as it was written before it was sealed."
    card = {name: value for name, value in entry.card.items() if name != "seal"}
    (entry.path / "card.json").write_text(json.dumps(card, indent=1))


def test_an_entry_of_an_earlier_release_is_used_where_its_key_and_values_are_right(store):
    one, two = (store.get(call(echo, text=text)) for text in ("one", "two"))
    old(one); old(two)
    fresh = again(store)
    assert fresh.get(call(echo, text="one")).digest == one.digest and fresh.get(call(echo, text="two")).digest == two.digest
    assert len(computed(fresh)) == 2
    one.path.rename(store.root / "between"); two.path.rename(one.path); (store.root / "between").rename(two.path)
    fresh = again(store)
    assert fresh.get(call(echo, text="one"))["said"]["text"] == "one" and len(computed(fresh)) == 3


@pytest.mark.parametrize("text", ["[]", "null", "3", '"x"', "{}", '{"digest": 3, "key": 4}', "", "\x00\xff", "[" * 100_000])
def test_a_card_of_any_shape_is_recomputed(store, text):
    entry = store.get(call(echo, text="x"))
    (entry.path / "card.json").write_text(text, encoding="latin-1")
    assert again(store).get(call(echo, text="x"))["said"] == {"text": "x"} and len(computed(store)) == 2


def test_what_stands_in_an_entrys_place_is_set_aside(store, tmp_path):
    "A file, a link to nowhere, a link to another entry, an empty folder."
    entry, other = store.get(call(echo, text="x")), store.get(call(echo, text="y"))
    def put(how):
        shutil.rmtree(entry.path)
        if how == "file": entry.path.write_text("x")
        elif how == "nowhere": entry.path.symlink_to(tmp_path / "nowhere")
        elif how == "other": entry.path.symlink_to(other.path)
        else: entry.path.mkdir()
    for how in ("file", "nowhere", "other", "empty"):
        put(how)
        assert again(store).get(call(echo, text="x"))["said"] == {"text": "x"}, how
        assert entry.path.is_dir() and not entry.path.is_symlink()
    assert again(store).get(call(echo, text="y")).digest == other.digest and len(computed(store)) == 6


def test_an_entry_that_cannot_be_moved_is_a_sentence(store, monkeypatch):
    "Whether a plan asks for it or a process that computes."
    entry = store.get(call(echo, text="x"))
    (entry.path / "said.json").write_text("{}")
    def refuse(self, target): raise PermissionError(13, "Permission denied", str(self))
    monkeypatch.setattr(Path, "rename", refuse)
    for ask in (lambda s: s.get(call(echo, text="x")), lambda s: s.find(call(echo, text="x"), entry.path.name)):
        with pytest.raises(RunError, match="cannot be used .Permission denied.: move away what stands there"): ask(again(store))


@pytest.mark.parametrize("place", ["store.echo", ".tmp", ".locks", ".scratch", ".progress", ".damaged", "computed.jsonl"])
def test_what_stands_in_the_stores_way_is_a_sentence(store, place):
    "A file where a folder is expected, a folder where a file is; nothing is computed and lost."
    if place == "computed.jsonl": (store.root / place).mkdir()
    else:
        if (store.root / place).exists(): (store.root / place).rmdir()
        (store.root / place).write_text("x")
    def ask():
        fresh = again(store)
        if place == ".damaged":
            entry = fresh.get(call(echo, text="one")); (entry.path / "said.json").write_text("{}"); fresh = again(store)
        return fresh.get(call(echo, text="one"))
    with pytest.raises((RunError, UserError), match=r"(?s)" + place.replace(".", r"\.") + ".*(run again|choose another)") as caught: ask()
    assert "\n" not in str(caught.value)


def test_of_two_files_the_one_that_stands_in_the_way_is_named(tmp_path):
    "A locked folder that cannot be moved away is named, not the place where it was to go; what stands there is."
    (tmp_path / "locked").mkdir()
    def refused(place):
        with pytest.raises(RunError) as caught, store_module.in_order(tmp_path): raise PermissionError(13, "Permission denied", str(tmp_path / "locked"), None, str(place))
        return str(caught.value)
    assert refused(tmp_path / "gone").startswith(f"{tmp_path / 'locked'} cannot be used (Permission denied): move away")
    (tmp_path / "taken").mkdir()
    assert refused(tmp_path / "taken").startswith(f"{tmp_path / 'taken'} cannot")


# Small versions of tools/kills.py and tools/damages.py

@pytest.fixture(scope="module")
def tools():
    sys.path.insert(0, str(ROOT / "tools"))
    import damages, kills
    yield damages, kills
    sys.path.remove(str(ROOT / "tools"))


def toy(stages):
    "A plan whose results are of every kind of file."
    parts = yield [call(stages.kinds, n=n) for n in (2, 3)]
    total, own = yield [call(stages.sum_of, parts=parts), call(stages.own_file)]
    return total["total"], (own.path / "weights" / "a.bin").read_bytes(), parts[1]["table"].word.tolist(), parts[1]["arrays"]["x"].tolist()


@pytest.mark.parametrize("number", [kind + 22 * way for kind in range(11) for way in range(8)])
def test_a_damaged_store_gives_the_same_results_or_a_sentence(tmp_path, stages, tools, number):
    "Every kind of file of a store, damaged as in tools/damages.py, each in the ways that it has."
    damages, _ = tools
    store = Store(tmp_path / "run" / "store")
    whole = by_hand(store, toy(stages))
    (store.root / ".progress" / "a.json").write_text("{}")
    kind, name, way = damages.damage(tmp_path / "run", number, random.Random(number))
    try: assert by_hand(Store(store.root), toy(stages)) == whole, (kind, name, way)
    except (RunError, UserError) as error: assert "\n" not in str(error) and ("run again" in str(error) or "choose another" in str(error))
    assert isinstance(store_module.log_rows(store.root / "computed.jsonl"), list)


@pytest.mark.parametrize("said,word", [
    ("em-repro: run/evidence cannot be used (Permission denied): choose another place", "a sentence"),
    ("a line\nem-repro: PermissionError: [Errno 13] Permission denied: 'run/evidence/code.parquet'", "RAW"),
    ("em-repro: 02_directions failed at cell `x`: IsADirectoryError: [Errno 21] Is a directory: 'run/a'", "RAW"),
    ("em-repro: the run cannot go on ([Errno 5] input or output)", "RAW"), ("em-repro: pyarrow.lib.ArrowException: no", "RAW"),
    ("em-repro: KeyError: 'x'\nem-repro: 1 notebook failed: repair it and run again", "a sentence"), ("killed", "SILENT"), ("Traceback (most recent", "TRACEBACK")])
def test_an_exceptions_own_words_are_no_sentence(tools, said, word):
    damages, _ = tools
    assert damages.judged(2, said, []) == word


def test_both_of_two_exchanged_files_may_differ_and_no_other(tools, tmp_path):
    "A run that stops with a sentence leaves them as they are."
    damages, _ = tools
    for name in ("store", "claims.json"): (tmp_path / name).write_text(name)
    others = [tmp_path / "store", tmp_path / "claims.json"]
    assert damages.swap(others[0], random.Random(0), others) == others[1] and others[0].read_text() == "claims.json"
    for lost, word in (["claims.json"], "a sentence"), (["claims.json", "tables/code/a.csv"], "DIFFERENT"):
        assert damages.judged(1, "em-repro: what to do", damages.apart_from(["store", "claims.json"], lost)) == word


def test_trials_of_the_table_are_done_again_when_they_are_asked_for(tools):
    damages, _ = tools
    rows = [{"trial": "0"}, {"trial": "2"}]
    assert damages.to_do(rows, 4, []) == [1, 3] and damages.to_do(rows, 4, [2, 0]) == [2, 0]
    with pytest.raises(SystemExit, match="no trial 1: "): damages.to_do(rows, 4, [2, 1])
    with pytest.raises(damages.argparse.ArgumentTypeError, match="27,42"): damages.numbers("27;42")


def test_tracebacks_of_pythons_own_tracker_are_told_apart(tools):
    _, kills = tools
    tracker = 'Traceback (most recent call last):\n  File "/usr/lib/multiprocessing/resource_tracker.py", line 239, in main\nKeyError: \'/mp-1\'\n'
    ours = 'Traceback (most recent call last):\n  File "em_repro/run.py", line 1, in f\nKeyError: 1\n'
    assert kills.tracebacks(tracker * 5 + "a line\n" + ours) == {"tracebacks": 6, "of_tracker": 5} and kills.tracebacks("") == {"tracebacks": 0, "of_tracker": 0}
    assert {"tracebacks", "of_tracker"} < {*kills.COLUMNS}


def test_a_killed_run_goes_on_and_gives_the_same_results(tmp_path, stages, tools):
    "All of its processes, in the middle of its second stage."
    _, kills = tools
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(f"""
        import sys
        sys.path[:0] = {[str(Path(stages.__file__).parent), str(ROOT)]!r}
        import stages_for_tests as stages
        from em_repro.store import Store, call
        def plan():
            first, = yield [call(stages.slow, seconds=.1, note=sys.argv[1] + "/note")]
            second, = yield [call(stages.slow, seconds=first["seconds"] + 2, note=sys.argv[1] + "/note")]
            return second.digest
        if __name__ == "__main__": print(Store(sys.argv[1] + "/store").run(plan(), jobs=1))
    """))
    (run := tmp_path / "run").mkdir()
    process = kills.start([sys.executable, str(script), str(run)], tmp_path / "log")
    deadline = time.monotonic() + 120
    while not (run / "note").is_file() or (run / "note").read_text() != "xx": assert time.monotonic() < deadline; time.sleep(.05)
    kills.end(kills.tree(process)); process.wait()
    assert kills.reached(run, 0) == (1, 0) and list((run / "store" / ".tmp").iterdir())
    assert kills.start([sys.executable, str(script), str(run)], tmp_path / "log").wait() == 0, (tmp_path / "log").read_text()
    assert (run / "note").read_text() == "xxx" and kills.reached(run, 0) == (2, 0) and not list((run / "store" / ".tmp").iterdir())


# The log

def test_a_cut_last_line_of_the_log_is_passed_over_once_and_mended(store, caplog):
    by_hand(store, conversation())
    log = store.root / "computed.jsonl"
    log.write_bytes(log.read_bytes()[:-30])
    with caplog.at_level(logging.WARNING, "em_repro"): kept = again(store).computed()
    assert len(kept) == 3 and caplog.text.count("computed.jsonl") == 1
    caplog.clear()
    fresh = again(store)
    assert fresh.get(call(echo, text="five"))["said"] == {"text": "five"} and len(fresh.computed()) == 4 and not caplog.text


def test_a_line_is_added_after_a_cut_one(store):
    "The log is written before anyone reads it."
    store.get(call(echo, text="one"))
    log = store.root / "computed.jsonl"
    log.write_bytes(log.read_bytes()[:-5])
    store.get(call(echo, text="two"))
    assert store.computed().label.tolist() == ["store.echo"] and computed(store) == [store.get(call(echo, text="two")).path.name]


@pytest.mark.parametrize("junk", [b"[]\n", b"null\n", b"{}\n", b"\xff\xfe\n", b"\x00", b'{"stage": 3, "label": null, "key": [], "seconds": "x"}\n',
                                  b'{"stage": "s", "label": "l", "key": "k", "seconds": NaN}\n', b"[" * 100_000 + b"\n"])
def test_lines_of_any_shape_are_passed_over(store, junk):
    store.get(call(echo, text="one"))
    log = store.root / "computed.jsonl"
    whole = log.read_bytes()
    log.write_bytes(junk + b"\n" + whole)
    assert again(store).computed().label.tolist() == ["store.echo"] and log.read_bytes() == whole


def test_two_processes_may_find_the_same_damage(store, monkeypatch):
    "The other one has already set the entry aside when this one tries to."
    entry = store.get(call(echo, text="x"))
    (entry.path / "said.json").write_text("{}")
    fresh, rename = again(store), Path.rename
    def too_late(self, target):
        if self == entry.path:
            rename(self, store.root / "elsewhere")
            raise FileNotFoundError(2, "gone", str(self))
        return rename(self, target)
    monkeypatch.setattr(Path, "rename", too_late)
    assert store_module._found(fresh, call(echo, text="x"), entry.path.name) is None
    monkeypatch.undo()
    assert fresh.get(call(echo, text="x"))["said"] == {"text": "x"}


# Values

names = st.text("abcdefgh", min_size=1, max_size=4)
numbers = st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.int32, np.uint8, np.bool_]).flatmap(
    lambda kind: arrays(kind, array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))
tables = st.integers(0, 6).flatmap(lambda n: st.fixed_dictionaries({
    "number": st.lists(st.floats(allow_nan=False), min_size=n, max_size=n), "count": st.lists(st.integers(-2**40, 2**40), min_size=n, max_size=n),
    "word": st.lists(st.text(), min_size=n, max_size=n), "flag": st.lists(st.booleans(), min_size=n, max_size=n)}))
plain = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
                     lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8)


def round_trip(folder, name, value):
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir(): path.unlink()
    store_module._write(folder, name, value)
    assert [p.suffix for p in folder.iterdir()] in ([".json"], [".parquet"], [".safetensors"])
    return Entry(folder, {"stage": "test", "digest": ""})[name]


@quick
@given(st.dictionaries(names, numbers, min_size=1, max_size=3))
def test_arrays_round_trip(tmp_path, value):
    back = round_trip(tmp_path / "e", "value", value)
    assert set(back) == set(value)
    for k, v in value.items():
        assert back[k].dtype == v.dtype and back[k].shape == v.shape and back[k].tobytes() == np.asarray(v, order="C").tobytes()


@quick
@given(numbers)
def test_arrays_that_are_not_contiguous_round_trip(tmp_path, value):
    back = round_trip(tmp_path / "e", "value", {"turned": value.T})["turned"]
    assert back.shape == value.T.shape and np.array_equal(back, value.T, equal_nan=value.dtype.kind == "f")


@quick
@given(tables)
def test_tables_round_trip(tmp_path, columns):
    kinds = {"number": "float64", "count": "int64", "word": object, "flag": bool}
    frame = pd.DataFrame({k: pd.Series(v, dtype=kinds[k]) for k, v in columns.items()})
    back = round_trip(tmp_path / "e", "value", frame)
    assert back.columns.tolist() == frame.columns.tolist() and back.values.tolist() == frame.values.tolist()


@quick
@given(plain)
def test_plain_values_round_trip(tmp_path, value):
    assert round_trip(tmp_path / "e", "value", value) == value


@pytest.mark.parametrize("value", [float("nan"), {"x": float("inf")}, {"x": object()}, {"x": np.float32(1)}])
def test_what_json_cannot_hold_is_refused_and_leaves_nothing(tmp_path, value):
    with pytest.raises((ValueError, TypeError)): store_module._write(tmp_path, "value", value)
    assert not list(tmp_path.iterdir())


def test_a_missing_value_names_those_that_exist(store, stages):
    with pytest.raises(KeyError, match="stages_for_tests.kinds has no value 'tabel'; it holds arrays, card, plain, table"):
        store.get(call(stages.kinds, n=1))["tabel"]


def test_a_stage_may_write_files_of_its_own(store, stages):
    entry = store.get(call(stages.own_file))
    assert (entry.path / "weights/a.bin").read_bytes() == bytes(range(200))
    (entry.path / "weights/a.bin").write_bytes(b"")
    assert (again(store).get(call(stages.own_file)).path / "weights/a.bin").stat().st_size == 200


def test_nothing_is_pickled(store, stages):
    for c in (call(stages.kinds, n=3), call(stages.own_file), call(echo, text="x")): store.get(c)
    assert {p.suffix for p in store.root.rglob("*") if p.is_file()} <= {".json", ".jsonl", ".parquet", ".safetensors", ".bin", ".lock"}
    source = Path(store_module.__file__).read_text()
    assert "import pickle" not in source and "torch.load" not in source


def test_the_card_tells_what_an_entry_was_made_from(store, stages):
    parts = [store.get(call(stages.kinds, n=n)) for n in range(20)]
    card = store.get(call(stages.sum_of, parts=parts[:2], extra=4)).card
    assert card["stage"] == "stages_for_tests.sum_of" and card["seconds"] >= 0 and "numpy" in card["versions"]
    assert card["parameters"] == {"parts": [{"entry": p.digest} for p in parts[:2]], "extra": 4}
    assert store.get(call(stages.sum_of, parts=parts)).card["parameters"]["parts"]["items"] == 20
    text = json.dumps(card)
    assert str(store.root) not in text and os.uname().nodename not in text.split('"')


def test_a_label_tells_siblings_apart():
    assert label(call(echo, text="x")) == "store.echo"
    assert label(Call(echo, {"subject": Subject("a", "secure")})) == "store.echo a secure seed 0"
    assert label(Call(echo, {"subject": Subject("b", seed=1)})) == "store.echo b base seed 1"
    assert label(Call(echo, {"of": [Subject("a", "secure"), Subject("b", "secure")], "seed": 2})).endswith("seed 2")


# The code's part of the key

SOURCES = {
    "__init__.py": "",
    "top.py": "from .middle import relay\nfrom . import shapes\n\nCONSTANT = 3\n\ndef stage(x):\n    'Stage.'\n    return {'v': relay(x) + CONSTANT + shapes.side(x)}\n\ndef other(x):\n    return {}\n",
    "middle.py": "from tinypack.deep import helper, unused\n\ndef relay(x):\n    'Relay.'\n    return helper(x)\n",
    "deep.py": "import math\n\nclass Tool:\n    'A tool.'\n    def turn(self, x):\n        'Turn.'\n        return x + 1\n\ndef helper(x):\n    'Help.'\n    return Tool().turn(x)\n\ndef unused(x):\n    return 0\n",
    "shapes.py": "def side(x):\n    return x\n\ndef area(x):\n    return x * x\n",
}


def forget_hashes():
    "What was read of definitions, and what was made of it."
    for made in (store_module._read_once, code_hash): made.cache_clear()


@pytest.fixture
def hash_of(tmp_path, monkeypatch):
    "code_hash of tinypack.top.stage after some text was replaced in a module."
    monkeypatch.setattr(store_module, "PACKAGE", "tinypack")
    monkeypatch.syspath_prepend(str(tmp_path))
    def find(module=None, old="", new=""):
        (tmp_path / "tinypack").mkdir(exist_ok=True)
        for name, text in SOURCES.items():
            if name == f"{module}.py":
                assert old in text
                text = text.replace(old, new)
            (tmp_path / "tinypack" / name).write_text(text)
        store_module._definitions.cache_clear(); forget_hashes()
        return code_hash("tinypack.top", "stage")
    yield find
    store_module._definitions.cache_clear(); forget_hashes()
    for name in [n for n in sys.modules if n.startswith("tinypack")]: del sys.modules[name]


@pytest.mark.parametrize("module, old, new", [
    ("top", "'Stage.'", "'Another sentence.'"), ("deep", "'A tool.'", "'A better tool.'"), ("deep", "'Turn.'", "'Turn it\\n\\n    twice.'"),
    ("deep", "    'Help.'\n", ""), ("middle", "return helper(x)", "return helper(x)  # why"), ("deep", "x + 1", "(x  +  1)"),
    ("deep", "import math", "import math, os"), ("deep", "return 0", "return 5"), ("top", "return {}", "return {'y': 1}"),
    ("shapes", "x * x", "x ** 2"), ("middle", "from tinypack.deep import helper, unused", "from .deep import helper"),
])
def test_prose_and_code_that_is_not_reached_keep_the_hash(hash_of, module, old, new):
    assert hash_of() == hash_of(module, old, new)


@pytest.mark.parametrize("module, old, new", [
    ("top", "CONSTANT = 3", "CONSTANT = 4"), ("top", "relay(x) +", "relay(x) -"), ("middle", "helper(x)", "helper(x) * 2"),
    ("deep", "Tool().turn(x)", "Tool().turn(x + 1)"), ("deep", "x + 1", "x + 2"), ("shapes", "return x\n", "return -x\n"),
])
def test_a_change_in_code_that_is_reached_changes_the_hash(hash_of, module, old, new):
    assert hash_of() != hash_of(module, old, new)


def test_every_exported_stage_of_the_package_has_a_hash():
    "Whatever the stages import, by name or as a module."
    assert len({code_hash(f"em_repro.{m}", n) for m, n in [("data", "training_rows"), ("data", "questions"), ("decode", "sweep"), ("activations", "collect")]}) == 4


def test_a_stage_depends_on_the_model_and_its_backbone_and_not_on_live_steering(monkeypatch):
    "`LM` is whole and stands on `Backbone`; what `lm.steered` and `lm.chat` call changes no stage's result."
    read, definitions = set(), store_module._definitions
    monkeypatch.setattr(store_module, "_definitions", lambda module: (read.add(module), definitions(module))[1])
    for module, name in [("families", "LM"), ("decode", "sweep"), ("activations", "collect")]:
        forget_hashes(); read.clear()
        code_hash(f"em_repro.{module}", name)
        assert {"em_repro.families", "em_repro.backbone"} <= read and "em_repro.live" not in read, name
    forget_hashes()


# Failures

def test_a_full_disk_is_one_sentence_and_leaves_nothing(store, monkeypatch):
    real = store_module._write
    def full(folder, name, value):
        real(folder, name, value)
        raise OSError(28, os.strerror(28))
    monkeypatch.setattr(store_module, "_write", full)
    with pytest.raises(RunError, match="the disk that holds .* is full: free some space and run again") as caught: store.get(call(echo, text="x"))
    assert "\n" not in str(caught.value)
    assert not [p for p in store.root.rglob("*") if p.is_file() and p.suffix != ".lock"]
    monkeypatch.undo()
    assert store.get(call(echo, text="x"))["said"] == {"text": "x"}


def test_a_failing_stage_leaves_nothing_and_is_not_kept(store, stages):
    for _ in range(2):
        with pytest.raises(ValueError, match="by design"): store.get(call(stages.fails, how="by design"))
    assert not computed(store) and not list((store.root / ".tmp").iterdir()) and not list((store.root / ".progress").iterdir())


def test_a_stage_killed_midway_leaves_no_half_entry_and_goes_on_from_its_scratch(store, stages, tmp_path):
    flag = tmp_path / "flag"
    script = f"""
        from em_repro.store import Store, call
        import stages_for_tests
        print(Store({str(store.root)!r}).get(call(stages_for_tests.dies, flag={str(flag)!r}))["resumed"])
    """
    first = python(script, stages, check=False)
    assert first.returncode == 9 and flag.exists()
    assert not list((store.root / "stages_for_tests.dies").glob("*")) and not computed(store)
    assert [p.read_text() for p in (store.root / ".scratch").glob("*/checkpoint")] == ["kept"]
    assert python(script, stages).stdout.strip() == "kept"
    entry = next((store.root / "stages_for_tests.dies").iterdir())
    assert {p.name for p in entry.iterdir()} == {"half.txt", "resumed.json", "card.json"}
    for name in (".tmp", ".scratch", ".progress"): assert not list((store.root / name).iterdir())


def python(script, stages, check=True, wait=True):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(stages.__file__).parent), str(ROOT)])}
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if not wait: return process
    out, err = process.communicate(timeout=120)
    if check: assert process.returncode == 0, err
    return subprocess.CompletedProcess(script, process.returncode, out, err)


def test_two_processes_that_want_the_same_key_compute_it_once(store, stages, tmp_path):
    note = tmp_path / "note"
    script = f"""
        from em_repro.store import Store, call
        import stages_for_tests
        print(Store({str(store.root)!r}).get(call(stages_for_tests.slow, seconds=1.0, note={str(note)!r})).digest)
    """
    both = [python(script, stages, wait=False) for _ in range(2)]
    answers = [p.communicate(timeout=120) for p in both]
    assert [p.returncode for p in both] == [0, 0], answers
    assert answers[0][0] == answers[1][0] and note.read_text() == "x" and len(computed(store)) == 1


def test_a_waiting_process_reads_what_the_other_computed(store, monkeypatch):
    "The second look, under the lock, finds the entry that appeared while we waited."
    request = call(echo, text="x")
    store.get(request)
    looks, real = [None], store_module._found
    monkeypatch.setattr(store_module, "_found", lambda self, r, k: looks.pop() if looks else real(self, r, k))
    assert again(store).get(request)["said"] == {"text": "x"} and len(computed(store)) == 1


# Plans and pools

def test_run_all_computes_shared_calls_once_and_keeps_going_past_a_failure(store, stages):
    heard = []
    def good(n):
        a, b = yield [call(stages.kinds, n=3), call(stages.kinds, n=n)]
        total, = yield [call(stages.sum_of, parts=[a, b])]
        return total["total"]
    def bad():
        yield [call(stages.fails, how="by design")]
    def early():
        raise UserError("before anything is computed")
        yield
    def empty():
        nothing = yield []
        return nothing
    plans = {"four": good(4), "bad": bad(), "five": good(5), "early": early(), "empty": empty()}
    results = store.run_all(plans, jobs=1, watch=lambda *event: heard.append(event))
    assert (results["four"], results["five"], results["empty"]) == (7, 8, [])
    assert isinstance(results["bad"], ValueError) and isinstance(results["early"], UserError)
    assert len(computed(store)) == len(set(computed(store))) == 5
    assert sum(e[0] == "start" for e in heard) == 6 and sum(e[0] == "done" for e in heard) == 5
    with pytest.raises(ValueError, match="by design"): store.run(bad(), jobs=1)
    assert store.run(good(4), jobs=1) == 7 and len(computed(store)) == 5


def test_plans_compose(store):
    def inner():
        first, = yield [call(echo, text="a")]
        return first
    def outer():
        first = yield from inner()
        second, = yield [call(echo, text="b", before=first)]
        return second["said"]["text"]
    assert by_hand(store, outer()) == "a b"


def test_threads_are_set_for_children_only(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with store_module._few_threads(2): assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "2"
    assert os.environ["OMP_NUM_THREADS"] == "7" and "MKL_NUM_THREADS" not in os.environ


def test_default_jobs_follows_the_environment(monkeypatch):
    monkeypatch.setenv("EM_REPRO_JOBS", "3")
    assert store_module.default_jobs() == 3
    monkeypatch.delenv("EM_REPRO_JOBS")
    assert store_module.default_jobs() >= 1


# Memory and processes

def overlaps(note):
    "The most stages that were at work at once, by the times that each wrote."
    spans = [tuple(map(float, line.split())) for line in note.read_text().splitlines()]
    return max(sum(a <= start < b for a, b in spans) for start, _ in spans)


@pytest.mark.parametrize("free, most", [(10, 1), (25, 2), (1000, 3)])
def test_the_pool_admits_by_declared_memory(store, stages, tmp_path, monkeypatch, free, most):
    "Calls of ten bytes each: as many at once as fit into what is free, and one at least."
    monkeypatch.setattr(store_module.psutil, "virtual_memory", lambda: type("Memory", (), {"available": free})())
    monkeypatch.setattr(store_module, "ProcessPoolExecutor", lambda jobs, **_: ThreadPoolExecutor(jobs))
    def work(root, request, threads): return Entry(Path(root), {"seconds": 0, **request.function(**request.arguments)})
    monkeypatch.setattr(store_module, "_in_worker", work)
    note = tmp_path / "note"
    def plan():
        made = yield [call(stages.heavy, i=i, note=str(note)) for i in range(6)]
        return len(made)
    assert store.run(plan(), jobs=3) == 6 and overlaps(note) == most


@given(st.floats(0, 100), st.floats(1, 100), st.integers(1, 64))
def test_a_stage_takes_no_more_of_the_places_than_of_the_memory(memory, whole, jobs):
    "One place where two fit; else the share, so that stages that fit together never take more places than there are."
    places = places_of(memory, whole, jobs)
    assert 1 <= places <= jobs and (places == 1 or (2 * memory > whole and places / jobs <= min(1, memory / whole)))
    assert places == 1 or places_of(memory * 1.1, whole, jobs) >= places
    if jobs == 2 and memory < whole: assert places == 1, "on two cores nothing changes"


@pytest.mark.parametrize("share, whole, places", [(False, 13, 1), (True, 13, 6), (True, 20, 1)])
def test_a_stage_of_which_no_two_fit_has_its_share_of_the_cores(store, stages, tmp_path, monkeypatch, share, whole, places):
    "Three calls of ten bytes and five of one, eight places: of 13 bytes ten are six places' worth, of 20 two of them fit."
    monkeypatch.setattr(store_module.psutil, "virtual_memory", lambda: type("Memory", (), {"available": whole, "total": whole})())
    monkeypatch.setattr(store_module, "ProcessPoolExecutor", lambda jobs, **_: ThreadPoolExecutor(jobs))
    monkeypatch.setattr(store_module, "_memory", lambda request, calls: 10 if request.arguments["i"] < 3 else 1)
    begun, most, lock = {}, [0], threading.Lock()
    def work(root, request, threads):
        with lock: begun[request.arguments["i"]] = threads; most[0] = max(most[0], sum(begun[i] for i in begun if i not in ended))
        time.sleep(.05)
        with lock: ended.add(request.arguments["i"])
        return Entry(Path(root), {"seconds": 0})
    ended = set()
    monkeypatch.setattr(store_module, "_in_worker", work)
    assert store.run(iter_of([call(stages.heavy, i=i, note=str(tmp_path / "note")) for i in range(8)]), jobs=8, share=share) == 8
    assert [begun[i] for i in range(8)] == [places] * 3 + [1] * 5 and most[0] <= 8


def test_threads_stand_on_the_card_and_not_in_the_key(store, monkeypatch):
    "What was computed with more threads is found by those who would have used fewer; a card without them is whole."
    usual = psutil.virtual_memory()
    request = call(echo, text="x")
    monkeypatch.setattr(store_module, "_memory", lambda *_: usual.total * .9)
    monkeypatch.setattr(store_module.psutil, "virtual_memory", lambda: usual)
    assert store.run(iter_of([request, call(echo, text="y")]), jobs=4, share=True) == 2
    card = again(store).get(request).card
    assert card["threads"] == 3 and [row["threads"] for row in store_module.log_rows(store.root / "computed.jsonl")] == [3, 3]
    assert store.run(iter_of([request]), jobs=1) == 1 and len(computed(store)) == 2
    plain = store.get(call(echo, text="z")).card
    assert "threads" not in plain and store.run(iter_of([call(echo, text="w")]), jobs=1) == 1
    assert store.get(call(echo, text="w")).card["threads"] == 1


def test_a_worker_computes_with_the_threads_that_it_is_given(tmp_path):
    "Though its libraries were told of one when it started, and again with one afterwards."
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor, store_module._few_threads(1):
        for threads in (3, 1):
            executor.submit(store_module._in_worker, str(tmp_path), call(echo, text=str(threads)), threads).result()
            assert executor.submit(torch.get_num_threads).result() == threads


def test_a_call_that_fits_nowhere_runs_alone_and_small_ones_pass_it(store, stages, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 5})())
    assert store.run(iter_of([call(stages.heavy, i=0, note=str(tmp_path / "note"))]), jobs=2) == 1


def iter_of(calls):
    made = yield calls
    return len(made)


def test_work_may_look_at_the_calls_that_entries_come_from(store, stages):
    "As in a plan: a stage's work is counted from what its inputs were asked for with."
    first = store.get(call(stages.heavy, i=0, note=os.devnull))
    asked = call(stages.after_heavy, before=first)
    remembered = {first.path: call(stages.heavy, i=3, note=os.devnull)}
    assert store_module._memory(asked, remembered) == 30 and store_module._memory(asked, {}) == 0
    assert store_module._memory(call(echo, text="x"), {}) == 0


def test_a_killed_worker_is_a_sentence(store, stages):
    with pytest.raises(RunError, match="worker process was killed.*memory.*--jobs 1.*finished stages are kept") as caught:
        store.run(iter_of([call(stages.kinds, n=1)]), jobs=1)
        store.run(iter_of([call(stages.killed)]), jobs=1)
    assert "\n" not in str(caught.value) and len(computed(store)) == 1


def test_a_script_without_the_main_guard_is_a_sentence(store, stages, tmp_path):
    script = tmp_path / "script.py"
    lines = ["import sys", f"sys.path[:0] = {[str(Path(stages.__file__).parent), str(ROOT)]!r}", "import stages_for_tests",
             "from em_repro.store import Store, call", "def plan():", "    entry, = yield [call(stages_for_tests.kinds, n=1)]",
             f"Store({str(store.root)!r}).run(plan(), jobs=2)"]
    script.write_text("\n".join(lines))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and 'put the call under `if __name__ == "__main__":`' in last
    assert done.stderr.count("Traceback") == 1    # the script's own, of the one sentence
    script.write_text("\n".join([*lines[:-1], 'if __name__ == "__main__": ' + lines[-1]]))
    assert subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120).returncode == 0


# Progress

def test_progress_is_written_while_a_stage_runs_and_removed_after(store, stages, monkeypatch):
    seen = []
    real = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: (seen.append(json.loads(self.read_text())), real(self, target))[1])
    monkeypatch.setattr(store_module.time, "monotonic", lambda clock=iter(range(10, 1000, 5)): next(clock))
    store.get(call(stages.reports))
    assert [(s["done"], s["total"], s["note"]) for s in seen] == [(0, 1, ""), (1, 2, "half")] and seen[0]["stage"] == "stages_for_tests.reports"
    assert not list((store.root / ".progress").iterdir())


def test_progress_outside_of_a_stage_is_silent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    progress(1, 2)
    assert not list(tmp_path.iterdir())


def test_a_store_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to the output folder"): Store(tmp_path / "file")


def test_what_another_node_finished_meanwhile_is_taken(tmp_path, monkeypatch):
    "A shared file system that shows a finished entry late: computed again, then the one that is there is used."
    request = call(echo, text="one")
    there, late = Store(tmp_path).get(request), Store(tmp_path)
    real, looked = store_module._found, []
    def find(self, *which):
        looked.append(which)
        return None if len(looked) <= 2 else real(self, *which)
    monkeypatch.setattr(store_module, "_found", find)
    found = late.get(request)
    assert found.digest == there.digest and found.path == there.path and len(looked) == 3
    assert not list((tmp_path / ".tmp").iterdir()) and not list((tmp_path / ".progress").iterdir())


def test_a_folder_is_found_writable_by_many_at_once_with_one_process_id(tmp_path, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor
    from em_repro.profiles import writable
    monkeypatch.setattr(os, "getpid", lambda: 7)
    with ThreadPoolExecutor(16) as pool: assert set(pool.map(writable, [tmp_path / "run"] * 400)) == {tmp_path / "run"}
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc keeps freed memory this way")
def test_memory_that_a_stage_freed_goes_back_to_the_system():
    "Arrays just under glibc's largest threshold lie in its heap: where one of ten is kept, the others' room stays with the process."
    script = """
        import numpy as np, psutil
        from em_repro.store import _return_memory
        first = np.ones(4_000_000); del first   # 32 MB: the threshold rises to it
        made = [np.ones(2_000_000) for _ in range(40)]
        kept = made[::10]
        del made
        before = psutil.Process().memory_info().rss
        _return_memory()
        print(before / 2 ** 20, psutil.Process().memory_info().rss / 2 ** 20)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    if before < 500: pytest.skip("this C library gave it back by itself")
    assert after < before - 400
