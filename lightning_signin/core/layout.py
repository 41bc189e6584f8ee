"""Which axis of a weight is the output and which the input: structures and distributions need to know."""

from dataclasses import dataclass

from torch import Tensor

from lightning_signin.errors import SignInError

Shape = tuple[int, ...]

AXES = ("oi", "io", "eoi", "eio")


def check_axes(axes: str) -> None:
    """Raise `SignInError` for axes that are not in `AXES`."""
    if axes not in AXES:
        raise SignInError(
            f"`axes` must be one of {', '.join(map(repr, AXES))}; got {axes!r}. 'o' stands for outputs, 'i' for "
            "inputs, 'e' for layers that are stacked in one tensor, like experts; kernel axes come last."
        )


@dataclass(frozen=True)
class Layout:
    """How a weight is stored, and how to read it as (outputs, inputs, kernel…).

    Args:
        axes: The order of its first axes: "oi" (outputs, inputs) as in ``nn.Linear``; "io" as in transposed
            convolutions; "eoi" and "eio" for layers that are stacked in one tensor, such as the experts of a mixture.
        parts: The number of stacked layers, or of groups in a transposed convolution, whose inputs are stored group by
            group.

    Example:
        >>> import torch
        >>> experts = Layout("eio", parts=4)
        >>> experts.read(torch.zeros(4, 8, 16)).shape
        torch.Size([64, 8])
    """

    axes: str = "oi"
    parts: int = 1

    def read(self, weight: Tensor) -> Tensor:
        """A tensor of the weight's shape as (outputs, inputs, kernel…); the outputs of all parts follow each other."""
        if self.axes == "oi":
            return weight
        parts = weight if self._stacked else weight.unflatten(0, (self.parts, -1))
        return (parts.transpose(1, 2) if self.axes[-2:] == "io" else parts).flatten(0, 1)

    def write(self, tensor: Tensor) -> Tensor:
        """The inverse of `read`."""
        if self.axes == "oi":
            return tensor.contiguous()
        parts = tensor.unflatten(0, (self.parts, -1))
        parts = parts.transpose(1, 2) if self.axes[-2:] == "io" else parts
        return (parts if self._stacked else parts.flatten(0, 1)).contiguous()

    def shape(self, shape: Shape) -> Shape:
        """The shape that `read` gives to a weight of this shape."""
        if self.axes == "oi":
            return tuple(shape)
        parts = tuple(shape) if self._stacked else (self.parts, shape[0] // self.parts, *shape[1:])
        first, second = (parts[2], parts[1]) if self.axes[-2:] == "io" else parts[1:3]
        return (parts[0] * first, second, *parts[3:])

    def layers(self, shape: Shape) -> tuple[int, Shape]:
        """The number of layers that a weight of this shape holds, and the (outputs, inputs, kernel…) of each.

        Returns:
            The number, 1 unless layers are stacked in one tensor, and the shape of one layer as `read` gives it.

        Example:
            >>> Layout("eoi", parts=4).layers((4, 16, 8)), Layout().layers((16, 8))
            ((4, (16, 8)), (1, (16, 8)))
        """
        outputs, *others = self.shape(shape)
        number = self.parts if self._stacked else 1
        return number, (outputs // number, *others)

    @property
    def _stacked(self) -> bool:
        return self.axes[0] == "e"


PLAIN = Layout()
