"""The paper's tables and figures at the scale of two cores: what the stored rows say, and which claims they meet."""

import json
import shutil
from dataclasses import replace
from operator import mul

import pytest
import torch
from scipy import stats

from benchmarks import intervals, mask_table, rewind_table, sign_table, update_table
from benchmarks.jobs import Stages, read_rows, run_each
from benchmarks.paper import figure1, figure4, gains, records, table1, table7, table11, table15
from lightning_signin import sparsify
from lightning_signin.metrics import SignFlips
from lightning_signin.recipes.models import MLP

READING = {"table1": table1, "table7": table7, "table11": table11}


def test_an_interval_is_that_of_the_t_test():
    values, others = [1.0, 4.0, 2.5, 3.0], [0.5, 1.0, 3.0, 2.0]
    middle, half = intervals.difference(values, others)
    limits = stats.ttest_rel(values, others).confidence_interval()
    assert (middle - half, middle + half) == pytest.approx((limits.low, limits.high))
    assert intervals.signed((-1.0, 0.5)) == "−1.00 ± 0.50"


def test_signs_that_recover_and_magnitudes_that_do_not():
    noise = (0.1, -0.1, 0.2, -0.2)
    levels = {"baseline": 80.0, "signs after 20 %": 79.4, "final magnitudes": 77.0, "random": 79.9}
    starts = {
        name: [levels.get(name, 80.0) + shift * (1 + place) for shift in noise]
        for place, name in enumerate(table1.PAPER)
    }
    found = table1.claims({"mnist1d": {"acdc": starts}})
    holds = {claim["claim"].split(": ")[1]: claim["holds"] for claim in found}
    assert holds == {
        "final signs recover the baseline": True,
        "signs after half of the run recover it": True,
        "signs after the warm-up, error ≈ 1": True,  # wholly below the baseline, but not by a point
        "final magnitudes do not recover it": True,
        "random start does not recover it": False,
        "signs say more than magnitudes": True,
    }
    assert [claim["paper"] for claim in found][:2] == ["+0.20", "+0.21"]


@pytest.mark.parametrize(
    ("gain", "holds", "shown"), [(1.0, True, "**+1.00"), (0.0, False, "(+0.00"), (-1.0, False, "**−1.00")]
)
def test_a_gain_shows_if_its_interval_is_above_zero(gain, holds, shown):
    plain = [70.0, 71.0, 72.0]
    signin = [value + gain + shift for value, shift in zip(plain, (-0.1, 0.0, 0.1), strict=True)]
    cells = [gains.cell("mnist1d", name, 0.9, plain, signin, (0.1, 0.2)) for name in ("SNIP", "FORCE")]
    paper = {"CIFAR-10": {"SNIP": {0.9: (85.82, 87.27)}}}
    [claim] = gains.claims("Table 7", cells, paper)  # the paper has no FORCE
    assert (claim["holds"], claim["paper"]) == (holds, "> 0 (+1.45)")
    assert shown in gains.markdown(cells, paper)
    assert "85.82 → 87.27 (+1.45)" in gains.markdown(cells, paper)


