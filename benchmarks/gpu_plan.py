"""The plan of the GPU day: items in the order of their value, each with its time and its pieces.

Why so many seconds, of 540 (estimates, made without a GPU: a process needs ten until it trains, a model three to eight
to be built, captured and measured):

    a  18  one process, seven short pieces; what it leaves goes to the next ones, as always
    c 158  the certificate's 150 and its start; first, while the board is cool
    b  70  twelve processes side by side, half a minute; then fourteen that compile; beside them what d and e need
           compiled is compiled once
    d  80  start, then eight trainings: the four that the goals need are the first, and take half of it
    e 100  start 25, the compiled Trainer's the longest; then three rounds of two batch sizes and four contestants,
           three seconds each; two rounds are enough for an interval
    i  44  a run 30 (cool-down 5, idle 3, window 10), one that is killed 12
    h  24  start, then three profiles: those of the goals
    f  26  start, then three trainings
    g  20  start, then two choices
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu_common import COMPARED, SCALES
from benchmarks.gpu_contest import COMPILED
from joulesweep.axes.engine import ENGINES
from joulesweep.axes.precision import PRECISIONS

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
        compile_threads: how many threads of PyTorch's compiler a process has that begins with a piece.
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
    compile_threads: Callable[[Piece], int] = lambda piece: 8
    traced: bool = False
    module: str = "benchmarks.gpu_items"


def named(do: str, *words: Any, **entries: Any) -> Piece:  # noqa: ANN401
    """A piece: its function, its name and its entries."""
    return {"piece": " ".join(str(word) for word in words if word), "do": do, **entries}


#: The first ones tell most; what compiles gets no further in its time.
BY_WORTH = ("fp32", "bf16-mixed", *(name for name in PRECISIONS if name not in ("fp32", "bf16-mixed")))


def first_steps(accelerator: str) -> list[Piece]:
    """Item a."""
    steps = [named("losses", "step", name, model="bert", spec=_way(name, **PACKED)) for name in PRECISIONS]
    return [named("machine", "machine"), *steps]


def _way(precision: str, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - fields of a spec
    return {"precision": precision, **changes}


def conformance(accelerator: str) -> list[Piece]:
    """Item b: first what others build on, last what compiles, except what takes longest and what others need."""
    plain, compiling = ([name for name in ENGINES if ("compile" in name) is compiled] for compiled in (False, True))
    pieces = [*_losses(plain), *_dropout(plain)]
    for strategy, precision in itertools.product(("ddp", "fsdp"), ("fp32", "bf16-mixed")):
        spec = _way(precision, strategy=strategy, batching="packed")
        pieces.append(named("losses", "bert", strategy, precision, model="bert", spec=spec))
    if accelerator == "cuda":
        sizes = SCALES[accelerator].batches
        spec = _way("bf16-mixed", batch_size=sizes[1], **{**PACKED, "engine": "compile-graph"})
        pieces.append(named("warm_cache", "kernels of compile-graph", spec=spec))
        peer = {"contestant": COMPILED, "precision": "bf16-mixed", "sizes": list(sizes[:-1]), "spec": {}}
        pieces.append(named("warm_peer", "kernels of", COMPILED, **peer))
    pieces += [*_losses(compiling), *_dropout(compiling)]
    if accelerator == "cpu":
        for piece in pieces:
            if piece["spec"].get("engine") == "compile":  # a minute of compiling shows nothing of a GPU
                piece["do"] = "left_out"
    return pieces


def _losses(engines: Sequence[str]) -> list[Piece]:
    return [
        named(
            "losses", model, engine, batching, precision,
            model=model, spec=_way(precision, engine=engine, batching=batching),
        )
        for engine, precision, batching, model in itertools.product(engines, BY_WORTH, ("packed", "fixed"), COMPARED)
    ]  # fmt: skip


def _dropout(engines: Sequence[str]) -> list[Piece]:
    return [named("dropout", "dropout", engine, spec=_way("fp32", engine=engine)) for engine in engines]


def _lane(piece: Piece) -> str:
    """Small models without timing: a process for each kind of piece, model and engine; more for a compiler."""
    spec = piece["spec"]
    keys = ("engine", "strategy", *(["batching"] if "compile" in spec.get("engine", "") else []))
    return " ".join([piece["do"], piece.get("model", ""), *(spec.get(key, "") for key in keys)])


def _compile_threads(piece: Piece) -> int:
    """Compiler threads of one of many processes; more for code that other items need."""
    return 4 if piece["do"] in ("warm_cache", "warm_peer") else 1


def speeds(accelerator: str) -> list[Piece]:
    """Item d: first the goals, then what explains them, then the other precisions."""
    batches = SCALES[accelerator].batches
    if accelerator == "cpu":
        trainings = [(PACKED, "bf16-mixed", batches[0]), (PLAIN, "bf16-mixed", batches[0])]
        trainings.append((GRAPH, "bf16-mixed", batches[0]))
        return [_speed(way, precision, size) for way, precision, size in trainings]
    small, middle, large = batches
    both, compiled = {**PACKED, "engine": "compile-graph"}, {**PACKED, "engine": "compile"}
    ways = [(GRAPH, middle), (GRAPH, large), (both, middle), (both, large), (GRAPH, small), (PLAIN, middle)]
    ways += [(PLAIN, small), (both, small), (PACKED, middle), (PACKED, small)]
    trainings = [(way, "bf16-mixed", size) for way, size in ways]
    trainings += [(GRAPH, name, size) for size in (middle, small) for name in PRECISIONS if name != "bf16-mixed"]
    return [_speed(way, name, size) for way, name, size in [*trainings, (compiled, "bf16-mixed", middle)]]


def _speed(way: dict[str, Any], precision: str, size: int) -> Piece:
    words = [way["engine"], way["batching"], way["head"], precision, f"batch {size}"]
    return named("speed", *words, spec=_way(precision, batch_size=size, **way))


def contests(accelerator: str) -> list[Piece]:
    """Item e: one set of processes for both batch sizes; Lightning if there is time."""
    if accelerator == "cpu":
        names, sizes = ["ours-eager", "trainer", "trainer-plain"], list(SCALES[accelerator].batches)
        return [named("contest", "trainers", contestants=names, precision="fp32", sizes=sizes)]
    trainers, sizes = ["ours", "trainer", COMPILED, "trainer-plain"], list(SCALES[accelerator].batches[:-1])
    same = {"precision": "bf16-mixed"}
    return [
        named("contest", "trainers", contestants=trainers, sizes=sizes, **same),
        named("contest", "lightning", contestants=["ours", "lightning"], sizes=sizes[:1], needs_s=40.0, **same),
    ]


def ratios(accelerator: str) -> list[Piece]:
    """Item f: plain training, as the paper's; item d has it in bf16-mixed."""
    sizes = list(reversed(SCALES[accelerator].batches[:-1]))
    names = ("fp32", "fp16-mixed", "tf32") if accelerator == "cuda" else ("fp32", "tf32")
    return [_speed(PLAIN, name, size) for size in sizes for name in names]


