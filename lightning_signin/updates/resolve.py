"""The update rules by name."""

from collections.abc import Callable

from lightning_signin.core.naming import resolve
from lightning_signin.updates.acdc import ACDC
from lightning_signin.updates.gmp import GMP, OneShot
from lightning_signin.updates.mest import MEST
from lightning_signin.updates.rigl import RigL
from lightning_signin.updates.rule import UpdateRule
from lightning_signin.updates.set import SET
from lightning_signin.updates.srigl import SRigL

UPDATES: dict[str, Callable[[], UpdateRule]] = {
    "set": SET,
    "rigl": RigL,
    "srigl": SRigL,
    "mest": MEST,
    "gmp": GMP,
    "one-shot": OneShot,
    "acdc": ACDC,
}


def parse_update(update: str | UpdateRule) -> UpdateRule:
    """The rule that an argument stands for: a name in `UPDATES`, an import path, or a rule with arguments.

    Raises:
        SignInError: If it is none of these.

    Example:
        >>> parse_update("rigl") == parse_update("lightning_signin.updates.RigL") == RigL()
        True
    """
    return resolve("update", update, UPDATES, UpdateRule)
