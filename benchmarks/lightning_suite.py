"""Lightning's own tests, with and without the callback: `python -m benchmarks.lightning_suite CHECKOUT [TESTS ...]`.

CHECKOUT is a folder with Lightning's repository, at the tag that is nearest to the installed version; its tests run
against the installed package. They run without the callback, with one that masks nothing (`sparsity=0.0,
parametrization="plain"`) in every Trainer, and with one that masks half (`sparsity=0.5`). Tests that end otherwise run
once more in both ways, so that those which end now this way, now that, do not count. `benchmarks.lightning_reasons` has
the reasons for what remains.

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
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lightning_reasons import reason_of
from lightning_signin.errors import SignInError

OPTIONS, RECORD = "SIGNIN_SUITE_OPTIONS", "SIGNIN_SUITE_RECORD"  # environment variables that the plugin reads
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
    report: Any = yield  # type: ignore[misc]
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
    from lightning.pytorch import Trainer

    from lightning_signin import SignInCallback

    plain = Trainer.__init__

    @functools.wraps(plain)
    def with_callback(self: Trainer, *args: Any, callbacks: Any = None, **arguments: Any) -> None:
        given = callbacks if isinstance(callbacks, list) else [] if callbacks is None else [callbacks]
        plain(self, *args, callbacks=[*given, SignInCallback(**options)], **arguments)

    Trainer.__init__ = with_callback  # type: ignore[method-assign]


def _own_words(error: BaseException) -> str:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, SignInError):
            return str(seen)
        seen = seen.__cause__ or seen.__context__
    return str(error) if SignInError.__name__ in str(error) else ""  # of another process


def run(checkout: Path, tests: Sequence[str], record: Path, options: dict[str, Any] | None, workers: int) -> Outcomes:
    """Run tests of a checkout, and return how each ended.

    Args:
        checkout: The folder of the repository.
        tests: Folders, files or tests below ``tests/tests_pytorch``.
        record: The file that is written; an earlier one is continued.
        options: The arguments of the callback, or None for none.
        workers: Number of processes.
    """
    folder = checkout.resolve() / "tests" / "tests_pytorch"
    command = [sys.executable, "-m", "pytest", "-p", "benchmarks.lightning_suite", "-q", "-n", str(workers)]
    command += ["-o", "faulthandler_timeout=120", "-o", "faulthandler_exit_on_timeout=true", "--no-header", *tests]
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, OPTIONS: json.dumps(options), RECORD: str(record.resolve()), "PYTHONPATH": path}
    with record.with_suffix(".log").open("a") as log:
        subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=False)
    return read(record)


def read(record: Path) -> Outcomes:
    """How each test ended; the last time counts."""
    lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    return {found["test"]: found for found in map(json.loads, lines)}


def differing(without: Outcomes, other: Outcomes) -> list[str]:
    """The tests that ended otherwise, of those that both runs have reached."""
    return [test for test in other if test in without and other[test]["outcome"] != without[test]["outcome"]]


def table(name: str, without: Outcomes, other: Outcomes) -> str:
    """The differences of one variant, counted by their reasons, and the tests that have none."""
    different = differing(without, other)
    kinds = Counter(reason_of(other[test]) for test in different)
    lines = [f"{name}: {len(different)} of {len(other)} tests end otherwise", "", "| reason | tests |", "|---|---|"]
    lines += [f"| {kind or 'ours, or not yet known'} | {number} |" for kind, number in kinds.most_common()]
    unknown = [test for test in different if reason_of(other[test]) is None]
    return "\n".join([*lines, "", *(f"- {test}: {other[test]['error'].strip()}" for test in unknown)])


def main() -> None:
    """Run everything, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("tests", nargs="*", default=ALL.split(), help="folders or files below tests/tests_pytorch")
    parser.add_argument("--records", type=Path, default=Path("lightning_suite"), help="how each test ended")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    given.records.mkdir(parents=True, exist_ok=True)
    files = {name: given.records / f"{name.replace(' ', '_')}.jsonl" for name in VARIANTS}
    found = {n: run(given.checkout, given.tests, files[n], options, given.workers) for n, options in VARIANTS.items()}
    without = found.pop("without")
    for name, other in found.items():
        again = [test.removeprefix("tests/tests_pytorch/") for test in differing(without, other)]
        if again:
            without = run(given.checkout, again, files["without"], None, 1)
            other = run(given.checkout, again, files[name], VARIANTS[name], 1)
        print(table(name, without, other), end="\n\n")


if __name__ == "__main__":
    main()
