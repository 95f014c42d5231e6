"""What the GPU day consists of: items in the order of their worth, each with its time and its pieces."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu_common import COMPARED, SCALES
from joulesweep.engine import ENGINES
from joulesweep.precision import PRECISIONS

BUDGET_S = 540.0  # of the plan on a GPU

PLAIN = {"engine": "eager", "batching": "dynamic", "head": "dense"}
PACKED = {"engine": "eager", "batching": "packed", "head": "masked"}
GRAPH = {**PACKED, "engine": "graph"}

Piece = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Item:
    """A row of the plan.

    Attributes:
        letter: its name.
        about: what it is.
        seconds: of a budget of `BUDGET_S`, on a GPU.
        small_s: of one of a minute, in miniature.
        pieces: what it consists of, by the accelerator.
        piece_s: a piece that takes longer hangs.
        lane: pieces with the same are carried out one after the other, others at the same time.
        traced: whether the meters are read beside it.
        module: the program that carries the pieces out.
    """

    letter: str
    about: str
    seconds: float
    small_s: float
    pieces: Callable[[str], list[Piece]]
    piece_s: float = 60.0
    lane: Callable[[Piece], str] = lambda piece: ""
    traced: bool = False
    module: str = "benchmarks.gpu_items"


def named(do: str, *words: Any, **entries: Any) -> Piece:  # noqa: ANN401
    """A piece: the function that carries it out, its name, its entries."""
    return {"piece": " ".join(str(word) for word in words if word), "do": do, **entries}


def first_steps(accelerator: str) -> list[Piece]:
    """Item a."""
    steps = [named("losses", "step", name, model="bert", spec=_way(name, **PACKED)) for name in PRECISIONS]
    return [named("machine", "machine"), *steps]


def _way(precision: str, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - fields of a spec
    return {"precision": precision, **changes}


def conformance(accelerator: str) -> list[Piece]:
    """Item b: what others are built on first, compiling last."""
    found = []
    for engine in [name for name in ENGINES if "compile" in name] if accelerator == "cuda" else []:
        spec = _way("bf16-mixed", batch_size=SCALES[accelerator].batches[1], **{**PACKED, "engine": engine})
        found.append(named("warm_cache", "kernels of", engine, spec=spec))  # at once: it takes longest
    engines = [*(name for name in ENGINES if "compile" not in name), *(name for name in ENGINES if "compile" in name)]
    for engine, batching, precision, model in itertools.product(engines, ("packed", "fixed"), PRECISIONS, COMPARED):
        spec = _way(precision, engine=engine, batching=batching)
        found.append(named("losses", model, engine, batching, precision, model=model, spec=spec))
    for strategy, precision in itertools.product(("ddp", "fsdp"), ("fp32", "bf16-mixed")):
        spec = _way(precision, strategy=strategy, batching="packed")
        found.append(named("losses", "bert", strategy, precision, model="bert", spec=spec))
    for engine in ENGINES:
        found.append(named("dropout", "dropout", engine, spec=_way("fp32", engine=engine)))
    if accelerator == "cpu":
        for piece in found:
            if piece["spec"].get("engine") == "compile":  # a minute of compiling shows nothing of a GPU
                piece["do"] = "left_out"
    return found


def _lane(piece: Piece) -> str:
    """Small models, and nothing is timed: a process for each kind of piece, model and engine; more for a compiler."""
    spec = piece["spec"]
    keys = ("engine", "strategy", *(["batching"] if "compile" in spec.get("engine", "") else []))
    return " ".join([piece["do"], piece.get("model", ""), *(spec.get(key, "") for key in keys)])


def speeds(accelerator: str) -> list[Piece]:
    """Item d: the goals first, then what explains them, then the other precisions."""
    batches = SCALES[accelerator].batches
    best = GRAPH if accelerator == "cuda" else PACKED
    others = [name for name in ENGINES if name not in ("eager", "graph")] if accelerator == "cuda" else []
    wanted = [
        *((best, "bf16-mixed", size) for size in batches),
        *((way, "bf16-mixed", size) for way in (PLAIN, PACKED) for size in batches[:2] if way != best),
        *(({**PACKED, "engine": name}, "bf16-mixed", size) for name in others for size in reversed(batches[:2])),
        *((best, name, size) for size in batches[:-1] for name in PRECISIONS if name != "bf16-mixed"),
    ]
    if accelerator == "cpu":
        wanted.append((GRAPH, "bf16-mixed", batches[0]))
    return [_speed(way, precision, size) for way, precision, size in wanted]


def _speed(way: dict[str, Any], precision: str, size: int) -> Piece:
    words = [way["engine"], way["batching"], way["head"], precision, f"batch {size}"]
    return named("speed", *words, spec=_way(precision, batch_size=size, **way))


def contests(accelerator: str) -> list[Piece]:
    """Item e."""
    small, sizes = accelerator == "cpu", SCALES[accelerator].batches[:-1]
    ours, precision = ("ours-eager", "fp32") if small else ("ours", "bf16-mixed")
    taking = [(size, [ours, "trainer", "trainer-default"]) for size in sizes]
    taking += [] if small else [(sizes[0], [ours, "lightning"])]
    return [
        named("contest", f"batch {size}", *who, contestants=who, precision=precision, spec={"batch_size": size})
        for size, who in taking
    ]


def ratios(accelerator: str) -> list[Piece]:
    """Item f: plain training, as the paper's; item d has it in bf16-mixed."""
    sizes = reversed(SCALES[accelerator].batches[:-1])
    return [_speed(PLAIN, name, size) for size in sizes for name in ("fp32", "fp16-mixed", "tf32")]


