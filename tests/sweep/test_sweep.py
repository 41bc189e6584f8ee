"""`lightning-signin sweep`: real runs, killed and gone on with; failed and diverged ones; folders that are shared."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_signin.cli.main import recipes
from lightning_signin.sweep.folder import SweepFolder
from lightning_signin.sweep.grid import Cell
from lightning_signin.sweep.output import write_results
from lightning_signin.sweep.runner import run_all
from lightning_signin.sweep.trial import run_trial
from tests.commands import filters, main
from tests.sweeps import GRID, refused

SHORT = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=4", "--trainer.accelerator=cpu"]
SHORT += ["--model.init_args.weight_decay=0.1", "--trainer.callbacks.init_args.frobenius_decay=0"]
PLAIN, SIGN_IN = Cell("plain", 0.9, 0), Cell("sign-in", 0.9, 0)


class Started:
    """A sweep in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.runs, self.log = folder / "runs" / "mnist1d-sweep" / "runs", folder / "log.txt"
        code = "from lightning_signin.cli import main; main()"
        command = [sys.executable, "-c", code, "sweep", "mnist1d", *GRID, *SHORT]
        with self.log.open("w") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(command, cwd=folder, stderr=log, env=environment)

    def wait_until_there_is(self, pattern: str) -> Path:
        end = time.monotonic() + 120
        while not (found := list(self.runs.glob(pattern))):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)
        return found[0]

    def stop(self, how: int) -> str:
        self.process.send_signal(how)
        self.process.wait(timeout=60)
        return self.log.read_text()


def test_stopped_and_killed_sweep_goes_on_with_what_is_missing(tmp_path, monkeypatch, capsys):
    first = Started(tmp_path)
    first.wait_until_there_is("000-sign-in-0.9-seed0/log.txt")
    error = first.stop(signal.SIGINT)
    assert first.process.returncode == 1
    assert error == "lightning-signin: the sweep was stopped. Run the same command again to resume it.\n"
    second = Started(tmp_path)
    whole = second.wait_until_there_is("001-plain-0.9-seed0/result.json")
    torn = second.wait_until_there_is("002-sign-in-0.9-seed0/log.txt").parent
    second.stop(signal.SIGKILL)
    when = whole.stat().st_mtime_ns

    monkeypatch.chdir(tmp_path)
    main(["sweep", "mnist1d", *GRID, *SHORT])
    assert whole.stat().st_mtime_ns == when
    assert not torn.exists()
    assert sorted(path.name for path in first.runs.iterdir()) == ["001-plain-0.9-seed0", "003-sign-in-0.9-seed0"]
    printed = capsys.readouterr().out
    assert printed.count("has no rescale, so it trains m ⊙ w without Sign-In") == 1
    assert "- sign-in-0.9-seed0: `rescale_every_n_epochs`=5" in printed
    assert "\n\nWeight decay of the sparse weights, with every method: 0.1 on θ\n\nWarnings:" in printed
    folder = first.runs.parent
    assert printed.startswith((folder / "results.md").read_text())
    assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert [(row["method"], row["seed"], row["error"]) for row in rows] == [("sign-in", "0", ""), ("plain", "0", "")]
    for row in rows:
        run = folder / row["folder"]
        assert json.loads((run / "result.json").read_text())["measured"]["test_acc"] == float(row["test_acc"])
        assert f"parametrization: {row['method']}" in (run / "config.yaml").read_text()
        assert (run / "metrics.csv").exists()

    main(["sweep", "mnist1d", *GRID, *SHORT, "--metric", "val_acc"])
    assert "val_acc (%)" in capsys.readouterr().out
    assert "They have signin/model_sparsity, " in refused(capsys, "mnist1d", *GRID, *SHORT, "--metric", "f1")
    more = refused(capsys, "mnist1d", *GRID, *SHORT, "--trainer.max_epochs=2")
    assert "was started with options='--trainer.max_epochs=1 " in more
    same_folder = ["--folder", str(folder)]
    assert "started with recipe='mnist1d', but here it is 'digits'" in refused(
        capsys, "digits", *GRID, *SHORT, *same_folder
    )
    assert when == whole.stat().st_mtime_ns


