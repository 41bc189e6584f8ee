"""`lightning-signin sweep`: real runs, killed and gone on with; what is refused; the tables against scipy."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lightning_signin import SignInCallback
from lightning_signin.cli.main import main, recipes
from lightning_signin.masks import SCORES
from lightning_signin.parametrizations import PARAMETRIZATIONS, STR
from lightning_signin.sweep.folder import SweepFolder
from lightning_signin.sweep.grid import Cell, grid, parse_seeds, parse_sparsities
from lightning_signin.sweep.methods import parse_method
from lightning_signin.sweep.output import write_results
from lightning_signin.sweep.result import Result, choose_metric, mean
from lightning_signin.sweep.runner import run_all
from lightning_signin.sweep.summary import summarize
from lightning_signin.sweep.table import markdown
from lightning_signin.sweep.trial import run_trial
from lightning_signin.updates import UPDATES

SHORT = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=4", "--trainer.accelerator=cpu"]
GRID = ["--method", "sign-in", "plain", "--sparsity", "0.9", "--seeds", "0"]
PLAIN, SIGN_IN = Cell("plain", 0.9, 0), Cell("sign-in", 0.9, 0)


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["sweep", *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    return error


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
    assert error == "lightning-signin: the sweep was stopped. The same command goes on with what is missing.\n"
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
    assert "They have signin/scaling, " in refused(capsys, "mnist1d", *GRID, *SHORT, "--metric", "f1")
    more = refused(capsys, "mnist1d", *GRID, *SHORT, "--trainer.max_epochs=2")
    assert "was begun with options='--trainer.max_epochs=1 " in more
    same_folder = ["--folder", str(folder)]
    assert "begun with recipe='mnist1d', and here it is 'digits'" in refused(
        capsys, "digits", *GRID, *SHORT, *same_folder
    )
    assert when == whole.stat().st_mtime_ns


def test_run_that_diverges_ends_at_once_and_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")  # puts back what the run leaves
    arguments = ["fit", "--config", str(recipes()["mnist1d"]), "--trainer.enable_progress_bar=false", *SHORT[1:]]
    told = run_trial([*arguments, "--trainer.max_epochs=50", "--model.init_args.lr=1e9"])
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
    with pytest.raises(ValueError, match=r"`--folder` must be a new or empty folder.*mine holds other things"):
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


def test_intervals_are_those_of_scipy():
    values = list(np.random.default_rng(0).normal(size=7))
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    found = mean(values)
    assert np.allclose([found.value - found.half, found.value + found.half, found.count], [low, high, 7])


def results_of(numbers: dict[str, dict[int, float | None]], metric: str = "test_acc") -> list[Result]:
    return [
        Result(Cell(method, 0.9, seed), "", None if number is None else {metric: number}, None if number else "boom\nx")
        for method, by_seed in numbers.items()
        for seed, number in by_seed.items()
    ]


def test_table_pairs_differences_by_seed_and_counts_what_failed():
    first, other = {0: 0.70, 1: 0.72, 2: 0.71}, {0: 0.74, 1: None, 2: 0.73}
    summary = summarize(results_of({"plain": other, "sign-in": first}), "test_acc", ["sign-in"])
    half = stats.t.ppf(0.975, 1) * stats.sem([4.0, 2.0])
    lines = markdown(summary).splitlines()
    assert f"| plain | +3.00 ± {half:.2f}, n = 2 |" in lines
    assert f"| sign-in | 71.00 ± {stats.t.ppf(0.975, 2) * stats.sem([70, 72, 71]):.2f}, n = 3 |" in lines
    assert f"| plain | 73.50 ± {stats.t.ppf(0.975, 1) * stats.sem([74, 73]):.2f}, n = 2 of 3 |" in lines
    assert "- plain-0.9-seed1: boom x" in lines
    assert lines.index("| method | 90 % |") < lines.index("Difference from sign-in, paired by seed, in points")


def test_warnings_stand_below_the_table_once_with_their_runs():
    warned = [replace(result, warnings=["hm\nso"]) for result in results_of({"plain": {0: 0.7, 1: 0.7, 2: 0.7}})]
    text = markdown(summarize([*warned, *results_of({"sign-in": {0: 0.7}})], "test_acc"))
    assert text.endswith("\n\nWarnings:\n\n- plain-0.9-seed0 and 2 more: hm so\n")


def test_other_metrics_are_no_percents():
    summary = summarize(results_of({"plain": {0: 1234.4}}, "val_loss"), "val_loss")
    assert summary.label == "val_loss"
    assert "| plain | 1234, n = 1 |" in markdown(summary)


def test_metric_is_the_first_that_runs_have():
    assert choose_metric(results_of({"a": {0: 1.0}}, "val_acc"), None) == "val_acc"
    assert choose_metric(results_of({"a": {0: None}}), None) == "test_acc"
    with pytest.raises(
        ValueError, match=r"`--metric` must be something that a run logs, and none has f1\. They have x:"
    ):
        choose_metric(results_of({"a": {0: 1.0}}, "x"), "f1")
