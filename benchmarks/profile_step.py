"""Profile a training step on the CPU and compute its floor: `python -m benchmarks.profile_step`.

A step of ours as `benchmarks.peers` runs it (packed rows, masked head, fp32), first timed as it is, then under
torch.profiler, which says how its operators share the time. Their shares are scaled to the step as it is: a profiled
step takes longer, the more operators it has.

    floor = FLOPs of the useful work / the best rate of a large product here + bytes of weights, gradients and AdamW's
            state / the rate at which a large array is copied here (read and written)

Both rates are measured in the same process. Dispatch is what the operators would cost if they had nothing to compute:
their number times that of an addition of two numbers.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peer_assets import MODELS, prepare
from benchmarks.peers import CACHE, PACKED, base_spec, machine
from joulesweep.analyse import roofline
from joulesweep.core import files
from joulesweep.core.spec import from_mapping, full
from joulesweep.launch import node

#: What an operator is counted under, by the beginning of its name; the first that fits.
GROUPS = {
    "products": ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm", "mkldnn::", "_Product"),
    "attention": ("aten::_scaled_dot_product", "aten::scaled_dot_product", "aten::_softmax"),
    "optimizer": ("aten::_fused_adamw", "aten::_foreach"),
    "embedding tables and gathering": ("aten::embedding", "aten::index", "aten::gather", "aten::_index_put"),
    "loss": ("aten::_log_softmax", "aten::nll_loss", "aten::log_softmax", "aten::cross_entropy"),
    "normalisation, activations, dropout": (
        "aten::native_layer_norm", "aten::gelu", "aten::native_dropout", "aten::bernoulli", "aten::silu"
    ),
}  # fmt: skip
REST = "all other operators"


def main() -> None:
    """Profile, print the table, and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", choices=MODELS, default="tiny")
    parser.add_argument("--data", type=Path, help="VizWiz annotations; without them, the default config's data set")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--assets", type=Path, default=CACHE, help="folder of fetched models and texts")
    parser.add_argument("--json", type=Path, help="where the result goes")
    args = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in node.ALLOCATOR.items()):
        command = [sys.executable, "-m", "benchmarks.profile_step", *sys.argv[1:]]
        os.execve(sys.executable, command, node.child_environment(1, []))
    report = profiled(args)
    print(table(report))
    if args.json:
        files.write_json(args.json, report)


def profiled(args: argparse.Namespace) -> dict[str, Any]:
    """Time and profile the steps."""
    import torch

    from joulesweep.train import assembly, loop

    args.epochs, args.max_steps, args.precision, args.lr = 1, None, "fp32", None
    assets = prepare(args.model, args.data, args.assets)
    spec = from_mapping({**full(base_spec(args, assets, "cpu")), **PACKED})
    place = assembly.prepare_process(spec)
    built = assembly.assemble(spec, assets.model_folder, assets.tokens, place)
    built.core.train()
    batches = list(itertools.islice(built.batches(1), args.steps))

    def steps() -> None:
        for some, num_predicted in batches:
            loop._step(built, some, num_predicted, spec.lr)

    steps()  # kernels, caches, optimizer state
    built.open_phase("training", 1)
    step_s = statistics.median(_seconds(steps) / len(batches) for _ in range(3))
    for some, _ in batches:
        built.count(some)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        steps()
    rows = profile.key_averages()
    shares, num_operators = grouped([(row.key, row.self_cpu_time_total, row.count) for row in rows])
    rate, bandwidth = _rate(torch), _bandwidth(torch)
    useful = roofline.totals([built.phases[-1].phase(built.work, built.facts)])["useful_flops"] / len(batches)
    table_size = max(parameter.numel() for parameter in built.core.parameters())
    whole = sum(parameter.numel() for parameter in built.core.parameters())
    return {
        "machine": machine([]),
        "model": f"{args.model}: {MODELS[args.model].about}",
        "batch_size": args.batch_size,
        "step_s": step_s,
        "shares": shares,
        "num_operators": num_operators / len(batches),
        "operator_s": _seconds(lambda: _additions(torch)) / NUM_ADDITIONS,
        "largest_table_share": table_size / whole,
        "useful_flops": useful,
        "bytes_per_step": built.work.bytes_per_step,
        "flops_per_s": rate,
        "bytes_per_s": bandwidth,
        "floor_s": roofline.floor_s(useful, built.work.bytes_per_step, rate, bandwidth),
        "products": built.products,
    }


