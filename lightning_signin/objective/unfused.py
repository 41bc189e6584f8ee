"""Attention and recurrence without fused kernels, which lack second derivatives and formulas to count operations."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def unfused() -> Iterator[None]:
    """Inside, attention is computed by its formula, and recurrent layers run without oneDNN and cuDNN.

    Example:
        >>> lstm, x = torch.nn.LSTM(3, 2), torch.randn(4, 3, requires_grad=True)
        >>> with unfused():
        ...     (gradient,) = torch.autograd.grad(lstm(x)[0].sum(), x, create_graph=True)
        >>> gradient.square().sum().backward()
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # oneDNN's switch also sets those of Intel's GPUs, with a warning
        one_dnn = torch.backends.mkldnn.flags(enabled=False)
        with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False), one_dnn:
            yield
