"""Networks for ``torch.export.load``: as they are, or with sparse modules."""

import io

import torch
from torch import nn

from lightning_signin.export.batches import Inputs, check_outputs, dynamic_shapes
from lightning_signin.weightfiles.files.paths import PathLike, write_whole

_TOLERANCE = 1e-5


def write_torch_export(module: nn.Module, inputs: Inputs, output: PathLike) -> PathLike:
    """Write a network for ``torch.export.load(path).module()``, with a batch of any size.

    Args:
        module: The network, plain, on the CPU, in eval mode.
        inputs: Its inputs, of `example_batch`.
        output: Path or fsspec URL of the file; a local folder must exist.

    Returns:
        The path. The file was loaded again and compared before it was written.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If the network cannot be traced, or computes something else when it is.
    """
    try:
        with torch.no_grad():
            program = torch.export.export(module, inputs, dynamic_shapes=dynamic_shapes(module, inputs))
    except Exception as error:  # of many kinds, from a user's forward or from tracing it
        raise ValueError(
            f"torch.export cannot trace {type(module).__name__} with a batch of any size: {error}\n"
            "Make its forward a function of the tensors alone, or export its weights as 'safetensors'."
        ) from error
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    check_outputs(module, torch.export.load(file).module(), inputs, _TOLERANCE, "torch-export")
    write_whole(output, file.getbuffer())
    return output


def write_sparse_torch_export(module: nn.Module, inputs: Inputs, output: PathLike) -> PathLike:
    """`write_torch_export` of a network whose large sparse layers compute with their non-zeros alone."""
    from lightning_signin.export.sparse import to_sparse_inference

    return write_torch_export(to_sparse_inference(module, inputs), inputs, output)
