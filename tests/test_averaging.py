"""Lightning's averaging callbacks beside ours: θ is averaged, validated, saved, resumed and kept."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_signin import masks
from lightning_signin.callback.resuming import STATE_KEY
from lightning_signin.parametrizations import STR
from lightning_signin.updates import GMP, RigL
from tests.small import BATCHES, Small, callback, copies, data, differing, loader, seeded, trainer

DECAY = 0.9


class NowAndThen(WeightAveraging):
    """The equally weighted mean of every third step and of the ends of epochs, from the eighth step on."""

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return epoch_idx is not None or (step_idx is not None and step_idx >= 8 and step_idx % 3 == 0)


def swa() -> StochasticWeightAveraging:
    return StochasticWeightAveraging(0.05, swa_epoch_start=2, annealing_epochs=1)


KINDS: dict[str, Callable[[], Any]] = {
    "EMA": lambda: EMAWeightAveraging(decay=DECAY),
    "mean": WeightAveraging,
    "now and then": NowAndThen,
    "SWA": swa,
}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_order = pytest.mark.parametrize("first", [True, False], ids=["before it", "after it"])
IN_STEPS = {"rescale_every_n_epochs": None, "rescale_every_n_steps": 7}
DENSE = {"sparsity": 0.0, "parametrization": "plain"}
pytestmark = pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")


class Validated(Small):
    """Notes the weights that it is validated with."""

    def __init__(self, **options: float) -> None:
        super().__init__(**options)
        self.validated: list[dict[str, Tensor]] = []

    def on_validation_epoch_start(self) -> None:
        self.validated.append(copies(self))


class Path(Callback):
    """Notes θ and the masks after every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.masks: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.steps.append(copies(module))
        self.masks.append(masks(module))


def validation() -> DataLoader:
    return DataLoader(data(), 16)


def beside(average: Any, first: bool = True, **options: Any) -> list[Any]:
    ours = callback(**{**IN_STEPS, **options})
    return [average, ours] if first else [ours, average]


def fit(*callbacks: Any, ckpt_path: Any = None, sgd: Any = None, **options: Any) -> tuple[Validated, Any]:
    seeded()
    if ckpt_path:  # nothing of the interrupted process is left
        torch.manual_seed(99)
    module, runner = Validated(**(sgd or {})), trainer(*callbacks, **options)
    runner.fit(module, loader(), validation(), ckpt_path=ckpt_path)
    return module, runner


@each_order
@each_kind
def test_dense_plain_run_equals_the_run_without_the_callback(kind, first, tmp_path):
    with_it, runner = fit(*beside(KINDS[kind](), first, **DENSE))
    without, other = fit(KINDS[kind]())
    assert differing(copies(with_it), copies(without)) == []
    assert with_it.losses == without.losses
    assert runner.callback_metrics["val_loss"] == other.callback_metrics["val_loss"]
    for a, b in zip(with_it.validated, without.validated, strict=True):
        assert differing(a, b) == []
    for path, of in ((tmp_path / "with", runner), (tmp_path / "without", other)):
        of.save_checkpoint(path)
    a, b = (torch.load(tmp_path / name, weights_only=True) for name in ("with", "without"))
    assert differing(a["state_dict"], b["state_dict"]) == []


def slow(kind: str, path: Path) -> list[dict[str, Tensor]]:
    """The averages after every step, in float64; what is off the mask is dropped from them."""
    averages: list[dict[str, Tensor]] = []
    for count, (theta, kept) in enumerate(zip(path.steps, path.masks, strict=True)):
        new = {name: theta[name].double() for name in kept}
        if count:
            share = 1 - DECAY if kind == "EMA" else 1 / (count + 1)
            new = {name: (1 - share) * averages[-1][name] + share * value for name, value in new.items()}
        averages.append({name: value * kept[name] for name, value in new.items()})
    return averages


def check_average(kind: str, path: Path, module: Validated) -> None:
    averages = slow(kind, path)
    for index, weights in enumerate(module.validated[1:]):  # after the sanity check
        for name, average in averages[BATCHES * (index + 1) - 1].items():
            torch.testing.assert_close(weights[name].double(), average, atol=1e-6, rtol=1e-5)
            assert torch.equal(weights[name] != 0, path.masks[BATCHES * (index + 1) - 1][name])
    end = copies(module)
    for name, kept in path.masks[-1].items():
        torch.testing.assert_close(end[name].double(), averages[-1][name], atol=1e-6, rtol=1e-5)
        assert torch.equal(end[name] != 0, kept)
    assert differing(end, module.validated[-1]) == []  # to the bit what was validated last


