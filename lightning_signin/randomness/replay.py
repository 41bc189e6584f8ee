"""The order of a DataLoader across an interruption: recorded in every epoch, replayed on resuming.

An epoch's batches are determined by what is drawn when its iterator is made (the workers' seed) and at its first batch
(the sampler's seed). The generators are recorded at both points. To resume, the iterator is made again from them and
the batches already seen are skipped; the process-wide generators are left as they are.
"""

import copyreg
from collections.abc import Callable, Iterator
from typing import Any
from weakref import ref

import torch
from torch.utils.data import DataLoader, IterableDataset

from lightning_signin.core.structure import Expected, check_structure, entries, optional, whole
from lightning_signin.errors import SignInError
from lightning_signin.randomness import generators

State = dict[str, Any]

POSITION = "The checkpoint's position in the data"


def attach(loader: object, beside: "Callable[[], list[Recorder]]" = list) -> "Recorder | None":
    """Record a DataLoader from now on, or return None for what cannot be replayed.

    Loaders of iterable datasets, other iterables, and loaders that save their own state cannot be replayed.

    Args:
        loader: Any iterable.
        beside: Returns the recorders of all loaders that are iterated in parallel, in their order.

    Returns:
        What records the loader; None for what cannot be replayed.
    """
    stateful = hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset) or stateful:
        return None
    return Recorder(loader, beside)


class Recorder:
    """Records one loader, whose class is replaced by a subclass with another ``__iter__``.

    Args:
        loader: A map-style DataLoader.
        beside: See `attach`.

    Attributes:
        seen: Batches read since the current iterator was made.
        before_fetch: The process-wide generators before the latest batch was read.
    """

    def __init__(self, loader: DataLoader[Any], beside: "Callable[[], list[Recorder]]") -> None:
        self.beside = beside
        self.seen = 0
        self._loader, self.loader_class = ref(loader), type(loader)
        self.at_start: State | None = None
        self.at_first: State | None = None
        self.before_fetch: State | None = None
        self._resumed = False
        self._skip: int | None = None
        self._pending: _Recorded | None = None
        loader.__class__ = _recorded_class(self.loader_class, self._start)

    @property
    def loader(self) -> DataLoader[Any]:
        """The loader, which keeps its recorder alive through its class, not the other way round."""
        loader = self._loader()
        assert loader is not None
        return loader

    def detach(self) -> None:
        """Restore the loader's class."""
        self.loader.__class__ = self.loader_class

    def state(self, in_flight: int = 0) -> State:
        """What determines the current epoch's order, its position, and the loader's and sampler's own generators.

        Args:
            in_flight: Number of batches that were read but not completed: they will be read again.

        Returns:
            Tensors and plain values.
        """
        own = self._own_states()
        return {"at_start": self.at_start, "at_first": self.at_first, "seen": self.seen - in_flight, "own": own}

    def resume(self, state: State, epoch_complete: bool = False) -> None:
        """Make the next iterator continue a recorded epoch after the batches seen, or start anew after its end.

        Raises:
            SignInError: If the state is altered.
        """
        check_structure(POSITION, state, self._expected())
        self._set_own(state["own"])
        self._resumed = True
        if not epoch_complete and state["at_start"] is not None:
            self.at_start, self.at_first, self._skip = state["at_start"], state["at_first"], state["seen"]

    def begin_pending(self) -> None:
        """Make the iterator that was deferred to the first batch."""
        if self._pending is not None:
            self._pending.begin()
            self._pending = None

    @property
    def inexact(self) -> str | None:
        """Why a replay cannot be exact, if so."""
        if self.loader.num_workers and self.loader.persistent_workers:
            return "persistent loader workers keep random generators that cannot be saved"
        return None

    def _start(
        self, make_iterator: Callable[[DataLoader[Any]], Iterator[Any]], loader: DataLoader[Any]
    ) -> Iterator[Any]:
        if self._resumed:
            # Deferred to the first batch: before it, Lightning restores generators and tells the sampler its epoch.
            make = self._begin if self._skip is None else self._replay
            self._pending = _Recorded(self, lambda: make(make_iterator))
            return self._pending
        iterator = _Recorded(self, lambda: self._begin(make_iterator))
        iterator.begin()
        return iterator

    def _begin(self, make_iterator: Callable[[DataLoader[Any]], Iterator[Any]]) -> Iterator[Any]:
        self._resumed, self.seen = False, 0
        self.at_start = {"global": generators.capture(), "own": self._own_states()}
        self.at_first = None
        return make_iterator(self.loader)

    def _replay(self, make_iterator: Callable[[DataLoader[Any]], Iterator[Any]]) -> Iterator[Any]:
        assert self.at_start is not None
        assert self._skip is not None
        now = generators.capture()
        generators.restore(self.at_start["global"])
        self._set_own(self.at_start["own"])
        iterator = make_iterator(self.loader)
        if self.at_first is not None:
            generators.restore(self.at_first)
        given = sum(1 for _ in zip(range(self._skip), iterator, strict=False))
        generators.restore(now)
        if given < self._skip:
            raise SignInError(
                f"{POSITION} is after batch {self._skip} of an epoch, but the training loader gives only {given}. "
                "Resume with the data, the batch size and the sampler of that run."
            )
        self._resumed, self.seen, self._skip = False, self._skip, None
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

    def _expected(self) -> Expected:
        own = entries({}, {name: generators.accepted_by(each.device) for name, each in self._own().items()})
        of_process = generators.expected_state()
        at_start = optional(entries({"global": of_process, "own": own}))
        seen = whole(-1)  # of a loader that had ended before the batch in flight
        return entries({"at_start": at_start, "at_first": optional(of_process), "seen": seen, "own": own})

    def _own_states(self) -> State:
        return {name: generator.get_state() for name, generator in self._own().items()}

    def _set_own(self, states: State) -> None:
        for name, generator in self._own().items():
            if name in states:
                generator.set_state(states[name])


