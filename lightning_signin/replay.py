"""The order of a DataLoader across an interruption: recorded in every epoch, replayed on resuming.

What decides an epoch's batches is drawn when its iterator is made (the workers' seed) and at its first batch (the
sampler's seed). Both moments are recorded. To resume, the iterator is made again from them and the batches already
seen are skipped; the process-wide generators are left as they are.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from lightning_signin import generators

State = dict[str, Any]


def attach(loader: object) -> "Recorder | None":
    """Record a DataLoader from now on, or return None for what cannot be replayed.

    Those are loaders of iterable datasets, other iterables, and loaders that save a state of their own.
    """
    stateful = hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset) or stateful:
        return None
    return Recorder(loader)


class Recorder:
    """The record of one loader. The loader becomes an instance of a subclass with another ``__iter__``.

    Args:
        loader: A map-style DataLoader.
    """

    def __init__(self, loader: DataLoader) -> None:
        self.loader, self.loader_class = loader, type(loader)
        self.at_start: State | None = None
        self.at_first: State | None = None
        self.before_fetch: State | None = None
        self._resumed = False
        self._skip: int | None = None
        make_iterator, start = self.loader_class.__iter__, self._start
        recorded = type(
            self.loader_class.__name__, (self.loader_class,), {"__iter__": lambda loader: start(make_iterator, loader)}
        )
        loader.__class__ = recorded

    def detach(self) -> None:
        """Give the loader its class back."""
        self.loader.__class__ = self.loader_class

    def state(self) -> State:
        """What decides the present epoch's order, and the loader's and sampler's own generators as they are now."""
        return {"at_start": self.at_start, "at_first": self.at_first, "own": self._own_states()}

    def resume(self, state: State, batches: int | None) -> None:
        """Let the next iterator be that of a recorded epoch, less the batches seen; None begins a fresh epoch."""
        self._set_own(state["own"])
        self._resumed = True
        if batches is not None and state["at_start"] is not None:
            self.at_start, self.at_first, self._skip = state["at_start"], state["at_first"], batches

    @property
    def inexact(self) -> str | None:
        """Why a replay cannot be exact, if so."""
        if self.loader.num_workers and self.loader.persistent_workers:
            return "persistent loader workers keep random generators that cannot be saved"
        return None

    def _start(self, make_iterator: Callable[[DataLoader], Iterator], loader: DataLoader) -> Iterator:
        if self._resumed:
            # Made at the first batch only: until then Lightning restores generators and tells the sampler its epoch.
            make = self._begin if self._skip is None else self._replay
            return _Recorded(self, lambda: make(make_iterator))
        iterator = self._begin(make_iterator)
        return _Recorded(self, lambda: iterator)

    def _begin(self, make_iterator: Callable[[DataLoader], Iterator]) -> Iterator:
        self._resumed = False
        self.at_start = {"global": generators.capture(), "own": self._own_states()}
        self.at_first = None
        return make_iterator(self.loader)

    def _replay(self, make_iterator: Callable[[DataLoader], Iterator]) -> Iterator:
        assert self.at_start is not None
        assert self._skip is not None
        now = generators.capture()
        generators.restore(self.at_start["global"])
        self._set_own(self.at_start["own"])
        iterator = make_iterator(self.loader)
        if self.at_first is not None:
            generators.restore(self.at_first)
        for _ in range(self._skip):
            next(iterator)
        self._resumed, self._skip = False, None
        generators.restore(now)
        return iterator

    def _own(self) -> dict[str, torch.Generator]:
        batch_sampler = self.loader.batch_sampler
        holders = {
            "loader": self.loader,
            "sampler": self.loader.sampler,
            "batch_sampler": batch_sampler,
            "batch_sampler.sampler": getattr(batch_sampler, "sampler", None),
        }
        found = {name: getattr(holder, "generator", None) for name, holder in holders.items()}
        return {name: generator for name, generator in found.items() if isinstance(generator, torch.Generator)}

    def _own_states(self) -> State:
        return {name: generator.get_state() for name, generator in self._own().items()}

    def _set_own(self, states: State) -> None:
        for name, generator in self._own().items():
            if name in states:
                generator.set_state(states[name])


class _Recorded(Iterator):
    def __init__(self, recorder: Recorder, make: Callable[[], Iterator]) -> None:
        self.recorder, self.make = recorder, make
        self.iterator: Iterator | None = None

    def __next__(self) -> Any:
        if self.iterator is None:
            self.iterator = self.make()
            if self.recorder.at_first is None:
                self.recorder.at_first = generators.capture()
        # A batch that is interrupted is run again from here.
        self.recorder.before_fetch = generators.capture()
        return next(self.iterator)