@each_order
@pytest.mark.parametrize("kind", ["EMA", "mean"])
@pytest.mark.parametrize("storage", ["compact", "dense"])
def test_weights_are_averages_of_theta_with_rescales_in_between(kind, first, storage):
    path = Path()
    module, _ = fit(path, *beside(KINDS[kind](), first, storage=storage))
    check_average(kind, path, module)


@pytest.mark.parametrize("update", [RigL(3), "acdc", GMP(5)], ids=["rigl", "acdc", "gmp"])
@pytest.mark.parametrize("kind", ["EMA", "mean"])
def test_what_leaves_the_mask_leaves_the_average(kind, update):
    path = Path()
    module, _ = fit(path, *beside(KINDS[kind](), update=update))
    assert any(not torch.equal(path.masks[0][name], kept) for name, kept in path.masks[-1].items())
    averages = slow(kind, path)
    end = copies(module)
    for name, kept in path.masks[-1].items():
        torch.testing.assert_close(end[name].double(), averages[-1][name], atol=1e-6, rtol=1e-5)
        assert not end[name][~kept].any()
    assert differing(end, module.validated[-1]) == []


@each_order
def test_average_that_was_never_updated_is_the_sparse_start(first):
    module, _ = fit(*beside(EMAWeightAveraging(update_starting_at_step=1000), first), epochs=1)
    assert len(module.losses) == BATCHES
    seeded()
    start, end = Validated(), copies(module)
    for name in ("conv.weight", "fc1.weight", "fc2.weight"):
        kept = end[name] != 0
        torch.testing.assert_close(end[name], start.get_parameter(name).detach() * kept)
        assert torch.equal(end[name], module.validated[0][name])
    assert sum(int((end[n] != 0).sum()) for n in ("conv.weight", "fc1.weight", "fc2.weight")) == round(0.3 * 1242)


def test_soft_threshold_keeps_its_zeros():
    path, threshold = Path(), {"parametrization": STR(s_init=-20.0), "sparsity": None}
    sgd = {"lr": 0.2, "momentum": 0.9, "weight_decay": 0.05}
    module, _ = fit(path, *beside(EMAWeightAveraging(decay=DECAY), **threshold), sgd=sgd)
    zeros = {name: path.steps[-1][name] == 0 for name in path.masks[-1]}
    assert 100 < sum(int(zero.sum()) for zero in zeros.values()) < 1242
    for name, zero in zeros.items():
        assert torch.equal(copies(module)[name] == 0, zero)


@each_order
def test_stochastic_averages_are_those_of_theta_at_the_starts_of_epochs(first):
    path = Path()
    module, _ = fit(path, *beside(swa(), first))
    for name, kept in path.masks[-1].items():
        starts = [path.steps[BATCHES * epoch - 1][name].double() for epoch in (1, 2, 3)]
        torch.testing.assert_close(copies(module)[name].double(), sum(starts) / 3, atol=1e-6, rtol=1e-5)
        assert not copies(module)[name][~kept].any()


def test_stochastic_averaging_does_not_lengthen_the_schedule_of_a_mask():
    def moved(*extra: Any) -> list[int]:
        path = Path()
        fit(path, *extra, callback(**IN_STEPS, update=RigL(3)))
        steps = zip(path.masks, path.masks[1:], strict=False)
        return [i for i, (a, b) in enumerate(steps) if any(not torch.equal(a[n], b[n]) for n in a)]

    without = moved()
    assert without
    assert moved(swa()) == without


@each_order
@each_kind
def test_validate_after_fit_is_that_of_the_average(kind, first):
    module, runner = fit(*beside(KINDS[kind](), first))
    end = copies(module)
    (logged,) = runner.validate(module, validation(), verbose=False)
    assert logged["val_loss"] == pytest.approx(float(runner.callback_metrics["val_loss"]))
    assert differing(module.validated[-1], end) == []
    assert differing(copies(module), end) == []
    assert [name for name, _ in module.named_parameters()] == [name for name, _ in Small().named_parameters()]