def partials(accelerator: str) -> list[Piece]:
    """Item g."""
    scale = SCALES[accelerator]
    precision, rhos = ("bf16-mixed", (0.5, 0.7)) if accelerator == "cuda" else ("fp32", (0.7,))
    models = (scale.encoder, scale.decoder) if accelerator == "cuda" else (scale.encoder,)
    return [
        named("partial", model, objective, rho, model=model, objective=objective, rho=rho, precision=precision)
        for model, rho, objective in itertools.product(models, rhos, ("time", "flops"))
    ]


def profiles(accelerator: str) -> list[Piece]:
    """Item h: what explains a goal that is missed, those that are judged by one way of ours first."""
    if accelerator == "cpu":
        ways = [(PACKED, size) for size in SCALES[accelerator].batches[:1]]
    else:
        small, middle, large = SCALES[accelerator].batches
        ways = [(GRAPH, middle), (GRAPH, large), (GRAPH, small), (PLAIN, small), (PACKED, middle), (PACKED, small)]
    return [
        named(
            "profile", way["engine"], way["batching"], f"batch {size}", spec=_way("bf16-mixed", batch_size=size, **way)
        )
        for way, size in ways
    ]


def runs(accelerator: str) -> list[Piece]:
    """Item i."""
    needs_s = 10.0 if accelerator == "cuda" else 0.0
    return [named("run", "a whole run"), named("killed", "a run that is killed", needs_s=needs_s)]


PLAN = (
    Item(letter="a", about="what the machine is", seconds=18, small_s=5, pieces=first_steps),
    Item(
        letter="c",
        about="the certificate",
        seconds=158,
        small_s=6,
        pieces=lambda accelerator: [named("certify", "certificate")],
        piece_s=200.0,
    ),
    Item(
        letter="b",
        about="the CPU's losses",
        seconds=70,
        small_s=12,
        pieces=conformance,
        lane=_lane,
        compile_threads=_compile_threads,
        piece_s=120.0,
    ),
    Item(letter="d", about="speeds", seconds=80, small_s=7, pieces=speeds, traced=True),
    Item(letter="e", about="the peers", seconds=100, small_s=11, pieces=contests, traced=True, piece_s=300.0),
    Item(letter="i", about="runs by the launching parent", seconds=44, small_s=5, pieces=runs),
    Item(letter="h", about="the profiler", seconds=24, small_s=4, pieces=profiles),
    Item(letter="f", about="precisions against fp32", seconds=26, small_s=5, pieces=ratios, traced=True),
    Item(letter="g", about="partial training", seconds=20, small_s=5, pieces=partials, traced=True),
)
