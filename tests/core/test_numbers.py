"""Numbers in arguments: what is one, in which interval, and what is returned."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from lightning_signin import SignInError
from lightning_signin.core.numbers import exact, number, share, whole_number

NINE_TENTHS = [
    0.9,
    np.float64(0.9),
    np.float32(0.9),
    np.float16(0.9),
    np.array(0.9),
    torch.tensor(0.9),
    torch.tensor(0.9, dtype=torch.float64),
    torch.tensor(0.9, requires_grad=True),
    Decimal("0.9"),
    Fraction(9, 10),
]
NO_NUMBERS = [True, False, np.bool_(True), torch.tensor(True), "0.9", "1", None, [1], np.array([1]), torch.ones(1), 1j]


@pytest.mark.parametrize("value", NINE_TENTHS, ids=repr)
def test_number_is_plain_and_printed_as_it_was_written(value):
    found = number("sparsity", value, "[0, 1)")
    assert type(found) is float
    assert exact(found) == Fraction(9, 10)


def test_number_of_bfloat16_is_its_value():
    assert number("beta", torch.tensor(0.75, dtype=torch.bfloat16)) == 0.75


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor(3).short()])
def test_whole_number_is_a_plain_int(value):
    for found in (whole_number("k", value), number("k", value)):
        assert type(found) is int
        assert found == 3


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_what_is_no_number_is_refused(value):
    for allowed, words in (
        ("[0, 1)", r"a number in \[0, 1\)"),
        ("[0, inf)", "a number of at least 0"),
        ("(1, inf)", "a number above 1"),
        ("(-inf, inf)", "a finite number"),
    ):
        with pytest.raises(SignInError, match=rf"^`it` must be {words}, got .*\. Try 0\.5\.$"):
            number("it", value, allowed, "Try 0.5.")
    with pytest.raises(SignInError, match=r"^`it` must be a whole number of at least 1, got .*\.$"):
        whole_number("it", value)


@pytest.mark.parametrize("make", [float, np.float64, np.float32, torch.tensor, Decimal])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_what_is_not_finite_is_in_no_interval(make, value):
    value = make(float(value)) if make is torch.tensor else make(value)
    for allowed in ("[0, 1]", "[0, inf)", "(-inf, inf)"):
        with pytest.raises(SignInError, match=r"`it` must be (in|at least 0 and finite|a finite number)"):
            number("it", value, allowed)
    with pytest.raises(SignInError, match="`it` must be a whole number"):
        whole_number("it", value, least=None)


def test_ends_belong_to_the_interval_where_the_bracket_says_so():
    assert [share("it", value, zero=True) for value in (0, 1, 0.5)] == [0, 1, 0.5]
    for call in (
        lambda: share("it", 0),
        lambda: number("it", 1, "[0, 1)"),
        lambda: number("it", 0.0, "(0, inf)"),
        lambda: number("it", -1e-300, "[0, 1]"),
        lambda: number("it", np.nextafter(1, 2), "[0, 1]"),
    ):
        with pytest.raises(SignInError, match="`it` must be"):
            call()


def test_numbers_with_a_fraction_are_not_whole():
    for value in (2.0, np.float64(2.0), torch.tensor(2.0), 2.5, Fraction(4, 2) + Fraction(1, 2)):
        with pytest.raises(SignInError, match="`it` must be a whole number of at least 1, got"):
            whole_number("it", value)


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**64 - 1])
def test_seed_is_any_whole_number_that_torch_takes(seed):
    torch.Generator().manual_seed(whole_number("seed", seed, least=None))
    for beyond in (-(2**63) - 1, 2**64):
        with pytest.raises(SignInError, match="`seed` must be a whole number that fits into 64 bits, got"):
            whole_number("seed", beyond, least=None)
