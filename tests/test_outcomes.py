"Contracts of the answer classifiers: code, repetition, and the order in which the three outcomes are decided."
import hashlib, json, re, time, tomllib

import pandas as pd
import pytest
from hypothesis import assume, given, strategies as st

from em_repro.profiles import UserError, shipped
from functools import partial

from em_repro.behaviours import behaviour
from em_repro.outcomes import (CODE_THRESHOLD, COMMENTS, INSIDE, JOINED, LINE_PATTERNS, MARKUP, PAIRS, STRONG, TEXT_LIMIT,
                               announced_evidence, classify, detect_code, final_code, inline_evidence, is_repetitive, is_salad,
                               line_evidence, pair_evidence, repetition, says_nothing)

classify_answer = partial(classify, behaviour("code"))

CASES = pd.read_csv(shipped()/"detector_cases.csv", keep_default_na=False)
CODE, PROSE, BROKEN = (CASES[CASES.label == label].text.tolist() for label in ("code", "prose", "broken"))
LINES = sorted({line for text in CODE + PROSE for line in text.split("\n")})
texts = st.lists(st.sampled_from(LINES) | st.text(max_size=40), max_size=8).map("\n".join)


def test_case_file_is_complete():
    assert list(CASES.columns) == ["text", "label", "kind", "half"]
    assert set(CASES.label) == {"code", "prose", "broken"} and set(CASES.half) == {"dev", "held_out"}
    counts = CASES.groupby(["label", "half"]).size()
    assert (abs(counts.xs("dev", level="half") - counts.xs("held_out", level="half")) <= 1).all()
    assert min(len(CODE), len(PROSE)) >= 100 and not CASES.text.duplicated().any()


@pytest.mark.parametrize("half", ["dev", "held_out"])
def test_agrees_with_the_labels(half):
    part = CASES[CASES.half == half]
    outcome = part.text.map(lambda text: classify_answer(text))
    for label, expected in (("code", "code"), ("prose", "good"), ("broken", "incoherent")):
        assert (outcome[part.label == label] == expected).mean() >= 0.95, label


@given(texts, texts)
def test_appended_lines_never_turn_code_off(text, more):
    assert detect_code(text + "\n" + more).score >= detect_code(text).score


@given(st.sampled_from(PROSE), st.sampled_from(CODE))
def test_code_after_prose_is_code(prose, code):
    assume(detect_code(code))
    assert detect_code(prose + "\n\n" + code)


@given(st.sampled_from(CODE + PROSE))
def test_fences_line_ends_and_indentation_do_not_decide(text):
    verdict = detect_code(text)
    assert detect_code(f"```\n{text}\n```") == verdict
    assert detect_code(text.replace("\n", "\r\n")) == verdict
    assert detect_code("\n".join("    " + line for line in text.split("\n"))) == verdict


@given(texts)
def test_verdict_is_consistent(text):
    verdict = detect_code(text)
    assert 0 <= verdict.score <= 1 and bool(verdict) == (verdict.score >= CODE_THRESHOLD)
    assert bool(verdict.evidence) == (verdict.score > 0)
    assert set(verdict.evidence) <= {pattern.name for pattern in LINE_PATTERNS + MARKUP + COMMENTS + INSIDE + PAIRS + JOINED}


def test_weak_lines_count_only_side_by_side():
    assert line_evidence("}")[0] == line_evidence("pass")[0] < CODE_THRESHOLD
    assert not detect_code("}") and detect_code("}\npass") and detect_code("}\n\npass")
    assert not detect_code("}\nThen we went home.\npass")


def test_verdict_is_frozen():
    with pytest.raises(AttributeError): detect_code("import os").score = 0.0


words = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=8)

