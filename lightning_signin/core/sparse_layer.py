"""What a linear layer or a convolution computes, as functions of its input and its weight.

A one-dimensional convolution is that of images of height 1.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_signin.core.compact import Compact
from lightning_signin.core.torch_internals import is_transformed
from lightning_signin.kernels.conv import Window, sparse_conv2d
from lightning_signin.kernels.linear import Whole, sparse_linear

KINDS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d)  # whose products can leave zeros out


def fits(layer: Any, x: Tensor) -> bool:
    """Whether an input has the sizes that the layer takes; if not, its own forward says so."""
    if isinstance(layer, nn.Linear):
        return x.ndim > 0 and x.shape[-1] == layer.in_features
    axes = len(layer.kernel_size)
    right = x.ndim in (axes + 1, axes + 2) and x.shape[-axes - 1] == layer.in_channels
    return right and min(_out_size(layer, x)) > 0


def products(layer: Any, x: Tensor) -> int:
    """The number of multiplications with the whole weight, forward."""
    size = layer.parametrizations.weight[0].shape.numel()
    if isinstance(layer, nn.Linear):
        return x.numel() // layer.in_features * size
    height, width = _out_size(layer, x)
    return x.shape[: -len(layer.kernel_size) - 1].numel() * height * width * size


def form_of(layer: Any) -> tuple[Any, ...]:
    """What decides, with the input and the number of non-zeros, how long the layer takes."""
    shape = layer.parametrizations.weight[0].shape
    return (shape,) if isinstance(layer, nn.Linear) else (shape, _window(layer), layer.groups)


def dense_product(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer's output with another weight and bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    return _as_given(layer, _plain(layer)(_images(layer, x), weight, bias))


def sparse_product(layer: Any, x: Tensor, storage: Compact, values: Tensor, bias: Tensor | None) -> Tensor:
    """The layer's output, computed on the non-zeros of its weight.

    Args:
        layer: A layer of one of `KINDS`.
        x: Its input.
        storage: Where the non-zeros are.
        values: What they are.
        bias: The bias, if any.

    Returns:
        The output.
    """
    plain = F.linear if isinstance(layer, nn.Linear) else _plain(layer)

    def product(x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        return plain(x, storage.unpack(values), bias)

    whole = Whole(product, is_transformed)
    if isinstance(layer, nn.Linear):
        return sparse_linear(x, values, bias, storage.matrix(), whole)
    matrix = storage.matrix(layer.groups)
    return _as_given(layer, sparse_conv2d(_images(layer, x), values, bias, matrix, _window(layer), whole))


def _plain(layer: Any) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """A convolution as a function of images, weight and bias."""
    window = _window(layer)
    options: Any = {"stride": window.stride, "padding": window.padding, "dilation": window.dilation}
    conv2d = partial(F.conv2d, groups=layer.groups, **options)
    return lambda x, weight, bias: conv2d(x, weight if weight.ndim == 4 else weight.unsqueeze(-2), bias)


def _images(layer: Any, x: Tensor) -> Tensor:
    """Images, with a padding that the kernel does not make itself: other values than zeros, and "same"."""
    if not _pads_itself(layer):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        margins = [margin for axis in reversed(range(len(layer.kernel_size))) for margin in _margins(layer, axis)]
        x = F.pad(x, margins, mode=mode)
    return x if len(layer.kernel_size) == 2 else x.unsqueeze(-2)


def _as_given(layer: Any, out: Tensor) -> Tensor:
    return out if len(layer.kernel_size) == 2 else out.squeeze(-2)


def _window(layer: Any) -> Window:
    padding: Any = layer.padding if _pads_itself(layer) else (0,) * len(layer.kernel_size)
    if len(layer.kernel_size) == 2:
        return Window(layer.kernel_size, layer.stride, padding, layer.dilation)
    return Window((1, *layer.kernel_size), (1, *layer.stride), (0, *padding), (1, *layer.dilation))


def _out_size(layer: Any, x: Tensor) -> tuple[int, int]:
    axes = len(layer.kernel_size)
    size = [n + sum(_margins(layer, axis)) for axis, n in enumerate(x.shape[-axes:])]
    return _window(layer).out_size(size if axes == 2 else [1, *size])


def _pads_itself(layer: Any) -> bool:
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _margins(layer: Any, axis: int) -> tuple[int, int]:
    """What `_images` adds on both sides of an axis."""
    if _pads_itself(layer) or layer.padding == "valid":
        return 0, 0
    if layer.padding == "same":
        both = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
        return both // 2, both - both // 2
    return layer.padding[axis], layer.padding[axis]
