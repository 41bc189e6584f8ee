"""How the entries on a fixed mask are stored: as a vector of the active ones, or in full shape with zeros.

A storage turns a full weight into stored values (`pack`) and back (`unpack`). The index or mask inside is a plain
tensor, never a buffer: averaging callbacks average buffers, and DDP broadcasts them at every forward.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_signin.sharded import sharded_like


class Compact:
    """Values are the vector of active entries, so parameters, gradients and optimizer state shrink with density.

    `unpack` is one scatter into zeros; its gradient is one gather.

    Args:
        mask: Bool mask of the weight's shape, True for active entries.
    """

    name = "compact"

    def __init__(self, mask: Tensor) -> None:
        self.shape, self.size = mask.shape, mask.numel()
        self.index = mask.flatten().nonzero().squeeze(1)

    @property
    def mask(self) -> Tensor:
        """The bool mask, made anew from the index."""
        mask = torch.zeros(self.size, dtype=torch.bool, device=self.index.device)
        return mask.index_fill_(0, self.index, True).view(self.shape)

    @property
    def active(self) -> int:
        """The number of active entries."""
        return self.index.numel()

    def pack(self, full: Tensor) -> Tensor:
        """Take the active entries of a tensor of the weight's shape."""
        return full.reshape(-1).index_select(0, self.index)

    def restrict(self, values: Tensor) -> Tensor:
        """The values themselves: none is masked."""
        return values

    def unpack(self, values: Tensor) -> Tensor:
        """Put values into their places of a zero tensor of the weight's shape."""
        full = torch.zeros(self.size, dtype=values.dtype, device=values.device)
        return full.index_copy_(0, self.index, values).view(self.shape)

    def follow(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move the index to where ``fn`` moves the parameters."""
        self.index = _follow(self.index, fn)


class Dense:
    """Values have the weight's shape, and zeros where the mask is False.

    Args:
        mask: Bool mask of the weight's shape, True for active entries.
    """

    name = "dense"

    def __init__(self, mask: Tensor) -> None:
        self.shape, self.mask = mask.shape, mask.clone()

    @property
    def active(self) -> int:
        """The number of active entries."""
        return int(self.mask.sum())

    def pack(self, full: Tensor) -> Tensor:
        """Zero the masked entries, whatever they hold: an infinity there leaves no NaN."""
        return full.where(sharded_like(self.mask, full), full.new_zeros(()))

    restrict = pack  # stored values have the weight's shape

    def unpack(self, values: Tensor) -> Tensor:
        """The values themselves: their masked entries are zeros already."""
        return values

    def follow(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move the mask to where ``fn`` moves the parameters."""
        self.mask = _follow(self.mask, fn)


Storage = Compact | Dense

# Compact storage of the two factors needs 2 · (value + gradient + momentum) + one 64-bit index for each active entry,
# which is 8 float32 values against 6 for each entry of dense storage: less memory below a density of 3/4. It is the
# faster one below about 1/2 (benchmarks/storage.py).
COMPACT_BELOW = 0.5


def make_storage(kind: str, mask: Tensor) -> Storage:
    """Make a storage for a mask: "compact", "dense", or "auto".

    "auto" is compact up to a density of one half, and dense above it and on XLA, where indexed copies are slow.
    """
    if kind == "auto":
        sparse = int(mask.sum()) <= COMPACT_BELOW * mask.numel()
        kind = "compact" if sparse and mask.device.type != "xla" else "dense"
    return Compact(mask) if kind == "compact" else Dense(mask)


def _follow(tensor: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    # `fn` may cast or empty what it is given (`.type()`, `.to_empty()`), so it gets a probe: only its device counts.
    return tensor.to(fn(torch.empty(0, device=tensor.device)).device)
