"""Lightning's averaging callbacks beside ours: θ is averaged, validated and kept."""

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor

from lightning_signin.parametrizations import STR
from lightning_signin.updates import GMP, Cosine, Cubic, RigL
from tests.averages import (
    DECAY,
    DENSE,
    IN_STEPS,
    KINDS,
    Path,
    Validated,
    beside,
    each_kind,
    each_order,
    fit,
    quiet_swa,
    skip_unsafe,
    swa,
    validation,
)
from tests.small import BATCHES, Small, callback, copies, differing, loader, seeded, trainer

pytestmark = quiet_swa


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
    skip_unsafe(kind)
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


@pytest.mark.parametrize("update", [RigL(Cosine(3)), "acdc", GMP(Cubic(5))], ids=["rigl", "acdc", "gmp"])
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
        fit(path, *extra, callback(**IN_STEPS, update=RigL(Cosine(3))))
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
