"""The ``lightning-signin`` command."""

from lightning_signin.cli.main import main

__all__ = ["main"]
