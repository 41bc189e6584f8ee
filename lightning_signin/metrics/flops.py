"""Floating-point operations of a forward, by weight: dense, sparse, and with Sign-In's product m ⊙ w.

Gadhikar, Jacobs, Zhou, Burkholz: "Sign-In to the Lottery", NeurIPS 2025, arXiv:2504.12801, Appendix N. There a
convolution has

    (2 · H_out · W_out · C_out · C_in · K · K) + (C_out · C_in · K · K)

operations per sample: 2 for each multiply-add, and the product m ⊙ w. Biases, norms and activations are not counted.
The paper leaves out two things: the product is computed once per batch, not once per sample; and in compact storage it
has only the entries on the mask. What its Table 15 calls "Training FLOPs" is the count of one forward.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from lightning_signin.core.masked import SignIn
from lightning_signin.core.torch_internals import GROUPED_MM, TorchDispatchMode, operation_of, storage_id, tree_leaves
from lightning_signin.core.weights import SparseWeight, sparse_weights
from lightning_signin.core.wrappers import unwrapped
from lightning_signin.objective.unfused import unfused
from lightning_signin.randomness.generators import untouched

# A training step is a forward and a backward; a backward has two products of a forward's size, one for the gradient of
# the inputs and one for that of the weights (of m ⊙ w: for those of m and w).
TRAINING = 3


@dataclass(frozen=True)
class LayerFlops:
    """Operations of one forward that involve a weight.

    Attributes:
        name: The weight's plain name; or "module: operation" for operations without a weight, such as attention's
            query · key and attention · value.
        dense: The count if no entry were zero.
        sparse: The count in proportion to the kept entries; equal to ``dense`` if no sparse weight is involved.
        product: Multiplications of m ⊙ w as this package does them, once per batch for each use of the weight: of the
            active entries in compact storage, of all in dense storage, 0 without a product.
        paper_product: The same over all entries, as Appendix N counts them.
    """

    name: str
    dense: int
    sparse: int
    product: int = 0
    paper_product: int = 0

    @property
    def sign_in(self) -> int:
        """The sparse count plus the product as this package computes it."""
        return self.sparse + self.product

    @property
    def paper_sign_in(self) -> int:
        """The sparse count plus the product as Appendix N counts it."""
        return self.sparse + self.paper_product

    def training(self, samples: int = 1) -> dict[str, int]:
        """Operations of a training step on a batch: forward and backward, `TRAINING` times a forward.

        This is what the mathematics requires. Dense kernels, which compute masked entries too, do the dense number.

        Args:
            samples: Batch size, if the count is that of one sample.

        Returns:
            "dense", "sparse" and "sign_in".

        Example:
            >>> LayerFlops("weight", dense=100, sparse=10, product=5).training(samples=4)
            {'dense': 1200, 'sparse': 120, 'sign_in': 135}
        """
        dense, sparse = TRAINING * samples * self.dense, TRAINING * samples * self.sparse
        return {"dense": dense, "sparse": sparse, "sign_in": sparse + TRAINING * self.product}


@dataclass(frozen=True)
class FlopCount:
    """Operations by layer, in the order of a forward; sparse weights that it does not use come last.

    Attributes:
        layers: One row per weight, or per operation without a weight.
    """

    layers: tuple[LayerFlops, ...]

    @property
    def total(self) -> LayerFlops:
        """The sum over all rows."""
        fields = ("dense", "sparse", "product", "paper_product")
        return LayerFlops("total", *(sum(getattr(layer, field) for layer in self.layers) for field in fields))


def flops(module: nn.Module, *args: Any, **kwargs: Any) -> FlopCount:
    """Count the operations of a call of a module, by weight.

    torch's own formulas (`torch.utils.flop_counter`) count each matrix product, convolution and attention. Operations
    without a formula there, such as a custom kernel, count as 0. Causal attention counts in full.

    Args:
        module: A module after `sparsify`, or a plain one, whose sparse counts are the dense ones.
        *args: The module's arguments. With a batch of one, the counts are those of one sample.
        **kwargs: Its keyword arguments.

    Returns:
        The counts. A weight that is used twice has one row, as have tied weights. A part of a weight counts with the
        density of the whole. The product of two weights counts for the sparser one.

    Example:
        >>> from lightning_signin import sparsify
        >>> net = sparsify(nn.Linear(20, 10), sparsity=0.9)
        >>> flops(net, torch.zeros(1, 20)).layers
        (LayerFlops(name='weight', dense=400, sparse=40, product=20, paper_product=200),)
    """
    # A copy in eval mode, so that the module's statistics, gradients, caches, hooks and training modes do not change.
    # With gradients, since without them torch's attention modules use a fused kernel that has no formula.
    twin = copy.deepcopy(unwrapped(module)).eval()
    for parameter in twin.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_()
    counter = _Counter(twin)
    with untouched(), torch.enable_grad(), unfused(), counter.watching():
        twin(*args, **kwargs)
    return counter.result()


class _Counter(TorchDispatchMode):
    """Counts each operation for the weight among its arguments. Views of a weight are recognized by its storage."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.modules = ModuleTracker()
        self.formulas = _FORMULAS | FlopCounterMode(display=False).flop_registry
        self.sparse = sparse_weights(module)
        self.names: dict[int, str] = {}  # by storage
        self.dense: dict[str, int] = defaultdict(int)
        self.used: set[int] = set()  # by storage: layers may also compute a θ just to look at its dtype
        self._alive: list[Tensor] = []  # a freed storage's address could be reused
        for name, parameter in module.named_parameters():
            if parameter.ndim >= 2:  # a bias is an argument of the same operations
                self._know(name, parameter)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count the operations inside, and record the storage of each θ when a layer computes it."""
        weights = self.sparse.items()
        hooks = [weight.parametrization.register_forward_hook(self._learn(name)) for name, weight in weights]
        try:
            with self.modules, self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        keys = [storage_id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.used.update(key for key in keys if key in self.names)
        if operation_of(func) in self.formulas:
            names = [self.names[key] for key in keys if key in self.names]
            name = min(names, key=self._density, default=None)
            self.dense[name or self._place(func)] += self.formulas[operation_of(func)](*args, **kwargs, out_val=out)
        return out

    def result(self) -> FlopCount:
        """The counts so far."""
        uses = [self.names[key] for key in self.used]
        rows = []
        for name in {**self.dense, **self.sparse}:
            dense, weight = self.dense.get(name, 0), self.sparse.get(name)
            sparse, (product, of_all) = round(dense * self._density(name)), _products(weight)
            rows.append(LayerFlops(name, dense, sparse, product * uses.count(name), of_all * uses.count(name)))
        return FlopCount(tuple(rows))

    def _know(self, name: str, tensor: Tensor) -> None:
        self.names[storage_id(tensor)] = name
        self._alive.append(tensor)

    def _learn(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        return lambda _module, _args, theta: self._know(name, theta)

    def _density(self, name: str) -> Fraction:
        weight = self.sparse.get(name)
        return Fraction(1) if weight is None else Fraction(weight.kept, weight.storage.shape.numel())

    def _place(self, func: Any) -> str:
        # The tracker's names start with the class of the outermost module; "Global" stands for none.
        _, _, module = max(self.modules.parents - {"Global"}, key=len, default="").partition(".")
        return f"{module}: {operation_of(func).__name__}" if module else operation_of(func).__name__


def _grouped(tokens: Tensor, experts: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    return 2 * out_val.numel() * tokens.shape[-1]


# Formulas for operations that torch counts as 0: the experts of a mixture, each with the tokens routed to it.
_FORMULAS = {GROUPED_MM: _grouped}


def _products(weight: SparseWeight | None) -> tuple[int, int]:
    """The number of multiplications in m ⊙ w: those computed, and those of all entries."""
    if weight is None or not isinstance(weight.parametrization, SignIn):
        return 0, 0
    size = weight.storage.shape.numel()
    return weight.factors[0].numel(), size
