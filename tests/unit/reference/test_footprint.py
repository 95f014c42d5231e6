import re
import subprocess
import sys

import pytest

from joulesweep.core.errors import UserError
from joulesweep.plan.config import Energy
from joulesweep.reference import footprint as module
from joulesweep.reference.footprint import INTENSITY_FILE, describe_factors, footprint, intensities

OWN = {"g_per_kwh": 100.0, "source": "our supplier, 2025"}


def energy(**given):
    return Energy.model_validate(given).model_dump(mode="json")


def test_nothing_asked_for_is_nothing_and_no_country_is_assumed():
    assert footprint(energy()) is None
    assert footprint(energy(pue=1.5)) is None
    only_price = footprint(energy(price_per_kwh=0.3, currency="EUR"))
    assert only_price.g_per_kwh is None and only_price.carbon_source is None
    assert only_price.co2e_g(3.6e6) is None and len(describe_factors(only_price)) == 1


def test_units_by_hand():
    found = footprint(energy(carbon=OWN, price_per_kwh=0.25, currency="EUR"))
    assert found.co2e_g(3.6e6) == pytest.approx(100)
    assert found.cost(3.6e6) == pytest.approx(0.25)
    assert found.co2e_g(36) == pytest.approx(0.001)


def test_pue_multiplies_both():
    found = footprint(energy(carbon=OWN, price_per_kwh=0.25, currency="EUR", pue=1.5))
    assert found.co2e_g(7.2e6) == pytest.approx(2 * 1.5 * 100)
    assert found.cost(7.2e6) == pytest.approx(2 * 1.5 * 0.25)


def test_missing_joules_stay_missing_and_zero_stays_zero():
    found = footprint(energy(carbon=OWN, price_per_kwh=0.25, currency="EUR"))
    assert found.co2e_g(None) is None and found.cost(None) is None
    assert found.co2e_g(0.0) == 0 and found.cost(0.0) == 0
    free = footprint(energy(carbon={"g_per_kwh": 0.0, "source": "own solar roof, 2025"}))
    assert free.co2e_g(3.6e6) == 0 and free.co2e_g(None) is None and free.cost(3.6e6) is None


def test_country_takes_its_row_and_names_year_source_and_pue():
    row = intensities()["DEU"]
    found = footprint(energy(carbon={"country": "DEU"}))
    assert found.g_per_kwh == row.g_per_kwh and found.cost(1.0) is None
    expected = f"1 kWh = {row.g_per_kwh:g} g CO2e (Germany, {row.year}; Our World in Data/Ember, CC BY 4.0) × PUE 1.0"
    assert describe_factors(found) == [expected]


def test_own_number_is_described_with_its_source_and_the_price_with_its_currency():
    found = footprint(energy(carbon=OWN, price_per_kwh=0.31234567, currency="CHF", pue=1.25))
    assert describe_factors(found) == [
        "1 kWh = 100 g CO2e (our supplier, 2025; number given in the config) × PUE 1.25",
        "1 kWh = 0.31234567 CHF (price given in the config) × PUE 1.25",
    ]


def test_unknown_country_is_one_line_with_the_nearest_name():
    with pytest.raises(UserError) as caught:
        footprint(energy(carbon={"country": "GER"}))
    line = str(caught.value)
    assert line.startswith("energy.carbon.country: unknown country 'GER'; allowed: ABW, ") and "\n" not in line
    assert "(did you mean 'PER'?); DEU is Germany; or give g_per_kwh with its source" in line


def test_table_is_sane():
    lines = [line for line in INTENSITY_FILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert lines[0] == "country,name,g_per_kwh,year"
    assert len(lines) - 1 == len(intensities()) > 200, "a country is there twice"
    assert list(intensities()) == sorted(intensities())
    assert len({row.name for row in intensities().values()}) == len(intensities())
    for code, row in intensities().items():
        assert re.fullmatch("[A-Z]{3}", code) and row.country == code and row.name
        assert 0 < row.g_per_kwh < 1500, "grams, not kilograms; 0 is what the source could not resolve"
        assert 2022 <= row.year <= 2024


def test_table_orders_grids_as_they_are_known_to_be():
    g_per_kwh = {code: intensities()[code].g_per_kwh for code in ("NOR", "FRA", "DEU", "USA", "POL", "IND")}
    assert g_per_kwh["NOR"] < g_per_kwh["FRA"] < g_per_kwh["DEU"] < g_per_kwh["USA"] < g_per_kwh["POL"]
    assert g_per_kwh["POL"] < g_per_kwh["IND"]


def test_head_of_the_table_says_whose_it_is_and_how_it_came():
    lines = INTENSITY_FILE.read_text(encoding="utf-8").splitlines()
    head = " ".join(line.removeprefix("# ") for line in lines if line.startswith("#"))
    for needed in ("Our World in Data", "Ember", "CC BY 4.0", "carbontracker==2.4.7", "2022, 2023 or 2024"):
        assert needed in head
    assert re.search(r"Retrieved \d{4}-\d{2}-\d{2}", head)
    assert all(part in head for part in re.split("[/,] ?", module.ORIGIN))


def test_needs_the_standard_library_alone_and_no_network():
    heavy = {"polars", "scipy", "torch", "yaml", "numpy", "pydantic", "socket", "urllib.request", "http.client", "ssl"}
    code = "import sys; from joulesweep.reference import footprint as f; f.intensities(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "joulesweep.reference.footprint" in loaded and not heavy & set(loaded)
