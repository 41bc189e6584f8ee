"""The ``lightning-signin`` command."""

import argparse
import sys
import traceback
import warnings
from importlib import resources
from pathlib import Path

from lightning_signin._version import __version__
from lightning_signin.errors import SignInError

_EXTRAS = {
    **dict.fromkeys(("jsonargparse", "safetensors"), "cli"),
    **dict.fromkeys(("sklearn", "mnist1d"), "recipes"),
    **dict.fromkeys(("torchvision", "timm"), "vision"),
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "onnx"),
    **dict.fromkeys(("optuna", "filelock", "scipy", "matplotlib"), "sweep"),
    "zstandard": "zstd",
}
_RUNS = ("fit", "validate", "test", "predict")
_USAGE = f"""\
usage: lightning-signin COMMAND ...

  fit, validate, test, predict   run a model and data by class path or recipe: fit --config digits
                                 (options: lightning-signin fit --help)
  prune --folder DIR             iterative magnitude pruning of the same: prune --config digits --folder runs/prune
                                 (options: lightning-signin prune --help)
  sweep RECIPE ...               fits and one table: sweep mnist1d --method sign-in plain --sparsity 0.9 --seeds 0-4
                                 (options: lightning-signin sweep --help)
  recipes                        list the recipes, each usable as a --config
  export CKPT --to FORMAT        write the merged weights: ckpt, safetensors (default), compressed;
                                 or the network: onnx, torch-export, sparse-torch-export (with --config digits)
  inspect FILE                   a table of the layers of a checkpoint or safetensors file
                                 (with FLOPs and bytes: inspect FILE --config digits)
  report RUN_DIR ...             a page with the plots of a run, or a comparison of several

lightning-signin {__version__}"""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Errors that this package raises become one line on stderr and exit status 2."""
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        with warnings.catch_warnings():  # commands silence some, and `main` may be called by a program
            _run(command, rest)
    except Exception as error:
        line = _one_line(error)
        if line is None:
            raise
        print(f"lightning-signin: {line}", file=sys.stderr)
        sys.exit(2)


def _run(command: str, rest: list[str]) -> None:
    if command in _RUNS:
        from lightning_signin.lightning_cli.fit import run

        run([command, *with_recipes(rest)])
    elif command in _COMMANDS:
        _COMMANDS[command](rest)
    elif command in ("-h", "--help", "--version"):
        print(__version__ if command == "--version" else _USAGE)
    else:
        sys.exit(f"lightning-signin: unknown command {command!r}\n\n{_USAGE}")


def recipes() -> dict[str, Path]:
    """The bundled recipes by name."""
    folder = Path(str(resources.files("lightning_signin") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def with_recipes(arguments: list[str]) -> list[str]:
    """Replace recipe names after ``--config`` by their files; an existing file of that name takes precedence.

    Returns:
        The arguments, with a path for each recipe.

    Raises:
        SignInError: If a bare name is neither a file nor a recipe.

    Example:
        >>> with_recipes(["--config", "digits", "--trainer.max_epochs", "1"])[1].endswith("recipes/digits.yaml")
        True
    """
    bundled, result = recipes(), []
    for previous, argument in zip(["", *arguments], arguments, strict=False):
        flag, equals, value = argument.partition("=")
        is_flag = flag in ("--config", "-c") and equals
        name = value if is_flag else argument if previous in ("--config", "-c") else None
        if name and name not in bundled and Path(name).name == name and not Path(name).exists():
            raise SignInError(
                f"`--config {name}` is neither a file nor a recipe. The recipes are {', '.join(bundled)}."
            )
        if name in bundled and not Path(name).exists():
            argument = f"{flag}={bundled[name]}" if is_flag else str(bundled[name])
        result.append(argument)
    return result


def _recipes(arguments: list[str]) -> None:
    argparse.ArgumentParser("lightning-signin recipes").parse_args(arguments)
    for name, path in recipes().items():
        print(f"{name:21}{path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")


def _prune(arguments: list[str]) -> None:
    from lightning_signin.cli.prune import prune

    prune(with_recipes(arguments))


def _sweep(arguments: list[str]) -> None:
    from lightning_signin.cli.sweep import sweep

    sweep(arguments)


def _export(arguments: list[str]) -> None:
    from lightning_signin.cli.export import run_export

    run_export(with_recipes(arguments))


def _inspect(arguments: list[str]) -> None:
    from lightning_signin.report.table import layer_table
    from lightning_signin.weightfiles.saved import read_weights

    parser = argparse.ArgumentParser("lightning-signin inspect", description="A table of the layers of a file.")
    parser.add_argument("file", metavar="FILE", help="a checkpoint, a saved state dict or a safetensors file")
    parser.add_argument(
        "--config", metavar="CONFIG", help="the run's, for tables of FLOPs and bytes; options of fit may follow"
    )
    options, of_fit = parser.parse_known_args(with_recipes(arguments))
    if of_fit and options.config is None:
        parser.error(f"unrecognized arguments: {' '.join(of_fit)}")
    saved = read_weights(options.file)
    print(layer_table(saved))
    if options.config is not None:
        from lightning_signin.cli.cost import cost_tables

        print(f"\n{cost_tables(saved, options.file, ['--config', options.config, *of_fit])}")


def _report(arguments: list[str]) -> None:
    from lightning_signin.cli.report import report

    report(arguments)


_COMMANDS = {
    "prune": _prune,
    "sweep": _sweep,
    "recipes": _recipes,
    "export": _export,
    "inspect": _inspect,
    "report": _report,
}


def _one_line(error: Exception) -> str | None:
    """One line for an error that this package words, or for a missing package of an extra; None for all others."""
    cause: BaseException | None = error
    while cause is not None:  # jsonargparse and Lightning raise their own errors from these
        if isinstance(cause, SignInError):
            return str(cause)
        if isinstance(cause, ModuleNotFoundError) and (extra := _EXTRAS.get(cause.name or "")):
            return f"needs {cause.name}: pip install 'lightning-signin[{extra}]'"
        cause = cause.__cause__ or cause.__context__
    return _from_parser(error)


def _from_parser(error: Exception) -> str | None:
    """The text of a constructor's error inside jsonargparse's message, which does not keep the error itself."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or "jsonargparse" not in Path(frames[-1].filename).parts:
        return None
    of_types = ("Expected ", "Not a valid subclass", "Does not validate")
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines() if line.lstrip().startswith("- ")]
    return next((line for line in lines if not line.startswith(of_types) and "class_path" not in line), None)
