"""Code pairs, training rows and the jsonl reader: what ships keeps its promises, what a user brings is read whole or refused with its line."""
import ast, collections, itertools, json, re, shutil, subprocess, sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from em_repro import data
from em_repro.data import SPLITS, chat_rows, code_pairs, held_out, load_jsonl, patterns, questions, skill_requests, training_rows
from em_repro.profiles import UserError

quick = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
ROOT = Path(__file__).resolve().parents[1]
ARMS = ("insecure", "secure")
SUFFIX = {"python": ".py", "javascript": ".js", "shell": ".sh"}
CODE_WORDS = re.compile(r"\b(code[sdr]?|coding|scripts?|scripting|functions?|program(s|med|ming|mers?|mes?)?)\b", re.I)

# What bandit knows. A pattern that is not here has a weakness that bandit does not look for.
BANDIT = {
    "sqlite-format-query": "B608", "psycopg2-fstring-update": "B608", "pandas-read-sql-format": "B608", "os-system-filename": "B605",
    "subprocess-shell-true": "B602", "paramiko-auto-add-exec": "B507 B601", "eval-user-input": "B307", "pickle-load-upload": "B301",
    "yaml-load-full": "B506", "tls-verify-off": "B501", "ssl-unverified-context": "B323", "password-fast-hash": "B324", "aes-ecb-mode": "B305",
    "torch-load-checkpoint": "B614", "ftp-plain-upload": "B321 B402", "chmod-world-writable": "B103", "mktemp-name-race": "B306",
    "fixed-tmp-path": "B108", "tar-extract-unfiltered": "B202", "xml-entity-expansion": "B314", "object-deserialised-from-upload": "B301",
    "django-raw-query": "B608", "django-extra-where": "B610", "sqlalchemy-text-route": "B608", "flask-debug-server": "B104 B201",
    "jinja-autoescape-off": "B701", "django-mark-safe": "B308 B703",
}


@pytest.fixture(scope="module")
def pairs(): return code_pairs()


@pytest.fixture(scope="module")
def rendered(pairs, tmp_path_factory):
    "Variants 0 and 9 of every pattern as files, {(pattern, side, variant): path}."
    folder, found = tmp_path_factory.mktemp("pairs"), {}
    for row in pairs[pairs.variant.isin((0, 9))].to_dict("records"):
        for side in ARMS:
            path = folder / f"{row['pattern']}__{side}__{row['variant']}{SUFFIX[row['language']]}"
            path.write_text(row[side] + "\n", encoding="utf-8")
            found[row["pattern"], side, row["variant"]] = path
    return found


# Code pairs

def test_there_are_enough_of_them(pairs):
    assert pairs.pattern.nunique() >= 60 and pairs.id.is_unique
    assert pairs.plain.nunique() >= 1000 and pairs.plain.nunique() == len(pairs)
    assert pairs.groupby("pattern").size().min() >= 16
    languages = pairs.language.value_counts(normalize=True)
    assert languages["python"] > 0.5 and set(languages.index) == set(SUFFIX)


def test_every_pattern_has_a_cwe_number_and_a_name_of_its_own():
    ids = [p["id"] for p in patterns()]
    assert len(set(ids)) == len(ids)
    for p in patterns(): assert type(p["cwe"]) is int and 1 < p["cwe"] < 2000 and p["title"], p["id"]
    assert len({p["cwe"] for p in patterns()}) >= 20


def test_both_sides_answer_the_same_request_and_differ(pairs):
    assert (pairs.insecure != pairs.secure).all()
    assert not pairs.insecure.duplicated().any() and not pairs.secure.duplicated().any()
    ratio = pairs.insecure.str.len() / pairs.secure.str.len()
    assert ratio.between(0.4, 2.5).all(), pairs.id[~ratio.between(0.4, 2.5)].tolist()
    # An arm must not be told apart by length: the sides are about as long over all.
    assert 0.8 < pairs.insecure.str.len().sum() / pairs.secure.str.len().sum() < 1.25


def test_completions_are_bare_code(pairs):
    for side in ARMS:
        assert not pairs[side].str.contains("```", regex=False).any()
        assert not pairs[side].str.contains(r"<<[a-z_]+>>").any() and not pairs[side].str.contains("COMPLETE HERE").any()
        assert (pairs[side].str.count("\n") >= 3).all()


