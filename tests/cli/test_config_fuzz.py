"""Random configurations of the callback train, or are refused in words: `benchmarks/config_fuzz.py` has 600."""

import logging

import pytest

from benchmarks.config_fuzz import configuration, run_case

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.mark.parametrize("case", range(12))
def test_random_configuration_trains_or_is_refused_in_words(tmp_path, case):
    end, said = run_case(case, tmp_path)
    assert end in ("trained", "refused"), f"{configuration(case)}\n{said}"


def test_nested_object_that_cannot_be_made_is_one_line(tmp_path, monkeypatch):
    update = {"class_path": "lightning_signin.updates.RigL", "init_args": {"drop_fraction": 2.0}}
    monkeypatch.setattr("benchmarks.config_fuzz.arguments", lambda case: {"update": update})
    end, said = run_case(0, tmp_path)
    assert end == "refused"
    assert said.startswith("lightning-signin: `drop_fraction` must be ")
    assert said.count("\n") == 1
