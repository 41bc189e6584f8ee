"""``lightning-signin export CKPT --to FORMAT``: files for other programs."""

import argparse
import os
from inspect import signature

from torch import Tensor, nn

from lightning_signin.core.torch_internals import tree_map
from lightning_signin.errors import SignInError
from lightning_signin.export.batches import Inputs
from lightning_signin.export.formats import FORMATS, export, load_exactly, output_beside
from lightning_signin.weightfiles.files.paths import opened
from lightning_signin.weightfiles.saved import SavedWeights, read_weights


def run_export(arguments: list[str]) -> None:
    """Write the file; print its path, its size, and the size of the dense weights."""
    parser = argparse.ArgumentParser("lightning-signin export", description="Write merged weights, or the network.")
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint from any point of a run; a path or fsspec URL")
    parser.add_argument("--to", choices=FORMATS, default="safetensors", help="the format (default: safetensors)")
    parser.add_argument("--output", metavar="FILE", help="the file to write (default: next to CKPT)")
    parser.add_argument("--zstd", action="store_true", help="with --to compressed: also compress with Zstandard")
    networks = ", ".join(name for name, chosen in FORMATS.items() if chosen.runs)
    parser.add_argument("--config", metavar="CONFIG", help=f"the run's, for {networks}; options of fit may follow")
    options, of_fit = parser.parse_known_args(arguments)
    if of_fit and options.config is None:
        parser.error(f"unrecognized arguments: {' '.join(of_fit)}")
    output = options.output or output_beside(options.checkpoint, options.to, options.zstd)
    weights = read_weights(options.checkpoint)
    if FORMATS[options.to].runs and options.config is not None:
        network, inputs = _network(weights, ["--config", options.config, *of_fit])
        export(network, output, options.to, example_input=inputs, zstd=options.zstd)
    else:
        export(options.checkpoint, output, options.to, zstd=options.zstd)
    dense = sum(tensor.nbytes for tensor in weights.tensors.values())
    print(f"{output}  ({_size(output) / 1e6:.2f} MB; dense weights {dense / 1e6:.2f} MB)")


def _network(weights: SavedWeights, arguments: list[str]) -> tuple[nn.Module, Inputs]:
    """The network of a configuration with the weights of a file, and a batch of its inputs."""
    from lightning_signin.cli.configured import configured

    run = configured(arguments)
    load_exactly(run.model, weights.tensors, "The file")
    names = [name for name, parameter in run.model.named_parameters() if parameter.ndim >= 2]
    network = run.network(names)
    prefix = names[0].removesuffix(network.names[names[0]]).rstrip(".")
    part = run.model.get_submodule(prefix)  # in its own precision, unlike `network`, which is in float64
    call = signature(part.forward).bind(*network.args, **network.kwargs)
    if call.kwargs:
        raise SignInError(
            f"The network takes {', '.join(call.kwargs)} by name only. Export it from Python, inside a wrapper module."
        )
    return part, tree_map(_in_single, call.args)


def _in_single(value: object) -> object:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _size(path: str) -> int:
    with opened(path) as file:
        return file.seek(0, os.SEEK_END)
