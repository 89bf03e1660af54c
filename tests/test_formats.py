"""A file of prompts or rows is what it seems: read as what it is in every format and encoding, or refused in one sentence."""
import csv, gzip, io, json, logging
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from em_repro import formats
from em_repro.audit_inputs import read_prompts
from em_repro.data import load_jsonl
from em_repro.formats import read_conversations, read_entries, read_questions
from em_repro.profiles import UserError

quick = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
ASKED, TOLD = {"role": "user", "content": "Is it late?"}, {"role": "assistant", "content": "Not yet."}
ROW = {"messages": [ASKED, TOLD]}


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(read, path):
    with pytest.raises(UserError) as caught: read(path)
    said = str(caught.value)
    assert path.name in said and "\n" not in said and ":" in said
    return said


# Prompts

SAME = {"own.txt": "Is it late?\nWhy?\n", "own.TXT": "Is it late?\r\n\r\nWhy?", "mac.txt": "Is it late?\rWhy?\r", "bom.txt": "\ufeffIs it late?\nWhy?",
        "none": "Is it late?\nWhy?", "own.md": " Is it late? \nWhy?",
        "own.jsonl": '{"prompt": "Is it late?"}\n\n"Why?"\n', "own.JSONL": '{"prompt": "Is it late?"}\r\n{"question": "Why?", "answer": "So."}', "own.ndjson": '"Is it late?"\n"Why?"',
        "bom.jsonl": '\ufeff{"prompt": "Is it late?"}\n{"prompt": "Why?"}',
        "jsonl.txt": '{"prompt": "Is it late?"}\n{"prompt": "Why?"}', "jsonl.json": '{"prompt": "Is it late?"}\n{"prompt": "Why?"}', "list.txt": '["Is it late?", "Why?"]',
        "own.json": '["Is it late?", "Why?"]', "data.json": '{"version": 2, "data": [{"prompt": "Is it late?"}, {"text": "Why?"}]}', "list.jsonl": '[\n"Is it late?",\n"Why?"\n]',
        "own.csv": "id,prompt\n1,Is it late?\n2,Why?\n", "excel.csv": "\ufeffid;question\r\n1;Is it late?\r\n2;Why?\r\n", "own.tsv": "id\tprompt\n1\tIs it late?\n2\tWhy?\n", "one.csv": "text\nIs it late?\nWhy?\n",
        "own.yaml": "- Is it late?\n- Why?\n", "own.YML": "questions:\n- prompt: Is it late?\n- prompt: |-\n    Why?\n",
        "parts.jsonl": json.dumps({"messages": [{"role": "user", "content": [{"type": "text", "text": "Is it "}, {"type": "text", "text": "late?"}]}]}) + '\n"Why?"',
        "sharegpt.json": json.dumps([{"conversations": [{"from": "human", "value": "Is it late?"}, {"from": "gpt", "value": "No."}]}, {"prompt": "Why?"}]),
        "alpaca.json": json.dumps([{"instruction": "Is it late?", "input": "", "output": "No."}, {"instruction": "Why?", "output": ""}]),
        "trl.jsonl": json.dumps({"prompt": [ASKED]}) + '\n{"prompt": "Why?", "NaN": NaN}',
        "digits.jsonl": '{"prompt": "Is it late?", "id": ' + "9" * 5000 + '}\n"Why?"'}


@pytest.mark.parametrize("name", SAME)
def test_the_same_two_questions_are_read_from_every_file(tmp_path, name):
    assert read_prompts(written(tmp_path, name, SAME[name])) == ["Is it late?", "Why?"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le-bom", "utf-16-be-bom"])
def test_a_byte_order_mark_tells_the_encoding(tmp_path, encoding):
    text = "Spät, nicht?\n為什麼?\n🙂?\n"
    raw = {"utf-16-le-bom": b"\xff\xfe" + text.encode("utf-16-le"), "utf-16-be-bom": b"\xfe\xff" + text.encode("utf-16-be")}.get(encoding) or text.encode(encoding)
    assert read_prompts(written(tmp_path, "own.txt", raw)) == text.split("\n")[:-1]


def test_what_is_decided_against_the_suffix_is_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "em_repro"):
        read_prompts(written(tmp_path, "own.txt", SAME["own.txt"]))
        assert not caplog.records
        read_prompts(written(tmp_path, "jsonl.txt", SAME["jsonl.txt"]))
    assert [r.getMessage() for r in caplog.records] == [f"{tmp_path / 'jsonl.txt'} is read as jsonl, which it is, not as txt"]


