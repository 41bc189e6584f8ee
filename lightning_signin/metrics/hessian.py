"""The Hessian of a training loss with respect to θ, as products with vectors."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_signin.core.wrappers import unwrapped
from lightning_signin.errors import SignInError
from lightning_signin.objective.training_data import Losses, Objective
from lightning_signin.objective.unfused import unfused
from lightning_signin.randomness.generators import untouched
from lightning_signin.verbs.model import masks, merge_


class HessianOperator:
    """The Hessian of a mean loss with respect to the weights on the masks and all other trainable parameters.

    Vectors hold the entries on the masks and the other parameters, one after the other, in the order of the parameters.
    The gradient and its graph are computed once; every product is one backward through this graph.

    Args:
        loss: A scalar.
        parameters: The tensors with respect to which it is differentiated.
        supports: For each of them, the flat indices of the entries to include; None for all.
        average: Averages a vector over ranks.

    Attributes:
        gradient: The gradient, as such a vector, of shape (size,).
        size: The number of entries.
        products: How many products have been computed.

    Raises:
        SignInError: If the loss is linear in the parameters.
    """

    def __init__(
        self,
        loss: Tensor,
        parameters: Sequence[Tensor],
        supports: Sequence[Tensor | None],
        average: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> None:
        self.parameters, self.supports, self.average, self.products = parameters, supports, average, 0
        found = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        self._gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        if not any(gradient.requires_grad for gradient in self._gradients):
            raise SignInError("The loss is linear in the parameters: its Hessian is zero.")
        self.gradient = self._gather([gradient.detach() for gradient in self._gradients])
        self.size = self.gradient.numel()

    def __call__(self, vector: Tensor) -> Tensor:
        """The product with a vector of shape (size,)."""
        self.products += 1
        directions = self._scatter(vector.to(self.gradient))
        pairs = [(g, d) for g, d in zip(self._gradients, directions, strict=True) if g.requires_grad]
        found = torch.autograd.grad(
            [g for g, _ in pairs], self.parameters, [d for _, d in pairs], retain_graph=True, materialize_grads=True
        )
        return self._gather(found)

    def _gather(self, tensors: Iterable[Tensor]) -> Tensor:
        parts = zip(tensors, self.supports, strict=True)
        flat = [t.reshape(-1) if s is None else t.reshape(-1).index_select(0, s) for t, s in parts]
        return self.average(torch.cat(flat))

    def _scatter(self, vector: Tensor) -> list[Tensor]:
        found, start = [], 0
        for parameter, support in zip(self.parameters, self.supports, strict=True):
            count = parameter.numel() if support is None else support.numel()
            part = vector[start : start + count]
            full = part if support is None else part.new_zeros(parameter.numel()).index_copy_(0, support, part)
            found.append(full.view(parameter.shape))
            start += count
        return found


@contextmanager
def hessian(
    module: nn.Module, data: Objective, batches: Iterable[Any], *, train: bool = False
) -> Iterator[HessianOperator]:
    """The Hessian of the mean training loss over batches.

    It is computed on a merged copy, so it is that of θ for every parametrization, and weights, gradients, BatchNorm
    statistics, modes and random generators of the module stay as they are. Attention runs with the kernel that has
    second derivatives.

    Args:
        module: Any module, sparse or plain.
        data: The loss, e.g. ``TrainingData(loss_fn)``, and its average over ranks.
        batches: At least one; the graph of all is kept in memory.
        train: Leave dropout and batch statistics on; by default the copy is in eval mode.

    Raises:
        SignInError: If there is no batch, or a loss is not one finite number.
    """
    known = masks(module)
    plain = merge_(data.copy(unwrapped(module)))
    plain.train(train)
    names = {name: parameter for name, parameter in plain.named_parameters() if parameter.requires_grad}
    supports = [known[n].flatten().nonzero().squeeze(1).to(p.device) if n in known else None for n, p in names.items()]
    with ExitStack() as stack:
        stack.enter_context(untouched())
        stack.enter_context(torch.enable_grad())
        stack.enter_context(unfused())
        losses = [_check(_one(data.loss(plain, batch))) for batch in batches]
        if not losses:
            raise SignInError("`batches` is empty. (An iterator gives its batches once: pass a list or a DataLoader.)")
        yield HessianOperator(torch.stack(losses).mean(), list(names.values()), supports, data.average)


def _one(losses: Losses) -> object:
    if not isinstance(losses, Sequence):
        return losses
    if len({id(loss) for loss, _ in losses}) != 1:  # several optimizers may step on one loss
        raise SignInError(
            f"A step of this manual optimization has {len(losses)} losses, and the Hessian is that of one. Measure "
            "each with `sharpness(module, loss_fn, batches)`."
        )
    return losses[0][0]


def _check(loss: object) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shown = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise SignInError(f"`loss_fn` must return a tensor of one number, got {shown}.")
    if not loss.isfinite().all():
        raise SignInError(f"The loss is {loss.item()}: its curvature is not defined. Check the data and the weights.")
    return loss.reshape(())
