"""Layers that are never called: their parents read the weights and compute in one fused operation."""

from torch import nn


def fused_layers(module: nn.Module) -> set[nn.Module]:
    """The children of torch's own attention modules, which must keep a dense ``weight``.

    Returns:
        The layers.

    Example:
        >>> [type(layer).__name__ for layer in fused_layers(nn.MultiheadAttention(8, 2))]
        ['NonDynamicallyQuantizableLinear']
    """
    readers = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
    return {child for part in module.modules() if isinstance(part, readers) for child in part.children()}
