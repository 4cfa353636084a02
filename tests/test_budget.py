"""Budgets: what a text asks for, and what is refused."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effnet.budget import Budget


@pytest.mark.parametrize(
    ("text", "value", "relative", "of"),
    [
        ("2x", 2, True, "macs"),
        ("0.5x", 0.5, True, "macs"),
        (".5X", 0.5, True, "macs"),
        ("400M", 4e8, False, "macs"),
        ("1.2G", 1.2e9, False, "macs"),
        ("1.2G macs", 1.2e9, False, "macs"),
        ("5.3M params", 5.3e6, False, "params"),
        ("2x acts", 2, True, "acts"),
        ("8GiB", 8 * 2**30, False, "memory"),
        ("500MB@16", 5e8, False, "memory"),
        ("1.5x memory@64/bf16", 1.5, True, "memory"),
    ],
)
def test_parse(text: str, value: float, relative: bool, of: str) -> None:
    budget = Budget.parse(text)
    assert (budget.value, budget.relative, budget.of) == (pytest.approx(value), relative, of)
    assert Budget.parse(str(budget)) == budget


@given(st.floats(1e3, 1e15), st.sampled_from(["macs", "params", "acts", "memory"]), st.booleans())
def test_targets_print_back(value: float, of: str, relative: bool) -> None:
    budget = Budget(float(f"{value / 1e12 if relative else value:.9g}"), relative, of=of)  # type: ignore[arg-type]
    if not relative or budget.value >= 0.01:
        again = Budget.parse(str(budget))
        assert again == dataclasses.replace(budget, value=again.value)
        assert again.value == pytest.approx(budget.value, rel=1e-11)
    assert str(Budget.parse("1000MiB")) == "1000MiB@32/fp32"
    assert str(Budget.parse("385.814752M")) == "385.814752M"


def test_measures_that_are_none() -> None:
    for wrong in (
        {"of": "flops"},
        {"of": "memory", "batch": 0},
        {"of": "memory", "precision": "fp64"},
    ):
        with pytest.raises(
            ValueError,
            match="of macs, params, acts, memory, latency; a batch of at least 1, a precision",
        ):
            Budget(2.0, True, **wrong)


@pytest.mark.parametrize(
    ("value", "tolerance"), [(0.0, 0.02), (-1.0, 0.02), (math.nan, 0.02), (2.0, -0.1), (2.0, 1.0)]
)
def test_budgets_that_are_none(value: float, tolerance: float) -> None:
    with pytest.raises(ValueError, match="a finite number above 0, and a tolerance"):
        Budget(value, True, tolerance)


def test_parse_batch_and_precision() -> None:
    budget = Budget.parse("16GiB@128/bf16")
    assert (budget.batch, budget.precision, str(budget)) == (128, "bf16", "16GiB@128/bf16")
    assert (Budget.parse("1GB").batch, Budget.parse("1GB").precision) == (32, "fp32")


@pytest.mark.parametrize(
    "text",
    [
        "abc",
        "-2x",
        "0x",
        "nan",
        "1e99x",
        "",
        "x",
        "2",
        "2xx",
        "infx",
        "0M",
        "9999999999G",
        "2x@3",
        "5MB params",
        "5M memory",
        "5M params@3",
        "2x flops",
        "1GB@0",
        "1GB/fp64",
    ],
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="budget .*(such as 2x or 0.5x|a batch of at least 1)"):
        Budget.parse(text)
