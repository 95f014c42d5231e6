"""Numbers read well, and what is not there is a word."""

from __future__ import annotations

import pytest

from joulesweep.core import quantities
from joulesweep.report import numbers


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.01234, "s", "0.0123 s"),
        (9.9, "s", "9.90 s"),
        (90, "s", "90.0 s"),
        (600, "s", "10.0 min"),
        (7200, "s", "2.00 h"),
        (999, "J", "999 J"),
        (123456, "J", "123 kJ"),
        (3 * 2**30, "B", "3.00 GiB"),
        (12345, "", "12,345"),
        (0.042, "g", "42.0 mg"),
        (4.2, "g", "4.20 g"),
        (0.0000042, "g", "4.20 µg"),
        (4200, "g", "4.20 kg"),
        (0.0000321, "EUR", "0.0000321 EUR"),
        (0.0, "g", "0.00 g"),
        (-1234.0, "J", "-1.23 kJ"),
    ],
)
def test_numbers_read_well(value, unit, expected):
    assert quantities.one(value, unit) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], None), ([None], None), ([35.0, None, 61.0], "35.0 to 61.0 °C"), ([35.0, 35.0], "35.0 °C")],
)
def test_a_span_is_of_what_is_known(values, expected):
    assert quantities.span(values, "°C") == expected


def test_a_share_is_told_in_percent():
    row = {"mfu_mean": 0.125, "mfu_low": 0.1, "mfu_high": 0.15}
    assert numbers.percent(row, "mfu") == ("12.5 %", "[10.0, 15.0]")
    assert numbers.percent({"mfu_mean": None, "mfu_low": None, "mfu_high": None}, "mfu") == ("–", "")
    assert numbers.percent({"mfu_mean": 0.0, "mfu_low": None, "mfu_high": None}, "mfu") == (
        "0.00 %",
        "n=1, no interval",
    )


def a_cell(**changes):
    ends = {f"energy_j_{end}": None for end in ("mean", "low", "high")}
    return {
        **ends,
        "num_ok": 3,
        "energy_scope": None,
        "energy_status": "unavailable",
        "energy_doubt": None,
        "energy_error_j": None,
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"energy_j_mean": 10.0, "energy_j_low": 9.0, "energy_j_high": 11.0}, ("10.0 J", "[9.00, 11.0]")),
        ({"energy_j_mean": 10.0}, ("10.0 J", "n=1, no interval")),
        ({"energy_j_mean": 10.0, "energy_doubt": "gpu:0: reset"}, ("10.0 J", "doubtful, n=1, no interval")),
        ({"energy_j_mean": 0.0, "energy_error_j": 0.1}, ("0.00 J", "n=1, no interval")),
        ({}, ("not measured", "")),
        ({"energy_status": "below_resolution"}, ("below resolution", "")),
        ({"energy_status": "unavailable, below_resolution"}, ("below resolution", "")),
        ({"num_ok": 0, "energy_status": None}, ("–", "")),
        ({"energy_scope": "gpu", "energy_status": "measured, integrated"}, ("not averaged", "measured, integrated")),
        ({"energy_scope": "gpu, gpu+cpu", "energy_status": "measured"}, ("not averaged", "scopes gpu, gpu+cpu")),
    ],
)
def test_joules_or_what_is_instead_of_them(changes, expected):
    assert numbers.joules(a_cell(**changes)) == expected


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(0.0047, "+0.47"), (-0.61, "−61"), (12.0, "+1,200"), (0.0994, "+9.9"), (0.0996, "+10"), (0.0, "+0"), (1e-9, "+0")],
)
def test_percent_has_two_digits_and_no_exponent(fraction, text):
    assert quantities.signed_percent(fraction) == text
    assert quantities.percent(fraction) == text[1:]
