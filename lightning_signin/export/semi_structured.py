"""A copy of a model for the sparse tensor cores of CUDA GPUs, which skip two of every four weights. Experimental.

Uses ``torch.sparse.to_sparse_semi_structured``, which torch calls a prototype. Torch's issues report mixed speed: much
slower than dense for single samples (pytorch/pytorch#111339), and slower than dense on H100 (pytorch/pytorch#153825).
Measure both on your GPU with your batches before you choose.
"""

import torch
from torch import Tensor, nn

from lightning_signin.errors import SignInError, warn
from lightning_signin.export.fused import fused_layers
from lightning_signin.export.plain_copy import plain_copy

DTYPES = (torch.float16, torch.bfloat16)  # for float32, the kernels need 1:2 instead of 2:4
OUTPUTS, INPUTS = 32, 64  # torch's two backends, cuSPARSELt and CUTLASS, both take multiples of these
_FEW_ZEROS = 0.001  # a few random numbers are exactly 0, which does not make a layer sparse


def to_semi_structured(module: nn.Module, *, dtype: torch.dtype = torch.float16) -> nn.Module:
    """Copy a module for inference with CUDA's 2:4 kernels. Experimental; no speedup is guaranteed.

    Every ``nn.Linear`` that has zeros is packed; dense ones and other layers stay as they are. So do, with a warning
    that names them, layers whose shape the kernels do not support (outputs must be a multiple of 32, inputs of 64) and
    layers whose weights torch's fused attention reads itself. The copy computes what the merged module does in that
    precision, on the GPU, with inputs of ``dtype``. It is only for inference: save the module, not the copy.

    Args:
        module: Any module, sparse or plain; it is not changed.
        dtype: The precision of the whole copy, ``torch.float16`` or ``torch.bfloat16``.

    Returns:
        The copy, on the current CUDA device, in eval mode.

    Raises:
        SignInError: If the precision is another one, a layer has zeros but more than 2 non-zeros in a group of 4
            consecutive inputs, or no layer is left to pack. These checks need no GPU.
        RuntimeError: If there is no CUDA GPU of compute capability 8.0 or more.

    Example:
        >>> from lightning_signin import sparsify
        >>> to_semi_structured(sparsify(nn.Linear(64, 32), sparsity=0.5))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        lightning_signin.SignInError: 2:4 kernels read at most 2 non-zeros of every 4 weights along the inputs. More...
    """
    if dtype not in DTYPES:
        raise SignInError(f"`dtype` must be torch.float16 or torch.bfloat16, got {dtype}.")
    twin = plain_copy(module)
    layers = _to_pack(twin)  # before rounding to `dtype`, which makes zeros of small weights
    _check_groups(layers)
    _check_device()
    twin = twin.to("cuda", dtype)
    for layer in layers.values():
        packed = torch.sparse.to_sparse_semi_structured(layer.weight.detach().contiguous())
        layer.weight = nn.Parameter(packed, requires_grad=False)
    return twin


def crowded_groups(weight: Tensor) -> int:
    """The number of groups of four along the inputs that have more than two non-zeros.

    Args:
        weight: Of shape (outputs, inputs), with inputs a multiple of 4.

    Returns:
        The number of groups, over all outputs.

    Example:
        >>> crowded_groups(torch.tensor([[0.0, 1, 2, 0, 3, 0, 4, 5]]))
        1
    """
    return int(((weight != 0).unflatten(1, (-1, 4)).sum(-1) > 2).sum())


def _to_pack(module: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers with zeros that the kernels support, by name."""
    fused = fused_layers(module)
    linear = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    sparse = {name: layer for name, layer in linear.items() if (layer.weight == 0).float().mean() > _FEW_ZEROS}
    if not sparse:
        raise SignInError(f"No nn.Linear of this module has zeros, so there is nothing to pack. {_WAY_OUT}")
    dense = {
        name: "read by fused attention" if layer in fused else f"{layer.out_features}×{layer.in_features}"
        for name, layer in sparse.items()
        if layer in fused or layer.out_features % OUTPUTS or layer.in_features % INPUTS
    }
    text = (
        f"2:4 kernels need layers whose outputs are a multiple of {OUTPUTS} and whose inputs are one of {INPUTS}. "
        f"These stay dense: {', '.join(f'{_shown(name)} ({why})' for name, why in dense.items())}."
    )
    if len(dense) == len(sparse):
        raise SignInError(f"{text} No layer is left to pack: run the merged module itself.")
    if dense:
        warn(text)
    return {name: layer for name, layer in sparse.items() if name not in dense}


def _check_groups(layers: dict[str, nn.Linear]) -> None:
    crowded = {name: (crowded_groups(layer.weight), layer.weight.numel() // 4) for name, layer in layers.items()}
    found = [f"{_shown(name)} ({count} of {groups} groups)" for name, (count, groups) in crowded.items() if count]
    if found:
        raise SignInError(
            "2:4 kernels read at most 2 non-zeros of every 4 weights along the inputs. More have: "
            f"{', '.join(found)}. {_WAY_OUT}"
        )


def _check_device() -> None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        here = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA GPU"
        raise RuntimeError(
            "The weights fit 2:4 kernels, which need a CUDA GPU of compute capability 8.0 or more (Ampere and later), "
            f"but this machine has {here}. Call `to_semi_structured` on such a GPU; elsewhere run the merged module."
        )


def _shown(name: str) -> str:
    return name or "the module itself"


_WAY_OUT = "Train with SignInCallback(structure='2:4-cap'), which keeps at most 2 of every 4."
