"""Listing 1 of the paper: m, w and a mask in full shape, multiplied in every forward pass.

As printed there but for what does not run: the missing parameter ``alpha`` is β / 2, ``u`` is that of Appendix C, and
``rescale_mw`` writes m = u where it has m = x (see `lightning_signin.core.functional.factorize`). The listing has a
convolution; linear layers are made the same way.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ALPHA = 0.5


class MaskMW(nn.Module):
    """What both kinds of layer share."""

    weight: nn.Parameter
    mask: Tensor

    def split(self, mask: Tensor) -> None:
        """Replace the weight by m and w, and keep the mask as a float buffer."""
        self.register_buffer("mask", mask.to(self.weight.dtype))
        self.m = nn.Parameter(torch.empty_like(self.weight))
        self.set_factors(self.weight.detach())

    @torch.no_grad()
    def set_factors(self, theta: Tensor) -> None:
        """Factors with m ⊙ w = θ and m² − w² = 2 α."""
        u = torch.sqrt(theta + torch.sqrt(theta * theta + ALPHA * ALPHA))
        self.m.copy_((u + ALPHA / u) / math.sqrt(2))
        self.weight.copy_((u - ALPHA / u) / math.sqrt(2))

    @torch.no_grad()
    def rescale_mw(self) -> None:
        """Back to m² − w² = 2 α, at the same θ."""
        x = self.m * self.weight
        u = torch.sqrt(ALPHA + torch.sqrt(x * x + ALPHA * ALPHA))
        self.m.copy_(u)
        self.weight.copy_(x / u)

    def masked(self) -> Tensor:
        """The weight of the forward pass."""
        return self.mask * self.m * self.weight


class ConvMaskMW(MaskMW, nn.Conv2d):  # type: ignore[misc]
    """The convolution of Listing 1."""

    def forward(self, x: Tensor) -> Tensor:
        """With the masked product as weight."""
        return F.conv2d(x, self.masked(), self.bias, self.stride, self.padding, self.dilation, self.groups)


class LinearMaskMW(MaskMW, nn.Linear):  # type: ignore[misc]
    """The same for a linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        """With the masked product as weight."""
        return F.linear(x, self.masked(), self.bias)


def make_listing1(net: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    """Turn every masked layer into one of Listing 1, in place."""
    for name, mask in masks.items():
        layer = net.get_submodule(name.removesuffix(".weight"))
        layer.__class__ = ConvMaskMW if isinstance(layer, nn.Conv2d) else LinearMaskMW
        layer.split(mask)  # type: ignore[operator]
    return net
