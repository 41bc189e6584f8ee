"""The Lightning callback, and what only it needs."""

from lightning_signin.callback.signin import SignInCallback

__all__ = ["SignInCallback"]
