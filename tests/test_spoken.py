"""Numbers in words: one way, in sentences, cells and the ledger."""
import ast, math, re
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from em_repro import stats
from em_repro.spoken import signed, with_interval

PACKAGE = Path(__file__).resolve().parents[1] / "em_repro"
numbers = st.floats(-1e6, 1e6)
# Elsewhere, or another way on purpose: printed results of stats have their own digits, audit sentences their own words.
APART = {"stats", "audit_preference", "audit_report"}


@given(numbers, numbers, numbers, st.sampled_from(["+.2f", ".0f", ".3g"]), st.sampled_from(["", "%", " points"]))
def test_number_unit_and_ends_stand_as_they_are_asked_for(value, low, high, form, unit):
    assert with_interval(value, low, high, form, unit) == f"{value:{form}}{unit} [{low:{form}}, {high:{form}}]"


@pytest.mark.parametrize("missing", [None, math.nan])
def test_what_is_missing_is_not_made_up(missing):
    assert with_interval(missing, 0.0, 1.0) == "-" and with_interval(0.5, missing, 1.0) == with_interval(0.5, 0.0, missing) == "0.50"


@given(numbers, numbers, numbers)
def test_a_difference_has_its_sign_and_its_scale(value, low, high):
    assert signed(value, low, high, 0, 100, " points") == f"{100 * value:+.0f} points [{100 * low:+.0f}, {100 * high:+.0f}]"
    assert stats.signed is signed


def test_no_module_writes_an_interval_by_hand():
    "An f-string with a bracket, a formatted value, a comma and another, as in `[{low:.2f}, {high:.2f}]`."
    by_hand = re.compile(r"\[\x00, \x00\]")
    found = set()
    for path in PACKAGE.glob("*.py"):
        if path.stem in APART | {"_modidx"}: continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.JoinedStr): continue
            text = "".join("\0" if isinstance(part, ast.FormattedValue) and part.format_spec else getattr(part, "value", "") if isinstance(part, ast.Constant) else "?"
                           for part in node.values)
            if by_hand.search(text): found.add(path.stem)
    assert found == {"spoken"}   # which does it for all
