"""A layer that is shown without its parametrizations, for a while."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from lightning_signin.core.layer_class import refuse_hooks
from lightning_signin.core.plain_parameter import set_aside
from lightning_signin.core.state_dict import plain_order, uninstall_plain_state
from lightning_signin.core.torch_internals import (
    drop_weights_list,
    list_weights,
    make_weights_list,
    registered_modules,
    registered_parameters,
    set_registered_parameters,
)
from lightning_signin.core.weights import SparseWeight
from lightning_signin.errors import SignInError


class PlainLayer:
    """One layer that is shown without its parametrizations.

    The layer gets another class; the class that torch made is not changed, because deep copies of the layer share it.
    """

    def __init__(self, owner: nn.Module) -> None:
        self.owner = owner
        self.shown: dict[str, nn.Parameter] = {}

    def show(self, have_values: bool = True) -> None:
        """Show the plain parameters, in their plain order; whether they ``have_values``, or stand for θ."""
        order, parameters = plain_order(self.owner), dict(registered_parameters(self.owner))
        set_registered_parameters(self.owner, parameters)
        self.parametrizations: Any = registered_modules(self.owner).pop("parametrizations")
        self.parametrized_class = self.owner.__class__
        self.owner.__class__ = self._plain_class()
        parameters.update(self.shown)
        for name in order:
            if name in parameters:
                parameters[name] = parameters.pop(name)
        if isinstance(self.owner, nn.RNNBase):
            (make_weights_list if have_values else list_weights)(self.owner)

    def _plain_class(self) -> type[nn.Module]:
        """The base of the class on which torch has put the weights as properties; FSDP2 makes another class of that."""
        attribute = next(iter(self.shown))
        return next(cls for cls in self.parametrized_class.__mro__ if attribute in vars(cls)).__bases__[0]

    def restore(self) -> None:
        """Put the parametrizations back; but not if a hook computes the weight, as torch's old norms do."""
        if any(isinstance(vars(self.owner).get(attribute), Tensor) for attribute in self.shown):
            uninstall_plain_state(self.owner)
            return
        for attribute, parameter in self.shown.items():
            registered_parameters(self.owner).pop(attribute, None)
            set_aside(parameter, self.parametrizations[attribute])
        refuse_hooks(self.owner)
        drop_weights_list(self.owner)  # of what was shown
        self.owner.__class__ = self.parametrized_class
        registered_modules(self.owner)["parametrizations"] = self.parametrizations


def layers_of(parameters: Mapping[str, nn.Parameter], weights: Iterable[SparseWeight]) -> list[PlainLayer]:
    """The layers that use weights, each with the parameters that it is going to show.

    Args:
        parameters: By the weights' plain names.
        weights: All weights of a layer, and all users of a weight, belong together.

    Returns:
        One entry per layer, in the order of ``weights``.

    Raises:
        SignInError: If a layer has been given another parametrization meanwhile.
    """
    layers: dict[int, PlainLayer] = {}
    for weight in weights:
        for owner, attribute in weight.owners:
            layers.setdefault(id(owner), PlainLayer(owner)).shown[attribute] = parameters[weight.name]
    for layer in layers.values():
        if others := set(layer.owner.parametrizations) - set(layer.shown):  # type: ignore[arg-type]
            raise SignInError(
                f"{', '.join(sorted(others))} of a sparse {type(layer.owner).__name__} got a parametrization after "
                "`sparsify`. Remove it, with torch's `remove_parametrizations`, before the module is made plain."
            )
    return list(layers.values())
