"""Sign flips of the effective weights since the start, a warm-up, or the last measurement (Figures 1, 4, 7)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_signin.core.functional import sign_flips
from lightning_signin.core.structure import Expected, both, entries, of_type, tensor
from lightning_signin.core.weights import sparse_weights
from lightning_signin.weightfiles.bits import (
    expected_signs,
    full_signs,
    pack_bits,
    pack_signs,
    unpack_bits,
    unpack_signs,
)

State = dict[str, Any]
REFERENCES = ("start", "warmup", "last")
_STAGES = (*REFERENCES, "start_to_warmup")


class SignFlips(Metric):
    """Counts the weights whose sign differs from that at earlier moments, for the model and for every layer.

    The start is the moment the metric is created. A weight that is masked or exactly 0, at either moment, has no sign
    and does not count as flipped. Shares are relative to the weights that are kept now; the share from the start to the
    warm-up, to those kept at the warm-up. A reference takes one bit per kept weight; if masks move, one more bit for
    every weight, kept or not.

    Args:
        module: A module after `sparsify`.
        moving: Whether its masks will change.

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
        # Summed over ranks: if all hold the same weights, the shares do not change.
        self.add_state("flipped", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("kept", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        self.references: dict[str, State] = {}
        self._to_warmup = torch.zeros(2, len(self.names), dtype=torch.int64)
        self.mark("start", module)

    def mark(self, reference: str, module: nn.Module) -> None:
        """Set this moment as a reference to count flips from.

        Args:
            reference: "start", "warmup" or "last".
            module: The module.
        """
        self._mark(reference, _moment(module, self.moving))

    def update(self, module: nn.Module) -> None:
        """Count flips since all references, then set this moment as the reference "last"."""
        now = _moment(module, self.moving)
        for column, stage in enumerate(_STAGES):
            if stage in self.references:
                flipped, kept = self._since(stage, now)
            elif stage == "start_to_warmup" and "warmup" in self.references:
                flipped, kept = self._to_warmup
            else:
                continue
            self.flipped[:, column] = flipped.to(self.flipped.device)
            self.kept[:, column] = kept.to(self.kept.device)
        self._mark("last", now)

    def compute(self) -> dict[str, float]:
        """Shares of flipped weights in the whole model: "start" and, where known, the other stages."""
        return self._shares(self.flipped.sum(0), self.kept.sum(0))

    def by_layer(self) -> dict[str, dict[str, float]]:
        """The same for every sparse weight by plain name."""
        return {n: self._shares(f, k) for n, f, k in zip(self.names, self.flipped, self.kept, strict=True)}

    def rename(self, names: Mapping[str, str]) -> None:
        """Go on with other plain names, after layers were moved in the module.

        Args:
            names: The present names by the former ones; empty if they are the same.
        """
        if not names:
            return
        self.names = [names[name] for name in self.names]
        for reference in self.references.values():
            for key in ("signs", "masks"):
                if reference[key] is not None:
                    reference[key] = {names[name]: value for name, value in reference[key].items()}

    def saved(self) -> State:
        """The references, as tensors and plain values."""
        return {"references": self.references, "to_warmup": self._to_warmup}

    def expected(self, module: nn.Module) -> Expected:
        """What `saved` returns in a run of a module, whose masks are those at the time of saving."""
        reference = expected_signs({name: w.storage.mask.cpu() for name, w in sparse_weights(module).items()})
        if not self.moving:
            reference = both(reference, entries({"masks": of_type(type(None))}))
        references = entries({"start": reference}, dict.fromkeys(REFERENCES, reference))
        return entries({"references": references, "to_warmup": tensor(torch.int64, (2, len(self.names)))})

    def load(self, state: State) -> None:
        """Restore saved references."""
        self.references, self._to_warmup = dict(state["references"]), state["to_warmup"]

    def _mark(self, reference: str, now: "dict[str, _Weight]") -> None:
        if reference == "warmup":
            self._to_warmup = torch.stack([*self._since("start", now)])
        self.references[reference] = {
            "signs": {name: pack_signs(weight.values) for name, weight in now.items()},
            "masks": {name: pack_bits(w.mask) for name, w in now.items() if w.mask is not None} or None,
        }

    def _since(self, reference: str, now: "dict[str, _Weight]") -> tuple[Tensor, Tensor]:
        found = [_flips(self.references[reference], name, weight) for name, weight in now.items()]
        kept = [weight.values.numel() for weight in now.values()]
        return torch.tensor(found, dtype=torch.int64), torch.tensor(kept, dtype=torch.int64)

    @staticmethod
    def _shares(flipped: Tensor, kept: Tensor) -> dict[str, float]:
        pairs = zip(_STAGES, flipped.tolist(), kept.tolist(), strict=True)
        return {stage: flips / number for stage, flips, number in pairs if number}


class _Weight(NamedTuple):
    """The entries of a weight on its mask, and the mask where it moves."""

    values: Tensor
    mask: Tensor | None


def _moment(module: nn.Module, moving: bool) -> dict[str, _Weight]:
    weights = sparse_weights(module).items()
    return {name: _Weight(w.active_values(), w.storage.mask.cpu() if moving else None) for name, w in weights}


def _flips(reference: State, name: str, now: _Weight) -> int:
    packed, masks = reference["signs"][name], reference["masks"]
    if masks is None or now.mask is None:
        then = unpack_signs(packed)
    else:
        then = full_signs(packed, unpack_bits(masks[name], tuple(now.mask.shape)))[now.mask]
    return int(sign_flips(then.to(now.values.device), now.values))