def grouped(rows: list[tuple[str, float, int]]) -> tuple[dict[str, float], int]:
    """Share of each group in the time of all operators, and their number.

    Args:
        rows: name, own time in any unit, and number of calls of each operator.
    """
    times = dict.fromkeys([*GROUPS, REST], 0.0)
    for name, taken, _ in rows:
        times[next((group for group, begins in GROUPS.items() if name.startswith(begins)), REST)] += taken
    total = sum(times.values())
    return {group: taken / total for group, taken in times.items()}, sum(count for *_, count in rows)


def _seconds(work: Callable[[], None]) -> float:
    begin_s = time.perf_counter()
    work()
    return time.perf_counter() - begin_s


NUM_ADDITIONS = 10_000


def _additions(torch: Any) -> None:  # noqa: ANN401
    ones = torch.ones(1)
    for _ in range(NUM_ADDITIONS):
        torch.add(ones, ones)


def _rate(torch: Any) -> float:  # noqa: ANN401
    """FLOP/s of a large fp32 product by the faster library, the best of five."""
    from joulesweep.nets import onednn

    size = 768
    left, right = torch.randn(size, size), torch.randn(size, size)
    ways = [lambda: torch.nn.functional.linear(left, right)]
    if onednn.available():
        ways.append(lambda: onednn.product(left, right))
    return 2 * size**3 / min(_seconds(way) for way in ways for _ in range(5))


def _bandwidth(torch: Any) -> float:  # noqa: ANN401
    """Bytes per second, read and written, of copying 256 MB, the best of five."""
    source, target = torch.ones(2**26), torch.zeros(2**26)
    return 2 * source.nbytes / min(_seconds(lambda: target.copy_(source)) for _ in range(5))


def table(report: dict[str, Any]) -> str:
    """The report as a Markdown table, with the machine and date."""
    step_s, place = report["step_s"], report["machine"]
    dispatch_s = report["num_operators"] * report["operator_s"]
    rows = [(group, share * step_s, share) for group, share in report["shares"].items()]
    rows += [
        ("a step", step_s, 1.0),
        (f"of it dispatch of {report['num_operators']:.0f} operators", dispatch_s, dispatch_s / step_s),
        ("floor: useful products", report["useful_flops"] / report["flops_per_s"], None),
        ("floor: weights, gradients, AdamW", report["bytes_per_step"] / report["bytes_per_s"], None),
        ("floor", report["floor_s"], report["floor_s"] / step_s),
    ]
    lines = [
        f"{report['model']} · fp32 · batch {report['batch_size']} · largest table: "
        f"{report['largest_table_share']:.0%} of the weights",
        "",
        "| | ms | of a step |",
        "|---|---:|---:|",
        *(
            f"| {name} | {seconds * 1e3:.2f} | {'' if share is None else f'{share:.0%}'} |"
            for name, seconds, share in rows
        ),
        "",
        f"{report['flops_per_s'] / 1e9:.0f} GFLOP/s, {report['bytes_per_s'] / 1e9:.1f} GB/s · {place['date']} · "
        f"{place['cpu']}, one thread",
        *(
            f"{row['rows']} × {row['inputs']} × {row['outputs']}, {row['num_layers']} layers: {row['library']} "
            f"({row['pytorch_s'] * 1e6:.0f} µs by PyTorch, {row['onednn_s'] * 1e6:.0f} by oneDNN)"
            for row in report["products"]["shapes"]
            if row["pytorch_s"] is not None
        ),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
