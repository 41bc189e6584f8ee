"""What signs, scaling and the loss landscape do: metrics of a sparse module, free of Lightning."""

from lightning_signin.metrics.hessian import HessianOperator, hessian
from lightning_signin.metrics.scaling import Scaling, mean_scaling, scaling_by_weight
from lightning_signin.metrics.sharpness import Sharpness, hessian_trace, sharpness
from lightning_signin.metrics.sign_flips import SignFlips

__all__ = [
    "HessianOperator",
    "Scaling",
    "Sharpness",
    "SignFlips",
    "hessian",
    "hessian_trace",
    "mean_scaling",
    "scaling_by_weight",
    "sharpness",
]
