"""How the outcomes of Lightning's own tests are compared and explained."""

import pytest

from benchmarks.lightning_reasons import reason_of
from benchmarks.lightning_suite import differing, table

FAILED = {"outcome": "failed", "where": "test_a.py", "error": "E  assert 1 == 2"}


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ({"test": "loops/test_a.py::test_b"}, None),
        ({"test": "loops/test_a.py::test_b", "where": "deterministic_model.py"}, "fixed, full weights"),
        ({"test": "models/test_restore.py::test_restarting_mid_epoch_raises_warning[x]"}, "the warning of an inexact"),
        (
            {"test": "a.py::test_b", "refusal": "ModelPruning replaces the weights that SignInCallback replaces."},
            "refused",
        ),
        ({"test": "a.py::test_b", "refusal": "A new error."}, None),
    ],
)
def test_reasons(found, reason):
    given = reason_of({**FAILED, **found})
    assert (given is None) if reason is None else (reason in str(given))


def test_only_tests_that_both_runs_reached_differ():
    passed = {"outcome": "passed"}
    assert differing({"a": passed, "b": passed, "c": passed}, {"a": passed, "b": FAILED, "d": FAILED}) == ["b"]


def test_table_counts_reasons_and_lists_tests_without_one():
    found = [{"test": "a", "reason": "known", "error": "E"}, {"test": "b", "reason": None, "error": "E  oh"}]
    text = table("half masked", found, 10)
    assert "half masked: 2 of 10 tests end otherwise" in text
    assert "| known | 1 |" in text
    assert text.endswith("- b: E  oh")
