"""Metrics of a sparse module: sign flips, scaling, sharpness of the loss, and the cost of training."""

from lightning_signin.metrics.flops import FlopCount, LayerFlops, flops
from lightning_signin.metrics.hessian import HessianOperator, hessian
from lightning_signin.metrics.memory import ByteCount, Bytes, LayerBytes, memory
from lightning_signin.metrics.scaling import Scaling, mean_scaling, scaling_by_weight
from lightning_signin.metrics.sharpness import Sharpness, hessian_trace, sharpness
from lightning_signin.metrics.sign_flips import SignFlips

__all__ = [
    "ByteCount",
    "Bytes",
    "FlopCount",
    "HessianOperator",
    "LayerBytes",
    "LayerFlops",
    "Scaling",
    "Sharpness",
    "SignFlips",
    "flops",
    "hessian",
    "hessian_trace",
    "mean_scaling",
    "memory",
    "scaling_by_weight",
    "sharpness",
]