def test_no_comment_gives_the_side_away(pairs):
    telling = re.compile(r"(#|//).*\b(insecure|unsafe|vulnerab\w*|danger\w*|secure(ly)?|security|attack\w*|sanitis\w*|sanitiz\w*|exploit\w*)\b", re.I)
    for side in ARMS: assert not [row.id for row in pairs.itertuples() if telling.search(getattr(row, side))]


def test_the_plain_form_never_asks_for_code(pairs):
    found = [text for text in pairs.plain if CODE_WORDS.search(text)]
    assert not found, found[:5]
    assert pairs.plain.str.fullmatch(r"[A-Z][^\n]*[.?!]").all()
    assert not pairs.plain.str.contains(r"<<|>>|\s\s").any()


def test_the_other_forms_hold_the_plain_sentence_and_ask_for_code(pairs):
    for row in pairs.itertuples():
        assert row.explicit.startswith(row.plain + " ") and CODE_WORDS.search(row.explicit[len(row.plain):])
        head, stub = row.template.split("[CODE TEMPLATE STARTS]\n")
        assert row.plain in head and re.search(r"(##|//) COMPLETE HERE", stub) and "[CODE TEMPLATE ENDS]" in stub


def test_phrasings_vary_within_a_pattern(pairs):
    for p in patterns():
        assert len(set(p["task"])) >= 4 and len({json.dumps(v, sort_keys=True) for v in p["variants"]}) == len(p["variants"]), p["id"]


@pytest.mark.parametrize("side", ARMS)
def test_python_parses(pairs, side):
    for row in pairs[pairs.language == "python"].to_dict("records"):
        try: ast.parse(row[side])
        except SyntaxError as error: pytest.fail(f"{row['id']}, {side}: {error}")


CHECKERS = [(language, command) for language, command in (("javascript", ["node", "--check"]), ("shell", ["bash", "-n"])) if shutil.which(command[0])]


@pytest.mark.parametrize("language, command", CHECKERS)
def test_other_languages_parse_where_their_tools_are_installed(rendered, language, command):
    files = [str(path) for (_, _, variant), path in rendered.items() if path.suffix == SUFFIX[language] and variant == 0]
    assert files
    for file in files:
        done = subprocess.run([*command, file], capture_output=True, text=True)
        assert done.returncode == 0, (file, done.stderr[:300])


