"""Render a certificate as one page: verdicts first, then the charts and numbers behind them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from joulesweep.certify.appraise import RULES, told
from joulesweep.certify.readings import Block, Readings
from joulesweep.certify.replay import counted, power_of
from joulesweep.core import quantities
from joulesweep.measure.certificate import FAILS, HOLDS, HOST, NOT_TRIED
from joulesweep.report.markup import embedded_chart, filled, vega
from joulesweep.report.theme import COLOURS, INK, Chart, styled

HEIGHT = 260  # pixels of a chart, which is as wide as the page
MOST_POINTS = 700  # points of a line
NUM_BURSTS = 3
SIGNS = {HOLDS: "✓", FAILS: "✗", NOT_TRIED: "–"}
FACTS = {
    "driver": "NVIDIA driver",
    "uuid": "UUID",
    "instant": "reports instant power",
    "power_limit_mw": "power limit (mW)",
    "default_power_limit_mw": "default power limit (mW)",
    "power_limits_mw": "possible power limits (mW)",
    "persistence": "persistence mode",
    "ecc": "ECC, now and pending",
    "process_ids": "processes on it before",
    "cpu_model": "CPU",
    "cpu_cores": "hardware threads granted",
    "in_container": "in a container",
    "platform": "platform",
    "python": "Python",
}


def build(made: Mapping[str, Any], readings: Readings) -> str:
    """Render a certificate.

    Args:
        made: the certificate.
        readings: its raw readings.

    Returns:
        A self-contained HTML page.
    """
    charts = _charts(made, readings)
    reasons = {row["reason"] for row in made["promises"]}
    page = filled(
        "certificate.html.j2",
        made=made,
        name=made["identity"].get("name") or made["identity"]["cpu_model"],
        counts=[(verdict, sum(row["verdict"] == verdict for row in made["promises"])) for verdict in SIGNS],
        nothing=reasons.pop() if len(reasons) == 1 and made["promises"][0]["value"] is None else None,
        promises=[_promise(row) for row in made["promises"]],
        num_devices=len({row["device"] for row in made["promises"]}),
        windows=[_window(device, row) for device, row in reversed(_rows(made, "windows"))],
        checks=[_check(row) for _, row in _rows(made, "cross_check")],
        ticks=_ticks(made),
        rests=_rests(made),
        latency=[_latency(row) for row in made["latency"]],
        facts=_facts(made, readings),
        versions=made["identity"]["versions"],
        load=made["load"],
        blocks=[_block(row) for row in made["blocks"]],
        charts=[(name, embedded_chart(chart), notes) for name, (chart, notes) in charts.items()],
        bundle=vega() if charts else "",
    )
    return str(page)


def _rows(made: Mapping[str, Any], group: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Rows of a group of numbers, of all counters."""
    return [(device, row) for device, numbers in made["counters"].items() for row in numbers[group].get("rows", ())]


def _promise(row: Mapping[str, Any]) -> dict[str, str]:
    number, _, rest = told({**row, "reason": None}).partition(", ") if row["value"] is not None else ("–", "", "")
    return {
        "device": row["device"],
        "promise": row["promise"],
        "says": row["says"],
        "verdict": row["verdict"],
        "sign": SIGNS[row["verdict"]],
        "kind": row["verdict"].replace(" ", "-"),
        "number": number,
        "bound": rest.removeprefix("bound ") or "–",
        "reason": row["reason"] or "",
    }


def _percent(share: float | None, signed: bool = False) -> str:
    if share is None:
        return "–"
    return f"{100 * share:{'+' if signed else ''}.2g} %".replace("-", "−")


def _window(device: str, row: Mapping[str, Any]) -> dict[str, str]:
    bare, run = row["bare"], row["own"]
    return {
        "device": device,
        "window": quantities.one(row["window_s"], "s"),
        "apart": str(row["num_apart"]),
        "bias": _percent(bare["bias"], signed=True),
        "worst": _percent(bare["worst"], signed=True),
        "bound": _percent(row["bound"]),
        "own_bias": _percent(run.get("bias"), signed=True),
        "own_worst": _percent(run.get("worst"), signed=True),
        "own_bound": _percent(run["bound"]),
        "beyond": f"{run['num_beyond']} of {run['num_told']}" if run["num"] else "no joules",
    }


