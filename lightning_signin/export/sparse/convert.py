"""`to_sparse_inference`: a model whose layers run on their non-zeros."""

import copy
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from lightning_signin.core.torch_internals import registered_modules
from lightning_signin.errors import SignInError, warn
from lightning_signin.export.plain_copy import plain_copy
from lightning_signin.export.sparse.candidates import sparse_layers
from lightning_signin.export.sparse.matrix import SparseMatrix
from lightning_signin.export.sparse.timing import time_layers, time_models
from lightning_signin.kernels.timing import GAIN, Compared
from lightning_signin.report.columns import aligned

_TABLE, _WHOLE = "_sparse_inference_table", "whole model"


def to_sparse_inference(module: nn.Module, example_input: Tensor | Sequence[Tensor] | None = None) -> nn.Module:
    """Copy a sparse model for inference on the CPU, where linear layers and 1×1 convolutions run on their non-zeros.

    Outputs are those of the merged model up to rounding. The copy can be copied, pickled, saved by its state dict (of
    the non-zeros), compiled and exported (``torch.compile``, ``torch.export``, AOTInductor).

    Args:
        module: A module after `sparsify`, at any time, or a plain one with zeros in its weights. It is not changed.
        example_input: The model's input, a tensor or a tuple of the arguments, with the batch size to be used. Each
            layer is timed on it, with the current number of threads, and stays dense if dense is as fast; if the whole
            model is not faster, all of it stays dense. Without it, only linear layers with at least 2¹⁸ weights and a
            density of at most 0.2 run on their non-zeros.

    Returns:
        The copy, merged, in eval mode. `inference_table` shows which layers were converted.

    Raises:
        SignInError: If ``example_input`` holds no tensor.

    Warns:
        UserWarning: If no layer runs on its non-zeros.

    Example:
        >>> from lightning_signin import sparsify
        >>> net = sparsify(nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)), sparsity=0.9)
        >>> print(inference_table(to_sparse_inference(net)))
        layer    shape  sparsity    runs
        0      512×512   91.76 %  sparse
    """
    model = plain_copy(module)
    layers = sparse_layers(model, only_sure=example_input is None)
    chosen, times = layers, dict[str, Compared]()
    if example_input is not None:
        args = _arguments(example_input)
        times = time_layers(model, layers, args)
        chosen = {name: layers[name] for name, time in times.items() if time.gain >= GAIN}
        dense = copy.deepcopy(model)
        model = _exchange(model, chosen)
        if chosen:
            times[_WHOLE] = time_models(dense, model, args)
            if times[_WHOLE].gain < 1:
                model, chosen = dense, {}
    else:
        model = _exchange(model, chosen)
    if not chosen:
        warn("No layer runs on its non-zeros: none has enough zeros to be faster. The model is the dense merged one.")
    object.__setattr__(model, _TABLE, _table(layers, chosen, times))
    return model


def inference_table(model: nn.Module) -> str:
    """What `to_sparse_inference` chose for each layer, as a text table: milliseconds dense and on the non-zeros.

    Returns:
        The table, one line per layer.

    Raises:
        SignInError: If the model is not one that it returned.
    """
    if _TABLE not in vars(model):
        raise SignInError("The model has no table. Pass the one that `to_sparse_inference` returned.")
    return vars(model)[_TABLE]


def _arguments(example_input: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    args = (example_input,) if isinstance(example_input, Tensor) else tuple(example_input)
    if not args or not all(isinstance(arg, Tensor) for arg in args):
        raise SignInError("`example_input` must be a tensor, or a tuple of the tensors that the model is called with.")
    return tuple(arg.detach().cpu() for arg in args)


def _exchange(model: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """Replace the named layers, wherever they are used; the name "" is the model itself."""
    instead = {model.get_submodule(name): layer for name, layer in layers.items()}
    for parent in list(model.modules()):
        for name, child in registered_modules(parent).items():
            if child in instead:
                registered_modules(parent)[name] = instead[child]
    return instead.get(model, model)


def _table(
    layers: Mapping[str, SparseMatrix], chosen: Mapping[str, SparseMatrix], times: Mapping[str, Compared]
) -> str:
    rows = [("layer", "shape", "sparsity", "dense ms", "sparse ms", "gain", "runs")]
    for name, layer in layers.items():
        sparsity = 1 - len(layer.values) / (layer.inputs * layer.outputs)
        runs = "sparse" if name in chosen else "dense"
        shape = f"{layer.outputs}×{layer.inputs}"
        rows.append((name or "(all)", shape, f"{100 * sparsity:.2f} %", *_cells(times.get(name)), runs))
    if _WHOLE in times:
        rows.append((_WHOLE, "", "", *_cells(times[_WHOLE]), "sparse" if chosen else "dense"))
    return aligned(rows if times else [(*row[:3], row[-1]) for row in rows])


def _cells(time: Compared | None) -> tuple[str, str, str]:
    return ("", "", "") if time is None else (f"{1e3 * time.dense:.3f}", f"{1e3 * time.sparse:.3f}", f"{time.gain:.2f}")
