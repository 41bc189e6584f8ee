"""Merged weights as one safetensors file, written atomically."""

from lightning_signin._version import __version__
from lightning_signin.errors import SignInError
from lightning_signin.weightfiles.files.paths import PathLike, write_whole
from lightning_signin.weightfiles.files.safe import checked
from lightning_signin.weightfiles.saved import SavedWeights


def write_safetensors(weights: SavedWeights, output: PathLike) -> PathLike:
    """Write plain weights as one safetensors file, atomically.

    Args:
        weights: The result of `read_weights`.
        output: Path or fsspec URL of the file; a local folder must exist.

    Returns:
        The path.

    Raises:
        MissingFileError: If the folder does not exist.
        SignInError: If an entry is not a dense tensor of a dtype that safetensors supports.
    """
    from safetensors.torch import save

    tensors = {name: checked(name, value).cpu().contiguous().clone() for name, value in weights.tensors.items()}
    metadata = {"format": "pt", "lightning_signin.version": __version__, **weights.metadata()}
    try:
        data = save(tensors, metadata)
    except KeyError as error:
        raise SignInError(f"Safetensors files cannot hold tensors of {error}. Use the format 'compressed'.") from error
    write_whole(output, data)
    return output
