"""The names of methods: any of a mask score, an update rule and a parametrization, joined by "+".

The names are those in `SCORES`, `UPDATES` and `PARAMETRIZATIONS`. What a method does not name stays as in the
configuration. "sign-in" joined with a parametrization that has a Sign-In variant selects that variant.
"""

import json
from dataclasses import dataclass
from typing import Any

from lightning_signin.errors import SignInError
from lightning_signin.masks.scores import SCORES
from lightning_signin.parametrizations import PARAMETRIZATIONS
from lightning_signin.updates import UPDATES

PREFIX = "--trainer.callbacks.init_args."  # reaches the last callback of a configuration
_PRODUCT = {"parametrization": "sign-in", "rescale_every_n_epochs": None, "rescale_every_n_steps": None}
_KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "masks": {name: {"mask": name} for name in SCORES},
    "updates": {name: {"update": name} for name in UPDATES},
    "parametrizations": {name: {"parametrization": name} for name in PARAMETRIZATIONS} | {"m-w": _PRODUCT},
}
_ARGUMENTS = {name: arguments for kind in _KINDS.values() for name, arguments in kind.items()}
_OTHER_SPELLINGS = {"mw": "m-w"}


@dataclass(frozen=True)
class Method:
    """A method, by name and arguments.

    Attributes:
        name: Its parts in the order mask, update, parametrization.
        arguments: Its arguments for `SignInCallback`.
    """

    name: str
    arguments: dict[str, Any]

    def on_command_line(self) -> list[str]:
        """The arguments, as ``fit`` takes them."""
        return [f"{PREFIX}{name}={_written(value)}" for name, value in self.arguments.items()]


def parse_method(text: str) -> Method:
    """Parse the name of a method.

    Returns:
        The method, with its parts in a fixed order.

    Raises:
        SignInError: If a part is unknown, or two parts set the same argument.

    Example:
        >>> parse_method("plain+snip").name
        'snip+plain'
        >>> parse_method("rigl+m-w").on_command_line()[0]
        '--trainer.callbacks.init_args.update=rigl'
    """
    parts = [_OTHER_SPELLINGS.get(part, part) for part in text.split("+")]
    for part in parts:
        if part not in _ARGUMENTS:
            known = "; ".join(f"{kind} {', '.join(names)}" for kind, names in _KINDS.items())
            raise SignInError(f"`--method` must be names joined by +, got {text!r}: {part!r} is none of {known}.")
    parts.sort(key=list(_ARGUMENTS).index)
    arguments: dict[str, Any] = {}
    for of_part in _joined_with_sign_in(parts):
        if both := arguments.keys() & of_part.keys():
            raise SignInError(f"`--method` must name at most one {min(both)}, got {text!r}. Leave one out.")
        arguments |= of_part
    return Method("+".join(parts), arguments)


def _joined_with_sign_in(parts: list[str]) -> list[dict[str, Any]]:
    """The arguments of each part; "sign-in" and a parametrization that supports it are combined into one."""
    maps = [part for part in parts if hasattr(PARAMETRIZATIONS.get(part, object)(), "sign_in")]
    if "sign-in" not in parts or len(maps) != 1:
        return [_ARGUMENTS[part] for part in parts]
    kind = type(PARAMETRIZATIONS[maps[0]]())
    joined = {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": {"sign_in": True}}
    return [_ARGUMENTS[part] for part in parts if part not in ("sign-in", maps[0])] + [{"parametrization": joined}]


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
