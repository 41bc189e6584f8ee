"""How much work a call is, without a clock: the same on every machine, however busy."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


def lines_run(call: Callable[[], Any], at_most: float = float("inf")) -> tuple[Any, int]:
    """What a call returns, and how many lines of Python it ran; it fails where these become more than ``at_most``."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "line"
        assert count <= at_most, f"{call} runs more than {at_most} lines"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        result = call()
    finally:
        sys.settrace(before)
    return result, count


_opened: list[list[str]] = []  # the lists that are being filled
_hooked: list[bool] = []


@contextmanager
def opens() -> Iterator[list[str]]:
    """The paths of all files that are opened inside, in order, one entry each time."""
    if not _hooked:  # an audit hook stays for good
        _hooked.append(True)
        sys.addaudithook(lambda event, args: [each.append(str(args[0])) for each in _opened if event == "open"])
    found: list[str] = []
    _opened.append(found)
    try:
        yield found
    finally:
        _opened.remove(found)