def _check(row: Mapping[str, Any]) -> dict[str, str]:
    shown = abs(row["ratio"] - 1) > row["error"]
    return {
        "load": row["load"],
        "power": row["power"],
        "power_w": quantities.one(row["power_w"], "W"),
        "counter_w": quantities.one(row["counter_w"], "W"),
        "ratio": f"{row['ratio']:.4f}",
        "error": f"± {row['error']:.2g}",
        "worked": "–" if row["worked"] is None else f"{100 * row['worked']:.0f} %",
        "shown": ("more" if row["ratio"] > 1 else "less") if shown else "no difference",
    }


def _ticks(made: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "device": device,
            "block": block,
            "tick": ("" if row["resolved"] else "at most ") + quantities.one(1000 * row["tick_s"], "ms"),
            "still": quantities.one(1000 * row["still_s"], "ms"),
            "long": f"{row['num_long']}, {100 * row['long_share']:.2g} % of the time" if row["num_long"] else "none",
            "step": quantities.one(row["step_j"], "J"),
            "num": str(row["num_moves"]),
            "every": quantities.one(1000 * row["read_every_s"], "ms"),
        }
        for device, numbers in made["counters"].items()
        for block in ("idle", "context", "steady")
        if (row := numbers["tick"].get(block)) and row["tick_s"]
    ]


RESTS = {
    "idle": "before the load started",
    "context": "with its context up",
    "first": "… the first 5 s of that",
    "rest": "after the load, the last 5 s",
}


def _rests(made: Mapping[str, Any]) -> list[dict[str, str]]:
    def watts(row: Mapping[str, Any], key: str) -> str:
        error_w = row[f"{key}_error_w"]
        return "–" if row[f"{key}_w"] is None else f"{row[f'{key}_w']:.1f} W" + (f" ± {error_w:.2g}" if error_w else "")

    rows = [(word, made["idle"].get(key)) for key, word in RESTS.items()]
    return [
        {
            "when": word,
            "seconds": quantities.one(row["seconds"], "s"),
            "power": watts(row, "power"),
            "by_counter": watts(row, "counter"),
        }
        for word, row in rows
        if row
    ]


def _latency(row: Mapping[str, Any]) -> dict[str, str]:
    ends = {key: quantities.one(1000 * row[f"{key}_s"], "ms") for key in ("median", "p99", "longest")}
    return {"reading": row["reading"], "block": row["block"], "num": str(row["num"]), **ends}


def _facts(made: Mapping[str, Any], readings: Readings) -> dict[str, str]:
    """The device's properties and how it was read, in words."""
    of_board = ("driver", "instant") if made["device"] == HOST else ()
    facts = {
        word: _fact(made["identity"][key]) for key, word in FACTS.items() if key in made["identity"].keys() - of_board
    }
    for kind, every_s in made["sensors"].items():
        if every_s is not None:
            facts[f"{kind} power has a new value every"] = quantities.one(1000 * every_s, "ms")
    ranges = {device["device"]: device["range_j"] for device in readings.header["devices"] if device["range_j"]}
    return facts | {
        f"{device} begins again at 0 after": quantities.one(range_j, "J") for device, range_j in ranges.items()
    }


def _fact(value: Any) -> str:  # noqa: ANN401 - a part of the identity
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)


def _block(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "block": row["block"],
        "seconds": quantities.one(row["seconds"], "s") if row["reason"] is None else "–",
        "num": f"{sum(row['num_readings'].values()):,}" if row["num_readings"] else "–",
        "failed": ", ".join(f"{name} {number:,}" for name, number in row["num_failed"].items()) or "none",
        "reason": row["reason"] or row["silent"] or "",
    }


def _charts(made: Mapping[str, Any], readings: Readings) -> dict[str, tuple[Chart, list[str]]]:
    """The charts that have data, by name, with the notes below them."""
    charts = {
        "windows": _windows(made),
        "bursts": _bursts(readings),
        "checks": _checks(made),
        **_cooling(made, readings),
    }
    return {name: chart for name, chart in charts.items() if chart is not None}


def _wide(chart: Chart, title: str, notes: list[str], height: int | alt.Step = HEIGHT) -> tuple[Chart, list[str]]:
    """A chart as wide as the page, with its notes apart: the page shows them in full."""
    fitted = chart.properties(
        width="container", height=height, autosize=alt.AutoSizeParams(type="fit-x", contains="padding")
    )
    return styled(fitted, title, []), notes


