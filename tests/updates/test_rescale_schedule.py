"""When rescales are due: against Algorithm 1, walked through run by run."""

import math
import re

import numpy as np
import pytest

from lightning_signin.updates.rescale_schedule import RescaleSchedule
from tests import reference

Point = tuple[int, int]


def walk(epochs: int, batches: int, accumulate: int = 1) -> list[Point]:
    """(epoch, optimizer steps taken) before every batch of a run."""
    steps = -(-batches // accumulate)
    return [(epoch, epoch * steps + batch // accumulate) for epoch in range(epochs) for batch in range(batches)]


def rescales(schedule: RescaleSchedule, points: list[Point], max_epochs: int | None, max_steps: int) -> list[Point]:
    """The points with a rescale in an uninterrupted run."""
    befores = [(-1, -1), *points[:-1]]
    return [n for n, b in zip(points, befores, strict=True) if schedule.due(n, b, max_epochs, max_steps)]


@pytest.mark.parametrize("every", [1, 2, 5, 30])
@pytest.mark.parametrize("until", [0, 1, 10, 19, 20, 100])
def test_rescales_are_those_of_algorithm_1(every, until):
    due = rescales(RescaleSchedule(every, None, until), walk(20, 3), 20, -1)
    assert due == [(epoch, 3 * epoch) for epoch in reference.rescale_epochs(every, 20, until)]


@pytest.mark.parametrize(
    ("until", "max_epochs", "stop"),
    [(0.75, 100, 75), (0.75, 10, 7.5), (0.0, 10, 0), (1.0, 10, 10), (0.55, 100, 55), (0.07, 100, 7), (0.29, 100, 29)],
)
def test_fraction_counts_max_epochs(until, max_epochs, stop):
    due = rescales(RescaleSchedule(1, None, until), walk(max_epochs, 1), max_epochs, -1)
    assert [epoch for epoch, _ in due] == reference.rescale_epochs(1, max_epochs, stop)


@pytest.mark.parametrize("max_epochs", [None, -1])
@pytest.mark.parametrize(("until", "max_steps", "stop"), [(0.5, 40, 20), (0.75, 40, 30), (0.55, 100, 55), (1.0, 8, 8)])
def test_fraction_counts_max_steps_where_there_is_no_max_epochs(max_epochs, until, max_steps, stop):
    points = walk(max_steps // 4, 4)
    due = rescales(RescaleSchedule(None, 5, until), points, max_epochs, max_steps)
    assert [step for _, step in due] == reference.rescale_epochs(5, max_steps, stop)
    due = rescales(RescaleSchedule(1, None, until), points, max_epochs, max_steps)
    assert due == [(epoch, 4 * epoch) for epoch in range(1, max_steps // 4) if 4 * epoch < stop]


@pytest.mark.parametrize("every", [1, 3, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_count_optimizer_steps_up_to_an_epoch(every, accumulate):
    points = walk(6, 4, accumulate)
    due = rescales(RescaleSchedule(None, every, 4), points, 6, -1)
    # Each step once, at the first batch of an accumulation window.
    steps = {step: epoch for epoch, step in reversed(points)}
    assert due == [(epoch, step) for step, epoch in sorted(steps.items()) if step and step % every == 0 and epoch < 4]
    assert len(due) == len(set(due))


@pytest.mark.parametrize("schedule", [RescaleSchedule(2, None, 7), RescaleSchedule(None, 3, 0.8)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_runs_rescale_where_the_uninterrupted_one_does(schedule, accumulate):
    points = walk(9, 4, accumulate)
    expected = rescales(schedule, points, 9, -1)
    for stop in range(1, len(points)):
        # The last point that was seen is saved and handed back as `before`.
        resumed = [
            now
            for now, before in zip(points[stop:], points[stop - 1 : -1], strict=True)
            if schedule.due(now, before, 9, -1)
        ]
        assert [point for point in expected if point in points[:stop]] + resumed == expected


def test_start_of_a_run_is_no_rescale():
    assert not RescaleSchedule(1, None, 5).due((0, 0), (-1, -1), 10, -1)
    assert not RescaleSchedule(None, 1, 5).due((0, 0), (-1, -1), 10, -1)


@pytest.mark.parametrize("schedule", [(1, None), (3, None), (8, None), (None, 1), (None, 7), (None, 24), (None, 40)])
@pytest.mark.parametrize("until", [0, 1, 5, 100, 0.0, 0.2, 0.75, 1.0])
@pytest.mark.parametrize(("max_epochs", "max_steps"), [(8, -1), (-1, 24), (None, 20), (6, 10), (100, 24)])
def test_never_is_said_of_runs_without_a_rescale(schedule, until, max_epochs, max_steps):
    schedule = RescaleSchedule(*schedule, until)
    epochs = 40 if max_epochs in (None, -1) else max_epochs
    points = [(epoch, step) for epoch, step in walk(epochs, 4) if max_steps == -1 or step < max_steps]
    assert schedule.never(max_epochs, max_steps, 4) == (rescales(schedule, points, max_epochs, max_steps) == [])


def test_never_is_said_of_data_without_a_length_if_epochs_decide():
    assert RescaleSchedule(5, None, 0.75).never(6, -1, math.inf)
    assert not RescaleSchedule(5, None, 0.75).never(7, -1, math.inf)
    assert not RescaleSchedule(5, None, 0.75).never(None, 100, math.inf)
    assert not RescaleSchedule(None, 500, 0.75).never(6, -1, math.inf)


def test_none_never_rescales():
    schedule = RescaleSchedule(None, None, 0.75)
    assert not schedule.ever
    assert rescales(schedule, walk(10, 2), 10, -1) == []
    assert RescaleSchedule(1, None, 0).ever
    assert RescaleSchedule(None, 1, 0).ever


@pytest.mark.parametrize("value", [0, -1, 2.0, "5", True])
@pytest.mark.parametrize("argument", ["epochs", "steps"])
def test_frequency_must_be_an_integer(argument, value):
    text = f"`rescale_every_n_{argument}` must be a whole number of at least 1, got {value!r}. Pass None to never"
    with pytest.raises(ValueError, match=re.escape(text)):
        RescaleSchedule(*((value, None) if argument == "epochs" else (None, value)), until=0.5)


def test_epochs_and_steps_exclude_each_other():
    text = r"`rescale_every_n_steps`=7 and `rescale_every_n_epochs`=5 are both set\. .* rescale_every_n_epochs=None"
    with pytest.raises(ValueError, match=text):
        RescaleSchedule(5, 7, 0.75)


@pytest.mark.parametrize("until", [-1, -0.5, "half", None, True, float("nan")])
def test_until_must_be_an_epoch_or_a_fraction(until):
    with pytest.raises(ValueError, match=f"`rescale_until` must be an epoch or a fraction of the run, got {until!r}"):
        RescaleSchedule(5, None, until)


@pytest.mark.parametrize("until", [1.5, 75.0, float("inf")])
def test_until_as_a_fraction_is_at_most_one(until):
    with pytest.raises(ValueError, match=rf"`rescale_until` as a fraction must be in \[0, 1\], got {until}. An epoch"):
        RescaleSchedule(5, None, until)


@pytest.mark.parametrize("max_epochs", [None, -1])
def test_fraction_of_an_endless_run_is_refused(max_epochs):
    text = "`rescale_until`=0.75 is a fraction of the run, which has neither `max_epochs` nor `max_steps`. Pass an"
    with pytest.raises(ValueError, match=text):
        RescaleSchedule(5, None, 0.75).check_run(max_epochs, -1)
    RescaleSchedule(5, None, 0.75).check_run(10, -1)
    RescaleSchedule(5, None, 0.75).check_run(max_epochs, 100)
    RescaleSchedule(5, None, 75).check_run(max_epochs, -1)
    RescaleSchedule(None, None, 0.75).check_run(max_epochs, -1)


def test_numbers_of_numpy_are_fractions_like_others():
    given, plain = (RescaleSchedule(1, None, until) for until in (np.float64(0.75), 0.75))
    assert given == plain
    assert given.due((3, 30), (2, 29), 8, -1)
    assert not given.due((6, 60), (5, 59), 8, -1)