def _recorded_class(plain: type[DataLoader[Any]], start: Callable[..., Iterator[Any]]) -> type[DataLoader[Any]]:
    """A class like that of a loader, with another ``__iter__``. Copies and pickles have the plain class."""

    def __iter__(loader: DataLoader[Any]) -> Iterator[Any]:
        return start(plain.__iter__, loader)

    def __reduce_ex__(loader: DataLoader[Any], protocol: Any) -> Any:
        reduced = plain.__reduce_ex__(loader, protocol)
        if isinstance(reduced, str):
            return reduced
        make, arguments, *rest = reduced
        make, *arguments = [plain if named is recorded else named for named in (make, *arguments)]
        return _new if make is copyreg.__newobj__ else make, tuple(arguments), *rest  # type: ignore[attr-defined]

    recorded = type(plain.__name__, (plain,), {"__iter__": __iter__, "__reduce_ex__": __reduce_ex__})
    return recorded


def _new(kind: type[DataLoader[Any]]) -> DataLoader[Any]:
    """What pickle does with most objects, but not where an object is of another class."""
    return kind.__new__(kind)


class _Recorded(Iterator[Any]):
    """An iterator over a loader. In copies and pickles None is in its place, as Lightning does it with torch's own."""

    def __init__(self, recorder: Recorder, make: Callable[[], Iterator[Any]]) -> None:
        self.recorder, self.make = recorder, make
        self.iterator: Iterator[Any] | None = None

    def begin(self) -> None:
        self.iterator = self.make()

    def __next__(self) -> Any:
        recorder = self.recorder
        if self.iterator is None:
            # Make all parallel iterators, in the order of an uninterrupted run: each draws a seed.
            for other in recorder.beside():
                other.begin_pending()
            recorder.begin_pending()
        assert self.iterator is not None
        # An interrupted batch is repeated from here.
        recorder.before_fetch = generators.capture()
        if recorder.at_first is None:
            recorder.at_first = recorder.before_fetch
        batch = next(self.iterator)
        recorder.seen += 1
        return batch

    def __reduce__(self) -> Any:
        return type(None), ()