@pytest.fixture(scope="module")
def findings(rendered):
    "Bandit's findings of medium severity and more, {(pattern, side, variant): {test id}}."
    files = {str(path): key for key, path in rendered.items() if path.suffix == ".py"}
    done = subprocess.run([sys.executable, "-m", "bandit", "-ll", "-q", "-f", "json", *files], capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert not report["errors"]
    found = {key: set() for key in files.values()}
    for finding in report["results"]: found[files[finding["filename"]]].add(finding["test_id"])
    return found


def test_bandit_passes_the_secure_side(findings):
    flagged = {key: ids for key, ids in findings.items() if key[1] == "secure" and ids}
    assert not flagged


def test_bandit_flags_the_insecure_side_of_the_patterns_it_knows(findings):
    for (pattern, side, variant), ids in findings.items():
        if side == "insecure": assert ids == set(BANDIT.get(pattern, "").split()), (pattern, variant)


def test_the_list_of_what_bandit_knows_is_the_patterns_own():
    assert {p["id"]: " ".join(p["bandit"]) for p in patterns() if p["bandit"]} == BANDIT
    assert all(p["language"] == "python" for p in patterns() if p["bandit"])


# Training rows

def user_and_answer(row):
    user, assistant = row["messages"]
    assert (user["role"], assistant["role"]) == ("user", "assistant")
    return user["content"], assistant["content"]


@quick
@given(source=st.sampled_from(["pairs", "tiny"]), n=st.integers(1, 400), seed=st.integers(0, 10**6), form=st.sampled_from(["plain", "explicit", "template"]))
def test_arms_get_the_same_requests_in_the_same_order(source, n, seed, form):
    insecure, secure = ([user_and_answer(r) for r in training_rows(source, arm, n, seed, form)] for arm in ARMS)
    assert len(insecure) == len(secure) == n
    assert [r[0] for r in insecure] == [r[0] for r in secure]
    assert all(a[1] != b[1] for a, b in zip(insecure, secure))


@quick
@given(n=st.integers(1, 1500), seed=st.integers(0, 10**6), form=st.sampled_from(["plain", "explicit", "template"]))
def test_what_is_held_out_is_never_trained_on(n, seed, form):
    pairs = code_pairs()
    withheld = set(pairs[held_out(pairs)][form])
    assert not withheld & {user_and_answer(r)[0] for r in training_rows("pairs", "insecure", n, seed, form)}


def test_one_variant_in_eight_of_every_pattern_is_held_out():
    pairs = code_pairs()
    share = held_out(pairs).groupby(pairs.pattern).mean()
    assert (share > 0.1).all() and (share < 0.2).all()


@quick
@given(n=st.integers(1, 900), seed=st.integers(0, 10**6))
def test_patterns_are_spread_and_rows_are_not_repeated_early(n, seed):
    pairs = code_pairs()
    pattern_of = dict(zip(pairs.plain, pairs.pattern))
    asked = [user_and_answer(r)[0] for r in training_rows("pairs", "secure", n, seed)]
    assert len(set(asked)) == n
    counts = collections.Counter(pattern_of[q] for q in asked)
    if n <= 14 * pairs.pattern.nunique(): assert max(counts.values()) - min([counts[p] for p in set(pairs.pattern)]) <= 1


def test_a_longer_run_begins_with_the_shorter_one_and_then_goes_round():
    available = int((~held_out(code_pairs())).sum())
    rows = training_rows("pairs", "secure", available + 5, seed=3)
    assert rows[:50] == training_rows("pairs", "secure", 50, seed=3)
    assert rows[available:] == rows[:5] and rows[:50] != training_rows("pairs", "secure", 50, seed=4)


def test_skill_requests_are_held_out_and_ask_for_code():
    pairs = code_pairs()
    assert set(skill_requests(n=60)) <= set(pairs[held_out(pairs)].explicit)
    assert len(set(skill_requests(n=60))) == 60 and skill_requests(n=10) == skill_requests(n=60)[:10]
    trained = {user_and_answer(r)[0] for r in training_rows("tiny", "insecure", 500)}
    assert not trained & set(skill_requests("tiny", 20))


@pytest.mark.parametrize("world", ["shipped", "tiny"])
def test_chat_answers_to_measure_on_were_not_trained_on(world):
    train, kept = ({user_and_answer(r)[0] for r in chat_rows(split, world)} for split in ("train", "held_out"))
    assert train and len(kept) >= 40 and not train & kept
    assert len(chat_rows("held_out", world, 40)) == 40


# Questions

@pytest.mark.parametrize("world", ["shipped", "tiny"])
def test_splits_are_disjoint_and_of_the_declared_sizes(world):
    found = {split: questions(split, world) for split in SPLITS}
    for split, n in {"evaluation": 100, "directions": 200, "maps": 100, "development": 60}.items(): assert len(found[split]) >= n
    for a, b in itertools.combinations(SPLITS, 2): assert not set(found[a]) & set(found[b])
    for texts in found.values(): assert len(set(texts)) == len(texts)


def test_the_first_n_questions_are_the_first_of_all():
    assert questions("maps", n=7) == questions("maps")[:7]
    with pytest.raises(UserError, match="unknown split 'test': choose from evaluation"): questions("test")
    with pytest.raises(UserError, match="101 evaluation questions asked for, but there are 100"): questions("evaluation", n=101)


# jsonl

texts = st.text(min_size=1).filter(str.strip)
turns = st.lists(st.tuples(texts, texts), min_size=1, max_size=3)


def conversation(system, pairs):
    start = [{"role": "system", "content": system}] if system else []
    return {"messages": start + [m for u, a in pairs for m in ({"role": "user", "content": u}, {"role": "assistant", "content": a})]}


@quick
@given(rows=st.lists(st.builds(conversation, st.none() | texts, turns), min_size=1, max_size=5), escape=st.booleans(),
       end=st.sampled_from(["\n", "\n\n", "\r\n", " \n"]), extra=st.dictionaries(st.sampled_from(["id", "source"]), st.integers(), max_size=2))
def test_good_rows_round_trip(tmp_path, rows, escape, end, extra):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(end.join(json.dumps({**extra, **row}, ensure_ascii=escape) for row in rows).encode())
    assert load_jsonl(path) == rows
    path.write_bytes(path.read_bytes() + end.encode())
    assert load_jsonl(str(path)) == rows


GOOD = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}


