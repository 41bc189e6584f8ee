"""The tables of a sweep: means and paired differences against scipy, failures and warnings."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lightning_signin.sweep.grid import Cell
from lightning_signin.sweep.result import Result, choose_metric, mean
from lightning_signin.sweep.summary import summarize
from lightning_signin.sweep.table import markdown


def test_intervals_are_those_of_scipy():
    values = list(np.random.default_rng(0).normal(size=7))
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    found = mean(values)
    assert np.allclose([found.value - found.half, found.value + found.half, found.count], [low, high, 7])


def results_of(numbers: dict[str, dict[int, float | None]], metric: str = "test_acc") -> list[Result]:
    return [
        Result(Cell(method, 0.9, seed), "", None if number is None else {metric: number}, None if number else "boom\nx")
        for method, by_seed in numbers.items()
        for seed, number in by_seed.items()
    ]


def test_table_pairs_differences_by_seed_and_counts_what_failed():
    first, other = {0: 0.70, 1: 0.72, 2: 0.71}, {0: 0.74, 1: None, 2: 0.73}
    summary = summarize(results_of({"plain": other, "sign-in": first}), "test_acc", ["sign-in"])
    half = stats.t.ppf(0.975, 1) * stats.sem([4.0, 2.0])
    lines = markdown(summary).splitlines()
    assert f"| plain | +3.00 ± {half:.2f}, n = 2 |" in lines
    assert f"| sign-in | 71.00 ± {stats.t.ppf(0.975, 2) * stats.sem([70, 72, 71]):.2f}, n = 3 |" in lines
    assert f"| plain | 73.50 ± {stats.t.ppf(0.975, 1) * stats.sem([74, 73]):.2f}, n = 2 of 3 |" in lines
    assert "- plain-0.9-seed1: boom x" in lines
    assert lines.index("| method | 90 % |") < lines.index("Difference from sign-in, paired by seed, in points")


def test_warnings_stand_below_the_table_once_with_their_runs():
    warned = [replace(result, warnings=["hm\nso"]) for result in results_of({"plain": {0: 0.7, 1: 0.7, 2: 0.7}})]
    text = markdown(summarize([*warned, *results_of({"sign-in": {0: 0.7}})], "test_acc"))
    assert text.endswith("\n\nWarnings:\n\n- plain-0.9-seed0 and 2 more: hm so\n")


def test_table_says_what_decayed_the_weights_of_each_method():
    plain, product = (results_of({name: {0: 0.7, 1: 0.7}}) for name in ("plain", "sign-in"))
    on_theta = [replace(result, weight_decay="0.1 on θ") for result in [*plain, *product]]
    text = markdown(summarize(on_theta, "test_acc"))
    assert text.endswith("\n\nWeight decay of the sparse weights, with every method: 0.1 on θ\n")
    on_both = [*on_theta[:2], *(replace(result, weight_decay="0.1 on m and w") for result in product)]
    text = markdown(summarize(on_both, "test_acc"))
    assert text.endswith("Weight decay of the sparse weights:\n\n- plain: 0.1 on θ\n- sign-in: 0.1 on m and w\n")


def test_other_metrics_are_no_percents():
    summary = summarize(results_of({"plain": {0: 1234.4}}, "val_loss"), "val_loss")
    assert summary.label == "val_loss"
    assert "| plain | 1234, n = 1 |" in markdown(summary)


def test_metric_is_the_first_that_runs_have():
    assert choose_metric(results_of({"a": {0: 1.0}}, "val_acc"), None) == "val_acc"
    assert choose_metric(results_of({"a": {0: None}}), None) == "test_acc"
    with pytest.raises(
        ValueError, match=r"`--metric` must be something that a run logs, but none has f1\. They have x:"
    ):
        choose_metric(results_of({"a": {0: 1.0}}, "x"), "f1")