def partials(accelerator: str) -> list[Piece]:
    """Item g."""
    scale = SCALES[accelerator]
    precision, rhos = ("bf16-mixed", (0.5, 0.7)) if accelerator == "cuda" else ("fp32", (0.7,))
    return [
        named("partial", model, objective, rho, model=model, objective=objective, rho=rho, precision=precision)
        for model, objective, rho in itertools.product((scale.encoder, scale.decoder), ("time", "flops"), rhos)
    ]


def profiles(accelerator: str) -> list[Piece]:
    """Item h: what explains a goal that is missed."""
    sizes = SCALES[accelerator].batches[:2]
    both = [(GRAPH, sizes[0]), (PACKED, sizes[0]), (GRAPH, sizes[1]), (PLAIN, sizes[0]), (PACKED, sizes[1])]
    return [
        named(
            "profile", way["engine"], way["batching"], f"batch {size}", spec=_way("bf16-mixed", batch_size=size, **way)
        )
        for way, size in both
    ]


PLAN = (
    Item(letter="a", about="what the machine is", seconds=20, small_s=5, pieces=first_steps),
    Item(letter="b", about="the CPU's losses", seconds=75, small_s=12, pieces=conformance, lane=_lane, piece_s=120.0),
    Item(
        letter="c",
        about="the certificate",
        seconds=160,
        small_s=6,
        pieces=lambda accelerator: [named("certify", "certificate")],
        piece_s=200.0,
    ),
    Item(letter="d", about="speeds", seconds=85, small_s=7, pieces=speeds, traced=True),
    Item(letter="e", about="the peers", seconds=65, small_s=11, pieces=contests, traced=True, piece_s=90.0),
    Item(letter="f", about="precisions against fp32", seconds=35, small_s=5, pieces=ratios, traced=True),
    Item(letter="g", about="partial training", seconds=35, small_s=5, pieces=partials, traced=True),
    Item(letter="h", about="the profiler", seconds=22, small_s=4, pieces=profiles),
    Item(
        letter="i",
        about="runs by the launching parent",
        seconds=43,
        small_s=5,
        pieces=lambda accelerator: [named("run", "a whole run"), named("killed", "a run that is killed")],
    ),
)
