"""Engines are rows of a table; what cannot be is said before it is tried; each computes what eager computes."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny_run
import torch
from outcomes import trained
from places import ALONE
from safetensors.torch import load_file

from joulesweep.axes import engine
from joulesweep.axes.strategy import STRATEGIES, Strategy
from joulesweep.train import assembly, data, loop, memory, trainer
from joulesweep.train.trainer import InitialState, RankContext


@pytest.mark.parametrize("name", engine.ENGINES)
def test_each_engine_is_described_and_works_under_some_strategy(name):
    assert engine.ENGINES[name].about
    fixed = {"engine": name, "batching": "fixed"}
    assert any(engine.incompatible_reason(tiny_run.spec(**fixed, strategy=strategy)) is None for strategy in STRATEGIES)


def test_pytorchs_own_way_works_under_every_strategy_a_new_one_too(monkeypatch):
    row = Strategy(about="a new one", multi_device=True, multi_process=True)
    monkeypatch.setitem(STRATEGIES, "new", row)
    assert all(engine.incompatible_reason(tiny_run.spec(strategy=strategy)) is None for strategy in STRATEGIES)
    assert engine.incompatible_reason(tiny_run.spec(strategy="new", engine="compile")) == COMPILE_UNDER
    monkeypatch.setitem(STRATEGIES, "new", replace(row, compiles=True))
    assert engine.incompatible_reason(tiny_run.spec(strategy="new", engine="compile")) is None


COMPILE_UNDER = "engine compile works under strategy single and ddp only"
GRAPH_SHAPES = "engine graph needs few different shapes: batching fixed or packed"
GRAPH_STATE = "checkpoint_activations reads the random state in the step, which engine graph cannot capture"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        *[({"strategy": strategy, "devices": 2}, None) for strategy in ("dp", "ddp", "fsdp")],
        ({}, None),
        ({"checkpoint_activations": True}, None),
        ({"engine": "compile"}, None),
        ({"engine": "compile", "checkpoint_activations": True}, None),
        ({"engine": "compile", "strategy": "ddp", "devices": 2}, None),
        ({"engine": "compile", "strategy": "dp", "devices": 2}, COMPILE_UNDER),
        ({"engine": "compile", "strategy": "fsdp"}, COMPILE_UNDER),
        ({"engine": "graph", "batching": "packed"}, None),
        ({"engine": "graph", "batching": "fixed", "micro_batch_size": 4}, None),
        ({"engine": "graph", "strategy": "ddp", "batching": "fixed"}, "engine graph works under strategy single only"),
        ({"engine": "graph"}, GRAPH_SHAPES),
        ({"engine": "graph", "batching": "packed", "checkpoint_activations": True}, GRAPH_STATE),
        ({"engine": "compile-graph", "batching": "packed"}, None),
        ({"engine": "compile-graph"}, GRAPH_SHAPES.replace("graph", "compile-graph")),
        ({"engine": "compile-graph", "batching": "fixed", "strategy": "ddp", "devices": 2},
         "engine compile-graph works under strategy single only"),
        ({"engine": "compile-graph", "batching": "packed", "checkpoint_activations": True},
         GRAPH_STATE.replace("graph", "compile-graph")),
    ],
)  # fmt: skip
def test_what_means_nothing_on_any_machine_is_said(changes, reason):
    assert engine.incompatible_reason(tiny_run.spec(**changes)) == reason


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """Which compilers, headers and libraries there are."""
    there = {"g++", "gcc", "triton"}
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(engine.shutil, "which", lambda name: f"/usr/bin/{name}" if name in there else None)
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: name if name in there else None)
    monkeypatch.setattr(engine, "HEADERS", tmp_path)
    (tmp_path / "Python.h").touch()
    return there


@pytest.mark.parametrize("name", engine.ENGINES)
def test_a_gpu_and_a_compiler_are_all_that_is_needed(compiler, name):
    assert engine.unsupported_reason(name, "cuda") is None


def test_graphs_need_a_gpu(compiler):
    assert engine.unsupported_reason("graph", "cpu") == "engine graph needs an NVIDIA GPU; this run uses the CPU"
    assert engine.unsupported_reason("compile", "cpu") is None


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        ("triton", "needs Triton, which PyTorch's builds for CUDA bring; it is not installed"),
        ("gcc", "needs a C compiler for Triton; no gcc and no clang found"),
        ("g++", "needs a C++ compiler; no g++ found"),
    ],
)
@pytest.mark.parametrize("name", ["compile", "compile-graph"])
def test_compilation_for_a_gpu_needs_triton_and_what_triton_needs(compiler, monkeypatch, name, lacks, said):
    compiler.remove(lacks)
    assert engine.unsupported_reason(name, "cuda", (9, 0)) == f"engine {name} {said}"
    if lacks == "gcc":
        compiler.add("clang")
        assert engine.unsupported_reason(name, "cuda", (9, 0)) is None
        monkeypatch.setenv("CC", "icx")
        assert (
            engine.unsupported_reason(name, "cuda", (9, 0))
            == f"engine {name} needs a C compiler for Triton; no icx found"
        )
    if lacks != "g++":
        assert engine.unsupported_reason("compile", "cpu") is None
    assert engine.unsupported_reason("graph", "cuda", (9, 0)) is None


@pytest.mark.parametrize("accelerator", ["cpu", "cuda"])
def test_compilation_needs_pythons_headers(compiler, tmp_path, accelerator):
    (tmp_path / "Python.h").unlink()
    said = f"engine compile needs Python's headers; no Python.h in {tmp_path}: install them (python3-dev)"
    assert engine.unsupported_reason("compile", accelerator) == said
    assert engine.unsupported_reason("eager", accelerator) is engine.unsupported_reason("graph", "cuda") is None


def test_compilation_and_graphs_together_need_what_both_need(compiler):
    assert (
        engine.unsupported_reason("compile-graph", "cpu")
        == "engine compile-graph needs an NVIDIA GPU; this run uses the CPU"
    )
    found = "engine compile-graph needs compute capability 7.0 or newer; this GPU has 6.1"
    assert engine.unsupported_reason("compile-graph", "cuda", (6, 1)) == found


@pytest.mark.parametrize("accelerator", ["cpu", "cuda"])
def test_compilation_needs_the_compiler_that_it_will_call(compiler, monkeypatch, accelerator):
    compiler.remove("g++")
    assert engine.unsupported_reason("compile", accelerator) == "engine compile needs a C++ compiler; no g++ found"
    assert engine.unsupported_reason("eager", accelerator) is None
    monkeypatch.setenv("CXX", "clang++")
    assert engine.unsupported_reason("compile", accelerator) == "engine compile needs a C++ compiler; no clang++ found"
    compiler.add("clang++")
    assert engine.unsupported_reason("compile", accelerator) is None


class FakeGraphs:
    """CUDA as a graphed step sees it: what is done within a capture is done again by each replay."""

    def __init__(self):
        self.capturing = False
        self.warming = False
        self.pools = []
        self.modes = []
        self.replays = 0

    def patch(self, monkeypatch, step):
        """Stand in for torch.cuda; a replay calls the step on the tensors that it was captured with."""
        fake = self

        class Graph:
            def replay(self):
                fake.replays += 1
                self.loss.copy_(step(*self.captured))

            def pool(self):
                return ("pool", 1)

        @contextlib.contextmanager
        def capture(graph, pool, capture_error_mode="global"):
            fake.pools.append(pool)
            fake.modes.append(capture_error_mode)
            fake.capturing = graph
            yield
            fake.capturing = False

        @contextlib.contextmanager
        def stream(given):
            fake.warming = True
            yield
            fake.warming = False

        side = SimpleNamespace(wait_stream=lambda other: None)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", capture)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: side)
        monkeypatch.setattr(torch.cuda, "stream", stream)


@pytest.fixture
def graphed(monkeypatch):
    """A graphed step that sums its inputs, a fake of CUDA, and how the step was called."""
    fake, calls = FakeGraphs(), []

    def compute(inputs, factor):
        return sum(t.sum() for tensors in inputs for t in tensors if t is not None) * factor

    def step(inputs, factor):
        calls.append("captured" if fake.capturing else "warmed" if fake.warming else "bare")
        loss = compute(inputs, factor)
        if fake.capturing:
            fake.capturing.captured, fake.capturing.loss = (inputs, factor), loss
        return loss

    fake.patch(monkeypatch, compute)
    return engine.GraphedStep(step, torch.device("cpu")), fake, calls


def ones(*shapes, value=1.0):
    """Micro-batches of two tensors and one that is absent."""
    return [[torch.full(shape, value), None, torch.full((2,), value)] for shape in shapes]


def test_a_step_is_captured_once_per_shape_and_replayed_afterwards(graphed):
    step, fake, calls = graphed
    factor = 0.5
    assert step(ones((2, 3)), factor).item() == 0.5 * 8
    assert calls == ["warmed"] * 3 + ["captured"]
    assert step(ones((2, 3), value=7.0), factor / 2).item() == 0.25 * 7 * 8  # the new inputs and the new factor
    assert (len(calls), fake.replays) == (4, 2)
    assert len({engine.shapes(ones(*given)) for given in [((2, 3),), ((3, 2),), ((2, 3), (2, 3)), ((2, 4),)]}) == 4
    step(ones((2, 3), (2, 3)), factor)
    assert (len(calls), len(step.graphs)) == (8, 2)
    assert step(ones((2, 3), value=2.0), factor).item() == 0.5 * 2 * 8  # the first graph still is
    assert fake.pools == [None, ("pool", 1)], "graphs that never run at once share their memory"
    assert set(fake.modes) == {"thread_local"}, "what other threads do breaks no capture"


def test_a_replay_leaves_the_given_tensors_and_earlier_losses_alone(graphed):
    step, _, _ = graphed
    first, second, factor = ones((2, 3)), ones((2, 3), value=5.0), 1.0
    losses = [step(first, factor), step(second, factor), step(first, factor)]
    assert [loss.item() for loss in losses] == [8.0, 40.0, 8.0]  # not one tensor, thrice overwritten
    assert (first[0][0] == 1.0).all()
    assert (second[0][0] == 5.0).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["fp32", "fp16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("batching", ["fixed", "packed"])
@pytest.mark.parametrize("norm", [None, 0.5])
@pytest.mark.parametrize("engine_name", ["graph", "compile-graph"])
def test_a_graph_trains_as_eager_steps_do(tmp_path, engine_name, batching, precision, norm):
    assets = tiny_run.assets(tmp_path)
    changes = {"accelerator": "cuda", "batching": batching, "precision": precision, "epochs": 3, "max_grad_norm": norm}
    eager, graph = (
        trained(tiny_run.spec(**changes, engine=name), assets.model_folder, assets.tokens, tmp_path)
        for name in ("eager", engine_name)
    )
    near = 1e-4 if precision == "fp32" else 2e-2
    assert graph["losses"] == pytest.approx(eager["losses"], rel=near)
    assert graph["epochs"][-1]["validation_loss"] == pytest.approx(eager["epochs"][-1]["validation_loss"], rel=near)
    assert graph["measurement"]["num_skipped_steps"] == eager["measurement"]["num_skipped_steps"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("name", ["graph", "compile-graph"])
def test_each_replay_of_a_graph_draws_its_own_dropout_and_a_repetition_the_same(tmp_path, name):
    """A learning rate of next to nothing: the same text gives another loss by dropout alone."""
    tiny_run.model(tmp_path / "model", dropout=0.5)
    tokens = tiny_run.token_file(tmp_path / "tokens.safetensors", num_texts=20)
    spec = tiny_run.spec(accelerator="cuda", engine=name, batching="fixed", batch_size=32, epochs=6, lr=1e-12)
    first, again = (trained(spec, tmp_path / "model", tokens, tmp_path)["losses"] for _ in range(2))
    assert len(set(first)) == len(first)
    assert again == pytest.approx(first, rel=1e-5)


@pytest.fixture
def compilations(monkeypatch):
    """Compile without a compiler: the forward and backward graphs are made, and run by PyTorch. Counts them."""
    import torch._dynamo
    from torch._dynamo.backends.debugging import aot_eager

    made, compile_module = [], torch.nn.Module.compile

    def backend(graph, inputs):
        made.append(len(list(graph.graph.nodes)))
        return aot_eager(graph, inputs)

    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **given: compile_module(self, backend=backend, **given)
    )
    monkeypatch.setattr(engine, "unsupported_reason", lambda name, accelerator, capability: None)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=False, suppress_errors=False):  # a training sets them
        yield made
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize(
    "shapes",
    [
        {"batching": "packed"},
        pytest.param({"batching": "packed", "batch_size": 2}, marks=pytest.mark.long),  # some steps have one row
        {"batching": "fixed", "batch_size": 24, "max_length": 24},  # as many rows as columns, but in the last step
    ],
    ids=["packed", "one-row", "square"],
)
def test_a_compiled_training_has_the_losses_of_an_eager_one(tmp_path, monkeypatch, compilations, shapes):
    assets, step, restore, num_made = tiny_run.assets(tmp_path), loop._step, InitialState.restore, []
    monkeypatch.setattr(loop, "_step", lambda *given: (step(*given), num_made.append(len(compilations)))[0])
    monkeypatch.setattr(InitialState, "restore", lambda *given: (restore(*given), num_made.clear())[0])

    def losses(name):
        spec = tiny_run.spec(engine=name, lr=0.05, keep_model="last", **shapes)
        outcome = trained(spec, assets.model_folder, assets.tokens, tmp_path / name)
        assert outcome["measurement"]["num_compilations_in_window"] == 0
        return outcome["losses"], [row["validation_loss"] for row in outcome["epochs"]]

    eager = losses("eager")
    assert compilations == []
    num_made.clear()
    compiled = losses("compile")
    for found, expected in zip(compiled, eager, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    assert num_made[0] > 0
    assert set(num_made) == {len(compilations)}, "nothing is compiled once the warm-up is undone"
    names = [set(load_file(tmp_path / name / "model" / "model.safetensors")) for name in ("eager", "compile")]
    assert names[0] == names[1]


@pytest.mark.slow
def test_a_model_that_pytorch_gives_up_compiling_is_not_trained_as_it_is(tmp_path, compilations):
    """Steps of one row are compiled apart: with a limit of one, PyTorch would run them uncompiled, and say nothing."""
    assets = tiny_run.assets(tmp_path)
    spec = tiny_run.spec(engine="compile", batching="packed", batch_size=2)
    said = "engine compile: this model fails: FailOnRecompileLimitHit"
    with torch._dynamo.config.patch(recompile_limit=1), pytest.raises(trainer.RunEnded, match=said) as stopped:
        trained(spec, assets.model_folder, assets.tokens, tmp_path)
    assert stopped.value.outcome.status == "unsupported"
    assert compilations


@pytest.mark.slow
def test_what_is_compiled_in_the_window_is_counted(tmp_path, monkeypatch, compilations):
    monkeypatch.setattr(loop, "_meet_every_shape", lambda trainer: None)
    assets = tiny_run.assets(tmp_path)
    spec = tiny_run.spec(engine="compile", batching="packed", warmup_steps=0)
    found = trained(spec, assets.model_folder, assets.tokens, tmp_path)["measurement"]
    assert found["num_compilations_in_window"] > 0


@pytest.mark.parametrize("micro", [None, 5])
@pytest.mark.parametrize("batching", ["dynamic", "fixed", "packed"])
def test_each_shape_of_rows_is_met_once_and_no_other_step_is_laid_out(tmp_path, monkeypatch, batching, micro):
    assets, met, laid_out, collate = tiny_run.assets(tmp_path), [], [], data._collate
    spec = tiny_run.spec(epochs=3, batching=batching, batch_size=20, micro_batch_size=micro)
    built = assembly.assemble(spec, assets.model_folder, assets.tokens, ALONE)
    every = {batch.input_ids.shape for batches, _ in built._steps() for batch in batches}
    monkeypatch.setattr(data, "_collate", lambda *given: (laid_out.append(given), collate(*given))[1])
    monkeypatch.setattr(loop, "_step", lambda trainer, batches, *_: met.append([b.input_ids.shape for b in batches]))
    loop._meet_every_shape(built)
    seen = set()
    for shapes in met:
        assert not seen.issuperset(shapes), "a step without a new shape"
        seen.update(shapes)
    assert seen == every
    assert len(laid_out) == sum(map(len, met))
    assert len(met) < built.num_steps


def test_every_rank_takes_the_steps_that_another_one_needs(tmp_path, monkeypatch):
    assets, met = tiny_run.assets(tmp_path), []
    built = assembly.assemble(tiny_run.spec(batching="fixed", batch_size=20), assets.model_folder, assets.tokens, ALONE)
    needed = [bool(number == 1) for number in range(built.num_steps)]
    monkeypatch.setattr(
        RankContext, "reduced", lambda self, flags, largest: flags.maximum(torch.tensor(needed).float())
    )
    monkeypatch.setattr(loop, "_step", lambda trainer, batches, *_: met.append(len(batches[0].input_ids)))
    loop._meet_every_shape(built)
    assert met == [20, 20, 8], "the second is as the first one"


@pytest.mark.parametrize(
    ("device", "name", "expected"),
    [("cpu", "eager", False), ("cuda", "eager", True), ("cpu", "compile", True), ("cuda", "graph", True)],
)
def test_shapes_are_met_before_the_window_but_on_a_cpu_that_prepares_nothing(
    tmp_path, monkeypatch, device, name, expected
):
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **given: None)
    assets, met = tiny_run.assets(tmp_path), []
    spec = tiny_run.spec(engine=name, batching="packed", warmup_steps=0)
    built = assembly.assemble(spec, assets.model_folder, assets.tokens, ALONE)
    built.place = RankContext(device=torch.device(device), rank=0, world=1, local_rank=0)
    monkeypatch.setattr(built, "steps", built._steps)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", list)
    monkeypatch.setattr(loop, "_meet_every_shape", met.append)
    loop._warm_up(built, memory.Peaks(torch.device("cpu"), 1))
    assert met == [built] * expected


@pytest.mark.parametrize("batching", ["packed", "dynamic"])
def test_shapes_that_an_eager_training_meets_leave_nothing_behind(tmp_path, monkeypatch, batching):
    tiny_run.model(tmp_path / "model", dropout=0.3)
    tokens = tiny_run.token_file(tmp_path / "tokens.safetensors")
    spec, restore, met = tiny_run.spec(epochs=2, batching=batching), InitialState.restore, []
    plain = trained(spec, tmp_path / "model", tokens, tmp_path)["losses"]

    def meet_first(start, trainer):
        loop._meet_every_shape(trainer)
        met.append(trainer)
        restore(start, trainer)

    monkeypatch.setattr(InitialState, "restore", meet_first)
    assert trained(spec, tmp_path / "model", tokens, tmp_path)["losses"] == plain
    assert len(met) == 1


@pytest.mark.slow
@pytest.mark.parametrize("batching", ["packed", pytest.param("fixed", marks=pytest.mark.long)])
def test_a_compiled_step_is_captured_as_it_was_compiled(tmp_path, monkeypatch, compilations, batching):
    """CUDA is stood in for: what a capture would record is what the compiled module computed in it."""
    assets, seen = tiny_run.assets(tmp_path), []

    class GraphedStep:
        """Calls the step thrice when it meets a shape, as the real one does, and in place of each replay."""

        def __init__(self, step, device):
            self.step, self.met = step, set()

        def __call__(self, inputs, factor):
            for _ in range(3 if engine.shapes(inputs) not in self.met else 0):
                self.step(inputs, torch.tensor(factor))
            self.met.add(engine.shapes(inputs))
            seen.append((len(self.met), len(compilations)))
            return self.step(inputs, torch.tensor(factor))

    def losses(name):
        spec = tiny_run.spec(engine=name, batching=batching, epochs=2, lr=0.05)
        outcome = trained(spec, assets.model_folder, assets.tokens, tmp_path)
        return outcome["losses"], [row["validation_loss"] for row in outcome["epochs"]]

    eager = losses("eager")
    assert (compilations, seen) == ([], [])
    monkeypatch.setattr(engine, "GraphedStep", GraphedStep)
    for found, expected in zip(losses("compile-graph"), eager, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    assert seen[0][1] > 0, "what is captured is compiled"
    assert set(seen[-len(eager[0]) :]) == {seen[-1]}, "nothing is compiled or captured in the window"


@pytest.mark.slow
@pytest.mark.parametrize("head", ["masked", "dense"])
@pytest.mark.parametrize("batching", ["packed", "fixed"])
def test_a_captured_step_of_equal_micro_batches_has_the_losses_of_an_eager_one(tmp_path, monkeypatch, batching, head):
    """What micro-batches are filled up with, so that few graphs will do, is learned from by none."""
    assets, shapes = tiny_run.assets(tmp_path), []

    class GraphedStep:
        """Calls the step in place of each replay."""

        def __init__(self, step, device):
            self.step = step

        def __call__(self, inputs, factor):
            shapes.append([tuple(tensor.shape for tensor in tensors if tensor is not None) for tensors in inputs])
            return self.step(inputs, torch.tensor(factor))

    def outcome(name):
        spec = tiny_run.spec(
            engine=name, batching=batching, head=head, epochs=3, batch_size=20, micro_batch_size=5, lr=0.05
        )
        found = trained(spec, assets.model_folder, assets.tokens, tmp_path)
        return [*found["losses"], *(row["validation_loss"] for row in found["epochs"])]

    monkeypatch.setattr(engine, "GraphedStep", GraphedStep)
    monkeypatch.setattr(engine, "unsupported_reason", lambda name, accelerator, capability: None)
    eager = outcome("eager")
    assert shapes == []
    assert outcome("graph") == pytest.approx(eager, rel=1e-5)
    assert {len(step) for step in shapes} == {2, 4}
    if batching == "packed":
        assert {len(set(step)) for step in shapes} == {1}, "micro-batches of a step are alike"
