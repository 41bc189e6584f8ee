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
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path

import torch

from benchmarks.jobs import read_rows, run_jobs
from benchmarks.stacked_training import Problem, Settings, accuracies, train
from lightning_signin.recipes.datasets import mnist1d

RESULTS = Path(__file__).parent / "results" / "mnist1d"
RATES = [round(0.3 * 1.2**k, 3) for k in range(-3, 9)]  # steps of 1.2×
TUNED = {"plain": RATES[4:11], "mw": RATES[3:10], "signin": RATES[2:9]}  # around each method's own optimum
SPARSITIES = (0.9, 0.95)
WIDTHS, EPOCHS = (40, 300, 300, 10), 60
CHUNK = 8  # networks trained side by side
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


STAGES = {
    "select": (select_grid, SELECTION_SEEDS),
    "tune": (tune_grid, TUNING_SEEDS),
    "beta": (beta_grid, TUNING_SEEDS),
    "test": (test_grid, TEST_SEEDS),
}


def run_job(job: tuple[str, Settings, list[int]]) -> dict:
    torch.set_num_threads(1)
    stage, settings, seeds = job
    training, test = mnist1d()
    net = train(settings, seeds, Problem(WIDTHS, EPOCHS, *training))
    if stage == "test":
        fresh = mnist1d(seed=44, samples=12_500)[0]
        scores = {"test": accuracies(net, *test), "fresh": accuracies(net, *fresh)}
    else:
        scores = {"validation": accuracies(net, *mnist1d(seed=43, samples=6_250)[0])}
    return {"settings": asdict(settings), "seeds": seeds, **scores}


def run_stage(stage: str) -> None:
    grid, all_seeds = STAGES[stage]
    done = {(Settings(**row["settings"]), *row["seeds"]) for row in read(stage)}
    chunks = [list(all_seeds[i : i + CHUNK]) for i in range(0, len(all_seeds), CHUNK)]
    jobs = [(stage, settings, seeds) for seeds, settings in product(chunks, dict.fromkeys(grid()))]
    jobs = [job for job in jobs if (job[1], *job[2]) not in done]
    run_jobs(run_job, jobs, RESULTS / f"{stage}.jsonl", processes=None)


def read(stage: str) -> list[dict]:
    return read_rows(RESULTS / f"{stage}.jsonl")


def by_seed(stage: str, score: str) -> dict[Settings, dict[int, float]]:
    """The accuracy of every seed, by settings."""
    table: dict[Settings, dict[int, float]] = {}
    for row in read(stage):
        table.setdefault(Settings(**row["settings"]), {}).update(zip(row["seeds"], row[score], strict=True))
    return table


def mean_interval(values: list[float]) -> str:
    """Mean and half of its 95 % interval (normal; the samples are 24 or more)."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {1.96 * statistics.stdev(values) / len(values) ** 0.5:.2f}"


def report_grid(stage: str) -> None:
    for settings, scores in sorted(by_seed(stage, "validation").items(), key=lambda item: str(item[0])):
        s = settings
        schedule = f"p={s.rescale_every} T2={s.rescale_until} {s.momentum} β={s.beta}" if s.method == "signin" else ""
        row = (s.method, s.sparsity, s.lr, schedule, len(scores), mean_interval([*scores.values()]))
        print(f"| {' | '.join(map(str, row))} |")


def report_test() -> None:
    for score in ("test", "fresh"):
        table = {(s.method, s.sparsity): (s, scores) for s, scores in by_seed("test", score).items()}
        print(f"\n{score} accuracy, %, mean ± 95 % interval\n")
        for sparsity in SPARSITIES:
            for method in TUNED:
                settings, scores = table[method, sparsity]
                print(f"| {sparsity} | {method} | lr {settings.lr} | {mean_interval([*scores.values()])} |")
            for better, base in (("mw", "plain"), ("signin", "plain"), ("signin", "mw")):
                a, b = table[better, sparsity][1], table[base, sparsity][1]
                paired = mean_interval([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())])
                print(f"| {sparsity} | {better} − {base}, paired | | {paired} |")


if __name__ == "__main__":
    stage = sys.argv[1] if len(sys.argv) == 2 else ""
    RESULTS.mkdir(parents=True, exist_ok=True)
    if stage == "report":
        for name in ("select", "tune", "beta"):
            print(f"\n{name}: validation accuracy, %\n")
            report_grid(name)
        if read("test"):
            report_test()
    elif stage in STAGES:
        run_stage(stage)
    else:
        sys.exit(f"usage: python -m benchmarks.mnist1d_table {'|'.join([*STAGES, 'report'])}")
