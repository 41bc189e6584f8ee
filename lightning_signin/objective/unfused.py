"""Attention and recurrence without their fused kernels, which have no second derivatives and count no operations."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def unfused() -> Iterator[None]:
    """Attention by its formula, and recurrent layers without oneDNN and cuDNN.

    Example:
        >>> lstm, x = torch.nn.LSTM(3, 2), torch.randn(4, 3, requires_grad=True)
        >>> with unfused():
        ...     (gradient,) = torch.autograd.grad(lstm(x)[0].sum(), x, create_graph=True)
        >>> gradient.square().sum().backward()
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # oneDNN's switch sets those of Intel's GPUs, too, and says so
        one_dnn = torch.backends.mkldnn.flags(enabled=False)
        with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False), one_dnn:
            yield
