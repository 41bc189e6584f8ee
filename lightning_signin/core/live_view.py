"""A plain view that opens automatically: a layer becomes plain when user code in a hook asks for its parameters.

Until then it costs nothing. What asks is `named_modules`, through which torch's `parameters`, `named_parameters` and
`get_parameter` come to a layer, and the attribute of the weight; and `copy.deepcopy`, whose copy is plain for good.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_signin.core.factors_visible import LIVE
from lightning_signin.core.plain_groups import plain_groups
from lightning_signin.core.plain_layer import PlainLayer, layers_of
from lightning_signin.core.plain_view import Factors, exchanged_in_optimizers, opened
from lightning_signin.core.replaced_layers import Places, complete, follow_parameters
from lightning_signin.core.state_dict import uninstall_plain_state
from lightning_signin.core.torch_internals import TracingContext, registered_parameters
from lightning_signin.core.watched_layer import watch
from lightning_signin.core.weights import SparseWeight, sparse_weights


class LiveView:
    """The view of one module, for the time of a fit.

    In `hooks` a layer gets parameters with the values of θ, as in `plain_view`. In `steps`, where a loss is computed,
    it gets the parameters that it had before it was sparse, which stand for θ: a gradient goes on to the factors.

    Args:
        module: A module with sparse weights, none of them sharded.

    Attributes:
        mode: "hooks", "steps", or None where no user code runs.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._groups: dict[int, list[SparseWeight]] = {}  # by the id of a layer, those that become plain along with it
        self._places = Places(module)
        self.mode: str | None = None
        self._open: dict[int, ExitStack] = {}  # by the id of a group
        self._behind: Factors = {}
        self._exchanging = ExitStack()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Let the layers open in blocks of `hooks` and `steps`. Merging undoes it, with the classes of the layers."""
        self._find()
        LIVE.append(self)
        try:
            yield
        finally:
            LIVE.remove(self)
            self._groups = {}

    def hooks(self) -> AbstractContextManager[None]:
        """Let layers become plain in the block; then write back what was changed, and close them."""
        return self._in("hooks")

    def steps(self) -> AbstractContextManager[None]:
        """Let layers refer to θ in the block, until they run."""
        return self._in("steps")

    def off(self) -> AbstractContextManager[None]:
        """Write back what was changed, close the layers, and leave them closed in the block."""
        return self._in(None)

    @contextmanager
    def hooks_with_optimizers(self, optimizers: Iterable[Optimizer]) -> Iterator[None]:
        """As `hooks`, and the groups of optimizers list plain parameters, too. All layers become plain at once."""
        with self.hooks():
            for group in self._groups.values():
                if id(group) not in self._open:
                    self.opens(group[0].owners[0][0])
            with plain_groups(optimizers, self._behind):
                yield

    @contextmanager
    def _in(self, mode: str | None) -> Iterator[None]:
        before = self.mode
        try:
            self._change(mode)
            yield
        finally:
            self._change(before)

    def _change(self, mode: str | None) -> None:
        if mode != self.mode:
            self.mode = None  # while layers are closed
            try:
                self._close()
            finally:
                self.mode = mode

    def shows(self, owner: nn.Module) -> bool:
        """Whether this is one of the layers, and no copy of one, which has the same class."""
        return id(owner) in self._groups

    def opens(self, owner: nn.Module) -> bool:
        """Make a layer plain if user code asks for it; its copies stay as they are."""
        if self.mode is None or torch.compiler.is_compiling() or not self.shows(owner):
            return False
        if TracingContext.try_get() is not None:  # Dynamo of torch 2.6 asks modules for their parameters as it traces
            return False
        group = self._groups[id(owner)]
        if not self._behind:
            self._exchanging.enter_context(exchanged_in_optimizers(self._behind))
        opening, key = ExitStack(), id(group)
        if self.mode == "hooks":
            context = opened(group)
        else:
            context = _referred_to(group, lambda: self._open.pop(key).close(), lambda: self._reopen(owner))
        self._behind |= opening.enter_context(context)
        self._open[key] = opening
        return True

    def _reopen(self, owner: nn.Module) -> None:
        if id(self._groups[id(owner)]) not in self._open:
            self.opens(owner)

    def copied(self, owner: nn.Module, memo: dict[int, Any]) -> Any:
        """A plain copy of a layer, if user code asks for it."""
        if self.mode is None or not self.shows(owner):
            return None
        with opened(self._groups[id(owner)]):
            plain = copy.deepcopy(owner, memo)
        uninstall_plain_state(plain)
        return plain

    def _close(self) -> None:
        closed = [weight for group in self._groups.values() if id(group) in self._open for weight in group]
        with self._exchanging, ExitStack() as closing:
            for opening in self._open.values():
                closing.push(opening)
            self._open, self._behind = {}, {}
        if self._places.changed():  # layers were exchanged
            follow_parameters(self._module, closed)
            self._find()

    def _find(self) -> None:
        """The layers as they are now."""
        known = {owner for group in self._groups.values() for weight in group for owner, _ in weight.owners}
        weights = list(sparse_weights(self._module).values())
        for weight in weights:
            complete(weight)
        for owner in {owner for weight in weights for owner, _ in weight.owners} - known:
            watch(owner, self)
        self._groups, self._places = _connected(weights), Places(self._module)


@contextmanager
def _referred_to(
    weights: Iterable[SparseWeight], close: Callable[[], None], reopen: Callable[[], None]
) -> Iterator[Factors]:
    """Show the empty plain parameters of sparse weights: θ is computed when it is read, and its gradient goes on.

    Args:
        weights: As in `opened`.
        close: Ends this context. It is called when a layer is copied, or runs: with its factors, unless a functional
            call has put other tensors into the places of the parameters.
        reopen: Enters a context like this one again, after the layer has run.

    Yields:
        The sparse weight behind each parameter, by its id.
    """
    weights = list(weights)
    empty: dict[str, Any] = {weight.name: weight.parametrization.plain_parameter for weight in weights}
    layers = layers_of(empty, weights)
    with ExitStack() as closing:
        for layer in layers:
            layer.show(have_values=False)
            closing.callback(layer.restore)
            own = vars(layer.owner)
            methods = {name: _closing(layer, name, close) for name in ("__deepcopy__", "__reduce_ex__")}
            methods["forward"] = _running(layer, close, reopen)
            for name, method in methods.items():
                if name not in own:
                    own[name] = method
                    closing.callback(own.pop, name)
        yield {id(empty[weight.name]): weight for weight in weights}


def _closing(layer: PlainLayer, name: str, close: Callable[[], None]) -> Callable[..., Any]:
    def method(*args: Any, **kwargs: Any) -> Any:
        close()
        return getattr(layer.owner, name)(*args, **kwargs)

    return method


def _running(layer: PlainLayer, close: Callable[[], None], reopen: Callable[[], None]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        owner, here = layer.owner, registered_parameters(layer.owner)
        if any(here.get(attribute) is not parameter for attribute, parameter in layer.shown.items()):
            return type(owner).forward(owner, *args, **kwargs)
        close()
        try:
            return owner.forward(*args, **kwargs)
        finally:
            reopen()

    return forward


def _connected(weights: list[SparseWeight]) -> dict[int, list[SparseWeight]]:
    """For each layer, by its id, the weights that become plain along with it: of it and of all users of its weights."""
    groups: dict[int, list[SparseWeight]] = {}
    for weight in weights:
        joined = [weight]
        for owner, _ in weight.owners:
            joined += [other for other in groups.get(id(owner), []) if other not in joined]
        for member in joined:
            groups |= {id(owner): joined for owner, _ in member.owners}
    return groups