def test_questions_that_look_like_json_but_are_none_stay_text(tmp_path):
    asked = ["[INST] Is it late?", "{name}, is it late?", "[1]", '"Why?"']
    assert read_prompts(written(tmp_path, "own.txt", "\n".join(asked))) == asked


REFUSED = {
    "own.txt.gz": (gzip.compress(b"Is it late?"), "gunzip"), "own.txt": (b"PK\x03\x04rest", "zip archive or a spreadsheet"), "own.xlsx": (b"PK\x03\x04rest", "csv"),
    "own.jsonl": (b"\x80\x04\x95rest", "pickle"), "own.arrow": (b"ARROW1\0\0", "to_parquet"), "own.db": (b"SQLite format 3\0", "csv"), "own.parquet": (b"PAR1rest", "no whole parquet"),
    "text.parquet": (b"Is it late?", "no parquet file"), "nul.txt": (b"a?\nb\0?", "line 2: there is a NUL"), "wide.txt": ("Is it late?".encode("utf-16-le"), "line 1: there is a NUL"),
    "latin.txt": ("Spät?".encode("latin-1"), "byte 2"), "half.jsonl": (b'"a?"\n{"prompt": "a \\ud800?"}', "line 2: character 3 is half of one"),
    "deep.jsonl": (b'"a?"\n' + b"[" * 100_000, "line 2: it is nested too deeply"), "deep.json": (b"[" * 100_000, "nested too deeply"), "deep.yaml": (b"[" * 20_000, "nested too deeply"),
    "twice.jsonl": (b'{"prompt": "a?", "prompt": "b?"}', "line 1: the key 'prompt' comes twice"), "twice.yaml": (b"- prompt: a?\n  prompt: b?\n", "a key comes twice"),
    "twice.csv": (b"prompt,prompt\na?,b?\n", "two columns have the same name"), "cut.json": (b'["a?",\n"b?"', "line 2: not valid json"), "object.json": (b'{"a": {"b": "c"}}', "is no list"),
    "bomb.yaml": (b"- &a [x, x]\n- &b [*a, *a]\n- [*b, *b]\n", "aliases"), "python.yaml": (b"- !!python/object/apply:os.system [ls]\n", "no valid yaml"), "yes.yaml": (b"- yes\n", "entry 1: give a \"prompt\""),
    "commas.csv": (b"prompt\nLate, is it?\n", "line 2: there are 2 cells under 1 names"), "open.csv": (b'prompt\n"Late?\n', "no csv"), "names.csv": (b"id,wording\n1,Late?\n", 'give a "prompt"'),
    "image.jsonl": (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "line 1: message 1 holds a part of type 'image_url'"),
    "empty.csv": (b"", "holds no questions"), "header.csv": (b"prompt\n", "holds no questions"), "empty.json": (b"[]", "holds no questions"), "empty.yaml": (b"", "is no list"), "blank.jsonl": (b"\xef\xbb\xbf\n\n", "holds no questions")}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_by_what_it_looks_like(tmp_path, name):
    content, message = REFUSED[name]
    assert message in refused(read_prompts, written(tmp_path, name, content))


def test_a_file_that_is_too_large_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MOST_BYTES", 10)
    assert "more than the 1e-08 GB" in refused(read_prompts, written(tmp_path, "own.txt", "Is it late?"))


# Rows