def test_run_that_diverges_ends_at_once_and_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")  # puts back what the run leaves
    arguments = ["fit", "--config", str(recipes()["mnist1d"]), "--trainer.enable_progress_bar=false", *SHORT[1:]]
    before = filters()
    told = run_trial([*arguments, "--trainer.max_epochs=50", "--model.init_args.lr=1e9"])
    assert filters() == before
    assert told["error"] == "diverged: weights are not finite after epoch 1"
    assert [text[:52] for text in told["warnings"]] == ["network.layers.0.weight is not finite at the end of "]


def test_runs_without_a_number_are_recorded_and_shown(tmp_path):
    folder = SweepFolder(tmp_path, {})
    folder.queue([SIGN_IN, PLAIN])
    folder.record(folder.claim(), {"measured": {"test_acc": 0.5}, "seconds": 1.0}, "test_acc")
    run_all(folder, lambda claim: ["fit", "--no_such_option"], jobs=1)  # which ends its process
    text = write_results(tmp_path, folder.results(), "test_acc")
    assert "| sign-in | 50.00, n = 1 |\n| plain | n = 0 of 1 |" in text
    assert "- plain-0.9-seed0: the process ended with status 2 and no result" in text
    assert "no_such_option" in (tmp_path / folder.results()[1].folder / "log.txt").read_text()
    folder.queue([SIGN_IN, PLAIN])
    assert folder.claim() is None
    folder.queue([SIGN_IN, PLAIN], retry_failed=True)
    assert folder.claim().cell == PLAIN


def test_two_processes_share_the_runs_of_a_folder(tmp_path):
    one, other = SweepFolder(tmp_path, {"recipe": "a"}), SweepFolder(tmp_path, {"recipe": "a"})
    for folder in (one, other):
        folder.queue([PLAIN, SIGN_IN])
    assert [one.claim().cell, other.claim().cell, one.claim(), other.claim()] == [PLAIN, SIGN_IN, None, None]
    one.let_go()
    again = other.claim()
    assert again.cell == PLAIN
    other.record(again, {"measured": {"test_acc": math.nan}}, "test_acc")
    assert [result.trouble("test_acc") for result in one.results()] == ["test_acc is nan", "not finished"]


def test_other_grid_adds_its_cells(tmp_path):
    SweepFolder(tmp_path, {}).queue([PLAIN])
    folder = SweepFolder(tmp_path, {})
    folder.queue([SIGN_IN, PLAIN])
    assert [result.cell for result in folder.results()] == [PLAIN, SIGN_IN]


def test_folder_with_other_things_or_a_damaged_journal_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"`--folder` must be a new or empty folder.*mine holds other files"):
        SweepFolder(tmp_path / "mine", {})
    SweepFolder(tmp_path / "altered", {}).queue([PLAIN])
    whole = (tmp_path / "altered" / "sweep.journal").read_bytes()
    for damaged in (b"{not json\n{}\n", whole.replace(b'"method"', b'"methud"'), whole.replace(b":", b";", 1)):
        (tmp_path / "altered" / "sweep.journal").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"sweep.journal is damaged \(.*Choose another `--folder`"):
            SweepFolder(tmp_path / "altered", {})


def test_half_a_line_of_a_killed_process_is_left_out(tmp_path):
    SweepFolder(tmp_path, {}).queue([PLAIN])
    with (tmp_path / "sweep.journal").open("ab") as journal:
        journal.write(b'{"op_code": 4, "wor')
    SweepFolder(tmp_path, {}).queue([PLAIN, SIGN_IN])
    assert [result.cell for result in SweepFolder(tmp_path, {}).results()] == [PLAIN, SIGN_IN]