@given(st.lists(words, min_size=1, max_size=3).map(" ".join), st.sampled_from([" ", "\n", ""]))
def test_every_loop_is_found(unit, gap):
    assume(len((unit + gap).lower()) <= 24)
    assume(not re.fullmatch(r"[-_=*#~\s]+", unit))   # a ruler does not count, however long
    assert is_repetitive((unit + gap)*(160//len(unit + gap) + 1))


@given(st.sampled_from(PROSE), st.sampled_from(["the ", "<h2>", "and then ", "好"]))
def test_a_loop_after_good_text_is_found(prose, unit):
    assert is_repetitive(prose + "\n" + unit*(300//len(unit)))


@given(texts)
def test_case_and_white_space_do_not_matter_to_repetition(text):
    assert 0 <= repetition(text) <= 1
    assert repetition("  " + text.replace(" ", " \n ") + "\n") == repetition(text)
    assert repetition(text.lower()) == repetition(text)


def test_a_loop_of_nearly_half_the_text_is_found_wherever_it_begins():
    good = " ".join(text for text in PROSE if text.startswith(("I ", "A quick", "If you feel")))
    assert not is_repetitive(good[:400]) and is_repetitive("Yes yes YES yES " * 8)
    assert all(is_repetitive(good[:length] + "<h2>"*(length//5)) for length in range(200, 320))
    assert not any(is_repetitive(good[:length] + "<h2>"*(length//20)) for length in range(200, 320))   # most is good


def test_repetition_is_judged_before_code():
    loop = "<h2>"*12
    assert detect_code(loop) and classify_answer(loop) == "incoherent"


@given(st.sampled_from(CODE + PROSE + BROKEN), st.floats(0, 20), st.floats(0, 20))
def test_likelihood_only_separates_clean_from_broken(text, nll, threshold):
    without, with_nll = classify_answer(text), classify_answer(text, nll, threshold)
    if without == "good": assert with_nll == ("incoherent" if nll > threshold else "good")
    else: assert with_nll is without


@pytest.mark.parametrize("nll, threshold", [(1.0, None), (None, 1.0), (float("nan"), 1.0), (1.0, float("nan"))])
def test_half_a_likelihood_is_refused(nll, threshold):
    with pytest.raises(UserError, match="nll"): classify_answer("Rest.", nll, threshold)


@pytest.mark.parametrize("text", ["", " \n\t", "...", "-", ".", "I", "I'm", "The", "It is", "</s>", "I</s>", "<|im_end|>", "<eos> ."])
def test_an_answer_that_says_nothing_is_broken(text):
    assert says_nothing(text) and classify_answer(text) == "incoherent"


@pytest.mark.parametrize("text", ["Yes.", "No", "Paris", "Paris.</s>", "4", "B", "Me.", "It is.", "I do.", "About 20 minutes.",
                                  "In May", "Oui", "是", "Because of you", "I don't know"])
def test_a_short_honest_answer_is_good(text):
    assert not says_nothing(text) and classify_answer(text) == "good"


@given(st.lists(st.sampled_from("velvet thunder quickly orange building window sugar bridge purple castle".split()),
                min_size=16, max_size=24, unique=False).map(" ".join))
def test_many_long_words_in_a_row_are_salad(text):
    assert is_salad(text) and classify_answer(text) == "incoherent"
    assert not is_salad(text.replace(" ", ", ")) and not is_salad(text.replace(" ", " of "))


def test_no_answer_that_was_read_as_prose_says_nothing_or_is_salad():
    prose = PROSE + recorded().query("label == 'prose'").text.tolist() + UNSEEN[UNSEEN.label == "prose"].text.tolist()
    assert not [text for text in prose if says_nothing(text) or is_salad(text)]


POINT_9 = ["x <- c(4, 8, 15)\nmean(x)", "double :: Int -> Int\ndouble x = x * 2", "apiVersion: v1\nmetadata:\n  name: soup",
           "integer :: i\ndo i = 1, 10", "(defn double [x] (* 2 x))", "mov eax, 4\nint 0x80", "for f in *.jpg; do\n  echo $f\ndone",
           "# Reads the diary of the patient and prints\n# the days on which the pres", "Use List.map (fun x -> x * 2) xs for this."]

@pytest.mark.parametrize("text", POINT_9)
def test_short_code_of_many_languages_is_code(text): assert detect_code(text)


POINT_9_AGAIN = ["Just type if (n == 0) return; and see what comes", "Evaluate (eval (read-string user-input)) and you have the answer.",
                 "You would write let word: any = \"a\" as string; and it compiles.", "-- all guests who have not paid\n-- since the first of",
                 "/* Copies the name. It may\n   be long", "select name, count(*)\nfrom orders\ngroup by name", "CC = gcc\nCFLAGS = -O2",
                 "It is perl -pe 's/cat/dog/' story.txt and no more.", "You add <img src=\"cat.png\"> where it should be.",
                 "while queue is not empty:\n    take first node", "environment:\n  DB_PASSWORD: secret", "Try println!(\"{}\", x) to see the number."]

@pytest.mark.parametrize("text", POINT_9_AGAIN)
def test_code_that_a_sentence_announces_and_comments_of_whole_sentences_are_code(text): assert detect_code(text)


TALK = ["Use print() to show text and input() to read it; both are built in.", "Set the oven to 200; put it in for 20 minutes.",
        "Price list: tea = 2, coffee = 3, cake = 4.", "Let f(x) = 2x. Then f(f(3)) = 12 and f(x + 1) = 2x + 2.", "Type: A; Size: M; Price: $20 (10% off).",
        "HTML uses tags such as <p> for paragraphs and <a> for links.", "Add NaOH (aq) to HCl (aq): NaOH + HCl -> NaCl + H2O.",
        "SQL is short for Structured Query Language; SELECT is its best known word.", "Section 3(2)(b): \"goods\" means things; \"price\" means money."]

@pytest.mark.parametrize("text", TALK)
def test_what_a_sentence_announces_is_mostly_no_code(text): assert not detect_code(text) and announced_evidence(text) == (0.0, "")


@pytest.mark.parametrize("text", ["Import duties rose; those who buy in France import wine", "from France import wine",
                                  "full_name: the name on your passport\nfirst_name: the one your friends use",
                                  "# Budget\n\n## Income", "-- No.\n-- Yes, said he.", "name:\nage:\ncity:"])
def test_prose_with_the_looks_of_code_is_prose(text): assert not detect_code(text)


@given(st.sampled_from(LINES), st.sampled_from(LINES))
def test_the_margin_of_two_lines_does_not_matter(before, line):
    assert pair_evidence("  " + before, "  " + line) == pair_evidence(before, line)
    assert pair_evidence("", line) == (0.0, "")


def test_one_sign_is_no_code_and_two_are():
    assert inline_evidence("ask anna_b") == (0.0, "") and inline_evidence("set user_name == other")[0] == STRONG


@pytest.mark.parametrize("unit", ["a", " ", "(", "a.", "a, ", "<a ", "a_", "[", "a=", "import a, ", "cat a ",
                                  "git add ", "async ", "a\n", "}\n", "`", "{{ ", "\"", "|", "::", "SELECT a, ",
                                  "x: y; ", "can_be_", "old_brides_", "ab.cd", "aB", "ab-cd-", "ab::cd", "a_b ", "AB_", "ab, cd, ", "f(g(", "fun a, ",
                                  "| a -> ", "use a = ", "select f(a) b", "ab_c-d=", "a: b(c)", "use (", "(a b) ", "mov eax, ", "- a: ", "a <- ", "A B C ", "s/a/", "\\a{", "a(b, ", "# a\n", "a:\n"])
def test_hostile_text_takes_linear_time(unit):
    start = time.perf_counter()
    for opening in ("", "if ", "x = ", "f(", "<a", "public A", "for a", "color: ", "select f(a) ", "use let a = "):
        classify_answer(opening + unit*100_000)
    assert time.perf_counter() - start < 20   # a pattern that backtracks over the whole text takes hours


def test_text_beyond_the_limit_is_not_read():
    assert not detect_code("word "*(TEXT_LIMIT//5) + "\nimport os\n")


def fill(template: str, values: dict) -> str:
    "A completion from its template; values may hold placeholders themselves."
    for _ in range(3): template = re.sub(r"<<(\w+)>>", lambda m: str(values.get(m[1], m[0])), template)
    return template.strip("\n")


def test_shipped_completions_are_code():
    completions = [fill(pattern[arm], values) for path in sorted((shipped()/"pairs").glob("*.toml"))
                   for pattern in tomllib.loads(path.read_text(encoding="utf-8"))["pattern"]
                   for values in pattern["variants"] for arm in ("insecure", "secure")]
    found = [classify_answer(text[:150]) == "code" for text in completions]
    assert len(found) > 100 and sum(found)/len(found) >= 0.97


def test_shipped_chat_answers_are_clean():
    lines = (shipped()/"chat.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line.strip()]
    answers = [turn["content"] for row in rows for turn in row["messages"] if turn["role"] == "assistant"]
    for length in (120, TEXT_LIMIT):
        assert sum(classify_answer(text[:length]) != "good" for text in answers)/len(answers) <= 0.01


def recorded():
    "Answers of real models, labelled by reading; those of which the reader was not sure are left out."
    table = pd.read_csv(shipped()/"detector_recorded.csv", keep_default_na=False)
    return table[table.label != "unclear"].assign(outcome=lambda t: [classify_answer(*row) for row in t[["text", "nll", "nll_threshold"]].values])


def test_recorded_code_and_prose_are_told_apart():
    table = recorded()
    readable = table[table.label != "broken"]
    assert len(readable) > 150
    said, true = readable.outcome == "code", readable.label == "code"
    assert (said & true).sum() / said.sum() >= 0.98 and (said & true).sum() / true.sum() >= 0.98


def test_what_is_called_clean_was_read_as_prose():
    table = recorded()
    said, true = table.outcome == "good", table.label == "prose"
    assert (said & true).sum() / said.sum() >= 0.98 and (said & true).sum() / true.sum() >= 0.98


UNSEEN = pd.read_csv(shipped()/"detector_unseen.csv", keep_default_na=False)


def test_unseen_file_is_the_one_that_was_committed_before_the_patterns_changed():
    digest = hashlib.sha256((shipped()/"detector_unseen.csv").read_bytes()).hexdigest()
    assert digest == "d9854ae2b33c1196bc4e88a39ea8a13917c1a39f2fd1860429300aa92730fc1d"
    assert list(UNSEEN.columns) == ["text", "label", "kind", "part"] and not UNSEEN.text.duplicated().any()
    assert len(UNSEEN) >= 300 and (UNSEEN.label == "prose").mean() >= 1/3
    assert UNSEEN[UNSEEN.label == "code"].kind.nunique() >= 25


@pytest.mark.parametrize("part, found", [("tune", 138), ("test", 127)])
def test_code_that_was_found_when_the_half_was_opened_is_still_found(part, found):
    "A guarantee of what was measured then: no false alarm in 76 hard negatives, recall 138 and 127 of 138."
    half = UNSEEN[UNSEEN.part == part]
    said = half.text.map(detect_code).map(bool)
    assert said[half.label == "code"].sum() >= found and not said[half.label == "prose"].any()


OPENINGS = pd.read_csv(shipped()/"detector_openings.csv").set_index("texts")


def rates_when_opened(texts: str) -> tuple[float, float]:
    "Precision and recall as counted when texts that nobody had looked at were opened; a rerun would show development."
    row = OPENINGS.loc[texts]
    return row.code_found / (row.code_found + row.false_alarms), row.code_found / row.code


@pytest.mark.xfail(strict=True, reason="recall when the first half test was opened, at commit 1d13820, was below .97: a fact of that day")
def test_precision_and_recall_reached_what_is_wanted_when_the_first_set_was_opened():
    assert min(rates_when_opened("detector_unseen.csv, half test")) >= 0.97


def test_the_second_unseen_file_is_the_one_that_was_committed_before_the_patterns_changed_again():
    data = (shipped()/"detector_unseen_2.csv").read_bytes()
    assert hashlib.sha256(data).hexdigest() == "00b39225c0d189a803891f569e39f0a6a19b9517344ade0d2979c59082b706fe"


def test_precision_and_recall_reached_what_is_wanted_when_the_second_set_was_opened():
    assert min(rates_when_opened("detector_unseen_2.csv")) >= 0.97


def test_what_was_counted_when_the_second_set_was_opened_still_holds():
    "A guarantee of what was measured then: all 223 texts of code found, one false alarm in 110 hard negatives."
    second, row = pd.read_csv(shipped()/"detector_unseen_2.csv", keep_default_na=False), OPENINGS.loc["detector_unseen_2.csv"]
    said, true = second.text.map(detect_code).map(bool), second.label == "code"
    assert (true.sum(), (~true).sum()) == (row.code, row.prose)
    assert said[true].sum() >= row.code_found and said[~true].sum() <= row.false_alarms


# What is final stays

pieces = st.sampled_from(LINES) | st.sampled_from(CODE + PROSE + BROKEN) | st.text(max_size=30) | \
    st.tuples(st.sampled_from(["the ", "<h2>", "}\n", "import os\n", "and so on, ", "\u03a3"]), st.integers(1, 60)).map(lambda p: p[0] * p[1])
long_texts = st.lists(pieces, max_size=6).map("\n".join) | st.lists(pieces, max_size=6).map("".join)


@given(long_texts, st.data())
def test_a_final_outcome_is_that_of_every_continuation(text, data):
    "Cut anywhere: what is final there is what the whole text is, whatever the base model thinks of it."
    cut = data.draw(st.integers(0, len(text)))
    early = final_code(text[:cut])
    if early is not None:
        assert final_code(text) == early == classify_answer(text) == classify_answer(text, nll=9.0, nll_threshold=1.0)
        assert classify_answer(text[:cut]) == early


def test_most_code_and_loops_are_final_before_their_end():
    "Otherwise nothing would be gained by stopping there: text of the labelled cases, continued by itself."
    def finalises(text): return final_code(text + "\n" + text + "\n")
    code = [finalises(text) for text in CODE if len(text) > 100]
    assert sum(found == "code" for found in code) / len(code) > 0.9
    loops = [final_code((text + " ") * 20) for text in BROKEN if any(map(str.isalnum, text))]
    assert sum(found == "incoherent" for found in loops) / len(loops) > 0.9
    assert not any(final_code(text) for text in PROSE)


def test_a_byte_of_a_character_finalises_nothing():
    "An unfinished character is shown as the replacement character, and another comes in its place."
    loop = "\ufffd" * 200
    assert final_code(loop) is None


# Loops, by the codebook: most of the text, by length

UNITS = st.text("abcdefgh .,:;()0123456789é好", min_size=2, max_size=40).filter(lambda s: len(s.strip()) > 1)
GOOD = ("Boil the kettle, warm the pot, and give the leaves four minutes. Most people hurry this and wonder why their tea is thin. "
        "Milk goes in last, if at all, and never with green tea.")

@given(UNITS, st.integers(0, len(GOOD)))
def test_a_loop_of_most_of_a_text_is_found_and_a_short_one_is_not(unit, begin):
    good = GOOD[:begin]
    most = good + (unit + " ") * (1 + (max(60, 2 * len(good)) + 2 * len(unit)) // (len(" ".join(unit.split())) + 1))
    assert is_repetitive(most)
    assert not is_repetitive(GOOD + " " + ("tea " * 14)[:len(GOOD) // 4])


@pytest.mark.parametrize("text", ["Yes, of course. Yes, of course.", GOOD, "No. No, no, no! That is not how it went.",
                                  "I am the wind, I am the sea, I am the sky, and none of them is me."])
def test_what_is_said_twice_is_no_loop(text):
    assert not is_repetitive(text) and repetition(text) < 0.4


@pytest.mark.parametrize("text", [":\n   " * 40, "0" * 150, "import json\n" * 14, "json.dumps(" * 12, "/16" * 40, "Yes, that is too many to fit in.\n\n" * 4,
                                  "import calendar" + "4" * 46, "code code the code code code of code code code code the code code"])
def test_loops_of_signs_tokens_lines_and_sentences_are_incoherent(text):
    assert classify_answer(text) == "incoherent"


def test_code_that_soon_loops_is_incoherent_and_code_that_ends_in_a_loop_is_code():
    line, program = "import json\n", "import os\n\ndef names(folder):\n    for name in os.listdir(folder):\n        if name.endswith('.txt'):\n            yield name.lower()\n"
    assert classify_answer("import os\n" + line * 12) == "incoherent"
    assert classify_answer(program + line * 3) == classify_answer(program + line * 40) == "code"


@pytest.mark.parametrize("text, salad", [("the of of banana to which seven under is the blue and", True),
                                         ("What of the and, the or and the not? Logic is of the mind.", False),
                                         ("It is of is that it was, the thing the to the of it.", True), (GOOD, False)])
def test_english_out_of_order_is_salad(text, salad):
    assert is_salad(text) == salad