@each_order
def test_checkpoints_hold_the_average_and_the_trained_weights(first, tmp_path):
    saver = ModelCheckpoint(tmp_path, "{step}", monitor="val_loss", save_top_k=-1)
    path = Path()
    module, runner = fit(
        path, saver, *beside(EMAWeightAveraging(decay=DECAY), first), enable_checkpointing=True, val_check_interval=0.5
    )
    runner.save_checkpoint(tmp_path / "after.ckpt")
    for step, validated in zip(range(5, 45, 5), module.validated[1:], strict=True):
        saved = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)
        assert differing(saved["state_dict"], validated) == []
        assert differing(saved["current_model_state"], path.steps[step - 1]) == []
        Small().load_state_dict(saved["state_dict"], strict=True)
    assert differing(torch.load(tmp_path / "after.ckpt", weights_only=True)["state_dict"], copies(module)) == []


@pytest.mark.parametrize(
    ("kind", "first", "options"),
    [
        *((kind, first, {}) for kind in KINDS for first in (True, False)),
        ("EMA", True, {"update": RigL(3)}),
        ("SWA", True, {"update": RigL(3)}),
        ("EMA", False, {"parametrization": STR(s_init=-20.0), "sparsity": None}),
    ],
    ids=str,
)
def test_resume_equals_uninterrupted(kind, first, options, tmp_path):
    def run(folder: str, ckpt_path: Any = None) -> tuple[dict[str, Tensor], Any]:
        by_step = ModelCheckpoint(tmp_path / folder, "{step}", every_n_train_steps=7, save_top_k=-1)
        by_epoch = ModelCheckpoint(tmp_path / folder, "end-{step}", monitor="val_loss", save_top_k=-1)
        both = {"enable_checkpointing": True, "ckpt_path": ckpt_path}
        module, _ = fit(*beside(KINDS[kind](), first, **options), by_step, by_epoch, **both)
        return copies(module), torch.load(tmp_path / folder / "step=35.ckpt", weights_only=True)

    whole, late = run("whole")
    # Within its epochs Lightning resumes stochastic averaging without its schedule.
    within = ["step=7"] if kind == "SWA" else ["step=14", "step=28"]
    for moment in ("end-step=10", "end-step=20", "end-step=30", *within):
        again, late_again = run(moment, tmp_path / "whole" / f"{moment}.ckpt")
        assert differing(whole, again) == [], moment
        assert differing(late["state_dict"], late_again["state_dict"]) == [], moment
        if kind != "SWA":
            assert differing(late["current_model_state"], late_again["current_model_state"]) == [], moment
        assert late["callbacks"].keys() == late_again["callbacks"].keys()


def test_resume_says_when_stochastic_averaging_loses_its_schedule(tmp_path):
    by_step = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=14)
    fit(*beside(swa()), by_step, enable_checkpointing=True)
    with pytest.warns(
        UserWarning, match="not bit for bit: Lightning takes up StochasticWeightAveraging's schedule only"
    ):
        fit(*beside(swa()), ckpt_path=tmp_path / "step=28.ckpt")


def test_finished_run_goes_on_from_the_average(tmp_path):
    module, runner = fit(*beside(EMAWeightAveraging(decay=DECAY)), epochs=2)
    runner.save_checkpoint(tmp_path / "after.ckpt")
    again, _ = fit(*beside(EMAWeightAveraging(decay=DECAY)), ckpt_path=tmp_path / "after.ckpt", epochs=3)
    assert differing(again.validated[0], copies(module)) == []
    assert len(again.losses) == BATCHES


class Saves(Validated):
    """Saves in the middle of every validation."""

    path: Any

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        if batch_idx == 1 and not self.trainer.sanity_checking:
            self.trainer.save_checkpoint(self.path / f"{self.trainer.global_step}.ckpt")


