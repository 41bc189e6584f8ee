"""The words of `lightning-signin sweep`: methods, seeds, sparsities, and what is refused before any training."""

import pytest

from lightning_signin import SignInCallback
from lightning_signin.masks import SCORES
from lightning_signin.parametrizations import PARAMETRIZATIONS, STR
from lightning_signin.sweep.grid import grid, parse_seeds, parse_sparsities
from lightning_signin.sweep.methods import parse_method
from lightning_signin.updates import UPDATES
from tests.sweeps import GRID, refused


@pytest.mark.parametrize("name", [*SCORES, *UPDATES, *PARAMETRIZATIONS])
def test_every_registered_name_is_a_method(name):
    assert list(parse_method(name).arguments.values()) == [name]


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("plain+snip", "snip+plain", {"mask": "snip", "parametrization": "plain"}),
        ("acdc+sign-in", "acdc+sign-in", {"update": "acdc", "parametrization": "sign-in"}),
        ("sign-in+rigl+grasp", "grasp+rigl+sign-in", {"mask": "grasp", "update": "rigl"}),
        ("mw", "m-w", {"parametrization": "sign-in", "rescale_every_n_epochs": None, "rescale_every_n_steps": None}),
    ],
)
def test_method_resolves_to_arguments(text, name, arguments):
    method = parse_method(text)
    assert method.name == name
    assert method.arguments.items() >= arguments.items()
    assert SignInCallback(**method.arguments)


def test_sign_in_beside_a_parametrization_is_its_form_with_sign_in():
    chosen = parse_method("sign-in+str").arguments["parametrization"]
    assert chosen["class_path"].rpartition(".")[2] == "STR"
    assert STR(**chosen["init_args"]).rescales


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["--method", "sign_in"],
            "`--method` must be names joined by +, got 'sign_in': 'sign_in' is none of masks ran",
        ),
        (["--method", "snip+grasp"], "`--method` must name at most one mask, got 'snip+grasp'"),
        (["--method", "plain+m-w"], "`--method` must name at most one parametrization, got 'plain+m-w'"),
        (["--sparsity", "90"], "`--sparsity` must be in [0, 1), got 90. Pass the fraction of zeros, e.g. 0.9."),
        (["--sparsity", "nan"], "`--sparsity` must be in [0, 1), got nan"),
        (["--seeds", "3-1"], "`--seeds` must be integers from 0 to 4294967295, or ranges of them, got '3-1'"),
        (["--seeds", "-1"], "`--seeds` must be integers"),
        (["--jobs", "0"], "`--jobs` must be at least 1, got 0"),
        (["--seed_everything=3"], "`sweep` decides --seed_everything itself"),
        (["--trainer.callbacks=[]"], "`trainer.callbacks` must end with SignInCallback"),
        (["--trainer.callbacks.init_args.beta=-1"], "must be"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_refused_before_any_training(tmp_path, monkeypatch, capsys, arguments, text):
    monkeypatch.chdir(tmp_path)
    assert text in refused(capsys, "mnist1d", *GRID, *arguments)
    assert not list(tmp_path.iterdir())


def test_recipe_that_is_none_is_named(capsys):
    assert "RECIPE must be a file or a recipe, got 'mnist'. The recipes are cifar10" in refused(capsys, "mnist", *GRID)


def test_grid_words():
    assert parse_seeds(["0-2", "7", "1"]) == [0, 1, 2, 7]
    assert parse_sparsities(["0", "0.90", "0.9"]) == [0.0, 0.9]
    first = [str(cell) for cell in grid(["a", "b"], [0.8, 0.9], [0, 1])][:3]
    assert first == ["a-0.8-seed0", "b-0.8-seed0", "a-0.9-seed0"]
