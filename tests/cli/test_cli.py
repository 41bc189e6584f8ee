"""The command line's own parts: recipes, errors, help. Runs are in `tests/recipes/test_digits.py`."""

import pytest
import torch

from lightning_signin.cli.main import main, recipes, with_recipes

NAMES = ["cifar10-resnet20", "cifar100-resnet18", "digits", "imagenet-deit-small", "imagenet-resnet50", "mnist1d"]


def test_recipes_are_listed_with_what_they_are(capsys):
    main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize("written", [["--config", "digits"], ["-c", "digits"], ["--config=digits"]], ids=str)
def test_recipe_name_works_where_a_config_path_does(written):
    assert str(recipes()["digits"]) in with_recipes(written)[-1]


def test_file_of_a_recipes_name_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").write_text("seed_everything: 1\n")
    assert with_recipes(["--config", "digits"]) == ["--config", "digits"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["inspect", "missing.ckpt"], "There is no file missing.ckpt"),
        (["export", "missing.ckpt", "--output", "x"], "There is no file missing.ckpt"),
        (["inspect", "notes.txt"], "cannot be read safely: it is damaged, not a checkpoint"),
        (["inspect", "cut.safetensors"], "is not a complete safetensors file"),
        (["inspect", "list.pt"], "holds no state dict"),
        (["export", "good.pt", "--output", "nowhere/x.safetensors"], "There is no folder nowhere to write x"),
    ],
    ids=str,
)
def test_bad_file_is_one_line_and_status_2(tmp_path, monkeypatch, capsys, arguments, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("not a checkpoint")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"weight": torch.eye(2)}, tmp_path / "good.pt")
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert text in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.safetensors", "good.pt", "list.pt", "notes.txt"]


def test_config_that_is_neither_file_nor_recipe_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", "digit"])
    error = capsys.readouterr().err
    assert f"`--config digit` is neither a file nor a recipe. The recipes are {', '.join(NAMES)}." in error


def test_unknown_command_shows_the_known_ones():
    with pytest.raises(SystemExit, match="unknown command 'train'"):
        main(["train"])


def test_help_and_version(capsys):
    main(["--help"])
    main(["--version"])
    from lightning_signin import __version__

    output = capsys.readouterr().out
    assert "inspect FILE" in output
    assert output.endswith(f"{__version__}\n")
