"""A run's power over time: joules and watts that are those of the readings, all of them kept, few written."""

from __future__ import annotations

import dataclasses
import itertools
import random
from types import SimpleNamespace

import pytest

from joulesweep.measure import meters, trace
from joulesweep.measure.devices import Board
from joulesweep.measure.meters import GPU, Traits
from joulesweep.measure.meters.rapl import Zone
from joulesweep.measure.trace import MAX_LOST, MAX_ROWS, Trace

BEGAN_S = 500.0


@pytest.fixture
def clock(monkeypatch):
    """The monotonic clock and this thread's CPU time; both stand until the test moves them."""
    clock = SimpleNamespace(now_s=BEGAN_S, cpu_s=0.0)
    fake = SimpleNamespace(monotonic=lambda: clock.now_s, thread_time=lambda: clock.cpu_s)
    monkeypatch.setattr(trace, "time", fake)
    return clock


class Sensor:
    """A board of 100 W · (index + 1), unless the test says otherwise; its counter began long ago."""

    def __init__(self, clock, board):
        self.clock, self.watts, self.silent, self.held = clock, 100.0 * (board.index + 1), False, []
        self.traits, self.failure = Traits(kind=GPU, source="NVML", power="instant"), None
        self.offset_j = 7e6

    def draw(self, watts):
        """Draw other watts from now on; the counter goes on."""
        self.offset_j += (self.watts - watts) * self.clock.now_s
        self.watts = watts

    def energy_j(self):
        return None if self.silent else self.offset_j + self.watts * self.clock.now_s

    def power_w(self):
        return None if self.silent else self.watts

    def temperature_c(self):
        return self.clock.now_s - BEGAN_S

    def sm_clock_mhz(self):
        return 1400.0

    def throttles(self):
        return self.held


@pytest.fixture
def traced(clock, monkeypatch):
    """A trace of some boards and zones."""
    monkeypatch.setattr(meters, "sensor", lambda board: Sensor(clock, board))

    def traced(num_boards=1, zones=()):
        boards = [
            Board(index=i, uuid=f"GPU-{i}", name="", memory_bytes=None, has_counter=True, mig=False)
            for i in range(num_boards)
        ]
        found = Trace(boards, zones)
        found._random = SimpleNamespace(random=lambda: 0.0)  # each reading at the begin of its tenth
        return found

    return traced


def watch(found, clock, duration_s, step_s=0.02):
    """Call `sample` as the launching parent does."""
    for i in range(round(duration_s / step_s) + 1):
        if i:
            clock.now_s += step_s
        found.sample()


def gaps(times_s):
    return [later - earlier for earlier, later in itertools.pairwise(times_s)]


@pytest.mark.parametrize("step_s", [0.001, 0.02, 0.03, 0.07])
def test_there_are_ten_readings_a_second_however_often_it_is_asked(traced, clock, step_s):
    found = traced()
    watch(found, clock, 20, step_s)
    assert len(found.times_s) == pytest.approx(200, abs=2)
    assert len(found.times_s) <= 10 * 20 + 1
    assert max(gaps(found.times_s)) < 0.1 + step_s + 1e-9


def test_each_reading_is_at_a_random_moment_of_its_tenth(traced, clock):
    found = traced()
    found._random = random.Random(1)
    watch(found, clock, 20, 0.001)
    assert len(found.times_s) == pytest.approx(200, abs=2)
    phases = sorted((at_s - BEGAN_S) % 0.1 for at_s in found.times_s[1:])
    unseen_s = max(gaps([0.0, *phases, 0.1]))
    assert unseen_s < 0.01, "a load that repeats itself ten times a second is seen at all its phases"
    assert max(gaps(found.times_s)) < 0.2 + 0.002
    clock.now_s += 0.0005
    assert found.wait_s() == pytest.approx(max(0.0, found._next_s - clock.now_s))


def test_a_reading_that_does_not_come_back_leaves_a_trace_that_holds_together(traced, clock):
    found = traced(2)
    watch(found, clock, 1)

    def broken():
        raise RuntimeError("the thread ends here")

    found.sensors["gpu:1"].power_w = broken
    clock.now_s += 1
    with pytest.raises(RuntimeError):
        found.sample()
    lengths = {len(s.energy_j) for s in found.series.values()} | {len(s.power_w) for s in found.series.values()}
    assert lengths == {len(found.times_s)} == {len(found.spent)} == {len(found.took_s)}


