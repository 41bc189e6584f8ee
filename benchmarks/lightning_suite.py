"""Lightning's own tests, with and without the callback: `python -m benchmarks.lightning_suite CHECKOUT [TESTS ...]`.

CHECKOUT is a folder with Lightning's repository, at the tag that is nearest to the installed version; its tests run
against the installed package. They run without the callback; those that pass then run with one that masks nothing
(`sparsity=0.0, parametrization="plain"`) in every Trainer, and with one that masks half (`sparsity=0.5`). Tests that
end otherwise run once more in both ways, so that those which end now this way, now that, do not count, and once with a
callback that logs nothing, which shows where its numbers are the difference. `benchmarks.lightning_reasons` has the
reasons for what remains. RECORDS says how each test ended, DIFFERENCES what differs.

As a pytest plugin (`-p benchmarks.lightning_suite`), this module adds the callback and writes down how tests end.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lightning_reasons import LOGGED, reason_of
from lightning_signin.errors import SignInError

# Environment variables that the plugin reads.
OPTIONS, RECORD, SILENT = "SIGNIN_SUITE_OPTIONS", "SIGNIN_SUITE_RECORD", "SIGNIN_SUITE_SILENT"
VARIANTS: dict[str, dict[str, Any] | None] = {
    "without": None,
    "nothing masked": {"sparsity": 0.0, "parametrization": "plain"},
    "half masked": {"sparsity": 0.5},
}
ALL = "accelerators callbacks checkpointing core loggers loops models overrides plugins profilers test_cli.py trainer"
ALL += " tuner utilities"
Outcomes = dict[str, dict[str, str]]  # by test: how it ended, its error, and our own words in the error


def pytest_configure(config: pytest.Config) -> None:
    """Put the callback into every Trainer."""
    options = json.loads(os.environ.get(OPTIONS, "null"))
    if options is not None:
        _add_to_trainers(options)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Note the words of this package in an error, or in one that it came from."""
    report: Any = yield
    if call.excinfo is not None and (ours := _own_words(call.excinfo.value)):
        report.user_properties.append(("refusal", ours))
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write down how a test ended."""
    if RECORD not in os.environ or "PYTEST_XDIST_WORKER" in os.environ:
        return
    if report.when == "call" or report.outcome != "passed":
        error = next((line for line in report.longreprtext.splitlines() if line.startswith("E ")), report.longreprtext)
        crash: Any = getattr(report.longrepr, "reprcrash", None)
        where = Path(crash.path).name if crash is not None else ""
        found = {"test": report.nodeid, "outcome": report.outcome, "error": error[-500:], "where": where}
        found |= {name: str(value) for name, value in report.user_properties if name == "refusal"}
        with open(os.environ[RECORD], "a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")


def _add_to_trainers(options: dict[str, Any]) -> None:
    from lightning.pytorch import LightningModule, Trainer

    from lightning_signin import SignInCallback

    class Silent(SignInCallback):
        """Logs nothing."""

        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            """Nothing."""

    kind = Silent if SILENT in os.environ else SignInCallback
    plain = Trainer.__init__

    @functools.wraps(plain)
    def with_callback(self: Trainer, *args: Any, callbacks: Any = None, **arguments: Any) -> None:
        given = callbacks if isinstance(callbacks, list) else [] if callbacks is None else [callbacks]
        plain(self, *args, callbacks=[*given, kind(**options)], **arguments)

    Trainer.__init__ = with_callback  # type: ignore[method-assign]


def _own_words(error: BaseException) -> str:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, SignInError):
            return str(seen)
        seen = seen.__cause__ or seen.__context__
    return str(error) if SignInError.__name__ in str(error) else ""  # of another process


@dataclass(frozen=True)
class Suite:
    """The tests of a checkout.

    Args:
        checkout: The folder of the repository.
        records: The folder for what is recorded. What is in it is continued.
    """

    checkout: Path
    records: Path

    def run(self, name: str, tests: Sequence[str], workers: int = 1, silent: bool = False) -> Outcomes:
        """Run tests, and return how all tests of a variant have ended so far; the last time counts.

        Args:
            name: The variant.
            tests: Folders, files or tests below ``tests/tests_pytorch``.
            workers: Number of processes.
            silent: The callback logs nothing.

        Returns:
            The outcome of every test that the record has, those of earlier calls included.
        """
        record = (self.records / f"{name.replace(' ', '_')}{'_silent' * silent}.jsonl").resolve()
        given = record.with_suffix(".txt")
        given.write_text("".join(f"{test.removeprefix('tests/tests_pytorch/')}\n" for test in tests), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-p", "benchmarks.lightning_suite", "-q", "-n", str(workers)]
        command += ["-o", "faulthandler_timeout=120", "-o", "faulthandler_exit_on_timeout=true", "--no-header"]
        path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, OPTIONS: json.dumps(VARIANTS[name]), RECORD: str(record), "PYTHONPATH": path}
        environment |= {SILENT: "1"} if silent else {}
        folder = self.checkout.resolve() / "tests" / "tests_pytorch"
        with record.with_suffix(".log").open("a") as log:
            subprocess.run([*command, f"@{given}"], cwd=folder, env=environment, stdout=log, stderr=log, check=False)
        return read(record)

    def differences(self, name: str, without: Outcomes, workers: int) -> list[dict[str, str | None]]:
        """Run the tests that pass ``without`` the callback with a variant; those that end otherwise, with reasons."""
        other = self.run(name, [test for test, found in without.items() if found["outcome"] == "passed"], workers)
        if again := differing(without, other):
            without, other = self.run("without", again), self.run(name, again)
        still = differing(without, other)
        silent = self.run(name, still, silent=True) if still else {}
        logged = set(still) - set(differing(without, silent))
        reasons = {test: LOGGED if test in logged else reason_of(other[test]) for test in still}
        return [{"test": test, "reason": reasons[test], "error": other[test]["error"]} for test in still]


def read(record: Path) -> Outcomes:
    """How each test ended; the last time counts."""
    lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    return {found["test"]: found for found in map(json.loads, lines)}


def differing(without: Outcomes, other: Outcomes) -> list[str]:
    """The tests that ended otherwise, of those that both runs have reached."""
    return [test for test in other if test in without and other[test]["outcome"] != without[test]["outcome"]]


def table(name: str, differences: Sequence[dict[str, str | None]], tests: int) -> str:
    """The differences of one variant, counted by their reasons, and the tests that have none."""
    kinds = Counter(each["reason"] for each in differences)
    lines = [f"{name}: {len(differences)} of {tests} tests end otherwise", "", "| reason | tests |", "|---|---|"]
    lines += [f"| {kind or 'ours, or not yet known'} | {number} |" for kind, number in kinds.most_common()]
    unknown = [each for each in differences if each["reason"] is None]
    return "\n".join([*lines, "", *(f"- {each['test']}: {str(each['error']).strip()}" for each in unknown)])


def main() -> None:
    """Run everything, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("tests", nargs="*", default=ALL.split(), help="folders or files below tests/tests_pytorch")
    parser.add_argument("--records", type=Path, default=Path("lightning_suite"), help="how each test ended")
    parser.add_argument("--differences", type=Path, help="a folder, such as benchmarks/results/lightning_suite")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    given.records.mkdir(parents=True, exist_ok=True)
    suite = Suite(given.checkout, given.records)
    without = suite.run("without", given.tests, given.workers)
    passed = sum(found["outcome"] == "passed" for found in without.values())
    for name in [name for name, options in VARIANTS.items() if options is not None]:
        found = suite.differences(name, without, given.workers)
        print(table(name, found, passed), end="\n\n")
        if given.differences is not None:
            given.differences.mkdir(parents=True, exist_ok=True)
            lines = "".join(json.dumps(each) + "\n" for each in found)
            (given.differences / f"{name.replace(' ', '_')}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
