"""Dense, merged networks as ONNX, checked with ONNX Runtime."""

import io
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from itertools import chain

import torch
from torch import Tensor, nn

from lightning_signin.errors import SignInError
from lightning_signin.export.batches import Inputs, check_outputs, dynamic_shapes
from lightning_signin.weightfiles.files.paths import PathLike, write_whole

_TOLERANCE = 1e-4
_LARGEST = 2**31 - 1  # bytes, the limit of a protobuf message


def write_onnx(module: nn.Module, inputs: Inputs, output: PathLike) -> PathLike:
    """Write a network as one ONNX file, with a batch of any size.

    Args:
        module: The network, plain, on the CPU, in eval mode.
        inputs: Its inputs, from `example_batch`.
        output: Path or fsspec URL of the file; a local folder must exist.

    Returns:
        The path. The content is checked with ONNX's checker and ONNX Runtime before it is written.

    Raises:
        MissingFileError: If the folder does not exist.
        ModuleNotFoundError: If a package of the extra ``[onnx]`` is missing.
        SignInError: If the network is too large, cannot be traced, or has other outputs in ONNX Runtime.
    """
    import onnx
    import onnxruntime  # noqa: F401  (fail now rather than after minutes of tracing)
    import onnxscript  # noqa: F401  (torch's exporter needs it, and its own error is less clear)

    size = sum(tensor.nbytes for tensor in chain(module.parameters(), module.buffers()))
    if size > _LARGEST:
        raise SignInError(
            f"The weights take {size / 1e9:.1f} GB, but one ONNX file holds at most 2 GiB. Use the format "
            "'torch-export'."
        )
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # torch's warnings about its own code
            shapes = dynamic_shapes(module, inputs)
            program = torch.onnx.export(module, inputs, dynamo=True, dynamic_shapes=shapes, verbose=False)
    except Exception as error:  # a user's forward, or its translation, can raise anything
        raise SignInError(
            f"{type(module).__name__} cannot be exported to ONNX with a batch of any size: {error}\n"
            "Use the format 'torch-export', or export its weights as 'safetensors'."
        ) from error
    assert program is not None
    data = program.model_proto.SerializeToString()
    onnx.checker.check_model(data, full_check=True)
    check_outputs(module, _runner(data), inputs, _TOLERANCE, "ONNX")
    write_whole(output, data)
    return output


def _runner(data: bytes) -> Callable[..., list[Tensor]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]

    def run(*inputs: Tensor) -> list[Tensor]:
        feeds = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, feeds)]

    return run