@each_order
def test_checkpoint_from_within_a_validation_is_that_of_after_it(first, tmp_path):
    saver = ModelCheckpoint(tmp_path, "after-{step}", monitor="val_loss", save_top_k=-1)
    seeded()
    module = Saves()
    module.path = tmp_path
    runner = trainer(saver, *beside(EMAWeightAveraging(decay=DECAY), first), epochs=2, enable_checkpointing=True)
    runner.fit(module, loader(), validation())
    for step in (BATCHES, 2 * BATCHES):
        within = torch.load(tmp_path / f"{step}.ckpt", weights_only=True)
        after = torch.load(tmp_path / f"after-step={step}.ckpt", weights_only=True)
        for key in ("state_dict", "current_model_state"):
            assert differing(within[key], after[key]) == [], key
        for name, factors in after["callbacks"][STATE_KEY]["factors"].items():
            saved = within["callbacks"][STATE_KEY]["factors"][name]
            assert all(torch.equal(a, b) for a, b in zip(saved, factors, strict=True))


class Breaks(Validated):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == 2 * BATCHES:
            raise ZeroDivisionError
        super().validation_step(batch, batch_idx)


def test_validation_that_breaks_off_leaves_the_trained_model_and_a_checkpoint(tmp_path):
    seeded()
    module, path = Breaks(), Path()
    saver = OnExceptionCheckpoint(tmp_path, "broken")
    runner = trainer(path, saver, *beside(EMAWeightAveraging(decay=DECAY)), enable_checkpointing=True)
    with pytest.raises(ZeroDivisionError):
        runner.fit(module, loader(), validation())
    assert differing(copies(module), path.steps[-1]) == []
    saved = torch.load(tmp_path / "broken.ckpt", weights_only=True)
    assert differing(saved["current_model_state"], path.steps[-1]) == []
    assert differing(saved["state_dict"], module.validated[-1]) == []
    assert saved["callbacks"][STATE_KEY]["factors"].keys() == path.masks[-1].keys()


class Returns(EMAWeightAveraging):
    """Puts the average into the model now and then, as "switch EMA" does."""

    def on_train_batch_end(self, trainer: Any, module: Any, *arguments: Any) -> None:
        super().on_train_batch_end(trainer, module, *arguments)
        if trainer.global_step % 5 == 0:
            self._copy_average_to_current(module)


def test_what_a_subclass_writes_into_the_model_is_trained_on():
    def weights(**options: Any) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        path = Path()
        module, _ = fit(*beside(Returns(decay=DECAY), **options), path)
        return path.steps, copies(module)

    steps, _ = weights()
    others, _ = weights(sparsity=0.7, parametrization="plain")
    (theta, plain) = (found[4]["fc1.weight"] for found in (steps, others))
    assert torch.equal(theta != 0, plain != 0)
    dense, end = weights(**DENSE)
    seeded()
    module, path = Validated(), Path()
    trainer(Returns(decay=DECAY), path).fit(module, loader(), validation())
    assert differing(dense[-1], path.steps[-1]) == []
    assert differing(end, copies(module)) == []


def test_two_averages_are_refused():
    with pytest.raises(
        ValueError, match="EMAWeightAveraging and StochasticWeightAveraging would exchange each other's"
    ):
        fit(*beside(EMAWeightAveraging()), swa())


class RestoresLate(SingleDeviceStrategy):
    """Loads weights when the model is wrapped, as strategies that shard it do."""

    restore_checkpoint_after_setup = True


def test_strategy_that_shards_is_refused():
    with pytest.raises(ValueError, match="EMAWeightAveraging copies the whole model, which RestoresLate shards"):
        fit(*beside(EMAWeightAveraging()), strategy=RestoresLate("cpu"))


def test_averaged_checkpoint_without_the_averaging_callback_is_refused(tmp_path):
    _, runner = fit(*beside(EMAWeightAveraging()), epochs=1)
    runner.save_checkpoint(tmp_path / "averaged.ckpt")
    with pytest.raises(ValueError, match="holds the averages of a WeightAveraging callback, and the Trainer has none"):
        fit(callback(**IN_STEPS), ckpt_path=tmp_path / "averaged.ckpt")


def test_layers_that_the_average_lacks_are_named():
    class Late(Validated):
        def setup(self, stage: str) -> None:
            self.fc1 = torch.nn.Linear(48, 24)
            self.late = torch.nn.Linear(3, 3)

    seeded()
    with pytest.raises(
        ValueError, match=r"EMAWeightAveraging copied the module before it had late\.weight, made in its"
    ):
        trainer(*beside(EMAWeightAveraging())).fit(Late(), loader())
