import subprocess
import sys

import pytest

from joulesweep.reference import cpu_estimate
from joulesweep.reference.cpu_estimate import candidates, coefficients, estimate_cpu

MILAN = "AMD EPYC 7763 64-Core Processor"


def test_your_watts_come_first_and_are_of_the_whole_cpu():
    found = estimate_cpu(30, 20, MILAN, 4, {"min_w": 10, "max_w": 50})
    assert found.mid_j == pytest.approx(10 * 20 + 30 * (50 - 10) / 4)
    assert "your watts" in found.method and "Cloud Carbon" not in found.method


def test_known_generation_by_hand():
    found = estimate_cpu(30, 20, MILAN, 2, None)
    assert found.mid_j == pytest.approx(2 * 0.4556 * 20 + 30 * (1.9573 - 0.4556))
    assert found.low_j == pytest.approx(0.6 * found.mid_j) and found.high_j == pytest.approx(1.4 * found.mid_j)
    assert "EPYC 3rd Gen" in found.method
    assert found.inputs["cpu_s"] == 30 and found.inputs["num_cores"] == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("AMD EPYC 7551P 32-Core Processor", "EPYC 1st Gen"),
        ("AMD EPYC 7B12", "EPYC 2nd Gen"),
        ("AMD EPYC 7R13 Processor", "EPYC 3rd Gen"),
        ("AMD EPYC 9R14", "EPYC 4th Gen"),
        ("AMD EPYC 9654 96-Core Processor", "EPYC 4th Gen"),
        ("AMD EPYC 9755 128-Core Processor", "EPYC 5th Gen"),
        ("AMD EPYC-Rome Processor", "EPYC 2nd Gen"),
        ("Intel(R) Xeon(R) CPU E5-2680 0 @ 2.70GHz", "Sandy Bridge"),
        ("Intel(R) Xeon(R) CPU E5-2680 v2 @ 2.80GHz", "Ivy Bridge"),
        ("Intel(R) Xeon(R) CPU E3-1240 V3 @ 3.40GHz", "Haswell"),
        ("Intel(R) Xeon(R) CPU E5-2686 v4 @ 2.30GHz", "Broadwell"),
        ("Intel(R) Xeon(R) Platinum 8124M CPU @ 3.00GHz", "Skylake"),
        ("Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz", "Cascade Lake"),
        ("Intel(R) Xeon(R) E-2288G CPU @ 3.70GHz", "Coffee Lake"),
        ("Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz", "Ice Lake"),
        ("Intel(R) Xeon(R) Platinum 8488C", "Sapphire Rapids"),
        ("INTEL(R) XEON(R) PLATINUM 8581C CPU @ 2.30GHz", "Emerald Rapids"),
        ("Intel(R) Xeon(R) 6972P", "Granite Rapids"),
    ],
)
def test_generation_from_name(name, expected):
    assert [row.microarchitecture for row in candidates(name)] == [expected]


def test_unknown_generation_spans_its_family():
    rows = candidates("AMD EPYC")
    assert {row.family for row in rows} == {"EPYC"} and len(rows) == 5
    found = estimate_cpu(30, 20, "AMD EPYC", 2, None)
    each = [2 * row.min_w * 20 + 30 * (row.max_w - row.min_w) for row in rows]
    assert found.mid_j == pytest.approx(sorted(each)[2])
    assert found.low_j <= min(each) and found.high_j == pytest.approx(max(each))
    assert "unknown" in found.method


def test_strange_cpu_spans_all():
    assert candidates("Imaginary 9000") == coefficients()
    assert candidates("Intel(R) Xeon(R) CPU @ 2.20GHz") == tuple(r for r in coefficients() if r.family == "Xeon")


@pytest.mark.parametrize("name", [MILAN, "AMD EPYC", "Imaginary 9000", "Intel(R) Xeon(R) CPU @ 2.20GHz"])
@pytest.mark.parametrize("watts", [None, {"min_w": 5, "max_w": 65}])
def test_never_narrower_than_the_margin(name, watts):
    found = estimate_cpu(12, 10, name, 2, watts)
    assert 0 < found.low_j <= 0.6 * found.mid_j * (1 + 1e-12)
    assert found.high_j >= 1.4 * found.mid_j * (1 - 1e-12)


def test_source_names_project_commit_and_license():
    assert "ccf-coefficients" in cpu_estimate.source() and "Apache-2.0" in cpu_estimate.source()


def test_needs_the_standard_library_alone():
    heavy = {"polars", "scipy", "torch", "yaml", "numpy"}
    code = "import sys, joulesweep.reference.cpu_estimate; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "joulesweep.reference.cpu_estimate" in loaded and not heavy & set(loaded)
