"""Convert joules to CO2 equivalents and cost: the factors, their sources, and sentences that name them.

    g CO2e = kWh · PUE · g_per_kwh      cost = kWh · PUE · price_per_kwh      1 kWh = 3,600,000 J

A country's factor is read from `resources/carbon_intensity.csv`, never from the network, and no country is assumed.
Standard library only: the config is checked with this when the Snakefile is parsed.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from joulesweep.core import errors
from joulesweep.core.errors import UserError, one_of
from joulesweep.core.places import RESOURCES

INTENSITY_FILE = RESOURCES / "carbon_intensity.csv"
#: Source of the numbers in that file; its head has the full reference.
ORIGIN = "Our World in Data/Ember, CC BY 4.0"
J_PER_KWH = 3_600_000.0


@dataclass(frozen=True)
class Intensity:
    """A country (ISO 3166-1 alpha-3) and the grams of CO2 equivalent per kWh generated there in a year."""

    country: str
    name: str
    g_per_kwh: float
    year: int


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """The factors of a sweep; None for those that the config does not ask for.

    Attributes:
        g_per_kwh: grams of CO2 equivalent per kilowatt-hour.
        carbon_source: source of that factor, with its year.
        price_per_kwh: price of a kilowatt-hour, in `currency`.
        currency: ISO 4217 code.
        pue: power usage effectiveness of the building; multiplies both.
    """

    g_per_kwh: float | None
    carbon_source: str | None
    price_per_kwh: float | None
    currency: str | None
    pue: float

    def co2e_g(self, energy_j: float | None) -> float | None:
        """Grams of CO2 equivalent of these joules; None if the joules or the factor is missing."""
        return self._times(self.g_per_kwh, energy_j)

    def cost(self, energy_j: float | None) -> float | None:
        """Price of these joules, in `currency`; None if the joules or the price is missing."""
        return self._times(self.price_per_kwh, energy_j)

    def _times(self, per_kwh: float | None, energy_j: float | None) -> float | None:
        return None if per_kwh is None or energy_j is None else energy_j / J_PER_KWH * self.pue * per_kwh


@functools.cache
def intensities() -> dict[str, Intensity]:
    """The rows of `resources/carbon_intensity.csv`, by country code."""
    lines = INTENSITY_FILE.read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    countries = [Intensity(row["country"], row["name"], float(row["g_per_kwh"]), int(row["year"])) for row in rows]
    return {row.country: row for row in countries}


def nearest(text: str) -> Intensity | None:
    """The country that a text means most likely: its name, or a code with a mistake; None if none is like it."""
    by_word = {word: row for row in intensities().values() for word in (row.name, row.country)}
    word = errors.nearest(text, by_word)
    return by_word[word] if word else None


def footprint(energy: Mapping[str, Any]) -> Footprint | None:
    """The factors that the section `energy` of a config (as JSON) asks for; None if it asks for neither.

    Raises:
        UserError: no factor is known for the country.
    """
    if energy["carbon"] is None and energy["price_per_kwh"] is None:
        return None
    g_per_kwh, source = (None, None) if energy["carbon"] is None else _factor(energy["carbon"])
    return Footprint(
        g_per_kwh=g_per_kwh,
        carbon_source=source,
        price_per_kwh=energy["price_per_kwh"],
        currency=energy["currency"],
        pue=energy["pue"],
    )


def describe_factors(factors: Footprint) -> list[str]:
    """One sentence per factor, with its number, unit, source and PUE."""
    pue = f"× PUE {float(factors.pue)}"
    sentences = []
    if factors.g_per_kwh is not None:
        sentences.append(f"1 kWh = {factors.g_per_kwh:.10g} g CO2e ({factors.carbon_source}) {pue}")
    if factors.price_per_kwh is not None:
        sentences.append(f"1 kWh = {factors.price_per_kwh:.10g} {factors.currency} (price given in the config) {pue}")
    return sentences


def _factor(carbon: Mapping[str, Any]) -> tuple[float, str]:
    """Grams of CO2 equivalent per kWh, and the source of the number."""
    code = carbon["country"]
    if code is None:
        return carbon["g_per_kwh"], f"{carbon['source']}; number given in the config"
    if code not in intensities():
        problem = one_of("country", code, intensities())
        # GER is a likely mistake, and its nearest code is Peru's
        named = [f"{row.country} is {row.name}" for row in intensities().values() if row.name.upper().startswith(code)]
        raise UserError("; ".join([f"energy.carbon.country: {problem}", *named, "or give g_per_kwh with its source"]))
    intensity = intensities()[code]
    return intensity.g_per_kwh, f"{intensity.name}, {intensity.year}; {ORIGIN}"
