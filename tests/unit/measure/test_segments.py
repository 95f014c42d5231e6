"""Several attempts at a training are one measurement: sums of seconds and joules, the worst status, every doubt."""

from __future__ import annotations

from dataclasses import replace

import pytest
import synthetic
from outcomes import epoch, rank

from joulesweep.core.outcome import Conditions, DeviceEnergy, EpochEnergy, Flag, Overhead, Segment, WholeRunEnergy
from joulesweep.measure import measurement, segments

CONDITIONS = Conditions(
    boards=[], cooldown_s=None, settled=None, idle_s=0.0, exclusive="gpu", window_begin="a", window_end="b"
)


def row(joules, device="gpu:0", num_passes=1, **changes):
    given = {"energy_j": joules and joules / num_passes, "total_energy_j": joules, "error_j": 1.0, **changes}
    return DeviceEnergy(**{**synthetic.energy_row(device, joules or 0.0), **given})


def lacking(status, reason):
    return row(None, status=status, reason=reason, method=None, error_j=None)


def segment(*rows, window_s=10.0, first=1, last=5, flags=(), whole_run_j=100.0):
    overhead = Overhead(
        meter_s=0.1,
        trace_cpu_s=0.2,
        num_samples=3,
        whole_run_s=20.0,
        whole_run_energy=[WholeRunEnergy(device="gpu:0", energy_j=whole_run_j, reason=None)],
    )
    return Segment(
        attempt=f"attempt {first}",
        hostname="here",
        first_step=first,
        last_step=last,
        window_s=window_s,
        cpu_s=7.0,
        took_s=30.0,
        energy=list(rows),
        flags=list(flags),
        conditions=CONDITIONS,
        overhead=overhead,
    )


def test_joules_errors_and_seconds_of_attempts_add_up():
    parts = [
        segment(row(1000.0, error_j=3.0, mean_power_w=100.0, idle_w=10.0, net_energy_j=900.0), window_s=10.0),
        segment(row(6000.0, error_j=4.0, mean_power_w=200.0, idle_w=20.0, net_energy_j=5400.0), window_s=30.0),
    ]
    (total,) = segments.energies(parts, num_passes=2)
    assert (total.total_energy_j, total.energy_j, total.error_j, total.net_energy_j) == (7000.0, 3500.0, 3.5, 3150.0)
    assert (total.mean_power_w, total.idle_w) == (175.0, 17.5)  # by seconds
    assert (total.status, total.reason) == ("measured", None)


@pytest.mark.parametrize(
    ("status", "reason", "said"),
    [
        ("unavailable", "the counter was reset", "attempt 2: the counter was reset"),
        ("below_resolution", "too short", "attempt 2: too short"),
    ],
)
def test_a_part_without_a_number_leaves_the_sum_without_one(status, reason, said):
    (total,) = segments.energies([segment(row(5.0)), segment(lacking(status, reason)), segment(row(5.0))])
    assert (total.status, total.reason) == (status, said)
    assert {total.total_energy_j, total.energy_j, total.error_j, total.net_energy_j, total.doubt} == {None}


def test_a_device_that_an_attempt_did_not_read_has_no_sum():
    totals = segments.energies([segment(row(5.0), row(1.0, "cpu:0")), segment(row(5.0))])
    assert [(one.device, one.total_energy_j) for one in totals] == [("gpu:0", 10.0), ("cpu:0", None)]
    assert totals[1].reason == "attempt 2: it was not read"


def test_estimated_joules_are_never_added_to_read_ones():
    (total,) = segments.energies([segment(row(5.0)), segment(row(5.0, status="estimated"))])
    assert (total.status, total.total_energy_j) == ("unavailable", None)
    assert total.reason == "estimated joules add to no others"


def test_integrated_and_counted_joules_are_integrated_ones():
    (total,) = segments.energies([segment(row(5.0)), segment(row(6.0, status="integrated", method="power"))])
    assert (total.status, total.total_energy_j) == ("integrated", 11.0)
    assert "power" in total.method


def test_a_doubt_about_one_attempt_is_a_doubt_about_all():
    (total,) = segments.energies([segment(row(5.0)), segment(row(5.0, doubt="idle power is 4 × the run's"))])
    assert total.doubt == "attempt 2: idle power is 4 × the run's"


def test_rows_of_passes_become_rows_of_their_window():
    (whole,) = segments.whole([row(30.0, num_passes=3, error_j=1.0, net_energy_j=8.0)], 3)
    assert (whole.energy_j, whole.error_j, whole.net_energy_j) == (30.0, 3.0, 24.0)


def test_a_measurement_of_attempts_has_their_sums_and_lists_them():
    flag = Flag(flag="throttled", text="gpu:0: hot")
    parts = [
        segment(row(1000.0), flags=[flag, Flag(flag="short_window", text="gpu:0: 10 s")]),
        segment(row(3000.0, num_passes=2), window_s=40.0, first=6, last=8),
    ]
    result = rank(num_passes=2, total_window_s=40.0)
    alone = measurement.measured(result, parts[1].energy, [], CONDITIONS, parts[1].overhead)
    total = segments.combined(alone, parts)
    assert (total.total_window_s, total.window_s, total.cpu_s) == (50.0, 25.0, 7.0)
    assert total.energy[0].energy_j == 2000.0
    assert total.samples_per_s == pytest.approx(40 / 25)
    assert (total.overhead.whole_run_s, total.overhead.num_samples) == (40.0, 6)
    assert total.overhead.whole_run_energy[0].energy_j == 200.0
    assert [flag.flag for flag in total.flags] == ["throttled", "resumed"]  # 50 s are no short window
    assert total.flags[0].text == "attempt 1: gpu:0: hot"
    assert "preempted after step 5, and went on;" in total.flags[1].text
    assert total.segments == parts


def test_joules_by_epoch_count_from_the_begin_of_the_training():
    own = EpochEnergy(device="gpu:0", energy_j=5.0, status="measured", reason=None)
    (end,) = segments.epochs([replace(epoch(2, 30.0), energy=[own])], [segment(row(10.0)), segment(row(1.0))])
    assert (end.energy[0].energy_j, end.energy[0].status) == (16.0, "measured")
    (end,) = segments.epochs([replace(epoch(2, 30.0), energy=[own])], [segment(lacking("unavailable", "it failed"))])
    assert (end.energy[0].energy_j, end.energy[0].status) == (None, "unavailable")
    assert end.energy[0].reason == "in an earlier attempt: attempt 1: it failed"


def test_power_traces_join_at_the_ends_of_windows():
    earlier = [{"t_s": t_s, "device": "gpu:0", "power_w": 1.0, "energy_j": t_s} for t_s in (-1.0, 0.0, 9.0, 11.0)]
    later = [{"t_s": t_s, "device": "gpu:0", "power_w": 1.0, "energy_j": t_s} for t_s in (-1.0, 0.5, 2.0)]
    joined = segments.joined_power(earlier, later, 10.0, {"gpu:0": 100.0})
    assert [(one["t_s"], one["energy_j"]) for one in joined] == [
        (-1.0, -1.0), (0.0, 0.0), (9.0, 9.0), (10.5, 100.5), (12.0, 102.0),
    ]  # fmt: skip
    assert segments.joined_power([], [dict(later[1])], 10.0, {"gpu:0": None})[0]["energy_j"] is None
