"""The formats in which weights and networks are exported."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from torch import Tensor, nn

from lightning_signin.errors import SignInError
from lightning_signin.export.batches import example_batch
from lightning_signin.export.checkpoint import rest_of, write_checkpoint
from lightning_signin.export.compressed import write_compressed
from lightning_signin.export.onnx import write_onnx
from lightning_signin.export.plain_copy import plain_copy
from lightning_signin.export.safetensors import write_safetensors
from lightning_signin.export.torch_export import write_sparse_torch_export, write_torch_export
from lightning_signin.masks.build import check_choice
from lightning_signin.weightfiles.files.paths import PathLike
from lightning_signin.weightfiles.saved import read_weights

_ZSTD_SUFFIX = ".zst"
# Checkpoints exist already at the end of a fit, and the other formats need an example input.
AT_END_OF_FIT = ("safetensors", "compressed")


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        suffix: The suffix of its files.
        write: ``write(weights, output)`` for `SavedWeights`, or ``write(module, inputs, output)`` for a network.
        runs: Whether it holds a network that runs, rather than only its weights.
    """

    suffix: str
    write: Callable[..., PathLike]
    runs: bool = False


FORMATS = {
    "ckpt": Format(".merged.ckpt", write_checkpoint),
    "safetensors": Format(".safetensors", write_safetensors),
    "compressed": Format(".compressed.safetensors", write_compressed),
    "onnx": Format(".onnx", write_onnx, runs=True),
    "torch-export": Format(".pt2", write_torch_export, runs=True),
    "sparse-torch-export": Format(".sparse.pt2", write_sparse_torch_export, runs=True),
}


def export(
    source: PathLike | nn.Module,
    output: PathLike,
    to: str = "safetensors",
    *,
    model: nn.Module | None = None,
    example_input: Any = None,
    zstd: bool = False,
) -> PathLike:
    """Write merged weights, or the network with them, in one of `FORMATS`.

    Args:
        source: Path or fsspec URL of a file that `read_weights` reads, such as a checkpoint from any point of a run; or
            a live module, sparse or plain, even during a fit. It is not changed.
        output: Path or fsspec URL of the file, written atomically; a local folder must exist.
        to: "ckpt" (a plain Lightning checkpoint), "safetensors" (a plain state dict), "compressed" (one bit per weight
            and the non-zeros; read it with `load_compressed`), "onnx", "torch-export", or "sparse-torch-export" (with
            modules that compute only with the non-zeros). The last three hold the network, for batches of any size.
        model: For networks from a file: a module with the same state dict. It is not changed.
        example_input: For networks: a tensor or a tuple of tensors, with the batch in dimension 0. Default: the
            module's ``example_input_array``.
        zstd: With "compressed": also compress with Zstandard.

    Returns:
        The path.

    Raises:
        MissingFileError: If the source or the output's folder does not exist.
        ModuleNotFoundError: If a package that a format needs is missing.
        SignInError: If arguments contradict each other, the source is damaged, or the network cannot be traced.

    Example:
        >>> from safetensors.torch import load_file
        >>> import tempfile
        >>> net = nn.Linear(3, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(load_file(export(net, f"{folder}/net.safetensors")))
        ['bias', 'weight']
    """
    check_choice("to", to, FORMATS)
    if zstd and to != "compressed":
        raise SignInError(f"`zstd` needs the format 'compressed', not {to!r}. Leave it out, or use that format.")
    chosen = FORMATS[to]
    if chosen.runs:
        network = _network(source, model, to)
        return chosen.write(network, example_batch(network, example_input), output)
    weights = read_weights(source)
    if isinstance(source, nn.Module):
        weights.rest = rest_of(source) if to == "ckpt" else {}
    return chosen.write(weights, output, **({"zstd": True} if zstd else {}))


def output_beside(source: PathLike, to: str, zstd: bool = False) -> str:
    """The default path for the export of a file: next to it, with the format's suffix.

    Returns:
        The path.

    Raises:
        SignInError: If that is the file itself.

    Example:
        >>> output_beside("runs/last.ckpt", "compressed"), output_beside("s3://b/last.merged.ckpt", "onnx")
        ('runs/last.compressed.safetensors', 's3://b/last.onnx')
    """
    whole = str(source)
    known = sorted((chosen.suffix for chosen in FORMATS.values()), key=len, reverse=True)
    bare = whole.removesuffix(_ZSTD_SUFFIX)
    suffix = next((suffix for suffix in known if bare.endswith(suffix)), PurePath(bare).suffix)
    output = bare.removesuffix(suffix) + FORMATS[to].suffix + (_ZSTD_SUFFIX if zstd else "")
    if output == whole:
        raise SignInError(f"{whole} already has the format {to!r}. Name another file with --output.")
    return output


def _network(source: PathLike | nn.Module, model: nn.Module | None, to: str) -> nn.Module:
    if isinstance(source, nn.Module):
        return plain_copy(source)
    if model is None:
        raise SignInError(f"{to!r} holds the network, but {source} only its weights. Pass `model` (--config) as well.")
    return load_exactly(plain_copy(model), read_weights(source).tensors, str(source))


def load_exactly(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> nn.Module:
    """Load a plain state dict into a network whose names and shapes must match exactly.

    Returns:
        The same network.

    Raises:
        SignInError: If they differ; the first difference is given.
    """
    own = network.state_dict()
    names = [f"has no {name}" for name in own if name not in tensors]
    names += [f"has {name}, which the model does not have" for name in tensors if name not in own]
    shapes = [
        f"has {name} of shape {tuple(tensors[name].shape)}, but the model's has shape {tuple(value.shape)}"
        for name, value in own.items()
        if name in tensors and isinstance(value, Tensor) and tensors[name].shape != value.shape
    ]
    if differences := [*shapes, *names]:
        more = f" ({len(differences)} differences)" if len(differences) > 1 else ""
        raise SignInError(
            f"{source} does not match the model: it {differences[0]}{more}. Pass the model that was trained."
        )
    network.load_state_dict(tensors, strict=True)
    return network


def parse_exports(names: str | Sequence[str] | None) -> tuple[str, ...]:
    """The formats that the argument ``export`` names.

    Returns:
        The names of the formats, each once.

    Raises:
        SignInError: For other names than "safetensors" and "compressed".

    Example:
        >>> parse_exports("compressed"), parse_exports(None)
        (('compressed',), ())
    """
    chosen = () if names is None else (names,) if isinstance(names, str) else tuple(names)
    for name in chosen:
        check_choice("export", name, AT_END_OF_FIT)
    return chosen
