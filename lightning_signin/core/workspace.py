"""Memory for masked weights that is zeroed once, not in every forward pass."""

import ctypes
import weakref

import torch
from torch import Tensor


class Workspace:
    """Lends one flat tensor on the CPU over and over; it still holds what the last borrower wrote.

    A weight that is rebuilt in every step needs a large block of memory each time: allocating and zeroing it takes
    longer than writing a tenth of its entries. A borrower that writes the same entries every time finds zeros in all
    others. The tensor returns automatically when nothing uses its memory, neither a view nor an autograd graph.
    Until then, further requests get new tensors; one of those returned is kept.

    Example:
        >>> workspace = Workspace()
        >>> first = workspace.lend(3, torch.float32)
        >>> first[1] = 5.0
        >>> del first
        >>> second, third = workspace.lend(3, torch.float32), workspace.lend(3, torch.float32)
        >>> second.tolist(), third.tolist()  # the third came while the second was in use
        ([0.0, 5.0, 0.0], [0.0, 0.0, 0.0])
    """

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def lend(self, size: int, dtype: torch.dtype) -> Tensor:
        """A flat tensor whose memory is used by nobody else."""
        memory = self._free.pop() if self._free else None
        if memory is None or memory.dtype != dtype or memory.numel() != size:
            memory = torch.zeros(size, dtype=dtype, device="cpu")  # whatever the default device is
        # The tensor keeps the handle alive exactly as long as its memory is in use.
        handle = (ctypes.c_byte * (size * memory.itemsize)).from_address(memory.data_ptr())
        weakref.finalize(handle, self._take_back, memory).atexit = False
        return torch.frombuffer(handle, dtype=dtype)

    def _take_back(self, memory: Tensor) -> None:
        if not self._free:
            self._free.append(memory)

    def __reduce__(self) -> tuple[type["Workspace"], tuple[()]]:
        # A copy, e.g. as part of a module, has memory of its own.
        return Workspace, ()
