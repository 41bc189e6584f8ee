"""Views that open automatically while user code runs, and how code that works on factors closes them meanwhile."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol


class Opens(Protocol):
    """A view that opens automatically: see `LiveView`."""

    def off(self) -> AbstractContextManager[None]:
        """Close it, and do not let it open in the block."""
        ...


LIVE: list[Opens] = []


@contextmanager
def factors_visible() -> Iterator[None]:
    """Within the block modules have their factors, even in a hook that shows θ."""
    with ExitStack() as closed:
        for view in LIVE:
            closed.enter_context(view.off())
        yield