def test_a_counter_that_falls_was_reset_and_there_are_no_joules_over_it(traced, clock):
    found = traced()
    watch(found, clock, 5)
    found.sensors["gpu:0"].offset_j -= 7e6
    clock.now_s += 0.02
    watch(found, clock, 5)
    assert joules(found, 1.05, 4.5) == pytest.approx(345)
    assert joules(found, 5.5, 9.5) == pytest.approx(400)
    assert joules(found, 1.05, 9.5) is None
    assert found.slope_w("gpu:0", BEGAN_S + 1, BEGAN_S + 9) is None
    assert [found.was_reset("gpu:0", BEGAN_S + at_s, BEGAN_S + at_s + 1) for at_s in (3, 4.5, 6)] == [
        False,
        True,
        False,
    ]


def test_a_late_parent_does_not_catch_up(traced, clock):
    found = traced()
    watch(found, clock, 1)
    clock.now_s += 30
    num_before = len(found.times_s)
    watch(found, clock, 1)
    assert len(found.times_s) - num_before <= 12
    assert max(gaps(found.times_s)) == pytest.approx(30, abs=0.1)


def test_the_last_reading_is_taken_whatever_the_time(traced, clock):
    """The window ends less than a period before the processes do; without it, its end would have no reading after."""
    found = traced()
    watch(found, clock, 1.05)
    clock.now_s += 0.01
    found.sample()
    assert found.times_s[-1] < clock.now_s
    found.sample(last=True)
    assert found.times_s[-1] == clock.now_s
    assert found.energy_between("gpu:0", BEGAN_S + 0.5, clock.now_s - 0.001) == pytest.approx(
        100 * (1.05 + 0.01 - 0.501), abs=2
    )


def test_where_there_is_nothing_to_read_nothing_is_read(traced, clock):
    found = traced(0)
    watch(found, clock, 2)
    found.sample(last=True)
    assert (found.times_s, found.series, found.rows(BEGAN_S)) == ([], {}, [])
    assert found.cost(BEGAN_S, clock.now_s) == {"trace_cpu_s": None, "num_samples": 0}
    assert found.energy_between("gpu:0", BEGAN_S, clock.now_s) is None
    assert found.mean_power_w("gpu:0", BEGAN_S, clock.now_s) is None


def test_a_long_run_keeps_every_reading(traced, clock):
    found = traced(2)
    watch(found, clock, 500, 0.1)
    assert len(found.times_s) == pytest.approx(5000, abs=2)
    assert max(gaps(found.times_s)) < 0.2 + 1e-6
    assert (found.times_s[0], found.times_s[-1]) == (BEGAN_S, pytest.approx(clock.now_s, abs=0.11))
    assert len(found.spent) == len(found.times_s)
    for series in found.series.values():
        assert len(series.energy_j) == len(series.power_w) == len(found.times_s)


def test_the_first_seconds_of_a_day_are_as_sharp_as_those_of_a_minute(traced, clock):
    """Readings that grow sparse with the run's length would mix the idle baseline and the first epochs with others."""
    found = traced()
    board = found.sensors["gpu:0"]
    for watts_now, duration_s, step_s in ((60, 3, 0.1), (300, 4, 0.1), (200, 10, 0.1), (300, 24 * 3600, 1.0)):
        board.draw(watts_now)
        watch(found, clock, duration_s, step_s)
    end_s = clock.now_s - BEGAN_S - 1
    assert end_s > 24 * 3600
    assert joules(found, 0.35, 2.95) == pytest.approx(60 * 2.6)
    assert watts(found, 0.35, 2.85) == pytest.approx(60)
    assert joules(found, 3, 6.5) == pytest.approx(300 * 3.5, abs=1e-3)
    assert joules(found, 3, 9.5) == pytest.approx(300 * 4 + 200 * 2.5, abs=1e-3)
    assert watts(found, 7.25, 16.75) == pytest.approx(200)
    assert joules(found, 17, end_s) == pytest.approx(300 * (end_s - 17))
    assert found.cost(BEGAN_S + 3.05, BEGAN_S + 6.95)["num_samples"] == pytest.approx(39, abs=1)


