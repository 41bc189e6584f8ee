"""Sign flips of the effective weights since the start, a warm-up, the last measurement (Figures 1, 4, 7)."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_signin.bits import full_signs, pack_bits, pack_signs, unpack_bits, unpack_signs
from lightning_signin.functional import sign_flips
from lightning_signin.weights import SparseWeight, sparse_weights

State = dict[str, Any]
REFERENCES = ("start", "warmup", "last")
_STAGES = (*REFERENCES, "start_to_warmup")


class SignFlips(Metric):
    """Counts the weights whose sign differs from that at earlier moments, for the model and for every layer.

    The start is when the metric is made. A weight that is masked or exactly 0 has no sign, then or now, and is not
    counted as flipped. Shares are of the weights that are kept now; that from the start to the warm-up is of those that
    were kept at the warm-up. References take one bit a kept weight; where masks move, one bit more for every weight.

    Args:
        module: A module after `sparsify`.
        moving: Its masks will change.

    Attributes:
        names: The plain names of the sparse weights.

    Example:
        >>> from lightning_signin import flip_signs_, sparsify
        >>> net = sparsify(nn.Linear(10, 10), sparsity=0.6)
        >>> flips = SignFlips(net)
        >>> flips.update(flip_signs_(net, 0.25))
        >>> flips.compute()["start"]
        0.25
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    flipped: Tensor
    kept: Tensor

    def __init__(self, module: nn.Module, moving: bool = False) -> None:
        super().__init__()
        self.moving, self.names = moving, list(sparse_weights(module))
        shape = (len(self.names), len(_STAGES))
        # Sums over ranks: of ranks that hold the same weights, the shares stay what they are.
        self.add_state("flipped", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("kept", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        self.references: dict[str, State] = {}
        self._to_warmup = torch.zeros(2, len(self.names), dtype=torch.int64)
        self.mark("start", module)

    def mark(self, reference: str, module: nn.Module) -> None:
        """Count from now on since this moment, too.

        Args:
            reference: "start", "warmup" or "last".
            module: The module.
        """
        weights = sparse_weights(module)
        if reference == "warmup":
            self._to_warmup = torch.stack([*self._since("start", weights)])
        self.references[reference] = {
            "signs": {name: pack_signs(weight.active_values()) for name, weight in weights.items()},
            "masks": {name: pack_bits(weight.storage.mask) for name, weight in weights.items()}
            if self.moving
            else None,
        }

    def update(self, module: nn.Module) -> None:
        """Count, and take this moment for the last measurement of the next."""
        weights = sparse_weights(module)
        for column, stage in enumerate(_STAGES):
            if stage in self.references:
                flipped, kept = self._since(stage, weights)
            elif stage == "start_to_warmup" and "warmup" in self.references:
                flipped, kept = self._to_warmup
            else:
                continue
            self.flipped[:, column] = flipped.to(self.flipped.device)
            self.kept[:, column] = kept.to(self.kept.device)
        self.mark("last", module)

    def compute(self) -> dict[str, float]:
        """Shares of flipped weights of the whole model: "start" and, where they are known, the other stages."""
        return self._shares(self.flipped.sum(0), self.kept.sum(0))

    def by_layer(self) -> dict[str, dict[str, float]]:
        """The same for every sparse weight by plain name."""
        return {n: self._shares(f, k) for n, f, k in zip(self.names, self.flipped, self.kept, strict=True)}

    def saved(self) -> State:
        """The references, as tensors and plain values."""
        return {"references": self.references, "to_warmup": self._to_warmup}

    def load(self, state: State) -> None:
        """Go on from saved references."""
        self.references, self._to_warmup = dict(state["references"]), state["to_warmup"]

    def _since(self, reference: str, weights: dict[str, SparseWeight]) -> tuple[Tensor, Tensor]:
        found = [_flips(self.references[reference], name, weight) for name, weight in weights.items()]
        kept = [weight.storage.active for weight in weights.values()]
        return torch.tensor(found, dtype=torch.int64), torch.tensor(kept, dtype=torch.int64)

    @staticmethod
    def _shares(flipped: Tensor, kept: Tensor) -> dict[str, float]:
        pairs = zip(_STAGES, flipped.tolist(), kept.tolist(), strict=True)
        return {stage: flips / number for stage, flips, number in pairs if number}


def _flips(reference: State, name: str, weight: SparseWeight) -> int:
    packed, masks, now = reference["signs"][name], reference["masks"], weight.active_values()
    if masks is None:
        then = unpack_signs(packed)
    else:
        mask = unpack_bits(masks[name], tuple(weight.storage.shape))
        then = full_signs(packed, mask)[weight.storage.mask.cpu()]
    return int(sign_flips(then.to(now.device), now))
