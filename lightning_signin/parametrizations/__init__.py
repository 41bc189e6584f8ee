"""How θ is made of trainable tensors: what ``parametrization=`` chooses (`choices`), and the modules that do it."""

from lightning_signin.parametrizations.choices import (
    PARAMETRIZATIONS,
    STR,
    Parametrization,
    PILoT,
    Powerprop,
    Spred,
    parse_parametrization,
)

__all__ = ["PARAMETRIZATIONS", "STR", "PILoT", "Parametrization", "Powerprop", "Spred", "parse_parametrization"]