@pytest.mark.parametrize(
    ("num_readings", "num_rows"),
    [
        (1, 1),
        (MAX_ROWS - 1, MAX_ROWS - 1),
        (MAX_ROWS, MAX_ROWS),
        (MAX_ROWS + 1, MAX_ROWS // 2 + 1),
        (2 * MAX_ROWS, MAX_ROWS),
        (7 * MAX_ROWS + 1, 7 * MAX_ROWS // 8 + 1),
    ],
)
def test_at_most_1200_rows_are_written_of_each_device_evenly(traced, clock, num_readings, num_rows):
    found = traced(2)
    for _ in range(num_readings):
        found.sample()
        clock.now_s += 0.1
    assert len(found.times_s) == num_readings
    rows = found.rows(BEGAN_S + 0.05)
    of_board = {device: [row for row in rows if row["device"] == device] for device in ("gpu:0", "gpu:1")}
    times_s = [row["t_s"] for row in of_board["gpu:0"]]
    assert [row["t_s"] for row in of_board["gpu:1"]] == times_s
    assert (len(times_s), times_s[0]) == (num_rows, pytest.approx(-0.05))
    if num_readings > 1:
        step_s = max(gaps(times_s))
        assert min(gaps(times_s)) == pytest.approx(step_s)
        assert times_s[-1] + step_s > 0.1 * (num_readings - 1) - 0.05, "up to the end"
        assert [row["energy_j"] for row in of_board["gpu:1"]] == pytest.approx([200 * t for t in times_s], abs=1e-3)


@pytest.mark.parametrize("duration_s", [5, 500])
def test_boards_states_are_read_once_a_second(traced, clock, duration_s):
    found = traced(2)
    found.sensors["gpu:1"].held = ["hardware thermal"]
    watch(found, clock, duration_s)
    assert len(found.states) == pytest.approx(2 * duration_s, rel=0.1, abs=2)
    assert [device for _, device, _ in found.states] == ["gpu:0", "gpu:1"] * (len(found.states) // 2)
    assert max(gaps([at_s for at_s, _, _ in found.states])) < 1.2
    at_s, device, state = found.states[3]
    assert (device, at_s) == ("gpu:1", pytest.approx(BEGAN_S + 1, abs=0.15))
    assert state.temperature_c == pytest.approx(at_s - BEGAN_S)
    assert (state.sm_clock_mhz, state.throttles) == (1400.0, ["hardware thermal"])


def test_the_cost_is_this_threads_cpu_time_within_the_window(traced, clock):
    found = traced()
    for _ in range(100):
        found.sample()
        clock.now_s += 0.1
        clock.cpu_s += 0.002
    cost = found.cost(BEGAN_S + 2.05, BEGAN_S + 8.05)
    assert cost["num_samples"] == 60
    assert cost["trace_cpu_s"] == pytest.approx(59 * 0.002)
    assert found.cost(0, 1) == {"trace_cpu_s": None, "num_samples": 0}


def filled(times_s, energy_j=None, power_w=None, device="gpu:0"):
    """A trace of one board with these readings."""
    found = Trace([], [])
    nothing = [None] * len(times_s)
    found.times_s = [BEGAN_S + at_s for at_s in times_s]
    found.series = {device: trace.Series(energy_j=list(energy_j or nothing), power_w=list(power_w or nothing))}
    return found


def joules(found, begin_s, end_s, device="gpu:0"):
    return found.energy_between(device, BEGAN_S + begin_s, BEGAN_S + end_s)


def watts(found, begin_s, end_s, device="gpu:0"):
    return found.mean_power_w(device, BEGAN_S + begin_s, BEGAN_S + end_s)


def test_joules_between_readings_are_interpolated():
    found = filled([0, 1, 2, 4], [1000, 1100, 1300, 2000])
    assert joules(found, 1, 2) == 200
    assert joules(found, 0.5, 1.25) == pytest.approx(50 + 50)
    assert joules(found, 1.1, 1.4) == pytest.approx(60)
    assert joules(found, 2, 3) == pytest.approx(350)
    assert joules(found, 0.01, 4) == pytest.approx(999)


@pytest.mark.parametrize(("begin_s", "end_s"), [(-1, 2), (1, 4.5), (-2, -1), (5, 6)])
def test_there_are_no_joules_where_there_are_no_readings_on_both_sides(begin_s, end_s):
    assert joules(filled([0, 1, 2, 4], [1000, 1100, 1300, 2000]), begin_s, end_s) is None


def test_a_reading_that_is_lacking_at_an_edge_leaves_no_joules():
    found = filled([0, 1, 2, 3, 4], [0, 100, None, 300, 400])
    assert joules(found, 0.5, 3.5) == pytest.approx(300)  # the counter knows what happened between
    assert joules(found, 0.5, 1.5) is None
    assert joules(found, 2.5, 3.5) is None
    assert joules(filled([0, 1, 2]), 0.5, 1.5) is None


def test_a_device_that_is_not_traced_has_neither_joules_nor_watts():
    found = filled([0, 1, 2], [0, 1, 2], [5, 5, 5])
    assert joules(found, 0.5, 1.5, device="gpu:1") is None
    assert watts(found, 0.5, 1.5, device="gpu:1") is None


def test_mean_power_weighs_readings_with_time():
    found = filled([0, 1, 2, 10], power_w=[100, 100, 300, 300])
    assert watts(found, 0, 10) == pytest.approx((100 + 200 + 8 * 300) / 10)
    assert watts(found, 0, 1) == 100
    assert watts(found, 1, 1) is None
    assert watts(found, 2, 10) == 300


def test_mean_power_at_the_windows_edges_is_the_nearest_reading_inside():
    found = filled([0, 1, 2, 3], power_w=[9999, 100, 200, 9999])
    assert watts(found, 0.5, 2.5) == pytest.approx((0.5 * 100 + 150 + 0.5 * 200) / 2)
    assert watts(found, 0.9, 1.9) == 100  # a single reading speaks for the whole window


def test_mean_power_of_a_constant_draw_is_exact_for_any_window(traced, clock):
    found = traced(2)
    watch(found, clock, 12, 0.037)
    for begin_s, end_s in ((0.5, 11), (3.33, 3.71), (2, 2.5)):
        assert watts(found, begin_s, end_s, "gpu:1") == pytest.approx(200)


@pytest.mark.parametrize(("begin_s", "end_s"), [(0.2, 0.8), (-5, -1), (0, 3), (1, 1), (0.5, 1.5), (2, 1)])
def test_there_are_no_watts_without_readings_or_with_one_of_few_lacking(begin_s, end_s):
    assert watts(filled([0, 1, 2, 3], power_w=[100, None, 100, 100]), begin_s, end_s) is None


@pytest.mark.parametrize("first", [0, 100, 790])
@pytest.mark.parametrize("apart", [1, 20])
def test_a_few_power_readings_may_fail(first, apart):
    """100 W rise to 300 W: what failed is filled by its neighbours in time, not left out of the mean."""
    num_readings, num_lost = 1000, round(1000 * MAX_LOST)
    powers = [100 + 200 * i / (num_readings - 1) for i in range(num_readings)]
    lost = [first + apart * i for i in range(num_lost)]
    for i in lost:
        powers[i] = None
    found = filled([i / 10 for i in range(num_readings)], power_w=powers)
    assert watts(found, 0, 99.9) == pytest.approx(200, abs=0.05)
    assert watts(found, lost[0] / 10 - 2, lost[0] / 10 + 2) is None, "one of 40 is more than a hundredth"
    powers[lost[-1] + 1] = None
    found = filled([i / 10 for i in range(num_readings)], power_w=powers)
    assert watts(found, 0, 99.9) is None, "one more than a hundredth"
    before_s, after_s = (lost[0] - 1) / 10, (lost[-1] + 2) / 10
    for begin_s, end_s in ((0, before_s), (after_s, 99.9)):
        if end_s > begin_s:
            mean_w = 100 + 200 * (begin_s + end_s) / 2 / 99.9
            assert watts(found, begin_s, end_s) == pytest.approx(mean_w), "what failed elsewhere does not matter"


def test_rows_count_from_the_windows_begin(traced, clock):
    found = traced(2)
    watch(found, clock, 1, 0.1)
    rows = found.rows(BEGAN_S + 0.25)
    assert [set(row) for row in rows] == [{"t_s", "device", "power_w", "energy_j"}] * 22
    first, second = ([row for row in rows if row["device"] == device] for device in ("gpu:0", "gpu:1"))
    assert [row["t_s"] for row in first] == pytest.approx([i / 10 - 0.25 for i in range(11)])
    assert [row["energy_j"] for row in first] == pytest.approx([10 * i - 25 for i in range(11)], abs=1e-6)
    assert [row["energy_j"] for row in second] == pytest.approx([20 * i - 50 for i in range(11)], abs=1e-6)
    assert {row["power_w"] for row in first} == {100}
    assert {row["power_w"] for row in second} == {200}


def test_rows_have_nulls_for_what_was_not_read(traced, clock):
    found = traced()
    watch(found, clock, 0.3, 0.1)
    found.sensors["gpu:0"].silent = True
    watch(found, clock, 0.3, 0.1)
    rows = found.rows(BEGAN_S + 0.15)
    assert [row["power_w"] for row in rows][-2:] == [None, None]
    assert [row["energy_j"] for row in rows][-2:] == [None, None]
    assert rows[0]["energy_j"] == pytest.approx(-15, abs=1e-6)
    assert {row["energy_j"] for row in found.rows(BEGAN_S - 1)} == {None}, "no reading before the window's begin"


RANGE_J = 260.0


@pytest.fixture
def package(tmp_path, clock):
    """A RAPL zone of 50 W that begins again at 0 every 5.2 s; called, it sets the counter to now."""
    zone = Zone(device="cpu:0", path=tmp_path, range_j=RANGE_J)

    def update(text=None):
        joules = 50 * (clock.now_s - BEGAN_S) + 200
        (tmp_path / "energy_uj").write_text(f"{round(joules % RANGE_J * 1e6)}\n" if text is None else text)

    update()
    return SimpleNamespace(zone=zone, update=update)


def watch_package(found, clock, package, num_samples):
    for _ in range(num_samples):
        package.update()
        found.sample()
        clock.now_s += 0.1


@pytest.mark.parametrize("range_j", [RANGE_J, 262143.0])
def test_a_rapl_counter_that_falls_further_than_a_wrap_can_is_reset(traced, clock, package, range_j):
    """The range that a wrap would add is more than a CPU draws in the time between two readings."""
    found = traced(0, [dataclasses.replace(package.zone, range_j=range_j)])
    watch_package(found, clock, package, 30)
    package.update("0\n")
    clock.now_s += 0.1
    found.sample()
    reset = found.was_reset("cpu:0", BEGAN_S, clock.now_s)
    assert reset is (range_j > RANGE_J), "a range of 260 J may well have passed"


def test_a_counter_that_begins_again_at_0_goes_on(traced, clock, package):
    found = traced(0, [package.zone])
    watch_package(found, clock, package, 200)  # 20 s, so that it wraps four times
    counter = found.series["cpu:0"].energy_j
    assert gaps(counter) == pytest.approx([5.0] * 199, abs=1e-5)
    assert joules(found, 1.23, 18.4, "cpu:0") == pytest.approx(50 * (18.4 - 1.23), abs=1e-4)
    rows = found.rows(BEGAN_S + 1)
    assert rows[0]["power_w"] is None, "there is no slope before the second reading"
    assert [row["power_w"] for row in rows[1:]] == pytest.approx([50.0] * 199, abs=1e-3)
    assert rows[-1]["energy_j"] == pytest.approx(50 * 18.9, abs=1e-4)
    assert watts(found, 1, 18, "cpu:0") is None, "RAPL reports no power"


def test_no_wrap_is_forgotten_in_a_long_run(traced, clock, package):
    found = traced(0, [package.zone])
    watch_package(found, clock, package, 3000)
    assert joules(found, 1, 298, "cpu:0") == pytest.approx(50 * 297, abs=1e-3)
    rows = found.rows(BEGAN_S + 1)
    assert len(rows) == 1000
    assert [row["power_w"] for row in rows[1:]] == pytest.approx([50.0] * 999, abs=1e-3)
    assert rows[-1]["energy_j"] == pytest.approx(50 * rows[-1]["t_s"], abs=1e-3)


def test_a_reading_of_rapl_that_fails_is_no_wrap(traced, clock, package):
    found = traced(0, [package.zone])
    watch_package(found, clock, package, 5)
    package.update("")
    found.sample()
    clock.now_s += 0.1
    watch_package(found, clock, package, 5)
    assert found.series["cpu:0"].energy_j[5] is None
    assert [row["power_w"] is None for row in found.rows(BEGAN_S)] == [True] + [False] * 4 + [True] * 2 + [False] * 4
    assert joules(found, 0.05, 0.95, "cpu:0") == pytest.approx(45, abs=1e-4)


def test_boards_and_zones_are_read_at_the_same_times(traced, clock, package):
    found = traced(1, [package.zone])
    watch_package(found, clock, package, 20)
    assert list(found.series) == ["gpu:0", "cpu:0"]
    assert {device for _, device, _ in found.states} == {"gpu:0"}
    rows = found.rows(BEGAN_S)
    assert [row["t_s"] for row in rows[:20]] == [row["t_s"] for row in rows[20:]]
