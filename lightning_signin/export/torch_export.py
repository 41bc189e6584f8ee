"""Networks for ``torch.export.load``: as they are, or with sparse modules."""

import io

import torch
from torch import nn

from lightning_signin.errors import SignInError
from lightning_signin.export.batches import Inputs, check_outputs, dynamic_shapes
from lightning_signin.weightfiles.files.paths import PathLike, write_whole

_TOLERANCE = 1e-5


def write_torch_export(module: nn.Module, inputs: Inputs, output: PathLike) -> PathLike:
    """Write a network for ``torch.export.load(path).module()``, with a batch of any size.

    Args:
        module: The network, plain, on the CPU, in eval mode.
        inputs: Its inputs, from `example_batch`.
        output: Path or fsspec URL of the file; a local folder must exist.

    Returns:
        The path. The file was loaded again and compared before it was written.

    Raises:
        MissingFileError: If the folder does not exist.
        SignInError: If the network cannot be traced, or the traced one has other outputs.
    """
    try:
        with torch.no_grad():
            program = torch.export.export(module, inputs, dynamic_shapes=dynamic_shapes(module, inputs))
    except Exception as error:  # a user's forward, or tracing it, can raise anything
        raise SignInError(
            f"torch.export cannot trace {type(module).__name__} with a batch of any size: {error}\n"
            "Make its forward depend only on the tensors, or export its weights as 'safetensors'."
        ) from error
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    check_outputs(module, torch.export.load(file).module(), inputs, _TOLERANCE, "torch-export")
    write_whole(output, file.getbuffer())
    return output


def write_sparse_torch_export(module: nn.Module, inputs: Inputs, output: PathLike) -> PathLike:
    """`write_torch_export` of a network whose large sparse layers compute only with their non-zeros."""
    from lightning_signin.export.sparse import to_sparse_inference

    return write_torch_export(to_sparse_inference(module, inputs), inputs, output)
