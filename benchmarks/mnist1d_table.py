"""Plain, m ⊙ w and Sign-In on MNIST-1D, each at its own best learning rate (the shape of the paper's Table 14).

Five stages, in this order; each adds to its raw results in ``benchmarks/results/mnist1d`` and skips what is there:

    python -m benchmarks.mnist1d_table select   # p, T₂ and the momentum at a rescale, on validation data
    python -m benchmarks.mnist1d_table tune     # the learning rate of every method, on validation data
    python -m benchmarks.mnist1d_table beta     # β, which the paper sets to 1, at learning rates in proportion to 1 / β
    python -m benchmarks.mnist1d_table test     # the settings of settings.json, on test data, with fresh seeds
    python -m benchmarks.mnist1d_table report   # the tables, as Markdown

``select``, ``tune`` and ``beta`` never read the test data; ``settings.json`` is written by hand from the tables of the
first two and committed before ``test`` runs. Training data is the benchmark's own (4,000 samples), test data its own
1,000 samples and 10,000 fresh ones; validation data is 5,000 samples of the same generator under another seed.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.intervals import difference, interval, shown, signed
from benchmarks.jobs import Grid, Stages
from benchmarks.stacked_training import Problem, Settings, accuracies, train
from lightning_signin.recipes.datasets import mnist1d

RESULTS = Path(__file__).parent / "results" / "mnist1d"
RATES = [round(0.3 * 1.2**k, 3) for k in range(-3, 9)]  # steps of 1.2×
TUNED = {"plain": RATES[4:11], "mw": RATES[3:10], "signin": RATES[2:9]}  # around each method's own optimum
SPARSITIES = (0.9, 0.95)
WIDTHS, EPOCHS = (40, 300, 300, 10), 60
SELECTION_SEEDS, TUNING_SEEDS, TEST_SEEDS = range(1000, 1024), range(1000, 1016), range(96)


def select_grid() -> Iterator[Settings]:
    """Schedules with the momentum kept, its treatment at some; the better ones at more rates, and at 95 %."""
    schedules = [*product((1, 3, 5, 10), (0.5, 0.75), ("keep",)), *product((3, 5), (0.5, 0.75), ("carry", "clear"))]
    for schedule, lr in product(schedules, (RATES[4], RATES[6])):
        yield Settings("signin", 0.9, lr, *schedule)
    better = [*product((1, 3, 5), (0.75,), ("keep", "carry")), (3, 0.75, "clear"), (5, 1.0, "keep"), (3, 1.0, "carry")]
    for schedule, lr in product(better, RATES[3:6]):
        yield Settings("signin", 0.9, lr, *schedule)
    at_95 = [(1, 0.75, "keep"), (3, 0.75, "carry"), (3, 0.75, "clear"), (5, 0.75, "keep"), (10, 0.75, "carry")]
    for schedule, lr in product(at_95, RATES[4:6]):
        yield Settings("signin", 0.95, lr, *schedule)


def tune_grid() -> Iterator[Settings]:
    """Every method at every learning rate; Sign-In with the chosen schedule, once there is one."""
    path = RESULTS / "settings.json"
    for method, sparsity in product(TUNED, SPARSITIES):
        if method == "signin" and not path.exists():
            continue
        schedule = json.loads(path.read_text())["schedule"] if method == "signin" else {}
        yield from (Settings(method, sparsity, lr, **schedule) for lr in TUNED[method])


def beta_grid() -> Iterator[Settings]:
    """Sign-In with other β: as a factor on the learning rate it is divided out, so its ratio to θ is what changes."""
    schedule = json.loads((RESULTS / "settings.json").read_text())["schedule"]
    rates = {0.5: RATES[2:7], 2.0: RATES[4:9], 4.0: RATES[4:9]}
    for beta, sparsity in product(rates, SPARSITIES):
        yield from (Settings("signin", sparsity, round(rate / beta, 3), **schedule, beta=beta) for rate in rates[beta])


def test_grid() -> Iterator[Settings]:
    """Every method at its best learning rate."""
    settings = json.loads((RESULTS / "settings.json").read_text())
    for method, sparsity in product(TUNED, SPARSITIES):
        schedule = settings["schedule"] if method == "signin" else {}
        yield Settings(method, sparsity, settings["lr"][f"{method} {sparsity}"], **schedule)


def run_job(job: tuple[str, Settings, list[int]]) -> dict[str, Any]:
    stage, settings, seeds = job
    training, test = mnist1d()
    net = train(settings, seeds, Problem(WIDTHS, EPOCHS, *training))
    if stage == "test":
        fresh = mnist1d(seed=44, samples=12_500)[0]
        scores = {"test": accuracies(net, *test), "fresh": accuracies(net, *fresh)}
    else:
        scores = {"validation": accuracies(net, *mnist1d(seed=43, samples=6_250)[0])}
    return {"settings": asdict(settings), "seeds": seeds, **scores}


def with_seeds(grid: Callable[[], Iterable[Settings]], seeds: Sequence[int]) -> Grid:
    """A grid of settings, each once, all with the same seeds."""
    return lambda: ((settings, seeds) for settings in dict.fromkeys(grid()))


STAGES = Stages(
    RESULTS,
    {
        "select": with_seeds(select_grid, SELECTION_SEEDS),
        "tune": with_seeds(tune_grid, TUNING_SEEDS),
        "beta": with_seeds(beta_grid, TUNING_SEEDS),
        "test": with_seeds(test_grid, TEST_SEEDS),
    },
    run_job,
    settings_of=lambda row: Settings(**row["settings"]),
)


def report_grid(stage: str) -> None:
    for settings, scores in sorted(STAGES.read(stage, "validation").items(), key=lambda item: str(item[0])):
        s = settings
        schedule = f"p={s.rescale_every} T2={s.rescale_until} {s.momentum} β={s.beta}" if s.method == "signin" else ""
        row = (s.method, s.sparsity, s.lr, schedule, len(scores), shown(interval(scores)))
        print(f"| {' | '.join(map(str, row))} |")


def report_test() -> None:
    for score in ("test", "fresh"):
        table = {(s.method, s.sparsity): (s, scores) for s, scores in STAGES.read("test", score).items()}
        print(f"\n{score} accuracy, %, mean ± 95 % interval\n")
        for sparsity in SPARSITIES:
            for method in TUNED:
                settings, scores = table[method, sparsity]
                print(f"| {sparsity} | {method} | lr {settings.lr} | {shown(interval(scores))} |")
            for better, base in (("mw", "plain"), ("signin", "plain"), ("signin", "mw")):
                a, b = (table[method, sparsity][1] for method in (better, base))
                print(f"| {sparsity} | {better} − {base}, paired | | {signed(difference(a, b))} |")


def report() -> None:
    for stage in ("select", "tune", "beta"):
        print(f"\n{stage}: validation accuracy, %\n")
        report_grid(stage)
    report_test()


if __name__ == "__main__":
    STAGES.command("mnist1d_table", report)
