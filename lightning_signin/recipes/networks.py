"""The networks of the image recipes, from timm."""

from typing import Any

from torch import nn


def timm_network(name: str, classes: int = 1000, arguments: dict[str, Any] | None = None) -> nn.Module:
    """An untrained network from timm.

    Args:
        name: A name in ``timm.list_models()``.
        classes: Output classes.
        arguments: Further arguments of ``timm.create_model``.

    Returns:
        The network.
    """
    from timm import create_model

    return create_model(name, num_classes=classes, **(arguments or {}))


def cifar_resnet(name: str = "resnet18", classes: int = 100) -> nn.Module:
    """A timm ResNet for 32×32 images: the first convolution is 3×3 with stride 1, and no pooling follows it.

    The last BatchNorm of a block starts at 1, not at timm's 0: with 0, the gradients of the whole block would be 0, and
    masks like SNIP and SynFlow would treat its weights as useless.

    Args:
        name: "resnet18", "resnet34", "resnet50", …
        classes: Output classes.

    Returns:
        The network, for inputs of shape (batch, 3, 32, 32).

    Example:
        >>> import torch
        >>> cifar_resnet(classes=100)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 100])
    """
    network: Any = timm_network(name, classes, {"zero_init_last": False})
    network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    return network
