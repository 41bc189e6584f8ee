"""Which parameters are weights that multiply activations, and which of their axes is the input: by kind of layer.

Embeddings are looked up, norms and biases scale and shift: they are not in the table, and stay dense.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import Tensor, nn

from lightning_signin.core.layout import PLAIN, Layout, check_axes
from lightning_signin.core.torch_internals import ConvNd, ConvTransposeNd

Weights = Mapping[str, str]

# Of each kind of layer: glob pattern of an attribute → the order of its axes. Classes of other packages go by their
# names, so that these packages need not be there.
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

_ENDS = ("orig", "v")  # of the names under which `torch.nn.utils` prunes and normalizes a weight


def add_kind(layer: type[nn.Module], **weights: str) -> None:
    """Let a layer of your own be one that is made sparse, in every run and module.

    Args:
        layer: The class; it holds for subclasses, too.
        weights: The attributes that are weights, each with the order of its axes: "oi" (outputs, inputs, kernel…) as
            in ``nn.Linear``, "io" as in ``x @ weight``, "eoi" or "eio" for layers that are stacked in one tensor.

    Raises:
        ValueError: If the axes are none of these.

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
    """What `KINDS` says of a layer, by the first of its classes that is there; of experts, what their shapes say."""
    for cls in type(owner).__mro__:
        found = KINDS.get(cls, KINDS.get(f"{cls.__module__}.{cls.__qualname__}"))
        if found is not None:
            return found
    return _experts(owner)


def axes_of(owner: nn.Module, attribute: str) -> str | None:
    """The axes of a layer's weight that multiplies activations; None of any other attribute."""
    weights = kind_of(owner) or {}
    return next((axes for pattern, axes in weights.items() if fnmatchcase(attribute, pattern)), None)


def layout_in(owner: nn.Module, attribute: str) -> Layout | None:
    """The layout of a layer's weight that multiplies activations; None of any other attribute."""
    axes = axes_of(owner, attribute)
    if axes is None or axes == "oi":
        return None if axes is None else PLAIN
    if axes == "io":
        return Layout(axes, getattr(owner, "groups", 1) if isinstance(owner, ConvTransposeNd) else 1)
    return Layout(axes, getattr(owner, attribute).shape[0])


def multiplies(owner: nn.Module, attribute: str, parameter: Tensor) -> bool:
    """Whether a parameter may be a matrix that multiplies activations: surely of kinds that are known.

    Of others those with two axes and more are taken for matrices, but not what is broadcast over a batch (its first
    axis is 1, as of position embeddings and class tokens), and what stands beside weights of its own layer.
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
    """The experts of a mixture in one tensor, and their router, as transformers has them.

    What tells them is that the layer counts its experts, and its parameters have an axis of that length before two
    others. Beside these, two axes are biases; alone, they are the router's.
    """
    number = vars(owner).get("num_experts")
    if not isinstance(number, int) or number < 2:
        return None
    shapes = {name: tuple(parameter.shape) for name, parameter in owner.named_parameters(recurse=False)}
    for name, holder in getattr(owner, "parametrizations", {}).items():  # of a weight that is sparse already
        shapes[name] = getattr(holder[0], "shape", ())
    counted = {name: len(shape) for name, shape in shapes.items() if len(shape) in (2, 3) and shape[0] == number}
    if not counted:
        return None
    most = max(counted.values())
    axes = "oi" if most == 2 else "eio" if getattr(owner, "is_transposed", False) else "eoi"
    return {name: axes for name, ndim in counted.items() if ndim == most}
