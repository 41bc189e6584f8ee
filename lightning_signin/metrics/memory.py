"""Bytes that weights occupy in training: parameters, gradients, optimizer state, and the index or mask."""

from collections.abc import Iterable
from dataclasses import astuple, dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_signin.core.compact import Compact
from lightning_signin.core.numbers import whole_number
from lightning_signin.core.optimizer_experiments import fresh_state
from lightning_signin.core.weights import sparse_weights
from lightning_signin.errors import SignInError


@dataclass(frozen=True)
class Bytes:
    """The memory that persists from step to step, in bytes."""

    parameters: int
    gradients: int
    optimizer_state: int
    index: int = 0

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(astuple(self))

    def __add__(self, other: "Bytes") -> "Bytes":
        return Bytes(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class LayerBytes:
    """Bytes of one weight.

    Attributes:
        name: Its plain name; "other parameters" for everything that is not sparse.
        dense: The bytes in dense training of the plain weight.
        sparse: The bytes in training as it is now.
    """

    name: str
    dense: Bytes
    sparse: Bytes


@dataclass(frozen=True)
class ByteCount:
    """Bytes by layer.

    Attributes:
        layers: One row per sparse weight, and one for all other parameters.
    """

    layers: tuple[LayerBytes, ...]

    @property
    def total(self) -> LayerBytes:
        """The sum over all rows."""
        dense, sparse = (_sum(getattr(layer, kind) for layer in self.layers) for kind in ("dense", "sparse"))
        return LayerBytes("total", dense, sparse)


def memory(module: nn.Module, optimizer: Optimizer | int = 1) -> ByteCount:
    """Bytes of parameters, gradients, optimizer state and index of a module, compared with dense training.

    Activations, buffers, and the dense gradients that some update rules need for a step are not counted; nor is the
    memory for θ itself, which on the CPU is kept from step to step (`lightning_signin.core.workspace`).

    Args:
        module: A module after `sparsify`, or a plain one. Frozen parameters have neither gradient nor state.
        optimizer: The number of tensors of a weight's shape that the optimizer keeps: 0 for SGD, 1 with momentum, 2 for
            Adam; or an optimizer, built in `plain_view`. Before its first step, its state is found by a trial step on a
            small parameter.

    Returns:
        The bytes of each sparse weight, and of all other parameters together.

    Raises:
        SignInError: If a parameter is not in the optimizer, or the optimizer's state cannot be found out before a step.

    Example:
        >>> from lightning_signin import sparsify
        >>> net = sparsify(nn.Linear(20, 10, bias=False), sparsity=0.9)
        >>> memory(net).layers[0].sparse  # m and w of 20 entries in float32, and 20 indices of 4 bytes
        Bytes(parameters=160, gradients=160, optimizer_state=160, index=80)
    """
    if not isinstance(optimizer, Optimizer):
        hint = "Or pass the optimizer itself."
        optimizer = whole_number("optimizer", optimizer, least=0, hint=hint)
    rows: list[LayerBytes] = []
    seen: set[int] = set()
    for name, weight in sparse_weights(module).items():
        first, size = weight.tensors[0], weight.storage.shape.numel()
        mask = size * first.itemsize  # a mask entry has as many bits as a value
        index = weight.storage.positions_nbytes if isinstance(weight.storage, Compact) else mask
        trained = _sum(_of_tensor(tensor, tensor.numel(), optimizer, name) for tensor in weight.tensors)
        trained += Bytes(0, 0, 0, index)
        rows.append(LayerBytes(name, _of_tensor(first, size, optimizer, name), trained))
        seen.update(map(id, weight.tensors))
    others = [(name, parameter) for name, parameter in module.named_parameters() if id(parameter) not in seen]
    rest = _sum(_of_tensor(parameter, parameter.numel(), optimizer, name) for name, parameter in others)
    return ByteCount((*rows, LayerBytes("other parameters", rest, rest)))


def _sum(parts: Iterable[Bytes]) -> Bytes:
    return sum(parts, Bytes(0, 0, 0))


def _of_tensor(parameter: nn.Parameter, size: int, optimizer: Optimizer | int, name: str) -> Bytes:
    """The bytes of a parameter if it had ``size`` entries."""
    own = size * parameter.itemsize
    if not parameter.requires_grad:
        return Bytes(own, 0, 0)
    if isinstance(optimizer, int):
        return Bytes(own, own, optimizer * own)
    an_entry, fixed = _state_bytes(optimizer, parameter, name)
    return Bytes(own, own, an_entry * size + fixed)


def _state_bytes(optimizer: Optimizer, parameter: nn.Parameter, name: str) -> tuple[int, int]:
    """Bytes of optimizer state per entry of a parameter, and those that do not depend on its size."""
    if parameter in optimizer.state:
        return _split(optimizer.state[parameter].values(), parameter.numel())
    group = next((g for g in optimizer.param_groups if any(p is parameter for p in g["params"])), None)
    if group is None:
        raise SignInError(f"`optimizer` does not train {name}. Build it in `plain_view`, or freeze the parameter.")
    try:
        state = fresh_state(optimizer, group)
    except ValueError as error:
        raise SignInError(
            f"`optimizer`: the state that {type(optimizer).__name__} makes is not known before its first step. Take a "
            "step, or pass the number of its tensors of a weight's shape, e.g. optimizer=2."
        ) from error
    return _split(state.values(), 3)


def _split(values: Iterable[object], size: int) -> tuple[int, int]:
    tensors = [value for value in values if isinstance(value, Tensor)]
    of_entries = sum(tensor.itemsize for tensor in tensors if tensor.ndim and tensor.numel() == size)
    return of_entries, sum(t.numel() * t.itemsize for t in tensors if not (t.ndim and t.numel() == size))
