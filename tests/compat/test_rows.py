"""Everything that a Lightning user runs: each row of the table keeps promise 1 and changes nothing else."""

import importlib.util
import re
import warnings

import pytest

from tests.compat.callback_rows import CALLBACKS
from tests.compat.module_rows import MODULES
from tests.compat.network_rows import NETWORKS
from tests.compat.optimizer_rows import OPTIMIZERS
from tests.compat.rows import Row, Watch, check_equal, check_plain, check_trained, dense, run, sparse
from tests.compat.scheduler_rows import SCHEDULERS
from tests.compat.trainer_rows import TRAINERS

ROWS = [*TRAINERS, *MODULES, *CALLBACKS, *OPTIMIZERS, *SCHEDULERS, *NETWORKS]
# What this package warns of in a fit; it stands at Lightning's lines, whose hooks call it.
OURS = re.compile(
    "could not be checked|stays? dense|not bit for bit|nearest count|would leave|in no optimizer|No gradient has"
)


def missing(row: Row) -> bool:
    return row.needs is not None and importlib.util.find_spec(row.needs) is None


each_row = pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=pytest.mark.skipif(missing(row), reason=f"needs {row.needs}"))
        for row in ROWS
    ],
)


@each_row
def test_dense_plain_run_equals_the_run_without_the_callback(row, tmp_path):
    check_equal(run(row, tmp_path / "with", dense(row)), run(row, tmp_path / "without"))


@each_row
def test_sparse_run_is_plain_from_outside(row, tmp_path):
    watch = Watch(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        done = run(row, tmp_path, sparse(row), watch)
    check_plain(row, done, watch)
    check_trained(done, watch)
    said = {str(warning.message) for warning in caught if OURS.search(str(warning.message))}
    assert [text for text in said if row.says is None or row.says not in text] == []
    assert bool(said) == (row.says is not None)


def test_names_of_rows_differ():
    assert len({row.name for row in ROWS}) == len(ROWS)
