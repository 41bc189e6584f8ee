"""The update rules by name."""

from collections.abc import Callable

from lightning_signin.core.naming import resolve
from lightning_signin.errors import SignInError
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

    Returns:
        The rule.

    Raises:
        SignInError: If it is none of these.

    Example:
        >>> parse_update("rigl") == parse_update("lightning_signin.updates.RigL") == RigL()
        True
    """
    return resolve("update", update, UPDATES, UpdateRule)


def check_start(rule: UpdateRule, structure: object, is_scored: bool) -> None:
    """Check that a rule can start as the other arguments ask.

    Args:
        rule: The rule.
        structure: The argument of that name; None if it is left out.
        is_scored: Whether ``mask`` or ``mask_from`` chooses the first mask.

    Raises:
        SignInError: If it cannot.
    """
    name = type(rule).__name__
    if rule.structure is not None and structure not in (None, rule.structure):
        raise SignInError(
            f"`update`: {name} needs structure={rule.structure!r}, got {structure!r}. Leave `structure` out."
        )
    if rule.start_sparsity == 0 and is_scored:
        raise SignInError(
            f"`update`: {name} starts from all weights, so `mask` and `mask_from` have no effect. Leave them out, "
            "or choose a rule that starts sparse, e.g. 'rigl'."
        )
