"""The Lightning callback, and the helpers that only it uses."""

from lightning_signin.callback.signin import SignInCallback

__all__ = ["SignInCallback"]
