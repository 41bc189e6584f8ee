"""Which parameters are weights that multiply activations, and which of their axes is the input, by kind of layer.

Embeddings are looked up; norms and biases scale and shift. They are not weights in this sense, and stay dense.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import Tensor, nn

from lightning_signin.core.layout import PLAIN, Layout, check_axes
from lightning_signin.core.torch_internals import ConvNd, ConvTransposeNd

Weights = Mapping[str, str]

# For each kind of layer: glob pattern of an attribute → the order of its axes. Classes of other packages are listed by
# name, so that these packages need not be installed.
KINDS: dict[type[nn.Module] | str, Weights] = {
    nn.Linear: {"weight": "oi"},
    nn.Bilinear: {"weight": "oi"},
    ConvNd: {"weight": "oi"},
    ConvTransposeNd: {"weight": "io"},
    nn.MultiheadAttention: {"*_proj_weight": "oi"},
    nn.RNNBase: {"weight_*": "oi"},
    nn.RNNCellBase: {"weight_*": "oi"},
    nn.LayerNorm: {},
    nn.RMSNorm: {},
    nn.Embedding: {},
    nn.EmbeddingBag: {},
    "transformers.pytorch_utils.Conv1D": {"weight": "io"},
    "transformers.models.llama4.modeling_llama4.Llama4TextExperts": {"*_proj": "eio"},
    "torch_geometric.nn.dense.linear.Linear": {"weight": "oi"},
    "torch_geometric.nn.dense.linear.HeteroLinear": {"weight": "eio"},
    "torch_geometric.nn.conv.rgcn_conv.RGCNConv": {"weight": "eio", "root": "io"},
    "torch_geometric.nn.conv.gated_graph_conv.GatedGraphConv": {"weight": "eio"},
    "torch_geometric.nn.conv.gcn2_conv.GCN2Conv": {"weight?": "io"},
    "torch_geometric.nn.models.linkx.SparseLinear": {"weight": "io"},
}

_ENDS = ("orig", "v")  # suffixes that `torch.nn.utils` gives to a pruned or normalized weight


def add_kind(layer: type[nn.Module], **weights: str) -> None:
    """Register a layer class of your own, so that its weights are made sparse, in every module of this process.

    Args:
        layer: The class; subclasses are included.
        weights: The attributes that are weights, each with the order of its axes: "oi" (outputs, inputs, kernel…) as
            in ``nn.Linear``, "io" as in ``x @ weight``, "eoi" or "eio" for layers that are stacked in one tensor.

    Raises:
        SignInError: If an order is not one of these.

    Example:
        >>> import torch
        >>> from lightning_signin import add_kind, masks, sparsify
        >>> class Projection(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.matrix = nn.Parameter(torch.randn(8, 4))
        ...     def forward(self, x):
        ...         return x @ self.matrix
        >>> add_kind(Projection, matrix="io")
        >>> list(masks(sparsify(nn.Sequential(Projection()), sparsity=0.5, structure="2:4")))
        ['0.matrix']
    """
    for axes in weights.values():
        check_axes(axes)
    KINDS[layer] = weights


def kind_of(owner: nn.Module) -> Weights | None:
    """The entry of `KINDS` for a layer, by the first of its classes listed; for experts, inferred from their shapes."""
    for cls in type(owner).__mro__:
        found = KINDS.get(cls, KINDS.get(f"{cls.__module__}.{cls.__qualname__}"))
        if found is not None:
            return found
    return _experts(owner)


def axes_of(owner: nn.Module, attribute: str) -> str | None:
    """The axes of a layer's weight that multiplies activations; None for any other attribute."""
    weights = kind_of(owner) or {}
    return next((axes for pattern, axes in weights.items() if fnmatchcase(attribute, pattern)), None)


def layout_in(owner: nn.Module, attribute: str) -> Layout | None:
    """The layout of a layer's weight that multiplies activations; None for any other attribute."""
    axes = axes_of(owner, attribute)
    if axes is None or axes == "oi":
        return None if axes is None else PLAIN
    if axes == "io":
        return Layout(axes, getattr(owner, "groups", 1) if isinstance(owner, ConvTransposeNd) else 1)
    return Layout(axes, getattr(owner, attribute).shape[0])


def multiplies(owner: nn.Module, attribute: str, parameter: Tensor) -> bool:
    """Whether a parameter may be a matrix that multiplies activations; for known kinds of layers this is certain.

    In other layers, parameters with two or more axes are taken for matrices, unless they are broadcast over a batch
    (the first axis is 1, as in position embeddings and class tokens). In a known layer its listed weights are the only
    ones.

    Returns:
        Whether it may be one.
    """
    weights = kind_of(owner)
    if axes_of(owner, attribute) is not None:
        return True
    if weights is not None and not any(
        fnmatchcase(attribute, f"{pattern}_{end}") for pattern in weights for end in _ENDS
    ):
        return False
    return parameter.ndim >= 2 and parameter.shape[0] > 1 and sum(side > 1 for side in parameter.shape) >= 2


def _experts(owner: nn.Module) -> Weights | None:
    """The experts of a mixture, stacked in one tensor, and their router, as transformers stores them.

    They are recognized by an attribute ``num_experts`` and parameters whose first axis has that length: with three axes
    they are the experts' weights. Parameters with two are biases beside those, and the router's weight where none has
    three.

    Returns:
        The axes of each matrix by its attribute; None for other layers.
    """
    number = vars(owner).get("num_experts")
    if not isinstance(number, int) or number < 2:
        return None
    shapes = {name: tuple(parameter.shape) for name, parameter in owner.named_parameters(recurse=False)}
    for name, holder in getattr(owner, "parametrizations", {}).items():  # already sparse weights
        shapes[name] = getattr(holder[0], "shape", ())
    counted = {name: len(shape) for name, shape in shapes.items() if len(shape) in (2, 3) and shape[0] == number}
    if not counted:
        return None
    most = max(counted.values())
    axes = "oi" if most == 2 else "eio" if getattr(owner, "is_transposed", False) else "eoi"
    return {name: axes for name, ndim in counted.items() if ndim == most}
