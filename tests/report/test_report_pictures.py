"""The pictures of a report: bars, curves, stars and layers show the numbers, and can be seen."""

import io
from collections.abc import Callable
from functools import partial

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from lightning_signin.report.curves import draw_curve, draw_users_columns
from lightning_signin.report.drawing import COLOURS, as_png
from lightning_signin.report.end_of_run import draw_layer_density, draw_layer_flips, draw_layer_scaling, draw_stages
from lightning_signin.report.pictures import PICTURES
from lightning_signin.report.runs import Run, read_runs
from tests.reports import LAYERS, write_rows, write_run


def test_stage_bars_are_the_last_measurement_in_percent(tmp_path):
    runs = read_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b", flips=0.5)])
    [axes] = draw_stages(runs).axes
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == pytest.approx([30, 12, 25, 50, 12, 45])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["start → end", "start → warm-up", "warm-up → end"]


def test_curves_have_axes_units_and_a_legend(tmp_path):
    runs = read_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b", epochs=6)])
    figure = draw_curve(runs, "signin/sign_flips", "flips")
    [axes] = figure.axes
    assert axes.lines[0].get_ydata()[-1] == pytest.approx(30)
    assert [line.get_xdata()[-1] for line in axes.lines] == [12, 6]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epochs trained", "flips (%)")
    assert [text.get_text() for text in figure.legends[0].texts] == [run.name for run in runs]
    assert len({line.get_color() for line in axes.lines}) == 2


def test_a_test_is_a_star_at_the_end_and_losses_may_be_logarithmic(tmp_path):
    runs = read_runs([write_run(tmp_path / "a")])
    figure = draw_users_columns(runs, "acc", "accuracy")
    validation, star = figure.axes[0].lines
    assert (list(star.get_xdata()), star.get_marker(), validation.get_linestyle()) == ([12], "*", "-")
    assert [text.get_text() for text in figure.legends[0].texts][1:] == ["val_acc", "test_acc"]
    assert figure.axes[0].get_yscale() == "linear"
    assert draw_users_columns(runs, "loss", "loss").axes[0].get_yscale() == "log"


def pixels(runs: list[Run], draw: Callable[[list[Run]], Figure], colour: str) -> int:
    """How many have a colour, below the one line of a legend of short names."""
    wanted = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    image = imread(io.BytesIO(as_png(draw, runs)))[70:, :, :3]
    return int((abs(image - wanted).max(axis=2) < 0.01).sum())


def test_single_measurement_is_seen(tmp_path):
    rows = [{"epoch": 0, "step": 1, "val_acc": 0.5, "signin/sharpness": 7.0}, {"epoch": 1, "step": 2, "test_loss": 0.3}]
    runs = read_runs([write_rows(tmp_path / "a" / "v0", rows)])
    shown = [picture for picture in PICTURES if picture.has(runs[0])]
    assert [picture.name for picture in shown] == ["accuracy", "loss", "sharpness"]
    assert all(pixels(runs, picture.draw, COLOURS[0]) > 60 for picture in shown)


def test_lines_on_each_other_are_both_seen(tmp_path):
    runs = read_runs([write_run(tmp_path / name / "v0", leave_out="layer") for name in "ab"])
    draw = partial(draw_curve, column="signin/sparsity", label="zeros", up_to=104)
    assert all(pixels(runs, draw, colour) > 100 for colour in COLOURS[:2])


def test_layer_pictures_name_each_layer_once_and_show_the_last_value(tmp_path):
    runs = read_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b", leave_out="warmup")])
    figure = draw_layer_flips(runs)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["start → end", "start → warm-up", "warm-up → end"]
    assert list(figure.axes[0].lines[0].get_ydata()) == pytest.approx(
        [100 * v for v in runs[0].layers("flips").values()]
    )
    labels = [tick.get_text() for tick in figure.axes[-1].get_xticklabels()]
    assert labels[:3] == ["conv1", "fc", "layer1.0.conv"]
    assert len(labels) == len(set(labels)) == len(LAYERS)
    assert len(draw_layer_density(runs).axes[0].patches) == 2 * len(LAYERS)
    assert draw_layer_scaling(runs).axes[0].get_ylabel() == "m² − w²"


def test_too_many_layers_are_not_all_named(tmp_path):
    rows = [{"epoch": 0, "step": 1, **{f"signin/layer/density/block.{i}.weight": 0.1 for i in range(200)}}]
    [axes] = draw_layer_density(read_runs([write_rows(tmp_path, rows)])).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()][:3] == ["0", "4", "8"]
    assert axes.get_xlabel() == "weight, by name; one of 4 is named"
