"""What a score has access to: the weights, how scores become masks, and the user's own loss on the user's own data."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lightning_signin.errors import SignInError
from lightning_signin.masks.called import Called
from lightning_signin.masks.choice import Choice
from lightning_signin.masks.largest import largest
from lightning_signin.masks.zeros import at_random, check_competing
from lightning_signin.objective.network import Network
from lightning_signin.objective.second_derivatives import second_derivatives
from lightning_signin.objective.training_data import Objective
from lightning_signin.objective.unfused import unfused

Scores = dict[str, Tensor]


class Task:
    """The argument of a score.

    Args:
        module: The plain module.
        weights: The weights to choose from, by plain name.
        choice: How scores become masks.
        generator: CPU generator for whatever is random.
        data: Loss and batches.
        name: The score's name in error messages.

    Attributes:
        weights: The weights, detached, in model order. Do not write to them.
        generator: As given.

    Example:
        >>> def large_for_its_layer(task):
        ...     return {name: weight.abs() / weight.abs().mean() for name, weight in task.weights.items()}
        >>> from lightning_signin import masks, sparsify
        >>> net = sparsify(nn.Linear(10, 10), mask=large_for_its_layer)
        >>> int(masks(net)["weight"].sum())
        10
    """

    def __init__(
        self,
        module: nn.Module | None,
        weights: Mapping[str, Tensor],
        choice: Choice,
        generator: torch.Generator,
        data: Objective | None = None,
        name: str = "",
    ) -> None:
        self.weights = {name: weight.detach() for name, weight in weights.items()}
        self.generator, self.name = generator, name
        self._module, self._choice, self._data = module, choice, data
        self._iterator: Iterator[Any] | None = None

    @property
    def data(self) -> Objective:
        """Loss and batches."""
        if self._data is None:
            raise SignInError(f"mask={self.name!r} needs the training loss or an input: pass data=TrainingData(…).")
        return self._data

    @cached_property
    def module(self) -> nn.Module:
        """A copy of the module, in the original's train or eval modes, that training steps may change."""
        return self.data.copy(self._known_module())

    @cached_property
    def total(self) -> int:
        """The number of weights to keep."""
        return self._choice.target if self.counts is None else sum(self.counts.values())

    @cached_property
    def counts(self) -> dict[str, int] | None:
        """The number of weights to keep in each layer; None where all layers compete."""
        return None if self._choice.is_global else self._choice.counts()

    def select(
        self, scores: Mapping[str, Tensor], progress: float, within: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Intermediate masks: at ``progress`` t in (0, 1) they keep densityᵗ, without structure.

        Args:
            scores: By name; higher is kept, zeros are chosen at random.
            progress: t.
            within: The previous masks, if pruned weights stay pruned. No layer keeps more than in these, or fewer than
                in the end, either of which rounding could cause.

        Returns:
            Bool masks by name.

        Raises:
            SignInError: If a score is NaN.
        """
        self.check_numbers(scores)
        scores = at_random(scores, self.generator)
        most = None if within is None else {name: int(mask.sum()) for name, mask in within.items()}
        masks = self._choice.masks(scores, lambda sparsity: (1 - sparsity) ** progress, most)
        if within is not None:
            for name, least in (self.counts or {}).items():
                if int(masks[name].sum()) < least:
                    masks[name] = largest(scores[name], least)
            assert not any((mask & ~within[name]).any() for name, mask in masks.items())
        return masks

    def batches(self, number: int) -> Iterator[Any]:
        """The next training batches; after the last one, iteration restarts."""
        for _ in range(number):
            if self._iterator is None:
                self._iterator = iter(self.data.batches)
            batch = next(self._iterator, self)
            if batch is self:
                self._iterator = iter(self.data.batches)
                batch = next(self._iterator, self)
            if batch is self:
                raise SignInError(
                    f"mask={self.name!r} needs training batches, and there are none. (An iterator gives its batches "
                    "once: pass a list or a DataLoader.)"
                )
            yield batch

    def gradients(self, values: Mapping[str, Tensor], batch: Any, create_graph: bool = False) -> dict[str, Tensor]:
        """The gradient of the training loss of one batch.

        Args:
            values: Values for parameters, by plain name, that require gradients; other parameters keep their values.
            batch: A training batch.
            create_graph: Keep the graph, for second derivatives.

        Returns:
            The gradient with respect to each value; zero where the loss does not depend on it.

        Raises:
            SignInError: If the loss is not one finite number.
        """
        called = Called(self.module, self.data)
        swapped = {f"module.{name}": value for name, value in values.items()}
        with unfused() if create_graph else nullcontext():
            losses = torch.func.functional_call(called, swapped, (batch,))
            gradients: dict[str, Tensor] = {}
            for place, (loss, theirs) in enumerate(losses):
                self._check_loss(loss)
                names = [name for name in values if loss.requires_grad and (theirs is None or name in theirs)]
                keep = create_graph or place + 1 < len(losses)  # otherwise activations are freed during the backward
                inputs = [values[name] for name in names]
                options: dict[str, Any] = {"create_graph": create_graph, "retain_graph": keep}
                found = torch.autograd.grad(loss, inputs, **options, materialize_grads=True) if names else ()
                for name, gradient in zip(names, found, strict=True):
                    gradients[name] = gradients[name] + gradient if name in gradients else gradient
        return {n: gradients[n] if n in gradients else torch.zeros_like(value) for n, value in values.items()}

    def mean_gradients(self, values: Mapping[str, Tensor], batches: Iterable[Any]) -> dict[str, Tensor]:
        """The gradient of the training loss, averaged over batches and ranks. See `gradients`."""
        leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
        found = self._mean(self.gradients(leaves, batch) for batch in batches)
        self.check_felt(found)
        return found

    def check_felt(self, gradients: Mapping[str, Tensor]) -> None:
        """Raise `SignInError` if all gradients are zero."""
        if not any(gradient.any() for gradient in gradients.values()):
            raise SignInError(
                f"The training loss depends on none of the selected weights, so mask={self.name!r} cannot tell them "
                "apart. Check the training step, or choose a mask that needs no data."
            )

    def check_scores(self, scores: Mapping[str, Tensor]) -> None:
        """Raise `SignInError` if layers compete, but too many of the scores, of the unpruned network, are zero."""
        self.check_numbers(scores)
        check_competing(scores, self._choice, self.name)

    def check_numbers(self, scores: Mapping[str, Tensor]) -> None:
        """Raise `SignInError` if a score is NaN."""
        for name, score in scores.items():
            if score.isnan().any():
                raise SignInError(
                    f"`mask`={self.name!r} gave NaN scores for {name!r}. Check that its weights are finite, and its "
                    "gradients."
                )

    def mean_products(
        self, values: Mapping[str, Tensor], vector: Mapping[str, Tensor], batches: Iterable[Any]
    ) -> dict[str, Tensor]:
        """The Hessian of the training loss times a vector, averaged over batches and ranks, without forming it."""

        def product(batch: Any) -> dict[str, Tensor]:
            leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
            gradients = self.gradients(leaves, batch, create_graph=True)
            inner = torch.stack([(gradients[name] * vector[name]).sum() for name in leaves]).sum()
            if not inner.requires_grad:
                raise SignInError(
                    f"The training loss is linear in the selected weights: it has no Hessian for mask={self.name!r}. "
                    "Choose another mask, e.g. 'snip'."
                )
            with second_derivatives(self.name, [inner]):
                found = torch.autograd.grad(inner, list(leaves.values()), materialize_grads=True)
            return dict(zip(leaves, found, strict=True))

        return self._mean(product(batch) for batch in batches)

    def network(self) -> Network:
        """A fresh copy of the network alone, with an example input: for scores that need no data."""
        return self.data.network(self._known_module(), self.weights)

    def _known_module(self) -> nn.Module:
        if self._module is None:
            raise SignInError(f"mask={self.name!r} needs the whole model: call `sparsify` on it.")
        return self._module

    def _check_loss(self, loss: object) -> None:
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shown = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            raise SignInError(f"The training loss must be a tensor of one number for mask={self.name!r}, got {shown}.")
        if not loss.isfinite().all():
            raise SignInError(
                f"The training loss is {loss.item()} while scoring with mask={self.name!r}. Check the data and the "
                "initial weights."
            )

    def _mean(self, found: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        number = 0
        for number, gradients in enumerate(found, start=1):  # noqa: B007 — the count of batches
            for name in list(gradients):  # copies: autograd may hand out one tensor for two inputs
                gradient = gradients.pop(name)
                wide = torch.promote_types(gradient.dtype, torch.float32)
                total[name] = total[name].add_(gradient) if name in total else gradient.to(wide, copy=True)
        return {name: self.data.average(value.div_(number)) for name, value in total.items()}
