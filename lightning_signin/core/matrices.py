"""The matrices of a module that multiply activations but stay dense, which its sparsity does not count."""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from lightning_signin.core.kinds import axes_of, kind_of, multiplies
from lightning_signin.core.masked import Masked


def layers_of(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules except torch's parametrization lists, each with the prefix of its parameters' names."""
    for name, owner in module.named_modules():
        if not isinstance(owner, ParametrizationList):
            yield f"{name}." if name else "", owner


def own_parameters(owner: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the layer itself by attribute; works for scripted layers too."""
    return dict(owner.named_parameters(recurse=False, remove_duplicate=False))


def dense_matrices(module: nn.Module) -> dict[str, int]:
    """The number of entries of every dense matrix that multiplies activations, by plain name, largest first.

    Embeddings, norms and biases do not count, nor do weights tied to an embedding. See `kinds.multiplies`.

    Returns:
        Numbers of entries, each at least 1.

    Example:
        >>> dense_matrices(nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4), nn.Linear(4, 2)))
        {'2.weight': 8}
    """
    looked_up = {
        id(p) for _, owner in layers_of(module) if kind_of(owner) == {} for p in own_parameters(owner).values()
    }
    sizes: dict[str, int] = {}
    counted = set(looked_up)
    for name, parameter in _matrices(module):
        if id(parameter) not in counted and not isinstance(parameter, UninitializedParameter):
            counted.add(id(parameter))
            sizes[name] = parameter.numel()
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _matrices(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for prefix, owner in layers_of(module):
        for attribute, parameter in own_parameters(owner).items():
            if multiplies(owner, attribute, parameter):
                yield prefix + attribute, parameter
        holders = owner.parametrizations.items() if is_parametrized(owner) else ()  # type: ignore[operator, union-attr]
        for attribute, holder in holders:
            if axes_of(owner, attribute) is not None and not isinstance(holder[0], Masked):
                yield prefix + attribute, max(holder.parameters(recurse=False), key=Tensor.numel)