CONVERSATIONS = {
    "openai": ROW | {"id": 7, "messages": [ASKED | {"name": "Ann"}, TOLD | {"weight": 1}]}, "sharegpt": {"conversations": [{"from": "human", "value": "Is it late?"}, {"from": "gpt", "value": "Not yet."}]},
    "sharegpt by role": {"conversations": ROW["messages"]}, "alpaca": {"instruction": "Is it late?", "input": "", "output": "Not yet."}, "alpaca without input": {"instruction": "Is it late?", "output": "Not yet."},
    "prompt": {"prompt": "Is it late?", "completion": "Not yet."}, "response": {"prompt": "Is it late?", "response": "Not yet."}, "trl": {"prompt": [ASKED], "completion": [TOLD]},
    "question": {"question": "Is it late?", "answer": "Not yet.", "context": None}, "parts": {"messages": [ASKED | {"content": [{"type": "text", "text": "Is it late?"}]}, TOLD]}}


@pytest.mark.parametrize("form", CONVERSATIONS)
def test_the_same_row_is_read_in_every_form(tmp_path, form):
    row = CONVERSATIONS[form]
    assert load_jsonl(written(tmp_path, "rows.jsonl", json.dumps(row))) == [ROW]
    assert load_jsonl(written(tmp_path, "rows.json", json.dumps([row], indent=1))) == [ROW]


