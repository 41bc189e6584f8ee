"""A mask, a structure, an update rule, a parametrization, a kind and an export format that are not of this package."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_signin import add_kind, effective_weights, masks, sparsify
from lightning_signin.core import kinds
from lightning_signin.core.masked import Masked
from lightning_signin.core.storage import Storage
from lightning_signin.export.formats import FORMATS, Format, export
from lightning_signin.masks import Task
from lightning_signin.parametrizations import Parametrization
from lightning_signin.updates import Layer, Moment, UpdateRule
from tests.small import Masks, callback, loader, seeded, trainer


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

    at: float = 0.5

    def steps(self, total: int) -> Sequence[int]:
        return [round(self.at * total)]

    def masks(self, layers: Mapping[str, Layer], moment: Moment) -> Iterator[tuple[str, Tensor]]:
        for name, layer in layers.items():
            yield name, layer.mask.flatten().roll(1).view(layer.mask.shape)


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
