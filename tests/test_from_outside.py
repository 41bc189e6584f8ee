"""A mask, a structure, an update rule, a schedule, a parametrization, a kind and an export format from outside."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from lightning_signin import SignInCallback, SignInError, add_kind, effective_weights, masks, sparsify
from lightning_signin.core import kinds
from lightning_signin.core.masked import Masked
from lightning_signin.core.storage import Storage
from lightning_signin.export.formats import FORMATS, Format, export
from lightning_signin.masks import Task
from lightning_signin.parametrizations import Parametrization
from lightning_signin.updates import SET, Layer, Moment, Once, Schedule, UpdateRule
from tests.small import Masks, callback, copies, differing, loader, seeded, trainer


def first_inputs(task: Task) -> Mapping[str, Tensor]:
    """A score: weights of the first inputs."""
    return {n: -torch.arange(w.numel(), dtype=torch.float64).view(w.shape) - 1 for n, w in task.weights.items()}


class Diagonal:
    """A structure: one weight of each output, as long as there are inputs."""

    def unit(self, shape: tuple[int, ...]) -> int:
        return 1

    def capacity(self, shape: tuple[int, ...]) -> int:
        return min(shape[:2]) * prod(shape[2:])

    def values(self, score: Tensor) -> Tensor:
        return score[self._places(score)]

    def pick(self, score: Tensor, count: int) -> Tensor:
        mask = self._places(score)
        mask[mask.clone()] = score[mask].argsort(descending=True).argsort() < count
        return mask

    def _places(self, score: Tensor) -> Tensor:
        eye = torch.eye(*score.shape[:2], dtype=torch.bool)
        return eye.view(*score.shape[:2], *[1] * (score.ndim - 2)).expand(score.shape).clone()


@dataclass(frozen=True)
class Turn(UpdateRule):
    """An update rule: in the middle of the run every mask turns by one place."""

    schedule: Schedule = Once(0.5)

    def masks(self, layers: Mapping[str, Layer], moment: Moment) -> Iterator[tuple[str, Tensor]]:
        for name, layer in layers.items():
            yield name, layer.mask.flatten().roll(1).view(layer.mask.shape)


class Doubling(Schedule):
    """A schedule: at steps 1, 2, 4, 8, …, ever more weakly."""

    def __init__(self, first: int = 1) -> None:
        self.first = first

    def steps(self, total: int) -> Sequence[int]:
        return [step for step in (self.first * 2**i for i in range(20)) if step < total]

    def amount(self, step: int, total: int) -> float:
        return self.first / step


class _Halved(Masked):
    """θ = v / 2."""

    def split(self, inner: Tensor) -> tuple[Tensor, ...]:
        return (2 * inner,)

    def full(self, *tensors: Tensor, lend: bool) -> Tensor:
        return super().full(*tensors, lend=False) / 2

    def values(self, *tensors: Tensor) -> Tensor:
        return super().values(*tensors) / 2


class Halved(Parametrization):
    """A parametrization: trains twice the weight."""

    def build(self, storage: Storage, beta: float) -> Masked:
        return _Halved(storage)


class Save(Callback):
    """Saves a checkpoint after some steps."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, run: Trainer, *_: object) -> None:
        if run.global_step == self.step:
            run.save_checkpoint(self.path)


def test_score_rule_and_parametrization_by_import_path():
    module, watch = seeded(), Masks()
    here = "tests.test_from_outside"
    options = {"mask": f"{here}.first_inputs", "update": f"{here}.Turn", "parametrization": f"{here}.Halved"}
    own = callback(**options, distribution="uniform", rescale_every_n_epochs=None)
    trainer(own, watch, epochs=2).fit(module, loader())
    for name, mask in watch.found.items():
        kept = int(mask.sum())
        assert mask.flatten()[:kept].all()
        zeros = module.state_dict()[name].flatten() == 0
        assert not zeros[1 : kept + 1].all()
        assert zeros[0]
        assert zeros[kept + 1 :].all()


@pytest.mark.parametrize("rule", [Turn(Doubling()), SET(Doubling(), drop_fraction=0.9)], ids=["own rule", "SET"])
def test_schedule_as_an_object_in_a_fit_and_its_resume(tmp_path, rule):
    whole, part = callback(update=rule), callback(update=rule)
    trainer(whole, Save(tmp_path / "step6.ckpt", 6), epochs=2).fit(module := seeded(), loader())
    resumed = seeded()
    torch.manual_seed(99)
    trainer(part, epochs=2).fit(resumed, loader(), ckpt_path=tmp_path / "step6.ckpt")
    assert differing(copies(module), copies(resumed)) == []
    assert part.state_dict()["digest"] == whole.state_dict()["digest"]
    assert part.state_dict()["updates"] == whole.state_dict()["updates"]
    assert whole.state_dict()["updates"]["lanes"] == [[20, 16]]
    other = callback(update=replace(rule, schedule=Doubling(first=2)))
    with pytest.raises(SignInError, match=r"was trained with update='.*Doubling\(first=1\).*has.*Doubling\(first=2\)"):
        trainer(other, epochs=2).fit(seeded(), loader(), ckpt_path=tmp_path / "step6.ckpt")


def test_schedule_by_class_path(tmp_path):
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SignInCallback, "callback", fail_untyped=False)
    schedule = {"class_path": "tests.test_from_outside.Doubling", "init_args": {"first": 3}}
    update = {"class_path": "lightning_signin.updates.SET", "init_args": {"schedule": schedule}}
    found = parser.instantiate_classes(parser.parse_object({"callback": {"update": update}})).callback.arguments.rule
    assert list(found.schedule.steps(total=20)) == [3, 6, 12]


def test_structure_as_an_object():
    net = sparsify(nn.Linear(6, 4), sparsity=0.5, structure=Diagonal())
    assert torch.equal(masks(net)["weight"], torch.eye(4, 6, dtype=torch.bool))


def test_kind_in_one_line():
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.entries = nn.Parameter(torch.randn(8, 4))

    try:
        add_kind(Table, entries="io")
        assert list(effective_weights(sparsify(nn.Sequential(Table()), sparsity=0.5))) == ["0.entries"]
    finally:
        del kinds.KINDS[Table]


def test_export_format_in_one_row(tmp_path, monkeypatch):
    def write_names(weights, output):
        Path(output).write_text("\n".join(weights.tensors))
        return output

    monkeypatch.setitem(FORMATS, "names", Format(".txt", write_names))
    net = sparsify(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), sparsity=0.5)
    export(net, tmp_path / "net.txt", to="names")
    assert (tmp_path / "net.txt").read_text().splitlines() == list(net.state_dict())
