"""A small grid for tests of `lightning-signin sweep`, and what is refused of others."""

import pytest

from lightning_signin.cli.main import main

GRID = ["--method", "sign-in", "plain", "--sparsity", "0.9", "--seeds", "0"]


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["sweep", *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    return error
