"""Tables of a model's cost: operations of a forward, and bytes in training."""

from lightning_signin.metrics.flops import FlopCount
from lightning_signin.metrics.memory import ByteCount
from lightning_signin.report.columns import aligned


def flop_table(count: FlopCount) -> str:
    """A text table of the operations of one forward, and a line with those of a training step.

    "m⊙w" is the product as this package computes it, once per batch; "of all" is over all entries, as in Appendix N.

    Returns:
        The table and the line below it.

    Example:
        >>> from lightning_signin.metrics.flops import LayerFlops
        >>> print(flop_table(FlopCount((LayerFlops("fc.weight", 4_000, 400, 20, 200),))))
        weight     dense FLOPs  sparse FLOPs  sparse / dense  m⊙w  of all
        fc.weight        4,000           400          10.0 %   20     200
        total            4,000           400          10.0 %   20     200
        training step (3 × forward): dense 12,000, sparse 1,200, with m⊙w 1,260
    """
    rows: list[tuple[str, ...]] = [("weight", "dense FLOPs", "sparse FLOPs", "sparse / dense", "m⊙w", "of all")]
    for row in (*count.layers, count.total):
        share = _share(row.sparse, row.dense)
        rows.append(
            (row.name, f"{row.dense:,}", f"{row.sparse:,}", share, f"{row.product:,}", f"{row.paper_product:,}")
        )
    step = count.total.training()
    last = f"dense {step['dense']:,}, sparse {step['sparse']:,}, with m⊙w {step['sign_in']:,}"
    return f"{aligned(rows)}\ntraining step (3 × forward): {last}"


def byte_table(count: ByteCount) -> str:
    """A text table of the bytes held between steps, compared with dense training.

    Returns:
        The table.

    Example:
        >>> from lightning_signin.metrics.memory import Bytes, LayerBytes
        >>> dense, sparse = Bytes(2000, 2000, 2000), Bytes(500, 500, 500, 500)
        >>> print(byte_table(ByteCount((LayerBytes("fc.weight", dense, sparse),))))
        weight     parameters  gradients  optimizer  index  all bytes  of dense training
        fc.weight         500        500        500    500      2,000     6,000   33.3 %
        total             500        500        500    500      2,000     6,000   33.3 %
    """
    rows = [["weight", "parameters", "gradients", "optimizer", "index", "all bytes", "of dense training"]]
    for row in (*count.layers, count.total):
        held, dense = row.sparse, row.dense.total
        numbers = (held.parameters, held.gradients, held.optimizer_state, held.index, held.total)
        rows.append([row.name, *(f"{number:,}" for number in numbers), f"{dense:,}  {_share(held.total, dense):>7}"])
    return aligned(rows)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""