def _line(points: Sequence[tuple[float, float]], **same: str) -> list[dict[str, object]]:
    """Points of a line as rows, thinned out."""
    step = -(-len(points) // MOST_POINTS) or 1
    return [{"x": round(x, 4), "y": float(f"{y:.5g}"), **same} for x, y in itertools.islice(points, 0, None, step)]


def _colour(names: Sequence[str], title: str | None = None) -> alt.Color:
    return alt.Color("what:N").scale(domain=list(names), range=list(COLOURS[: len(names)])).title(title)


def _windows(made: Mapping[str, Any]) -> tuple[Chart, list[str]] | None:
    """Error of windows against their length, with its bounds."""
    bare, run, bound, run_bound = (
        "bare counter, worst",
        "a run's joules, worst",
        "2·tick/T + 0.2 %",
        "a run's error_j, mean",
    )
    device = made["promises"][0]["device"]
    rows = []
    for name, row in _rows(made, "windows"):
        if name != device:
            continue
        values = {
            bare: abs(row["bare"]["worst"]),
            bound: row["bound"],
            run: row["own"].get("worst"),
            run_bound: row["own"]["bound"],
        }
        rows += [
            {"x": row["window_s"], "y": 100 * max(abs(value), 1e-5), "what": what}
            for what, value in values.items()
            if value is not None
        ]
    if not rows:
        return None
    names = [bare, bound, run, run_bound]
    colours = [COLOURS[1], COLOURS[1], COLOURS[0], COLOURS[0]]
    colour = (
        alt.Color("what:N")
        .scale(domain=names, range=colours)
        .title(None)
        .legend(orient="bottom", columns=1, labelLimit=0, symbolType="stroke", symbolSize=700, symbolStrokeWidth=2)
    )
    dashes = alt.StrokeDash("what:N").scale(domain=names, range=[[1, 0], [4, 3], [1, 0], [4, 3]]).title(None)
    x = (
        alt.X("x:Q")
        .title("Length of the window (s)")
        .scale(type="log")
        .axis(values=sorted({row["x"] for row in rows}), format="~g")
    )
    y = alt.Y("y:Q").title("Error (%)").scale(type="log").axis(format="~g", tickCount=5)
    chart = alt.Chart(alt.InlineData(values=rows)).encode(x=x, y=y, color=colour)
    num = next(row["num"] for _, row in _rows(made, "windows"))
    notes = [f"{device}, one log under steady load; the worst of {num} windows of each length, at random moments."]
    drawn = alt.layer(chart.mark_line().encode(strokeDash=dashes), chart.mark_point(filled=True, size=36))
    return _wide(drawn, "Error of a window against its length", notes)


def _bursts(readings: Readings) -> tuple[Chart, list[str]] | None:
    """Joules above rest over the first bursts: by the counter, by integrated power, and when the load was on."""
    block, device = readings.blocks.get("bursts"), readings.header["devices"][0]
    log = counted(block, device)
    if block is None or log is None or log.reset or not block.spans:
        return None
    spans = block.spans[:NUM_BURSTS]
    begin_s, end_s = block.begin_s, min(block.end_s, spans[-1].ended_s + spans[0].began_s - block.begin_s)
    slope = log.slope(begin_s + (spans[0].began_s - begin_s) / 2, spans[0].began_s)
    if slope is None:
        return None
    rest_w, start_j = slope[0], log.joules[0]
    zipped = zip(log.times_s, log.joules, strict=True)
    by_counter = [(t - begin_s, j - start_j - rest_w * (t - log.times_s[0])) for t, j in zipped if t <= end_s]
    rows = _line(by_counter, what="counter")
    points = [point for point in power_of(block, readings.header).numbers() if point[0] <= end_s]
    if points:
        areas = itertools.accumulate(
            (b[0] - a[0]) * ((a[1] + b[1]) / 2 - rest_w) for a, b in itertools.pairwise(points)
        )
        rows += _line(
            [(b[0] - begin_s, area) for b, area in zip(points[1:], areas, strict=False)], what="integrated power"
        )
    names = list(dict.fromkeys(str(row["what"]) for row in rows))
    shades = [{"from": span.began_s - begin_s, "to": span.ended_s - begin_s} for span in spans]
    shade = (
        alt.Chart(alt.InlineData(values=shades)).mark_rect(color="#000000", opacity=0.06).encode(x="from:Q", x2="to:Q")
    )
    colour = _colour(names).legend(orient="bottom", labelLimit=0)
    line = alt.Chart(alt.InlineData(values=rows)).mark_line(interpolate="step-after", strokeWidth=1.6)
    line = line.encode(x=alt.X("x:Q").title("Time (s)"), y=alt.Y("y:Q").title("Joules above rest"), color=colour)
    notes = [f"{device['device']}; shaded: the load is on. A counter that lags is late at both edges."]
    title = "Counter against integrated power" if points else "The counter over load steps"
    return _wide(alt.layer(shade, line), title, notes)


def _checks(made: Mapping[str, Any]) -> tuple[Chart, list[str]] | None:
    """Power × time over the counter's joules, by load."""
    rows = [
        {
            "load": row["load"],
            "what": f"{row['power']} power",
            "y": row["ratio"],
            "low": row["ratio"] - row["error"],
            "high": row["ratio"] + row["error"],
        }
        for _, row in _rows(made, "cross_check")
    ]
    if not rows:
        return None
    names = list(dict.fromkeys(str(row["what"]) for row in rows))
    ends = [*(row["low"] for row in rows), *(row["high"] for row in rows), 0.88, 1.12]
    y = alt.Y("load:N").title(None).sort(None).axis(ticks=False, domain=False, labelPadding=6)
    x = alt.X("y:Q").title("Power × time ÷ counter").scale(domain=[min(ends), max(ends)], zero=False).axis(tickCount=6)
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        y=y,
        yOffset=alt.YOffset("what:N").scale(domain=names),
        color=_colour(names).legend(orient="bottom", labelLimit=0),
    )
    band = alt.Chart(alt.InlineData(values=[{"low": 0.9, "high": 1.1}])).mark_rect(color="#000000", opacity=0.05)
    unity = alt.Chart(alt.InlineData(values=[{}])).mark_rule(color=INK, strokeDash=[4, 3]).encode(x=alt.datum(1))
    drawn = alt.layer(
        band.encode(x=alt.X("low:Q").title("Power × time ÷ counter"), x2="high:Q"),
        unity,
        base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q").title("Power × time ÷ counter"), x2="high:Q"),
        base.mark_point(filled=True, size=60, opacity=1).encode(x=x),
    )
    notes = ["Shaded: deviations up to 10 %; beyond, a number is doubtful. Bars: error of the ratio."]
    return _wide(drawn, "Cross-check by load", notes, alt.Step(22))


