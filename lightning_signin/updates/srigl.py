"""SRigL: RigL with the same number of weights for every neuron, which ablates neurons with few salient weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_signin.core.numbers import check_field, share
from lightning_signin.masks.largest import largest
from lightning_signin.updates.rigl import RigL
from lightning_signin.updates.rule import Layer, Masks, Moment


@dataclass(frozen=True)
class SRigL(RigL):
    """Structured RigL (Lasby et al.: "Dynamic Sparse Training with Structured Sparsity", ICLR 2024).

    Schedule and k are RigL's. A weight is salient if RigL would keep or grow it in the update: it is among the n − k of
    largest |θ|, or among the k of largest gradient (`Layer.growth`). A neuron (output) with fewer salient weights than
    γ times the current fan-in is ablated, for good; its budget goes to the others, whose fan-in is the nearest whole
    number to (weights of the layer) / (neurons left). Then the layer drops its k smallest |θ|, and every neuron grows
    the weights of its largest gradients up to the fan-in. A dense layer is left as it is.

    Args:
        schedule: RigL's.
        drop_fraction: α, in [0, 1].
        min_salient: γ in [0, 1]; the paper uses 0.3 for convolutional networks; 0 ablates nothing.
    """

    min_salient: float = 0.3

    structure: ClassVar[str | None] = "constant-fan-in"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_field(self, "min_salient", share, zero=True)

    @property
    def keeps_counts(self) -> bool:  # type: ignore[override]
        """True without ablation."""
        return self.min_salient == 0

    def masks(self, layers: Mapping[str, Layer], moment: Moment) -> Masks:
        """The new masks."""
        fraction = self.drop_fraction * moment.amount
        for name, layer in layers.items():
            kept = layer.kept
            if kept < layer.mask.numel():
                yield name, self._mask(layer, kept, int(fraction * kept))

    def _mask(self, layer: Layer, kept: int, dropped: int) -> Tensor:
        survivors = layer.largest(layer.theta.abs(), kept - dropped)
        gradient = layer.growth()
        wanted = largest(gradient.masked_fill(survivors, -1), dropped)
        rows, salient, active = (
            layer.layout.read(tensor).flatten(1) for tensor in (survivors, survivors | wanted, layer.mask)
        )
        neurons = active.any(1)
        fan_in = kept / int(neurons.sum())
        left = neurons & (salient.sum(1) >= self.min_salient * fan_in)
        if not left.any():  # a layer keeps its best neuron
            left[salient.sum(1).masked_fill(~neurons, -1).argmax()] = True
        goal = min(round(layer.target / int(left.sum())), rows.shape[1])
        return self._regrown(layer, rows, gradient, left, goal)

    def _regrown(self, layer: Layer, rows: Tensor, gradient: Tensor, left: Tensor, fan_in: int) -> Tensor:
        score = layer.layout.read(gradient).flatten(1)
        order = score.where(~rows, 2 * score.max() + 1).argsort(dim=1, descending=True, stable=True)
        mask = torch.zeros_like(rows).scatter_(1, order[:, :fan_in], True) & left.unsqueeze(1)
        return layer.layout.write(mask.view(layer.layout.shape(tuple(layer.mask.shape))))
