"""Random YAML configurations of the callback: `python -m benchmarks.config_fuzz`.

Each must train, or end with status 2 and an error that is told in words: one line of this package, or that of the
command line's parser. What escapes `main` as an exception is a finding.
"""

import argparse
import io
import logging
import os
import random
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml

from lightning_signin.cli.main import main
from lightning_signin.masks import SCORES
from lightning_signin.parametrizations import PARAMETRIZATIONS
from lightning_signin.recipes import datasets
from lightning_signin.recipes.data import TensorData
from lightning_signin.recipes.datasets import Split
from lightning_signin.updates import UPDATES

NAN, INF = float("nan"), float("inf")
WRONG: list[Any] = [
    None,
    True,
    "nonsense",
    "",
    0,
    -1,
    1,
    90,
    0.5,
    -0.5,
    1e30,
    NAN,
    INF,
    [],
    [1],
    ["*"],
    {},
    {"*": None},
]
WRONG += [
    {"*": "x"},
    {"*": -1},
    "os.getcwd",
    "math.sqrt",
    {"class_path": "torch.nn.Linear"},
    10**30,
    "1:2",
    "0x0-block",
]


def an(name: str, **arguments: Any) -> dict[str, Any]:
    """An object of this package, as YAML has it."""
    return {"class_path": f"lightning_signin.{name}", "init_args": arguments}


RIGHT: dict[str, list[Any]] = {
    "sparsity": [0.0, 0.5, 0.9, 0.99, None],
    "mask": [*SCORES, an("masks.SNIP", num_batches=2), an("masks.SNIP", num_batches=0)],
    "distribution": ["balanced", "erk", "uniform", "global", None, {"*": 0.5}, {"*.0.*": 0.5, "*": 0.9}, {"x*": 0.1}],
    "structure": [
        "unstructured",
        "2:4",
        124,
        "2:4-cap",
        "1:8",
        "2x2-block",
        "constant-fan-in",
        {"*.0.*": "2:4", "*": "5:1"},
    ],
    "mask_from": ["nowhere.ckpt", "case.yaml", "."],
    "signs_from": ["nowhere.ckpt", "case.yaml"],
    "magnitudes_from": ["nowhere.ckpt", "case.yaml"],
    "flip_signs": [0.0, 0.05, 1.0],
    "update": [
        *UPDATES,
        *(
            an(f"updates.{name}", schedule=an(f"updates.{schedule}", every_n_steps=n))
            for name, schedule in product(("RigL", "SET", "GMP", "MEST", "SRigL"), ("Cosine", "Stages"))
            for n in (1, 2)
        ),
        an("updates.ACDC", schedule=an("updates.Phases", warmup=0.3)),
        an("updates.RigL", drop_fraction=2.0),
        an("updates.MEST", mutation=0.5, soft_memory_bound=False),
        an("updates.GMP", schedule=an("updates.Cubic", since=0.9, until=0.1)),
        an("updates.OneShot", schedule=an("updates.Once", at="x")),
    ],
    "parametrization": [
        *PARAMETRIZATIONS,
        an("parametrizations.STR", sign_in=True, s_init=-1e30),
        an("parametrizations.Powerprop", alpha=0.0),
    ],
    "beta": [1.0, 1e-3, {"*": 2.0}, {"*.0.*": 1.0, "*": 2.0}, {"x": 1.0}, 1e-44],
    "rescale_every_n_epochs": [1, 5, None],
    "rescale_every_n_steps": [1, 3, None],
    "rescale_until": [0.0, 0.5, 1.0, 3],
    "rescale_momentum": ["keep", "carry", "clear"],
    "frobenius_decay": [0.0, 1e-4],
    "log_layers": [True],
    "warmup_epochs": [1, 5],
    "sharpness_every_n_epochs": [1],
    "sharpness_batches": [1, 2],
    "sharpness_mode": ["train"],
    "export": ["compressed", ["safetensors", "compressed"], [], None],
    "include": [["*"], ["*weight"], "*", ["x"], []],
    "exclude": [["*.0.*"], ["*"], [], "*bias"],
    "storage": ["auto", "compact", "dense"],
    "seed": [0, 1, 2**40],
}


@cache
def _splits() -> tuple[Split, Split, Split]:
    train, test = datasets.mnist1d(samples=500)
    return train, test, test


class FewMNIST1D(TensorData):
    """The same 500 samples for every case."""

    def splits(self) -> tuple[Split, Split, Split]:
        """400 for training and 100 else."""
        return _splits()


def arguments(case: int) -> dict[str, Any]:
    """One to five arguments of the callback, of which about every eighth is wrong."""
    draw = random.Random(case)
    names = draw.sample(list(RIGHT), draw.randint(1, 5))
    return {name: draw.choice(WRONG if draw.random() < 0.12 else RIGHT[name]) for name in names}


def configuration(case: int) -> dict[str, Any]:
    """A run of four or six optimizer steps."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    limits = {"limit_train_batches": 2, "limit_val_batches": 1, "limit_test_batches": 1, "max_epochs": 2 + case % 2}
    network = an("recipes.models.MLP", widths=[40, 24, 16, 10])
    callbacks = [an("SignInCallback", **arguments(case))]
    return {
        "seed_everything": 1,
        "trainer": {"accelerator": "cpu", "default_root_dir": ".", "callbacks": callbacks, **quiet, **limits},
        "model": an("recipes.models.Classifier", network=network, optimizer="adamw" if case % 3 else "sgd"),
        "data": {"class_path": "benchmarks.config_fuzz.FewMNIST1D", "init_args": {"batch_size": 16}},
    }


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run_case(case: int, folder: Path) -> tuple[str, str]:
    """How a case ended, "trained", "refused" or "failed", and what it said."""
    (folder / "case.yaml").write_text(yaml.safe_dump(configuration(case)))
    said = io.StringIO()
    with _inside(folder), redirect_stderr(said), redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            main(["fit", "--config", "case.yaml"])
        except SystemExit as stop:
            lines = said.getvalue().strip().splitlines()
            by_parser = any(line.startswith("error: ") for line in lines)
            told = by_parser or (len(lines) == 1 and lines[0].startswith("lightning-signin: "))
            in_words = told and stop.code == 2 and "Traceback" not in said.getvalue()
            return ("refused" if in_words else "failed"), said.getvalue()
        except BaseException:
            return "failed", traceback.format_exc()
    return "trained", ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=600)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        for case in range(options.first, options.first + options.cases):
            end, said = run_case(case, Path(name))
            ends[end] += 1
            if end == "failed":
                print(f"case {case}: {arguments(case)}\n{said[-1500:]}\n", flush=True)
    print(f"{sum(ends.values())} configurations: {dict(ends)}")
