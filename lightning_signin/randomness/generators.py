"""The states of a process's random generators, and of those that objects hold, as tensors and plain values."""

import random
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import BuiltinMethodType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

from lightning_signin.core.structure import Expected, entries, number, one_of, optional, row, several, tensor, whole

State = dict[str, Any]

_WORDS = 624
_MOST_ENTRIES = 100  # longer lists and dicts are skipped: they hold samples, not transforms
_MOST_PARTS = 20_000  # bounds the time of the search
_CLOSED = {"builtins", "lightning", "types", "weakref", "multiprocessing", "threading", "logging"}
_LIBRARIES = _CLOSED | {"torch", "torchvision", "numpy", "abc", "typing", "collections", "functools", "random"}


def capture() -> State:
    """The states of torch's, every CUDA device's, numpy's and Python's generators; `torch.load` reads them safely."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: State = {
        "torch": torch.get_rng_state(),
        # torch cannot send uint32 tensors between ranks
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
        "python": random.getstate(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def accepted_by(device: torch.device | str) -> Expected:
    """A state that a torch generator of a device accepts."""

    def check(value: Any, path: str) -> str | None:
        if wrong := tensor(torch.uint8)(value, path):
            return wrong
        try:
            torch.Generator(device).set_state(value)
        except (RuntimeError, TypeError) as error:  # only torch knows which bytes are a state
            return f"{path or 'it'} is no state of a generator: {str(error).splitlines()[0]}"
        return None

    return check


def expected_state() -> Expected:
    """What `capture` returns."""
    words = [whole(0, 2**32 - 1)] * _WORDS  # of the Mersenne Twister, followed by a position in them
    of_numpy = (one_of("MT19937"), tensor(torch.int64, (_WORDS,)), whole(0, _WORDS), whole(0, 1), number)
    of_python = (one_of(3), row(*words, whole(0, _WORDS)), optional(number))
    of_cuda = several(accepted_by("cuda") if torch.cuda.is_available() else tensor(torch.uint8))
    required = {"torch": accepted_by("cpu"), "numpy": row(*of_numpy), "python": row(*of_python)}
    return entries(required, {"cuda": of_cuda})


def restore(state: State) -> None:
    """Put the generators back into a captured state."""
    torch.set_rng_state(state["torch"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def untouched() -> Iterator[None]:
    """Leave the process-wide generators as they were, whatever is drawn inside."""
    state = capture()
    try:
        yield
    finally:
        restore(state)


class Held:
    """The generators that objects hold: a loader's, its samplers', its data set's, down to those of its transforms."""

    def __init__(self) -> None:
        self._states: dict[int, tuple[Any, Any]] = {}

    def remember(self, holder: object) -> None:
        """Record the current states of all generators reachable from an object; earlier records are kept.

        The search covers attributes, short lists, tuples and dicts, and what functions and methods refer to: closures,
        defaults, arguments of a ``partial``, and global variables of their modules.

        Args:
            holder: Any object.
        """
        known: dict[int, object] = {}
        waiting = deque([holder])
        while waiting and len(known) < _MOST_PARTS:
            part = waiting.popleft()
            if id(part) in known:
                continue
            known[id(part)] = part
            state = _state(part)
            if state is None:
                waiting.extend(_parts(part))
            else:
                self._states.setdefault(id(part), (part, state))

    def restore(self) -> None:
        """Restore the recorded states."""
        for generator, state in self._states.values():
            if isinstance(generator, np.random.Generator):
                generator.bit_generator.state = state
            elif isinstance(generator, random.Random):
                generator.setstate(state)
            else:
                generator.set_state(state)
        self._states = {}


def _state(generator: object) -> Any:
    """The state of a generator; None for anything else."""
    if isinstance(generator, torch.Generator | np.random.RandomState):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, random.Random) and not isinstance(generator, random.SystemRandom):
        return generator.getstate()
    return None


def _parts(holder: Any) -> Iterable[object]:
    if isinstance(holder, list | tuple | dict):
        entries = holder.values() if isinstance(holder, dict) else holder
        return entries if len(entries) <= _MOST_ENTRIES else ()
    if isinstance(holder, BuiltinMethodType):  # a bound method of a generator itself
        return (holder.__self__,)
    if isinstance(holder, MethodType):
        return (holder.__self__, holder.__func__)
    if isinstance(holder, partial):
        return (holder.func, holder.args, holder.keywords)
    if isinstance(holder, FunctionType):
        return () if _library(holder) in _LIBRARIES else _referred(holder)
    if isinstance(holder, type | ModuleType | torch.Tensor | np.ndarray) or _library(type(holder)) in _CLOSED:
        return ()
    return (*_attributes(holder), *_methods(type(holder)))


def _library(definition: Any) -> str:
    return str(definition.__module__).partition(".")[0]


def _referred(function: FunctionType) -> list[object]:
    found = list(function.__defaults__ or ())
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a cell may be empty
            found.append(cell.cell_contents)
    return found + [function.__globals__[n] for n in function.__code__.co_names if n in function.__globals__]


def _attributes(holder: object) -> list[object]:
    slots = [name for kind in type(holder).__mro__ for name in getattr(kind, "__slots__", ())]
    found = [getattr(holder, name, None) for name in slots if isinstance(name, str) and name != "__weakref__"]
    return [*found, *getattr(holder, "__dict__", {}).values()]


def _methods(kind: type) -> list[object]:
    """The functions of a class and its bases that are not from libraries."""
    own = [base for base in kind.__mro__ if _library(base) not in _LIBRARIES]
    return [value for base in own for value in vars(base).values() if isinstance(value, FunctionType)]
