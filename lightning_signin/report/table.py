"""The table of a sparse model's layers."""

from lightning_signin.report.columns import aligned
from lightning_signin.weightfiles.saved import SavedWeights

_HEADER = ("weight", "shape", "non-zeros", "sparsity", "sign flips")


def layer_table(weights: SavedWeights) -> str:
    """A text table of every weight of two or more dimensions, and a total.

    Sign flips are the share of kept entries whose sign differs from the start of the run, where that is known; the
    total is over the sparse weights if masks are known, else over all rows.

    Returns:
        The table.

    Example:
        >>> import torch
        >>> print(layer_table(SavedWeights({"fc.weight": torch.eye(4)}, kept={"fc.weight": 4}, flips={"fc.weight": 1})))
        weight     shape  non-zeros  sparsity  sign flips
        fc.weight  4×4            4   75.00 %     25.00 %
        total                     4   75.00 %     25.00 %
    """
    matrices = {name: tensor for name, tensor in weights.tensors.items() if tensor.ndim >= 2}
    rows: list[tuple[str, ...]] = [_HEADER]
    for name, tensor in matrices.items():
        shape = "×".join(map(str, tensor.shape))
        of_kept = (weights.flips.get(name), weights.kept.get(name))
        rows.append((name, shape, *_numbers(int(tensor.count_nonzero()), tensor.numel(), *of_kept)))
    counted = [matrices[name] for name in weights.kept or matrices if name in matrices]
    nonzeros = sum(int(tensor.count_nonzero()) for tensor in counted)
    size = sum(tensor.numel() for tensor in counted)
    flips = sum(weights.flips.values()) if weights.flips else None
    rows.append(("total", "", *_numbers(nonzeros, size, flips, sum(weights.kept.values()))))
    return aligned(rows, left=2)


def _numbers(nonzeros: int, size: int, flips: int | None, kept: int | None) -> tuple[str, str, str]:
    share = f"{flips / kept:.2%}".replace("%", " %") if flips is not None and kept else ""
    return f"{nonzeros:,}", f"{1 - nonzeros / max(size, 1):.2%}".replace("%", " %"), share
