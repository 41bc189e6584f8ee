"""Moving masks where several ranks train one model: what they average, and how their factors may be stored."""

from collections.abc import Iterable

import torch.distributed
from torch import Tensor, nn

from lightning_signin.core.weights import SparseWeight
from lightning_signin.errors import SignInError
from lightning_signin.updates.rule import UpdateRule
from lightning_signin.weightfiles.factor_state import mask_digest


def number_of_ranks() -> int:
    """How many there are; 1 without a process group."""
    grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if grouped else 1


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean of a tensor over the ranks; its memory may be reused."""
    if (ranks := number_of_ranks()) > 1:
        tensor = tensor.contiguous()
        torch.distributed.all_reduce(tensor)
        tensor /= ranks
    return tensor


def check_same_masks(module: nn.Module) -> None:
    """Raise `SignInError` on every rank if they have different masks; all ranks must call this together."""
    if (ranks := number_of_ranks()) > 1:
        digests: list[str | None] = [None] * ranks
        torch.distributed.all_gather_object(digests, mask_digest(module))
        if len(set(digests)) > 1:
            raise SignInError(
                "The ranks have different masks: their starting weights, or the seeds or data of their masks, differ. "
                "Build the module after `torch.manual_seed` with one seed on all ranks, or load rank 0's "
                "`sparse_state` on all of them."
            )


def check_shapes_stay(rule: UpdateRule, weights: Iterable[SparseWeight], storage: str) -> None:
    """Check that factors keep their shape on several ranks, where DDP's buckets have a fixed size.

    Args:
        rule: The update rule.
        weights: The sparse weights.
        storage: The storage that the masks get; "auto" keeps each weight's.

    Raises:
        SignInError: If the rule or the storage would change a shape.
    """
    if number_of_ranks() == 1:
        return
    for weight in weights:
        now = weight.storage.name
        if storage not in ("auto", now):
            raise SignInError(
                f"`storage`={storage!r}, and {weight.name} is stored as {now!r}: on several ranks the factors must "
                f"keep their shape. Leave `storage` out, or call `sparsify` with storage={storage!r}."
            )
        if now == "compact" and not rule.keeps_counts:
            raise SignInError(
                f"{type(rule).__name__} changes the number of weights of a layer, and on several ranks the factors "
                f"must keep their shape, but {weight.name} is stored as a vector of its non-zeros. Call `sparsify` "
                "with storage='dense'."
            )
