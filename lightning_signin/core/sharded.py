"""Tensors that FSDP2 (`torch.distributed.fsdp.fully_shard`) has sharded over ranks; only this file handles them.

Each rank then holds a part of every factor, in rows of its stored form; masks stay whole on all ranks. While a layer
runs, and until its backward, FSDP2 replaces the parameters by whole plain tensors.

Classes are recognized without importing their modules, which takes more than a second.
"""

import sys

from torch import Tensor, nn

from lightning_signin.core.torch_internals import storage_id

# `sparsify` needs whole weights to choose from, and `fully_shard` has to find the factors as parameters.
SHARD_AFTER = (
    "Call `sparsify` before `fully_shard`, in `configure_model`:\n"
    "    sparsify(self.net, sparsity=0.9)\n"
    "    for block in self.net: fully_shard(block, mesh=self.device_mesh['data_parallel'])\n"
    "    fully_shard(self.net, mesh=self.device_mesh['data_parallel'])\n"
    "SignInCallback continues with the masks and factors that it finds."
)
EXPORT = (
    "Save a checkpoint on all ranks, `trainer.save_checkpoint('sparse.ckpt')`, and merge the file: `lightning-signin "
    "export sparse.ckpt --to ckpt` (or safetensors, compressed)."
)


def is_sharded(tensor: object) -> bool:
    """Whether this is a DTensor.

    Returns:
        True for a DTensor of any placement, False for anything else.

    Example:
        >>> import torch
        >>> is_sharded(torch.zeros(2))
        False
    """
    return hasattr(tensor, "full_tensor")  # not by isinstance: that would need the import


def has_shards(module: nn.Module) -> bool:
    """Whether a parameter of the module is sharded now."""
    reshard_(module)
    return any(is_sharded(parameter) for parameter in module.parameters())


def whole(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, a collective call that all ranks must make; other tensors as they are."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, on the CPU; all ranks must call this together. Other tensors as they are."""
    return whole(tensor).cpu() if is_sharded(tensor) else tensor


def sharded_like(value: Tensor, other: Tensor) -> Tensor:
    """This rank's part of a whole tensor, if ``other`` is sharded: on its mesh and along the same dimension.

    Args:
        value: The same on all ranks; nothing is sent.
        other: A tensor, sharded or not, of any shape.

    Returns:
        A DTensor, or ``value`` itself if ``other`` is not sharded.
    """
    if not is_sharded(other) or is_sharded(value):
        return value
    from torch.distributed.tensor import DTensor, Replicate

    mesh, placements = other.device_mesh, other.placements  # type: ignore[attr-defined]
    replicated = DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return replicated.redistribute(placements=placements)


def same_entries(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors, or this rank's parts of them, are the same entries of the same memory."""
    if is_sharded(one) and is_sharded(other):
        one, other = one.to_local(), other.to_local()  # type: ignore[attr-defined]
    described = [(each.shape, each.stride(), each.dtype, storage_id(each)) for each in (one, other)]
    return described[0] == described[1]


def reshard_(module: nn.Module) -> None:
    """Let FSDP2 put the sharded parameters back, in this module and below.

    After an evaluation the root's parameters stay whole until the next backward, and what is written into them is lost.
    Resharding takes nothing from a pending backward, which gathers again.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    for part in module.modules() if fsdp is not None else ():
        if isinstance(part, fsdp.FSDPModule):  # type: ignore[union-attr]
            part.reshard()
