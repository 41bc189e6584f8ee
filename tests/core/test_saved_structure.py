"""Saved values are compared with their description before they are used."""

import re

import pytest
import torch

from lightning_signin import SignInError
from lightning_signin.core.structure import (
    anything,
    both,
    check_structure,
    each,
    entries,
    number,
    of_type,
    one_of,
    optional,
    row,
    several,
    tensor,
    whole,
)


@pytest.mark.parametrize(
    ("expected", "value", "wrong"),
    [
        (entries({"a": whole()}), {"a": 1, "b": "more"}, None),
        (entries({"a": whole()}), {"b": 1}, "it has no 'a'"),
        (entries({"a": whole()}), [1], "it is list, not dict"),
        (entries({"a": entries({"b": whole()})}), {"a": {}}, "['a'] has no 'b'"),
        (entries({}, {"a": whole()}), {}, None),
        (entries({}, {"a": whole()}), {"a": 0.5}, "['a'] is 0.5, not a whole number of at least 0"),
        (whole(-1, 3), 3, None),
        (whole(-1, 3), 4, "it is 4, not a whole number of at least -1 and at most 3"),
        (whole(), True, "it is True, not a whole number of at least 0"),
        (number, float("inf"), None),
        (number, "1", "it is '1', not a number"),
        (of_type(str), None, "it is None, not str"),
        (optional(of_type(str)), None, None),
        (optional(of_type(str)), 1, "it is 1, not str"),
        (one_of("a", "b"), "c", "it is 'c', not 'a' or 'b'"),
        (one_of(2), torch.tensor([2, 2]), "it is a torch.int64 tensor of shape (2,), not 2"),
        (one_of(2), [2], "it is list, not 2"),
        (each(several(whole())), {"x.y": [0, 1], 3: (2,)}, None),
        (each(several(whole())), {"x.y": [0, -1]}, "['x.y'][1] is -1, not a whole number of at least 0"),
        (several(anything, 2), (1, "a"), None),
        (several(anything, 2), (1,), "it has 1 entries, not 2"),
        (several(anything), {}, "it is dict, not list"),
        (row(whole(), of_type(str)), [0, "a"], None),
        (row(whole(), of_type(str)), [0, 1], "[1] is 1, not str"),
        (row(whole(), of_type(str)), [], "it has 0 entries, not 2"),
        (tensor(), torch.zeros(2, dtype=torch.bfloat16), None),
        (tensor(), torch.zeros(2, dtype=torch.int8), "it is a torch.int8 tensor of shape (2,), not a floating-point"),
        (tensor(torch.uint8, (3,)), torch.zeros(3, dtype=torch.uint8), None),
        (tensor(torch.uint8, (3,)), torch.zeros(2, dtype=torch.uint8), "not a torch.uint8 tensor of shape (3,)"),
        (both(of_type(dict), entries({"a": anything})), {"a": None}, None),
        (both(of_type(list), entries({"a": anything})), 5, "it is 5, not list"),
    ],
)
def test_value_is_as_described_or_its_place_is_named(expected, value, wrong):
    if wrong is None:
        check_structure("The state", value, expected)
    else:
        with pytest.raises(SignInError, match=re.escape(wrong)) as caught:
            check_structure("The state", value, expected)
        assert str(caught.value).startswith("The state does not have the expected structure (")
        assert "the file was altered, or another version wrote it." in str(caught.value)
