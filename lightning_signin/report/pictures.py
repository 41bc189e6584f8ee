"""The plots of a report: what each shows, which columns it needs, and how to log them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lightning_signin.report.curves import draw_curve, draw_users_columns
from lightning_signin.report.end_of_run import draw_layer_density, draw_layer_flips, draw_layer_scaling, draw_stages
from lightning_signin.report.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """One plot of a report.

    Attributes:
        name: The name of its PNG file, without the suffix.
        title: Its heading.
        caption: What it shows, in which unit, and what it corresponds to in the paper.
        column: The column that a run needs to be in the plot: a name, a prefix that ends in "/", or a word in the
            names of the user's own columns, as "*word*".
        source: How to log the column.
        draw: Draws the runs that have it.
        wide: Whether it takes the full width of the page.
    """

    name: str
    title: str
    caption: str
    column: str
    source: str
    draw: "Callable[[list[Run]], Figure]"
    wide: bool = False

    def has(self, run: Run) -> bool:
        """Whether a run has values for this plot."""
        if self.column.startswith("*"):
            return bool(run.named(self.column.strip("*")))
        if self.column.endswith("/"):
            what = self.column.removeprefix("signin/layer/").rstrip("/")
            return any(map(math.isfinite, run.layers(what).values()))  # a diverged run may have none
        return run.has(self.column)


_ALWAYS = "SignInCallback logs it."
_LAYERS = "SignInCallback(log_layers=True) logs it."
_USERS = "Values are as logged; those of one epoch are averaged, and a star is a test after training."
_LOGGED_BY_USER = 'Log it in training_step or validation_step: self.log("{}", …).'

PICTURES = (
    Picture(
        "accuracy",
        "Accuracy",
        f"Columns with “acc” in their name. {_USERS}",
        "*acc*",
        _LOGGED_BY_USER.format("val_acc"),
        partial(draw_users_columns, word="acc", label="accuracy"),
    ),
    Picture(
        "loss",
        "Loss",
        f"Columns with “loss” in their name. {_USERS}",
        "*loss*",
        _LOGGED_BY_USER.format("train_loss"),
        partial(draw_users_columns, word="loss", label="loss"),
    ),
    Picture(
        "sign_flips_by_stage",
        "Sign flips by stage",
        "Percent of the kept weights whose sign differs between two moments: the start of the run, the end of warm-up, "
        "and the last measurement (“end”). As in Figure 1 of the paper.",
        "signin/flips_start_to_warmup",
        "SignInCallback(warmup_epochs=10) logs it from that epoch on.",
        draw_stages,
    ),
    Picture(
        "sign_flips",
        "Sign flips since the start",
        "Percent of the kept weights whose sign differs from the start of the run. As in Figure 4(a) of the paper.",
        "signin/sign_flips",
        _ALWAYS,
        partial(draw_curve, column="signin/sign_flips", label="signs that differ from the start"),
    ),
    Picture(
        "sign_flips_since_last",
        "Sign flips in each epoch",
        "Percent of the kept weights whose sign differs from the previous measurement: at 0, signs are settled. "
        "Figure 4(a) of the paper counts from the start instead.",
        "signin/sign_flips_since_last",
        _ALWAYS,
        partial(draw_curve, column="signin/sign_flips_since_last", label="signs that differ from last time"),
    ),
    Picture(
        "sharpness",
        "Sharpness",
        "Largest eigenvalue of the Hessian of the training loss with respect to the kept weights (no unit): smaller is "
        "flatter. As in Figure 4(b) of the paper.",
        "signin/sharpness",
        "SignInCallback(sharpness_every_n_epochs=5) logs it.",
        partial(draw_curve, column="signin/sharpness", label="largest eigenvalue", percent=False),
    ),
    Picture(
        "layer_flips",
        "Sign flips in each layer",
        "Percent of a layer's kept weights whose sign differs between two moments, at the last measurement. As in "
        "Figure 7 of the paper; the stages after the first need warmup_epochs.",
        "signin/layer/flips/",
        _LAYERS,
        draw_layer_flips,
        wide=True,
    ),
    Picture(
        "layer_density",
        "Density of each layer",
        "Percent of a layer's weights that the mask keeps, at the last measurement. Figure 8 of the paper shows the "
        "same as sparsity, which is 100 % less the density.",
        "signin/layer/density/",
        _LAYERS,
        draw_layer_density,
        wide=True,
    ),
    Picture(
        "layer_scaling",
        "Scaling of each layer",
        "Mean and standard deviation of m² − w² over a layer's kept weights, at the last measurement (no unit). A "
        "rescale (Algorithm 1 of the paper) sets it to β.",
        "signin/layer/scaling/",
        f"{_LAYERS} There is none without factors m and w.",
        draw_layer_scaling,
        wide=True,
    ),
    Picture(
        "scaling",
        "Scaling",
        "Mean of m² − w² over all kept weights (no unit): noise and weight decay shrink it, and a rescale (Algorithm 1 "
        "of the paper) sets it to β.",
        "signin/scaling",
        f"{_ALWAYS} There is none without factors m and w.",
        partial(draw_curve, column="signin/scaling", label="mean of m² − w²", percent=False),
    ),
    Picture(
        "sparsity",
        "Sparsity",
        "Percent of the selected weights that are zero.",
        "signin/sparsity",
        _ALWAYS,
        partial(draw_curve, column="signin/sparsity", label="zeros", up_to=104),
    ),
    Picture(
        "mask_change",
        "Change of the mask",
        "Percent of the mask that its last update replaced.",
        "signin/mask_change",
        'SignInCallback(update="rigl") or another update logs it.',
        partial(draw_curve, column="signin/mask_change", label="mask replaced"),
    ),
    Picture(
        "update_progress",
        "Progress of the updates",
        "Percent of the planned updates of the mask that are done.",
        "signin/update_progress",
        'SignInCallback(update="rigl") or another update logs it.',
        partial(draw_curve, column="signin/update_progress", label="updates done", up_to=104),
    ),
)
