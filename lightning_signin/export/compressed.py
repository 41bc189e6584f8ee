"""Weights in compressed form, in the format of `lightning_signin.weightfiles.files.compressed`."""

from collections.abc import Mapping

from torch import Tensor, nn

from lightning_signin._version import __version__
from lightning_signin.weightfiles.files import zstd as zstandard
from lightning_signin.weightfiles.files.compressed import pack, unpack
from lightning_signin.weightfiles.files.paths import PathLike, opened, write_whole
from lightning_signin.weightfiles.saved import SavedWeights, read_weights


def save_compressed(source: nn.Module | Mapping[str, Tensor], path: PathLike, zstd: bool = False) -> PathLike:
    """Write a plain state dict as one safetensors file with one bit per weight and the non-zeros.

    Args:
        source: A module, sparse or plain, or a state dict. Tied tensors are stored once.
        path: Path or fsspec URL of the file, written atomically; a local folder must exist.
        zstd: Also compress it with Zstandard: about a fifth smaller, but no longer readable as safetensors.

    Returns:
        The path.

    Raises:
        MissingFileError: If the folder does not exist.
        SignInError: If an entry is not a dense tensor; its name is given.
        ModuleNotFoundError: If ``zstd`` is set, but neither Python 3.14 or later nor ``zstandard`` is available.

    Example:
        >>> from lightning_signin import sparsify
        >>> net = sparsify(nn.Linear(100, 100), sparsity=0.9)
        >>> state = load_compressed(save_compressed(net, "memory://net.compressed.safetensors"))
        >>> all((state[name] == tensor).all() for name, tensor in net.state_dict().items())
        True
    """
    saved = read_weights(source) if isinstance(source, nn.Module) else SavedWeights(dict(source))
    return write_compressed(saved, path, zstd)


def write_compressed(weights: SavedWeights, output: PathLike, zstd: bool = False) -> PathLike:
    """`save_compressed` for the result of `read_weights`, with what is known about its masks."""
    data = pack(weights.tensors, {"lightning_signin.version": __version__, **weights.metadata()})
    write_whole(output, zstandard.compress(data) if zstd else data)
    return output


def load_compressed(path: PathLike) -> dict[str, Tensor]:
    """Read a file written by `save_compressed`.

    Args:
        path: Path or fsspec URL of the file, with or without Zstandard.

    Returns:
        The plain state dict, on the CPU, bit for bit as it was saved; a tied tensor is one tensor under all its names.

    Raises:
        MissingFileError: If there is no such file.
        SignInError: If it is damaged or altered, in another format, or of a later version.
        ModuleNotFoundError: If it is compressed with Zstandard, which is not installed.
    """
    with opened(path) as file:
        return unpack(file.read(), str(path))[0]