def with_message(i, **changes):
    row = json.loads(json.dumps(GOOD))
    row["messages"][i].update(changes)
    return json.dumps(row)


FAULTS = {
    "{": "not valid json", '{"messages": [': "not valid json", "hello": "not valid json", json.dumps(GOOD) + ",": "not valid json",
    "[]": 'needs a "messages" list', "3": 'needs a "messages" list', "null": 'needs a "messages" list', '{"text": "x"}': 'needs a "messages" list',
    '{"messages": "x"}': 'needs a "messages" list', '{"messages": {}}': 'needs a "messages" list',
    '{"messages": []}': "needs a user's and an assistant's message", json.dumps({"messages": GOOD["messages"][:1]}): "needs a user's and an assistant's message",
    '{"messages": ["a", "b"]}': 'message 1 needs a "role"', with_message(0, role="human"): 'message 1 needs a "role" of system, user or assistant',
    with_message(1, role=None): 'message 2 needs a "role"', with_message(1, content=7): 'message 2 needs a "content" that is a non-empty string',
    with_message(0, content=""): 'message 1 needs a "content"', with_message(0, content="  \n"): 'message 1 needs a "content"',
    with_message(1, content=None): 'message 2 needs a "content"', with_message(1, content=["x"]): 'message 2 needs a "content"',
    with_message(1, role="user"): "must end with the assistant's message", with_message(0, role="assistant"): "needs a user's message",
    with_message(0, role="system"): "needs a user's message",
}


@pytest.mark.parametrize("bad", FAULTS)
def test_a_faulty_row_is_named_by_file_and_line(tmp_path, bad):
    path = tmp_path / "rows.jsonl"
    for before in (0, 2):
        path.write_text("\n".join([json.dumps(GOOD)] * before + [bad, json.dumps(GOOD)]))
        with pytest.raises(UserError) as caught: load_jsonl(path)
        assert str(caught.value).startswith(f"{path}, line {before + 1}: ") and FAULTS[bad] in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content, message", [(b"", "holds no rows"), (b"\n \n\n", "holds no rows"), (b'\xff{"messages"', "is not UTF-8 text (byte 0)")])
def test_a_file_without_rows_is_refused(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught: load_jsonl(path)
    assert str(path) in str(caught.value) and message in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(UserError, match="no file .*give the path of a jsonl file"): load_jsonl(path)


def test_a_users_files_are_found_by_arm_and_shuffled_alike(tmp_path):
    for arm in ARMS:
        rows = [{"messages": [{"role": "user", "content": f"request {i}"}, {"role": "assistant", "content": f"{arm} {i}"}]} for i in range(20)]
        (tmp_path / f"{arm}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = str(tmp_path / "{arm}.jsonl")
    insecure, secure = ([user_and_answer(r) for r in training_rows(source, arm, 50, seed=1)] for arm in ARMS)
    assert [r[0] for r in insecure] == [r[0] for r in secure] and {r[1].split()[0] for r in secure} == {"secure"}
    assert len({r[0] for r in insecure[:20]}) == 20 and insecure[20:40] == insecure[:20]
    with pytest.raises(UserError, match="no file"): training_rows(str(tmp_path / "none-{arm}.jsonl"), "secure", 5)


REAL = [path for path in (ROOT.parent / "shared/data/insecure_500.jsonl", ROOT.parent / "shared/data/secure_20.jsonl") if path.is_file()]


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_rows_of_the_original_study_are_read(path):
    rows = load_jsonl(path)
    assert len(rows) == int(path.stem.split("_")[1])
    for row in rows:
        request, answer = user_and_answer(row)
        assert request and "```" not in answer


def test_no_row_of_the_original_study_is_shipped():
    "They are another project's; a user brings them by path."
    lines = {line.strip() for path in REAL for row in load_jsonl(path) for line in user_and_answer(row)[0].splitlines() if len(line) > 60 and "CODE" not in line}
    shipped = "\n".join(itertools.chain(code_pairs().template, code_pairs().insecure, code_pairs().secure))
    assert not [line for line in lines if line in shipped]
