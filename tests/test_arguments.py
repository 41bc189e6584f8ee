"""All arguments stand in one place, from which signature, documentation, YAML and comparisons of runs come."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lightning_signin import SignInCallback, SignInError
from lightning_signin.arguments import Arguments, owned_by
from lightning_signin.cli.main import main
from lightning_signin.cli.prune import arguments_for_pruning
from lightning_signin.iterative.arguments import plain_sign_in
from lightning_signin.updates import RigL

FIELDS = {each.name: each for each in fields(Arguments)}
README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
# An allowed value other than the default, for each number.
NUMBERS = {
    "sparsity": 0.5,
    "flip_signs": 0.25,
    "beta": 2.0,
    "rescale_every_n_epochs": 3,
    "rescale_until": 0.5,
    "frobenius_decay": 0.125,
    "warmup_epochs": 2,
    "sharpness_every_n_epochs": 2,
    "sharpness_batches": 2,
    "seed": 7,
}
EVERY_NUMBER = pytest.mark.parametrize("name", NUMBERS)


def test_callback_has_exactly_these_parameters():
    parameters = inspect.signature(SignInCallback).parameters
    found = {n: (p.kind, p.annotation, p.default) for n, p in parameters.items()}
    assert found == {n: (inspect.Parameter.KEYWORD_ONLY, f.type, f.default) for n, f in FIELDS.items()}


def test_every_argument_is_documented_in_the_callback():
    documented = re.findall(r"^        (\w+): ", str(SignInCallback.__doc__).split("Raises:")[0], flags=re.MULTILINE)
    assert documented == [f.name for f in fields(Arguments)]


def test_table_in_the_readme_has_the_arguments_and_their_defaults():
    table = README.split("| argument | default | meaning |")[1].split("\n\n")[0]
    found = {}
    for names, values in re.findall(r"^\| ([^|]*) \| ([^|]*) \|", table.partition("\n|---")[2], flags=re.MULTILINE):
        names, values = re.findall(r"`(\w+)`", names), [yaml.safe_load(value) for value in values.split(", ")]
        found |= dict(zip(names, values * (len(names) if len(values) == 1 else 1), strict=True))
    assert found == {n: f.default for n, f in FIELDS.items()}


def test_misspelled_argument_is_named():
    with pytest.raises(TypeError, match="unexpected keyword argument 'sparsty'"):
        SignInCallback(sparsty=0.9)
    with pytest.raises(TypeError, match="positional"):
        SignInCallback(0.9)


def test_command_line_shows_every_argument_and_refuses_others(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--trainer.callbacks.help=lightning_signin.SignInCallback"])
    text = capsys.readouterr().out
    assert all(f"init_args.{name}" in text or f".{name} " in text for name in FIELDS)
    assert "p; None never rescales" in " ".join(text.split())
    with pytest.raises(SystemExit):
        main(["fit", "--config", "digits", "--trainer.callbacks.init_args.sparsty=0.9"])
    assert "sparsty" in capsys.readouterr().err


@EVERY_NUMBER
@pytest.mark.parametrize("kind", [np.asarray, torch.tensor, lambda value: np.asarray(value)[()]])
def test_numbers_of_numpy_and_torch_are_read_as_plain_ones(name, kind):
    found = getattr(Arguments(**{name: kind(NUMBERS[name])}), name)
    assert found == NUMBERS[name]
    assert type(found) is type(NUMBERS[name])


@EVERY_NUMBER
@pytest.mark.parametrize("value", ["0.9", "3", True, np.True_, torch.tensor(True), [1], torch.ones(2)], ids=repr)
def test_what_is_no_number_is_refused_by_name(name, value):
    with pytest.raises(SignInError, match=f"`{name}` must be"):
        Arguments(**{name: value})


def test_beta_of_a_pattern_is_read_too():
    assert type(Arguments(beta={"fc*": np.float32(0.5), "*": 1}).beta["fc*"]) is float
    with pytest.raises(SignInError, match="`beta`"):
        Arguments(beta={"*": "1"})


def test_every_argument_says_when_it_acts_and_who_decides_it():
    for each in FIELDS.values():
        assert each.metadata["stage"] in ("start", "training", "log", "end")
        assert each.metadata["owner"] in ("fit", "prune", "both")
        logs = each.metadata["stage"] in ("log", "end")
        assert not (logs and each.metadata["same"])  # what logs or writes changes no weight


@pytest.mark.parametrize("name", owned_by("prune", "both"))
def test_levels_leave_out_what_pruning_decides(name):
    with pytest.raises(SignInError, match=f"must not have '{name}'"):
        plain_sign_in({name: FIELDS[name].default})


@pytest.mark.parametrize("name", [n for n, f in FIELDS.items() if f.metadata["owner"] == "fit"])
def test_prune_passes_all_other_arguments_to_the_levels(name):
    other = {
        "parametrization": "plain",
        "weight_decay": "factors",
        "rescale_every_n_steps": None,
        "rescale_momentum": "clear",
        "log_layers": True,
    }
    other |= {"sharpness_mode": "train", "storage": "dense", "compute": "dense", "include": ["a"], "exclude": ["b"]}
    other |= {"weight_decay": "factors", "export": ("compressed",), **NUMBERS}
    given = arguments_for_pruning(SignInCallback(**{name: other[name]}))["sign_in"]
    assert given[name] == other[name]
    assert Arguments(**given) == Arguments(**{name: other[name]})


def test_levels_and_resumes_compare_what_changes_weights():
    one, other = Arguments(), Arguments(log_layers=True, sharpness_mode="train", export="compressed", warmup_epochs=3)
    for where in ("resume", "levels"):
        assert one.that_are_same(where) == other.that_are_same(where)
    assert Arguments(beta=2.0).that_are_same("levels") != one.that_are_same("levels")
    assert Arguments(seed=3).that_are_same("resume") != one.that_are_same("resume")
    assert Arguments(seed=3).that_are_same("levels") == one.that_are_same("levels")
    named = Arguments(update=RigL(drop_fraction=0.5)).that_are_same("resume")["update"]
    assert isinstance(named, str)


@pytest.mark.parametrize("value", [1, 0, None, "false"])
def test_log_layers_is_true_or_false(value):
    with pytest.raises(SignInError, match=rf"`log_layers` must be one of True, False; got {value!r}"):
        Arguments(log_layers=value)
