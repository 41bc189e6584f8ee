"""Layers that take the place of sparse ones, with their weights, as torch's `prepare_qat` makes them; or without."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList, register_parametrization

from lightning_signin.core.layer_class import complete_layer
from lightning_signin.core.masked import Masked
from lightning_signin.core.state_dict import install_plain_state, plain_order
from lightning_signin.core.torch_internals import registered_modules, registered_parameters
from lightning_signin.core.weights import SparseWeight, sparse_weights
from lightning_signin.errors import SignInError, some


def complete(weight: SparseWeight) -> None:
    """Give layers that have replaced sparse ones what `sparsify` gave these: a plain state dict, and a complete class.

    torch moves factors and parametrization to the new layer, so training goes on, but not the hooks of the old one.
    """
    for owner, attribute in weight.owners:
        if not hasattr(owner.parametrizations, "plain_order"):
            # Their parameters are those of the replaced kind, in which weights come before biases.
            install_plain_state(owner, [*owner.parametrizations, *registered_parameters(owner)])
            complete_layer(owner, attribute)


def make_sparse(
    owner: nn.Module, attribute: str, parametrization: Masked, holder: ParametrizationList | None = None
) -> ParametrizationList:
    """Let a layer compute a weight from factors, under the state dict of a plain layer.

    Args:
        owner: The layer, which has the weight as a parameter.
        attribute: The name of the weight in it.
        parametrization: How the weight is computed.
        holder: torch's list of the parametrization of a weight that is sparse already, and that the layer shares.

    Returns:
        The list that holds the factors.
    """
    order = plain_order(owner) if hasattr(owner, "parametrizations") else list(registered_parameters(owner))
    register_parametrization(owner, attribute, parametrization, unsafe=True)  # our tests cover what it would check
    lists: Any = owner.parametrizations
    if holder is not None:
        lists[attribute] = holder
    if not hasattr(lists, "plain_order"):
        install_plain_state(owner, order)
    complete_layer(owner, attribute)
    return lists[attribute]


def follow_parameters(module: nn.Module, weights: Iterable[SparseWeight]) -> None:
    """Let layers be sparse that have got the plain parameters of sparse ones, and their places in the module.

    Args:
        module: The module.
        weights: Weights that were shown as plain parameters, and are no longer.
    """
    layers = {id(layer): layer for layer in _all_layers(module)}
    for weight in weights:
        if all(id(owner) in layers for owner, _ in weight.owners):
            continue
        for layer in layers.values():
            for attribute, parameter in list(registered_parameters(layer).items()):
                if parameter is weight.parametrization.plain_parameter:
                    make_sparse(layer, attribute, weight.parametrization, weight.holder)


class Places:
    """Where the sparse weights of a module are: it tells whether layers have been moved, exchanged or removed.

    Args:
        module: The module.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._note(sparse_weights(module))

    def changed(self) -> bool:
        """Whether a layer is no longer where it was."""
        return any(registered_modules(parent).get(name) is not child for parent, name, child in self._links)

    def moved(self) -> dict[str, str]:
        """The present names of the weights by their former ones, if `changed` since the last call; else none.

        Returns:
            The new name of every sparse weight by its old one; empty if no layer has moved.

        Raises:
            SignInError: If a weight is no longer in the module.
        """
        if not self.changed():
            return {}
        weights = sparse_weights(self.module)
        now = {id(weight.parametrization): name for name, weight in weights.items()}
        if lost := [name for name, own in self._known.items() if id(own) not in now]:
            raise SignInError(
                f"{some(lost)} left the module while sparse: the layer was exchanged or removed, so its factors would "
                "train nothing. Exchange layers before the fit, in `setup` or `configure_model`, or leave the weight "
                "dense with `exclude`."
            )
        names = {name: now[id(own)] for name, own in self._known.items()}
        self._note(weights)
        return names

    def _note(self, weights: dict[str, SparseWeight]) -> None:
        self._known = {name: weight.parametrization for name, weight in weights.items()}
        leads = {id(owner) for weight in weights.values() for owner, _ in weight.owners}
        links = [(p, name, child) for p in _all_layers(self.module) for name, child in registered_modules(p).items()]
        self._links: list[tuple[nn.Module, str, nn.Module]] = []
        for parent, name, child in reversed(links):  # from the layers to the module
            if child is not None and id(child) in leads:
                leads.add(id(parent))
                self._links.append((parent, name, child))


def _all_layers(module: nn.Module) -> Iterator[nn.Module]:
    """A module and all below it, each once, without asking any of them, which might show its parameters."""
    seen: set[int] = set()
    waiting: list[nn.Module | None] = [module]
    while waiting:
        layer = waiting.pop()
        if layer is not None and id(layer) not in seen:
            seen.add(id(layer))
            yield layer
            waiting += registered_modules(layer).values()