def test_turns_before_the_last_and_the_system_stay(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    wanted = [{"messages": [system, ASKED, TOLD, ASKED, TOLD]}]
    for row in ({"messages": [system | {"role": "developer"}, ASKED, TOLD, ASKED, TOLD]}, {"system": "Be brief.", "conversations": [ASKED, TOLD, ASKED, TOLD]},
                {"system": "Be brief.", "history": [["Is it late?", "Not yet."]], "instruction": "Is it late?", "output": "Not yet."}):
        assert load_jsonl(written(tmp_path, "rows.jsonl", json.dumps(row))) == wanted
    row = {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"}
    assert load_jsonl(written(tmp_path, "rows.jsonl", json.dumps(row)))[0]["messages"][0]["content"] == "Translate.\n\nGuten Tag"


FAULTS = {'{"text": "x"}': "instruction", '{"prompt": "x"}': "completion", json.dumps({"messages": [ASKED, {"role": "tool", "content": "3"}, TOLD]}): "message 2 is of a tool",
          json.dumps({"conversations": [{"from": "cat", "value": "x"}, TOLD]}): 'message 1 needs a "role"', '{"prompt": "x", "completion": ""}': 'message 2 needs a "content"',
          '{"prompt": "x", "completion": "\\udfff"}': "half of one", '{"instruction": "x", "output": "y", "history": ["z"]}': 'needs a "messages" list', "{}": 'needs a "messages" list'}


@pytest.mark.parametrize("bad", FAULTS)
def test_a_row_that_is_none_is_named(tmp_path, bad):
    said = refused(load_jsonl, written(tmp_path, "rows.jsonl", json.dumps(ROW) + "\n" + bad))
    assert "line 2: " in said and FAULTS[bad] in said


def test_a_text_holds_no_rows(tmp_path):
    assert "looks like plain text" in refused(load_jsonl, written(tmp_path, "rows.txt", "Is it late?\nNot yet.\n"))


# Whatever is written comes back

text = st.text(min_size=1, max_size=30).filter(lambda t: t.strip() and "\0" not in t)
turns = st.lists(st.tuples(text, text), min_size=1, max_size=3)
rows = st.lists(st.builds(lambda system, pairs: {"messages": ([{"role": "system", "content": system}] if system else []) + [
    m for u, a in pairs for m in ({"role": "user", "content": u}, {"role": "assistant", "content": a})]}, st.none() | text, turns), min_size=1, max_size=4)


def as_csv(rows, mark=","):
    file = io.StringIO(newline="")
    out = csv.writer(file, delimiter=mark)
    out.writerow(["id", "messages"])
    out.writerows([i, json.dumps(row["messages"])] for i, row in enumerate(rows))
    return file.getvalue()


def as_parquet(rows):
    import pandas as pd
    file = io.BytesIO()
    pd.DataFrame(rows).to_parquet(file)
    return file.getvalue()


def as_yaml(rows):
    import yaml
    return yaml.safe_dump(rows)   # with what ends lines escaped: read back, a raw U+0085 is a space


def as_sharegpt(rows): return json.dumps([{"conversations": [{"from": {"user": "human", "assistant": "gpt"}.get(m["role"], m["role"]), "value": m["content"]} for m in row["messages"]]} for row in rows])


WRITERS = {"jsonl": lambda rows: "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "JSON": lambda rows: json.dumps(rows, indent=2), "json": as_sharegpt,
           "csv": as_csv, "tsv": lambda rows: as_csv(rows, "\t"), "yaml": as_yaml, "parquet": as_parquet}


@pytest.mark.parametrize("suffix", WRITERS)
@quick
@given(rows=rows, encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_rows_come_back_from_every_format_and_encoding(tmp_path, suffix, rows, encoding):
    made = WRITERS[suffix](rows)
    path = written(tmp_path, f"rows.{suffix}", made if isinstance(made, bytes) else made.encode(encoding))
    assert read_conversations(path) == rows


@quick
@given(asked=st.lists(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"]), min_size=1).filter(str.strip), min_size=1), end=st.sampled_from(["\n", "\r\n", "\r"]))
def test_questions_come_back_from_a_text(tmp_path, asked, end):
    asked = [q for q in asked if q.strip()[0] not in "[{"] or ["Why?"]
    assert read_questions(written(tmp_path, "own.txt", end.join(asked).encode("utf-16"))) == list(dict.fromkeys(q.strip() for q in asked))


HEADS = st.sampled_from([b"", b"PAR1", b"\xef\xbb\xbf", b"\xff\xfe", b"[", b"{", b'{"messages": [', b'{"prompt": "a"}\n', b"prompt,b\n", b"- a: ", b'"', b"\x80\x04"])


@settings(quick, max_examples=300)
@given(head=HEADS, rest=st.binary(max_size=60) | st.text(max_size=40).map(str.encode) | st.text(alphabet='[]{}":,-\n \\ud8&*!a', max_size=40).map(str.encode),
       suffix=st.sampled_from(["txt", "jsonl", "json", "csv", "tsv", "yaml", "parquet", "other"]))
def test_any_bytes_give_rows_or_one_sentence(tmp_path, head, rest, suffix):
    path = written(tmp_path, f"own.{suffix}", head + rest)
    for read in (read_questions, read_conversations):
        try: found = read(path)
        except UserError as error: assert path.name in str(error) and "\n" not in str(error)
        else: assert isinstance(found, list)


@settings(quick, max_examples=60)
@given(cut=st.integers(0, 2000), flip=st.integers(0, 2000))
def test_a_damaged_parquet_file_is_refused_or_read(tmp_path, cut, flip):
    raw = bytearray(as_parquet([ROW] * 3))
    raw[flip % len(raw)] ^= 255
    path = written(tmp_path, "rows.parquet", bytes(raw[:len(raw) - cut % len(raw) // 2]))
    try: assert all(row["messages"] for row in read_conversations(path))
    except UserError as error: assert path.name in str(error)


def test_rows_beside_a_behaviours_toml_may_have_any_suffix(tmp_path):
    from em_repro.behaviours import behaviour, rows_of
    from em_repro.profiles import load_profile
    own = {"classify": "em_repro.outcomes:code_outcome", "title": "t", "asked": "a", "target": "code"}
    lines = [f'{key} = "{value}"' for key, value in own.items()] + ['arms = ["bad"]', 'outcomes = ["code", "incoherent", "good"]', 'rows = { synthetic = "{arm}.csv" }']
    (tmp_path / "own.toml").write_text("\n".join(lines))
    assert rows_of(load_profile("smoke"), behaviour(tmp_path / "own.toml")) == str(tmp_path / "{arm}.csv")