@pytest.mark.parametrize("name", READING)
def test_the_stored_results_are_those_of_the_stored_rows(name, tmp_path):
    script, stored = READING[name], records.read(name, quick=False)
    found = json.loads(json.dumps(script.run(quick=True)))
    assert stored["claims"] == found["claims"]
    assert script.describe(stored) == script.describe(found)
    script.draw(stored, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


@pytest.mark.parametrize("part", [sign_table, mask_table, update_table, rewind_table])
def test_rows_that_are_stored_are_not_run_again(part, tmp_path):
    stages = replace(part.STAGES, folder=tmp_path / "rows", run_job=list)  # what would run leaves no row
    shutil.copytree(part.STAGES.folder, stages.folder)
    for stage in stages.grids:
        before = stages.by_seed(stage, "seeds")
        stages.run(stage, processes=1)
        assert before
        assert stages.by_seed(stage, "seeds") == before


def test_seeds_that_have_no_row_are_run(tmp_path):
    (tmp_path / "test.jsonl").write_text('{"name": "one", "seeds": [6], "accuracies": ["stored"]}\n')
    grid = {"test": lambda: [("one", range(5, 10)), ("two", [5])]}
    stages = Stages(tmp_path, grid, names_of_seeds, lambda row: row["name"], chunk=3)
    stages.run("test", processes=1)
    assert [row["seeds"] for row in read_rows(tmp_path / "test.jsonl")] == [[6], [5, 7, 8], [5], [9]]
    assert stages.by_seed("test")["one"] == {5: "one 5", 6: "stored", 7: "one 7", 8: "one 8", 9: "one 9"}
    assert stages.read("test")["two"] == ["two 5"]


def test_each_key_is_run_with_each_seed(tmp_path):
    (tmp_path / "each.jsonl").write_text('{"key": "a", "seeds": [2], "runs": ["stored"]}\n')
    assert run_each(tmp_path / "each.jsonl", ["b", "a"], (1, 2, 3), mul) == {
        "b": ["b", "bb", "bbb"],
        "a": ["a", "stored", "aaa"],
    }


def names_of_seeds(job):
    _, name, seeds = job
    return {"name": name, "seeds": seeds, "accuracies": [f"{name} {seed}" for seed in seeds]}


def test_tuned_rates_that_are_too_high_stand_beside_the_fairer_ones():
    cells = {(c["problem"], c["method"], c["sparsity"]): c for c in table11.run(quick=True)["cells"]}
    assert cells["mnist1d", "MEST", 0.8]["learning_rates"] == (0.45, 0.45)
    assert cells["mnist1d", "MEST" + table11.TUNED, 0.8]["learning_rates"] == (0.6, 0.45)
    assert ("mnist5000", "MEST" + table11.TUNED, 0.8) not in cells
    assert cells["mnist1d", "LRR", 0.95]["plain"][0] == pytest.approx(76.03, abs=0.01)  # the last of three levels


def test_counts_of_operations_agree_only_as_rounded():
    ours = {"dense": 8.178, "sparse": 4.986, "Sign-In, compact": 4.99, "Sign-In, Appendix N": 5.01}
    found = table15.claims({"0.8": ours, "0.9": ours | {"Sign-In, Appendix N": 5.1}})
    assert [claim["holds"] for claim in found] == [True, True, True, False, False]


def test_flips_between_moments_are_those_of_the_metric():
    torch.manual_seed(0)
    net = sparsify(MLP([20, 30, 5]), sparsity=0.5)
    flips, start = SignFlips(net), figure1.effective_weights(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
    flips.update(net)
    found = figure1.flipped(start, figure1.effective_weights(net), figure1.masks(net))
    assert found == pytest.approx(100 * flips.compute()["start"])
    assert found > 10


def test_flips_count_on_the_finally_kept_weights_alone():
    before, after = {"weight": torch.tensor([1.0, 1, 0, -1])}, {"weight": torch.tensor([-1.0, 1, 1, 1])}
    kept = {"weight": torch.tensor([True, True, True, False])}
    assert figure1.flipped(before, after, kept) == pytest.approx(100 / 3)  # what was 0 then had no sign


def test_a_short_run_is_followed_from_start_to_end():
    learned, scratch = (figure1.both(True, "rigl", 0)[kind] for kind in ("learned", "scratch"))
    for run in (learned, scratch):
        assert 0 < run["start → end"] <= run["start → warm-up"] + run["warm-up → end"]
    assert scratch["no sign at the start"] == 0 < learned["no sign at the start"]
    row = figure4.followed(True, "Sign-In", 0)
    assert len(row["flips"]) == len(row["sharpness"]) == 10
    assert 0 < row["flips"][-1] <= row["flips"][1] + row["flips_since_warmup"]


def test_forms_are_compared_where_both_have_a_value():
    found = figure4.compared([1.0, None, 3.0, 4.0], [2.0, 2.0, 4.0, None])
    assert found["seeds"] == 2
    assert found["difference"] == (1.0, 0.0)
    assert figure4.compared([1.0, None], [None, 2.0])["difference"] is None
