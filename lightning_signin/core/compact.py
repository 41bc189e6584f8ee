"""Compact storage: the entries on a mask as one vector."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_signin.core.masked_product import strided
from lightning_signin.core.torch_internals import is_transformed
from lightning_signin.core.workspace import Workspace
from lightning_signin.errors import SignInError
from lightning_signin.kernels.pattern import Pattern, TwoWay


class Compact:
    """Values are the vector of active entries, so parameters, gradients and optimizer state shrink with density.

    `unpack` is one scatter into zeros; its gradient is one gather.

    Args:
        mask: Bool mask of the weight's shape, True for active entries.

    """

    name = "compact"

    def __init__(self, mask: Tensor) -> None:
        self.shape, self.size = mask.shape, mask.numel()
        dtype = torch.int32 if self.size <= torch.iinfo(torch.int32).max else torch.int64
        self._index: Tensor | None = mask.flatten().nonzero().squeeze(1).to(dtype)
        self._matrix: TwoWay | None = None
        self._workspace = Workspace()

    @property
    def index(self) -> Tensor:
        """Positions of the active entries in the flat weight, ascending; int32 if the weight is small enough."""
        if self._index is None:
            assert self._matrix is not None
            return self._matrix.pattern.positions()
        return self._index

    def matrix(self, groups: int = 1) -> TwoWay:
        """The active entries of the weight as a matrix [outputs, all else], with a block for each group.

        Of one group, it takes the place of the index, which follows from it: an integer less for every entry.

        Returns:
            The same object until the mask moves to another storage.
        """
        rows, index = self.shape[0], self.index
        width = self.size // rows
        if self._matrix is None or self._matrix.pattern.width != width * groups:
            self._matrix = TwoWay(Pattern.of_index(index, rows, width, groups))
            self._index = index if groups > 1 else None
        return self._matrix

    @property
    def device(self) -> torch.device:
        """Where the positions are."""
        return (self.index if self._matrix is None else self._matrix.pattern.columns).device

    @property
    def witness(self) -> Tensor | None:
        """What `move_to` writes into; None where that is `index`."""
        return None if self._matrix is None else self._matrix.pattern.columns

    @property
    def positions_nbytes(self) -> int:
        """The bytes of all integers that are held."""
        held = 0 if self._index is None else self._index.nbytes
        return held if self._matrix is None else held + self._matrix.nbytes

    @property
    def mask(self) -> Tensor:
        """The bool mask, rebuilt from the index."""
        mask = torch.zeros(self.size, dtype=torch.bool, device=self.index.device)
        return mask.index_fill_(0, self.index.long(), True).view(self.shape)

    @property
    def active(self) -> int:
        """The number of active entries."""
        return self.index.numel()

    def pack(self, full: Tensor) -> Tensor:
        """Take the active entries of a tensor of the weight's shape."""
        return full.reshape(-1).index_select(0, self.index)

    def restrict(self, values: Tensor, times: Tensor | None = None) -> Tensor:
        """The values themselves, or their product: no stored entry is masked."""
        return values if times is None else values * times

    def unpack(self, values: Tensor, times: Tensor | None = None, *, lend: bool = False) -> Tensor:
        """Put values at their positions in a zero tensor of the weight's shape.

        Args:
            values: The active entries.
            times: What to multiply them by.
            lend: The result will only be read, so its memory may be lent from a pool and reused when it is gone.

        Returns:
            A tensor of the weight's shape.
        """
        check_place(self.index, values)
        if is_transformed(values):
            full = torch.zeros(self.size, dtype=values.dtype, device=values.device)
            return full.index_copy(0, self.index.long(), self.restrict(values, times)).view(self.shape)
        lend = lend and type(values) in (Tensor, nn.Parameter) and values.device.type == "cpu"
        return cast(Tensor, _Scatter.apply(values, times, self, lend))

    def blank(self, like: Tensor, lend: bool) -> Tensor:
        """A flat tensor with zeros wherever `index` does not point."""
        if lend:
            return self._workspace.lend(self.size, like.dtype)
        return torch.zeros(self.size, dtype=like.dtype, device=like.device)

    def release(self) -> None:
        """Give up the memory that is lent in turn."""
        self._workspace = Workspace()

    def move_to(self, other: "Compact") -> None:
        """Take over the positions of another storage of equal size: in place, so that a compiled step stays valid."""
        if self._index is not None:
            self._index.copy_(other.index)
        if self._matrix is not None:
            self._matrix.move_to(other.matrix(self._matrix.pattern.width * self.shape[0] // self.size))
        self.release()

    def follow(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move the index to where ``fn`` moves the parameters."""
        self._index, self._matrix = follow(self.index, fn), None
        self.release()


class _Scatter(torch.autograd.Function):
    """The scatter of `Compact.unpack`, with fewer and smaller tensors between forward and backward than autograd's."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, times: Tensor | None, storage: Compact, lend: bool) -> Tensor:
        """The weight. What holds its positions is saved so that autograd notices if `Compact.move_to` changes it."""
        index = storage.index
        ctx.save_for_backward(index, *((None, None) if times is None else (values, times)), storage.witness)
        product = values if times is None else values * times
        return storage.blank(values, lend).index_copy_(0, index.long(), product).view(storage.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """The gather, times the other factor."""
        index, values, times, _ = ctx.saved_tensors
        own = strided(gradient).reshape(-1).index_select(0, index)
        if times is None:
            return own, None, None, None
        of_values = own * times
        # The gather is a new tensor, which may become the second gradient unless this is differentiated again.
        return of_values, own * values if torch.is_grad_enabled() else own.mul_(values), None, None


def check_place(mask: Tensor, values: Tensor) -> None:
    """Raise `SignInError` where a mask is on the meta device, and the values are not."""
    if mask.is_meta and not values.is_meta:
        raise SignInError(
            "A module on the meta device has no masks, but is called with values. For an ensemble by `torch.func`, "
            "stack plain copies, `merge_(copy.deepcopy(net))`: sparse networks have masks of their own."
        )


def follow(tensor: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """Move a tensor to where ``fn`` moves the parameters."""
    # `fn` may cast or empty its argument (`.type()`, `.to_empty()`), so it is called on a probe to find the device.
    return tensor.to(fn(torch.empty(0, device=tensor.device)).device)
