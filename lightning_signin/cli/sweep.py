"""``lightning-signin sweep``: methods × sparsities × seeds of a recipe, in a folder that can be resumed."""

import argparse
import hashlib
import json
import logging
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

import matplotlib  # noqa: F401  (if it is missing, fail before hours of training)
from lightning.pytorch.cli import LightningCLI

from lightning_signin.callback import SignInCallback
from lightning_signin.cli.main import recipes, with_recipes
from lightning_signin.errors import SignInError
from lightning_signin.lightning_cli.fit import silence_lightning
from lightning_signin.sweep.folder import Claim, SweepFolder
from lightning_signin.sweep.grid import Cell, grid, parse_seeds, parse_sparsities
from lightning_signin.sweep.methods import PREFIX, parse_method
from lightning_signin.sweep.output import write_results
from lightning_signin.sweep.result import choose_metric
from lightning_signin.sweep.runner import run_all

_DECIDED = ("--seed_everything", f"{PREFIX}sparsity")


def sweep(arguments: list[str]) -> None:
    """Do the runs that the folder lacks, write its tables and its plot, print the tables.

    Raises:
        SignInError: If the grid, the folder or ``fit`` raises it.
    """
    options, overrides = _parser().parse_known_args(arguments)
    config, overrides = _configuration(options.recipe), with_recipes(overrides)
    methods = [parse_method(text).name for text in options.method]
    cells = grid(methods, parse_sparsities(options.sparsity), parse_seeds(options.seeds))
    if options.jobs < 1:
        raise SignInError(f"`--jobs` must be at least 1, got {options.jobs}. Pass the number of processes.")
    _check(config, overrides, {cell.method: cell for cell in cells}.values())
    content = hashlib.sha256(config.read_bytes()).hexdigest()[:16]
    same = {"recipe": config.stem, "sha256_of_recipe": content, "options": shlex.join(overrides)}
    folder = SweepFolder(options.folder or Path("runs", f"{config.stem}-sweep"), same)
    folder.queue(cells, options.retry_failed)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("lightning_signin").setLevel(logging.INFO)  # one line per run

    def arguments_of(claim: Claim) -> list[str]:
        logger = {"save_dir": str(claim.folder), "name": "", "version": ""}
        place = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": logger}
        own = [f"--trainer.default_root_dir={claim.folder}", f"--trainer.logger={json.dumps(place)}"]
        first = ["fit", "--config", str(config), "--trainer.enable_progress_bar=false", *own]
        return [*first, *overrides, f"--seed_everything={claim.cell.seed}", *_of_cell(claim.cell)]

    stopped = False
    try:
        run_all(folder, arguments_of, options.jobs, options.metric)
    except KeyboardInterrupt:
        stopped = True
    results = folder.results()
    text = write_results(folder.path, results, choose_metric(results, options.metric), methods)
    if stopped:
        sys.exit("lightning-signin: the sweep was stopped. Run the same command again to resume it.")
    print(text)
    if not any(result.measured for result in results):
        sys.exit(f"lightning-signin: no run succeeded. Each has a log.txt in a folder of {folder.path / 'runs'}.")
    print(f"In {folder.path}: results.md, results.csv, results.png")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lightning-signin sweep",
        description="Fit a recipe for all methods, sparsities and seeds, and compare.",
        epilog="Options of fit may follow and apply to all runs: --trainer.max_epochs 10. Run again, the command "
        "does only what is missing; started on several machines or GPUs with one folder, it shares the runs.",
        allow_abbrev=False,
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe, or a configuration of fit")
    parser.add_argument(
        "--method",
        nargs="+",
        required=True,
        metavar="NAME",
        help="a mask, an update and a parametrization, joined by +: sign-in, plain, m-w (no rescales), snip+plain, "
        "rigl+sign-in; the rest is as in RECIPE. Differences are taken from the first",
    )
    parser.add_argument("--sparsity", nargs="+", required=True, metavar="S", help="fractions of zeros: 0.8 0.9")
    parser.add_argument("--seeds", nargs="+", required=True, metavar="N", help="seeds or ranges of them: 0 1 2, or 0-9")
    parser.add_argument("--folder", metavar="DIR", help="folder of the sweep (default: runs/RECIPE-sweep)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time, which share the cores")
    parser.add_argument("--metric", metavar="NAME", help="what to compare (default: test_acc, else val_acc)")
    parser.add_argument("--retry-failed", action="store_true", help="also repeat runs that failed")
    return parser


def _configuration(recipe: str) -> Path:
    """The file of a configuration; an existing file takes precedence over a recipe of that name."""
    bundled = recipes()
    path = Path(recipe) if Path(recipe).is_file() else bundled.get(recipe)
    if path is None:
        raise SignInError(f"RECIPE must be a file or a recipe, got {recipe!r}. The recipes are {', '.join(bundled)}.")
    return path


def _of_cell(cell: Cell) -> list[str]:
    return [f"{PREFIX}sparsity={cell.sparsity}", *parse_method(cell.method).on_command_line()]


def _check(config: Path, overrides: list[str], cells: Iterable[Cell]) -> None:
    """Raise, before any training, the errors that ``fit`` would raise when it creates its objects."""
    for override in overrides:
        if override.partition("=")[0] in _DECIDED:
            raise SignInError(f"`sweep` decides {override.partition('=')[0]} itself. Use --seeds and --sparsity.")
    silence_lightning()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # these trainers do not train
    plain = _made(config, overrides)
    given, made = (some["trainer"]["callbacks"] or [] for some in (plain.config, plain.config_init))
    last = made[: len(given)][-1:] if isinstance(given, list) else [made]  # behind them are Lightning's own
    if not any(isinstance(callback, SignInCallback) for callback in last):
        raise SignInError(
            f"`trainer.callbacks` must end with SignInCallback, which gets the arguments of every run, but in {config} "
            "it does not. Move it to the end, as in the recipes."
        )
    for cell in cells:
        _made(config, [*overrides, *_of_cell(cell)])


def _made(config: Path, arguments: list[str]) -> LightningCLI:
    unseeded = "--seed_everything=false"  # this process keeps its random generators
    return LightningCLI(args=["--config", str(config), *arguments, unseeded], run=False, save_config_callback=None)
