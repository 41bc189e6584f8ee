"""How the entries on a fixed mask are stored: as a vector of the active ones, or in full shape under the mask.

A storage turns a full weight into stored values (`pack`) and back (`unpack`). The index or mask inside is a plain
tensor, never a buffer: averaging callbacks average buffers, and DDP broadcasts them at every forward.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_signin.core.compact import Compact, check_place, follow
from lightning_signin.core.masked_product import bits_like, masked_product
from lightning_signin.core.sharded import sharded_like
from lightning_signin.core.torch_internals import is_transformed
from lightning_signin.core.workspace import Workspace

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
        check_place(self.bits, values)
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
        self.bits = follow(self.bits, fn)
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
