"""Layers that have taken the place of a sparse one together with its weight, as torch's `prepare_qat` makes them."""

from lightning_signin.core.layer_class import complete_layer
from lightning_signin.core.state_dict import install_plain_state
from lightning_signin.core.torch_internals import registered_parameters
from lightning_signin.core.weights import SparseWeight


def complete(weight: SparseWeight) -> None:
    """Give layers that have replaced sparse ones what `sparsify` gave these: a plain state dict, and a complete class.

    torch moves factors and parametrization to the new layer, so training goes on, but not the hooks of the old one.
    """
    for owner, attribute in weight.owners:
        if not hasattr(owner.parametrizations, "plain_order"):
            # Their parameters are those of the replaced kind, in which weights come before biases.
            install_plain_state(owner, [*owner.parametrizations, *registered_parameters(owner)])  # type: ignore[misc]
            complete_layer(owner, attribute)
