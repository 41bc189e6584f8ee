"""How the entries on a fixed mask are stored: as a vector of the active ones, or in full shape under the mask.

A storage turns a full weight into stored values (`pack`) and back (`unpack`). The index or mask inside is a plain
tensor, never a buffer: averaging callbacks average buffers, and DDP broadcasts them at every forward.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_signin.core.masked_product import bits_like, masked_product, strided
from lightning_signin.core.sharded import sharded_like
from lightning_signin.core.torch_internals import is_transformed
from lightning_signin.core.workspace import Workspace
from lightning_signin.errors import SignInError


class Compact:
    """Values are the vector of active entries, so parameters, gradients and optimizer state shrink with density.

    `unpack` is one scatter into zeros; its gradient is one gather.

    Args:
        mask: Bool mask of the weight's shape, True for active entries.

    Attributes:
        index: Positions of the active entries in the flat weight, ascending; int32 if the weight is small enough.
    """

    name = "compact"

    def __init__(self, mask: Tensor) -> None:
        self.shape, self.size = mask.shape, mask.numel()
        dtype = torch.int32 if self.size <= torch.iinfo(torch.int32).max else torch.int64
        self.index = mask.flatten().nonzero().squeeze(1).to(dtype)
        self._workspace = Workspace()

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
        _check_place(self.index, values)
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
        self.index.copy_(other.index)
        self.release()

    def follow(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move the index to where ``fn`` moves the parameters."""
        self.index = _follow(self.index, fn)
        self.release()


class _Scatter(torch.autograd.Function):
    """The scatter of `Compact.unpack`, with fewer and smaller tensors between forward and backward than autograd's."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, times: Tensor | None, storage: Compact, lend: bool) -> Tensor:
        """The weight. The index is saved so that autograd notices if `Compact.move_to` changes it."""
        ctx.save_for_backward(storage.index, *((None, None) if times is None else (values, times)))
        product = values if times is None else values * times
        return storage.blank(values, lend).index_copy_(0, storage.index.long(), product).view(storage.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """The gather, times the other factor."""
        index, values, times = ctx.saved_tensors
        own = strided(gradient).reshape(-1).index_select(0, index)
        if times is None:
            return own, None, None, None
        of_values = own * times
        # The gather is a new tensor, which may become the second gradient unless this is differentiated again.
        return of_values, own * values if torch.is_grad_enabled() else own.mul_(values), None, None


_FAULTED = 2**25  # bytes: glibc's malloc takes larger blocks from the system every time, page by page


class Dense:
    """Values have the weight's shape; those where the mask is False never reach θ, and get no gradient.

    They are zeros there, and stay zero under optimizers that treat each entry on its own. Noise on gradients,
    centralized gradients and some optimizers fill them.

    Args:
        mask: Bool mask of the weight's shape, True for active entries.

    Attributes:
        bits: −1 (all bits set) where the mask is True, else 0; with the entry size and strides last needed.
    """

    name = "dense"

    def __init__(self, mask: Tensor) -> None:
        self.shape, self.bits = mask.shape, torch.zeros_like(mask, dtype=torch.int32).masked_fill_(mask, -1)
        self._workspace = Workspace()

    @property
    def mask(self) -> Tensor:
        """The bool mask, rebuilt from the bits."""
        return self.bits.bool()

    @property
    def active(self) -> int:
        """The number of active entries."""
        return int(self.bits.count_nonzero())

    def pack(self, full: Tensor) -> Tensor:
        """Zero the masked entries, whatever they hold: an infinity there leaves no NaN."""
        return full.where(sharded_like(self.mask, full), full.new_zeros(()))

    def restrict(self, values: Tensor, times: Tensor | None = None) -> Tensor:
        """The values, or their product, with zeros for the masked entries."""
        return self.unpack(values, times)

    def unpack(self, values: Tensor, times: Tensor | None = None, *, lend: bool = False) -> Tensor:
        """The same: stored values have the weight's shape.

        Args:
            values: Of the weight's shape.
            times: What to multiply them by.
            lend: As in `Compact.unpack`.

        Returns:
            A tensor of the weight's shape, zero off the mask.
        """
        _check_place(self.bits, values)
        ordinary = type(values) in (Tensor, nn.Parameter) and values.device.type in ("cpu", "cuda")
        if not ordinary or is_transformed(values):  # a compiler fuses this into one loop
            return self.pack(values) if times is None else self.pack(values) * self.pack(times)
        memory = None
        if isinstance(values, nn.Parameter):  # another tensor may be one of `torch.func`
            self.bits = bits_like(self.bits, values)
            if lend and values.nbytes > _FAULTED and values.device.type == "cpu" and values.is_contiguous():
                memory = self._workspace.lend(values.numel(), values.dtype).view(self.shape)
        return masked_product(values, times, bits_like(self.bits, values), memory)

    def release(self) -> None:
        """Give up the memory that is lent in turn."""
        self._workspace = Workspace()

    def follow(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move the mask to where ``fn`` moves the parameters."""
        self.bits = _follow(self.bits, fn)
        self.release()


Storage = Compact | Dense

# Compact storage of the two factors needs 2 · (value + gradient + momentum) + one 32-bit index per active entry; dense
# storage needs the same, with mask bits for the index, for every entry. Compact is faster below a density of about 1/2
# (benchmarks/storage.py).
COMPACT_BELOW = 0.5


def make_storage(kind: str, mask: Tensor) -> Storage:
    """Make a storage for a mask: "compact", "dense", or "auto".

    "auto" is compact up to a density of one half, and dense above it and on XLA, where indexed copies are slow.

    Returns:
        The storage, on the mask's device.
    """
    if kind == "auto":
        sparse = int(mask.sum()) <= COMPACT_BELOW * mask.numel()
        kind = "compact" if sparse and mask.device.type != "xla" else "dense"
    return Compact(mask) if kind == "compact" else Dense(mask)


def _check_place(mask: Tensor, values: Tensor) -> None:
    if mask.is_meta and not values.is_meta:
        raise SignInError(
            "A module on the meta device has no masks, but is called with values. For an ensemble by `torch.func`, "
            "stack plain copies, `merge_(copy.deepcopy(net))`: sparse networks have masks of their own."
        )


def _follow(tensor: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    # `fn` may cast or empty its argument (`.type()`, `.to_empty()`), so it is called on a probe to find the device.
    return tensor.to(fn(torch.empty(0, device=tensor.device)).device)
