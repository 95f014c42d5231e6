import os
import sys
import time

import pytest
from fake_meters import Boards, rapl_tree

from benchmarks import trackers
from benchmarks.trackers import ESTIMATED, MEASURED, NOTHING, Told


def watched(seconds):
    """What plain readings say of some sleep."""
    told = Told()
    with trackers.plain(told):
        began = time.monotonic()
        time.sleep(seconds)
        told.window_s = time.monotonic() - began
    return told


def test_plain_readings_are_the_true_joules_of_boards_and_counters(tmp_path, monkeypatch):
    boards = Boards(tmp_path, [{"watts": 310, "tick_ms": 1}, {"watts": 170, "tick_ms": 1}])
    boards.install(monkeypatch)
    monkeypatch.setattr(trackers, "RAPL", tmp_path / "powercap")
    with rapl_tree(tmp_path / "powercap", [{"name": "package-0", "watts": 60.0, "dram_watts": 8.0}]) as rapl:
        told = watched(0.5)
        slack_s = 0.1 + rapl.lag_s  # between the readings and the clock
    assert told.kinds == {"gpu": MEASURED, "cpu": MEASURED, "ram": MEASURED}
    for part, watts in (("gpu", 480.0), ("cpu", 60.0), ("ram", 8.0)):
        assert watts * (0.5 - slack_s) <= told.joules[part] <= watts * (told.window_s + slack_s)
    assert told.total_j == pytest.approx(sum(told.joules.values()))


def test_without_a_meter_plain_readings_are_nothing_and_not_zero(tmp_path, monkeypatch):
    Boards(tmp_path, []).install(monkeypatch)
    monkeypatch.setattr(trackers, "RAPL", tmp_path / "none")
    told = watched(0.0)
    assert set(told.kinds.values()) == {NOTHING} and told.total_j is None and None in told.joules.values()


def test_the_table_says_what_each_number_is_beside_the_truth():
    kinds = {"gpu": MEASURED, "cpu": ESTIMATED, "ram": NOTHING}
    told = Told(joules={"gpu": 480.0, "cpu": 30.0, "ram": None}, kinds=kinds, total_j=510.0, window_s=1.0)
    told.beside_cpu_s, told.says = 2.5, "guessed"
    lines = trackers.table([("bare", Told(beside_cpu_s=1.0)), ("Zeus", told)], fake=True)
    assert "480 measured | 30 estimated | nothing | 510 | guessed | 1.5 |" in lines[-2]
    assert lines[-1] == "| … the truth | | 480 | 60 | 8 | 548 | | | |"


def test_without_a_bare_run_no_overhead_is_claimed():
    told = Told(joules=dict.fromkeys(("gpu", "cpu", "ram")), window_s=1.0, beside_cpu_s=2.5)
    assert trackers.table([("Zeus", told)], fake=False)[-1].endswith(
        "| nothing | nothing | nothing | – |  | – | 0.0, 0.0 |"
    )


def test_zeus_reports_no_total_where_it_read_nothing(tmp_path, monkeypatch):
    Boards(tmp_path, []).install(monkeypatch)
    told = Told()
    with trackers.zeus(told):
        pass
    assert told.total_j is None and set(told.kinds.values()) == {NOTHING}


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("raise ModuleNotFoundError(\"No module named 'codecarbon'\")", "No module named 'codecarbon'"),
        ("import time; time.sleep(60)", "it had not ended 1 s after the burn"),
        ("import os; os._exit(3)", "it ended with 3"),
    ],
    ids=["raises", "hangs", "ends"],
)
def test_a_tracker_that_fails_has_a_row_and_the_table_goes_on(tmp_path, monkeypatch, script, why):
    monkeypatch.setattr(trackers, "PATIENCE_S", 1.0)
    told = trackers._under("codecarbon", 0.0, tmp_path, lambda argv: [sys.executable, "-c", script], dict(os.environ))
    lines = trackers.table([("codecarbon", told), ("Zeus", Told())], fake=False)
    assert "| failed: " in lines[-2] and why in lines[-2] and lines[-1].startswith("| Zeus")