def _cooling(made: Mapping[str, Any], readings: Readings) -> dict[str, tuple[Chart, list[str]]]:
    """Power and temperature after the load."""
    block, steady = readings.blocks.get("rest"), readings.blocks.get("steady")
    if block is None or steady is None or not steady.spans or block.reason is not None:
        return {}
    ended_s = steady.spans[0].ended_s
    power = [(at_s - ended_s, w) for at_s, w in _means(block, readings)]
    degrees = [(at_s - ended_s, c) for at_s, c in _numbers(block, "temperature")]
    fell_s = made["idle"].get("fell_after_s")
    fell = [] if fell_s is None else [f"Within 5 % of the power at rest after {quantities.one(fell_s, 's')}."]
    settled = [
        f"Settled by its {RULES[rule['settled_by']]} after {rule['settled_s']:.0f} s, at {rule['settled_c']:.0f} °C."
        for rule in made["settling"].get("rules", ())
        if rule["settled_s"] is not None
    ]
    plots = {
        "cooling": (power, "Power (W)", "Power after the load", COLOURS[0], fell),
        "temperature": (degrees, "Temperature (°C)", "Temperature after the load", COLOURS[1], settled),
    }
    return {
        name: _wide(_over_time(_line(points), axis, colour), title, notes, HEIGHT // 2)
        for name, (points, axis, title, colour, notes) in plots.items()
        if points
    }


def _over_time(rows: Sequence[Mapping[str, Any]], title: str, colour: str) -> Chart:
    x = alt.X("x:Q").title("Seconds since the load ended").scale(nice=False)
    y = alt.Y("y:Q").title(title).scale(zero=False, padding=8)
    line = alt.Chart(alt.InlineData(values=list(rows))).mark_line(color=colour, strokeWidth=1.6)
    return line.encode(x=x, y=y)


def _numbers(block: Block, name: str) -> list[tuple[float, float]]:
    channel = block.channels.get(name)
    return channel.numbers() if channel else []


def _means(block: Block, readings: Readings) -> list[tuple[float, float]]:
    """Mean power of each tenth of a second: from power readings, else from the counter's moves."""
    points = power_of(block, readings.header).numbers()
    if not points:
        log = counted(block, readings.header["devices"][0])
        moves = [] if log is None or log.reset else log.moves()[:: max(1, len(log.moves()) // MOST_POINTS)]
        return [(b.at_s, (b.joules - a.joules) / (b.at_s - a.at_s)) for a, b in itertools.pairwise(moves)]
    groups = itertools.groupby(points, key=lambda point: int(point[0] * 10))
    return [(tenth / 10, sum(values) / len(values)) for tenth, group in groups if (values := [w for _, w in group])]
