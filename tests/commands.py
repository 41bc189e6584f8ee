"""The command line, as a program would call it: it leaves no warning filter behind."""

import warnings

from lightning_signin.cli import main as command


def filters() -> list[str]:
    """In any order: Lightning puts its own to the front in every fit."""
    return sorted(set(map(str, warnings.filters)))


def main(arguments: list[str]) -> None:
    """Run a command, and compare the filters."""
    before = filters()
    try:
        command(arguments)
    finally:
        assert filters() == before, arguments
