"""A sparse weight that is shown as a plain parameter, and how changes to it are written back."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_signin.core.theta import gradient_of, set_gradient, set_theta
from lightning_signin.core.torch_internals import registered_parameters, version_of
from lightning_signin.core.weights import SparseWeight
from lightning_signin.errors import SignInError

Versions = list[tuple[int, int]]


class Mirror:
    """The parameter that shows a sparse weight, with its gradient and flag; changes are written back.

    What was not changed in it leaves the trainable tensors as they are, bit for bit, entry by entry. Each of θ, its
    gradient and its flag is compared with what the trainable tensors still give, so nothing is kept to compare with.

    Args:
        weight: A sparse weight that is shown: its users have a parameter in its place.
    """

    def __init__(self, weight: SparseWeight) -> None:
        self.weight = weight
        self._shown = parameter = self._parameter()
        self._requires_grad = parameter.requires_grad
        parameter.grad = gradient_of(weight.holder)
        self._note()

    def refresh(self) -> None:
        """Take over what the trainable tensors give now."""
        with torch.inference_mode(False), torch.no_grad():
            parameter = self._parameter()
            parameter.copy_(self.weight.plain())
            parameter.grad = gradient_of(self.weight.holder)
        self._note()

    def write_back(self) -> None:
        """Write what was changed into the trainable tensors.

        Raises:
            SignInError: If the values do not fit, see `set_theta`, or the parameter was removed.
        """
        weight, parameter = self.weight, self._parameter()
        with torch.inference_mode(False), torch.no_grad():
            if parameter.requires_grad != self._requires_grad:
                for tensor in weight.tensors:
                    tensor.requires_grad_(parameter.requires_grad)
                self._requires_grad = parameter.requires_grad
            if self._gradients == _versions([factor.grad for factor in weight.factors]):
                set_gradient(weight.holder, parameter.grad)
            if self._values == _versions(weight.tensors):
                # As for any parameter, autograd does not notice writes through `data` between forward and backward.
                unseen = version_of(parameter) == self._version
                set_theta(weight.holder, parameter.detach(), weight.name, unseen)
        self._note()

    def _parameter(self) -> nn.Parameter:
        """What is in the parameter's place: itself, or what was assigned to one of its users."""
        found = [registered_parameters(owner).get(attribute) for owner, attribute in self.weight.owners]
        if None in found:
            raise SignInError(
                f"{self.weight.name} was removed, pruned or parametrized while it is sparse. Do that before the fit, "
                "or leave it dense with `exclude`."
            )
        first = self._shown if hasattr(self, "_shown") else found[0]
        return next((p for p in found if p is not first), first)  # type: ignore[return-value]

    def _note(self) -> None:
        # If the trainable tensors change meanwhile, as by loading a state dict, the parameter is out of date.
        self._values = _versions(self.weight.tensors)
        self._gradients = _versions([factor.grad for factor in self.weight.factors])
        self._version = version_of(self._shown)


def _versions(tensors: Sequence[Tensor | None]) -> Versions:
    return [(id(tensor), -1 if tensor is None else version_of(tensor)) for tensor in tensors]
