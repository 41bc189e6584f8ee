"""How θ is computed from trainable tensors: the choices for ``parametrization=``, and the decay of factors."""

from lightning_signin.parametrizations.choices import (
    PARAMETRIZATIONS,
    STR,
    Mirror,
    Parametrization,
    PILoT,
    Powerprop,
    Spred,
    parse_parametrization,
)

__all__ = [
    "PARAMETRIZATIONS",
    "STR",
    "Mirror",
    "PILoT",
    "Parametrization",
    "Powerprop",
    "Spred",
    "parse_parametrization",
]
