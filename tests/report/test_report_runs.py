"""Runs that a report reads: a real one, epochs, columns, layers and names; and what it refuses."""

import shutil
import sys
from pathlib import Path

import pytest

from lightning_signin.cli.main import main
from lightning_signin.report.layers import short_names
from lightning_signin.report.pictures import PICTURES
from lightning_signin.report.runs import read_runs
from tests.reports import sections, write_rows, write_run


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    """The folder of a real, short run."""
    folder = tmp_path_factory.mktemp("fitted")
    ours = "--trainer.callbacks.init_args."
    options = [f"{ours}log_layers=true", f"{ours}warmup_epochs=1", f"{ours}sharpness_every_n_epochs=2"]
    limits = ["--trainer.max_epochs=3", "--trainer.limit_train_batches=3", "--trainer.log_every_n_steps=1"]
    main(["fit", "--config", "digits", f"--trainer.logger.init_args.save_dir={folder}", *limits, *options])
    return folder / "digits" / "version_0"


def test_epochs_are_counted_from_one_and_averaged(tmp_path):
    rows = [
        {"step": 0, "lr": 0.1},  # a logger without epochs
        {"epoch": 0, "step": 4, "train_loss": 4.0},
        {"epoch": 0, "step": 9, "train_loss": 2.0},
        {"epoch": 1, "step": 14, "train_loss": "nan"},
        {"epoch": 2, "step": 20, "test_acc": 0.5},
    ]
    path = write_rows(tmp_path, rows) / "metrics.csv"
    path.write_text(path.read_text() + "2,0.0")  # a row that is being written
    [run] = read_runs([tmp_path])
    epochs, values = run.curve("train_loss")
    assert epochs == [1, 2]
    assert values[0] == 3.0
    assert str(values[1]) == str(run.last("train_loss")) == "nan"
    assert (run.epochs, run.last("test_acc"), run.last("nothing")) == (2, 0.5, None)


def test_of_a_step_and_an_epoch_column_the_latter_is_shown(tmp_path):
    rows = [{"epoch": 0, "step": 1, "train_loss_step": 1.0, "train_loss_epoch": 2.0, "test_loss": 3.0, "val_Loss": 4.0}]
    [run] = read_runs([write_rows(tmp_path, rows)])
    assert run.named("loss") == ["val_Loss", "train_loss_epoch", "test_loss"]


def test_runs_are_named_by_the_shortest_path_that_tells_them_apart(tmp_path):
    folders = [write_run(tmp_path / name) for name in ("a/x/v0", "b/x/v0", "b/y/v0")]
    assert [run.name for run in read_runs(folders[1:])] == ["x/v0", "y/v0"]
    assert [run.name for run in read_runs(folders)] == ["a/x/v0", "b/x/v0", "b/y/v0"]


def test_layers_go_in_the_models_order_where_a_file_of_the_run_has_it(fitted, tmp_path):
    [run] = read_runs([fitted])
    names = list(run.layers("density"))
    assert run.knows_order
    assert names[0].endswith("layers.0.weight")
    assert names[-1].endswith("layers.14.weight")
    assert names.index("network.layers.6.shortcut.0.weight") > names.index("network.layers.6.conv2.weight")
    shutil.copy(fitted / "metrics.csv", tmp_path)
    [run] = read_runs([tmp_path])
    assert not run.knows_order
    assert sorted(names) == sorted(run.layers("density"))
    (tmp_path / "some.ckpt").write_bytes(b"damaged")
    shutil.copy(fitted / "checkpoints" / "last.ckpt", tmp_path)
    assert list(read_runs([tmp_path])[0].layers("density")) == names


def test_layer_names_lose_what_all_share_and_stay_whole():
    assert short_names(["a.b.fc.weight", "a.b.conv.weight"]) == ["fc", "conv"]
    assert short_names(["fc.weight"]) == ["fc"]
    assert short_names(["x.weight", "encoder.block.attention.output.dense.weight"])[1] == "…attention.output.dense"


def test_real_run_gets_its_page(fitted, capsys):
    main(["report", str(fitted)])
    page = fitted / "report" / "report.html"
    assert capsys.readouterr().out == f"{page}\n"
    assert sections(page) == [*(picture.title for picture in PICTURES[:-2]), "Pictures without data"]
    assert all(f"<li>{picture.title}: needs numbers in" in page.read_text() for picture in PICTURES[-2:])
    assert {file.suffix for file in page.parent.iterdir()} == {".html", ".png"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere"], "There is no folder nowhere. Pass a run's folder, e.g. runs/digits/version_0."),
        (["."], "There is no metrics.csv in ., which Lightning's CSVLogger writes. Its runs are bytes, cells, empty,"),
        (
            ["none"],
            "There is no metrics.csv in none, which Lightning's CSVLogger writes. Train with that logger first.",
        ),
        (["empty"], "empty/metrics.csv is not from CSVLogger: it needs the columns epoch and step, but has nothing."),
        (["foreign"], "it needs the columns epoch and step, but has name, age."),
        (["header"], "header/metrics.csv has no numbers yet. Wait for the run's first epoch to end."),
        (["words"], "words/metrics.csv has 'high' in line 2, column loss, which must be a number."),
        (["epochs"], "epochs/metrics.csv has inf for the epoch in line 2, which must be a number."),
        (["cells"], "cells/metrics.csv has 2 cells in line 2, but its header has 3."),
        (["bytes"], "bytes/metrics.csv is not a text file of comma-separated values"),
        (["good", "./good"], "good is given more than once. Name each run once."),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_status_2(tmp_path, monkeypatch, capsys, arguments, text):
    monkeypatch.chdir(tmp_path)
    contents = {
        "empty": b"",
        "foreign": b"name,age\nx,1\n",
        "header": b"epoch,step,loss\n",
        "words": b"epoch,step,loss\n0,1,high\n",
        "epochs": b"epoch,step,loss\ninf,1,0.5\n",
        "cells": b"epoch,step,loss\n0,1\n1,2,3\n",
        "bytes": b"\xff\xfe\0",
        "good": b"epoch,step,loss\n0,1,0.5\n",
    }
    Path("none").mkdir()
    for name, content in contents.items():
        Path(name).mkdir()
        Path(name, "metrics.csv").write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        main(["report", *arguments, "--output", "out"])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert text in error
    assert error.count("\n") == 1
    assert not Path("out").exists()


def test_missing_matplotlib_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit) as stop:
        main(["report", str(write_run(tmp_path / "a"))])
    assert stop.value.code == 2
    assert "needs matplotlib. Install it: pip install 'lightning-signin[plot]'." in capsys.readouterr().err
