"""``lightning-signin prune`` as a user runs it."""

import re

import pytest

from lightning_signin import SignInCallback
from lightning_signin.cli.prune import arguments_for_pruning
from lightning_signin.iterative.arguments import plain_sign_in
from tests.commands import main
from tests.pruning import count, kept


def test_command_prunes_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    on_line = "--trainer.callbacks.init_args."
    options = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=4", "--trainer.enable_progress_bar=false"]
    command = ["prune", "--config", "mnist1d", "--folder", "pruned", "--prune_rate", "0.5", *options]
    command += ["--optimizer=AdamW", f"{on_line}sparsity=0.75", "--trainer.accelerator=cpu"]
    main(command)
    printed = capsys.readouterr().out
    assert re.search(r"test_acc +0\.\d+", printed)
    assert "75.00% of the selected weights are zero" in printed
    assert "pruned/merged.safetensors" in printed
    masks = [kept(tmp_path / "pruned", level) for level in range(3)]
    size = count(masks[0])
    assert [count(mask) for mask in masks] == [size, size // 2, size // 4]
    main(command)  # finished
    assert printed.endswith(capsys.readouterr().out)  # with `rich`, Lightning prints its own tables while it trains
    with pytest.raises(SystemExit):
        main([*command[:-3], "--trainer.callbacks=null"])
    assert "`trainer.callbacks` must have a SignInCallback" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "value"), [("update", "rigl"), ("mask", "snip"), ("flip_signs", 0.5)])
def test_callback_of_the_command_leaves_to_it_what_it_decides(name, value):
    with pytest.raises(ValueError, match=f"`prune` decides '{name}' itself, but .* has {name}={value!r}. Leave it out"):
        arguments_for_pruning(SignInCallback(**{name: value}))


def test_command_passes_exports_on():
    assert arguments_for_pruning(SignInCallback(export="compressed"))["sign_in"]["export"] == ("compressed",)


def test_what_is_only_logged_may_change_between_levels():
    plain = [plain_sign_in(given) for given in ({}, {"sharpness_mode": "train", "export": ["compressed"]})]
    assert plain[0] == plain[1]
