"""The highest of many scores, with ties broken the same way on every device."""

import numpy as np
import torch
from torch import Tensor


def kth_largest(flat: Tensor, count: int) -> float:
    """The ``count``-th largest value of a vector, 1 to its length."""
    place = flat.numel() - count
    if flat.device.type == "cpu":  # torch's kthvalue allocates an eight-byte index per entry
        values = flat.detach().float() if flat.itemsize < 4 else flat.detach()
        return float(np.partition(values.numpy(), place)[place])
    return float(flat.kthvalue(place + 1).values)


def largest(score: Tensor, count: int) -> Tensor:
    """The mask of the ``count`` highest scores, 0 to numel; equal scores keep the lower index.

    Returns:
        Bool, of the shape of ``score``.

    Example:
        >>> import torch
        >>> largest(torch.tensor([[1.0, 3.0], [2.0, 2.0]]), 2)
        tensor([[False,  True],
                [ True, False]])
    """
    flat = score.flatten()
    if count == 0:
        return flat.new_zeros(score.shape, dtype=torch.bool)
    threshold = kth_largest(flat, count)
    mask = flat > threshold
    ties = (flat == threshold).nonzero().squeeze(1)
    mask[ties[: count - int(mask.sum())]] = True
    return mask.view(score.shape)
