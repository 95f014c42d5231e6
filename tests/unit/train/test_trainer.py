"""What the loop needs is built as the spec says, or refused with a reason; the start can be come back to."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import families
import pytest
import tiny_run
import torch
import torch.distributed as dist
from places import ALONE, place_of

from joulesweep import methods
from joulesweep.axes import engine
from joulesweep.axes.strategy import Setting
from joulesweep.core.errors import UserError
from joulesweep.core.outcome import Stopped
from joulesweep.measure.devices import Board
from joulesweep.nets import onednn
from joulesweep.train import assembly, data, labels, trainer
from joulesweep.train.corpus import load, split
from joulesweep.train.kahan import KahanAdamW
from joulesweep.train.trainer import InitialState, RankContext

pytestmark = pytest.mark.usefixtures("torch_as_it_was")

CPU = torch.device("cpu")


@pytest.fixture
def assemble(assets, tmp_path):
    """Build a trainer; of another family than BERT, if one is named."""

    def assemble(place=ALONE, kind=None, **changes):
        folder = assets.model_folder
        if kind is not None:
            folder = tmp_path / kind
            tiny_run.network(kind).save_pretrained(folder)
        return assembly.assemble(tiny_run.spec(**changes), folder, assets.tokens, place)

    return assemble


def board(index, **changes):
    described = {"name": "Fake", "memory_bytes": 1, "has_counter": True, "mig": False}
    return Board(**{"index": index, "uuid": f"GPU-{index}", **described, **changes})


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs, as PyTorch says; which one was made the current one."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def environment(monkeypatch, rank, world, local_rank):
    for name, value in (("RANK", rank), ("WORLD_SIZE", world), ("LOCAL_RANK", local_rank)):
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"strategy": "dp", "devices": 2}, "dp needs at least two GPUs; this run uses the CPU"),
        ({"precision": "tf32"}, "tf32 exists on NVIDIA GPUs only; this run uses the CPU"),
        ({"accelerator": "cuda"}, "accelerator cuda: PyTorch sees no GPU here"),
        ({"engine": "graph", "batching": "fixed"}, "engine graph needs an NVIDIA GPU; this run uses the CPU"),
        ({"engine": "graph"}, "engine graph needs few different shapes: batching fixed or packed"),
        ({"engine": "compile"}, "engine compile needs a C++ compiler; no g++ found"),
    ],
)
def test_what_this_machine_cannot_run_is_unsupported_with_the_reason(monkeypatch, changes, reason):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(engine.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(trainer.RunEnded) as stopped:
        assembly.prepare_process(tiny_run.spec(**changes))
    assert stopped.value.outcome == Stopped(status="unsupported", reason=reason)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"strategy": "ddp", "devices": 3}, "ddp asks for 3 GPUs; 2 visible"),
        ({"precision": "tf32"}, "tf32 needs compute capability 8.0 or newer; this GPU has 7.5"),
    ],
)
def test_what_these_gpus_cannot_run_is_unsupported_with_the_reason(gpus, changes, reason):
    with pytest.raises(trainer.RunEnded, match=reason):
        assembly.prepare_process(tiny_run.spec(accelerator="cuda", **changes))
    assert gpus == []


def test_a_process_takes_its_threads_and_its_seed_from_the_spec():
    for repeat in (3, 4):
        found = assembly.prepare_process(tiny_run.spec(repeat=repeat, threads_per_device=repeat))
        assert (torch.get_num_threads(), torch.initial_seed()) == (repeat, repeat)
        assert found == ALONE
    assert not dist.is_initialized()


def test_a_model_is_tried_in_ieee_precision_and_attention_is_never_cudnns():
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.enable_cudnn_sdp(True)
    assert "cudnn" in assembly.attention(tiny_run.network())["kernels"]
    assembly.prepare_process(tiny_run.spec())
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)
    found = assembly.attention(tiny_run.network())
    assert found == {"implementation": "sdpa", "kernels": ["flash", "mem_efficient", "math"]}


def test_a_pytorch_without_cudnns_attention_needs_no_switch(monkeypatch):
    for name in ("enable_cudnn_sdp", "cudnn_sdp_enabled"):
        monkeypatch.delattr(torch.backends.cuda, name)
    assert assembly.prepare_process(tiny_run.spec()) == ALONE
    found = assembly.attention(torch.nn.Linear(2, 2))
    assert found == {"implementation": None, "kernels": ["flash", "mem_efficient", "math"]}


def test_some_steps_are_those_of_the_training(assemble):
    built = assemble(epochs=3, batching="packed", micro_batch_size=5)
    every = list(built._steps())
    numbers = [0, 2, 3, 5, 8]
    assert built.steps_per_epoch == 3
    for number, (batches, num_predicted) in zip(numbers, built.some_steps(numbers), strict=True):
        expected, same = every[number]
        assert num_predicted == same
        for one, other in zip(batches, expected, strict=True):
            assert all(a is b is None or torch.equal(a, b) for a, b in zip(one.tensors, other.tensors, strict=True))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_single_rank_needs_no_torchrun_for_its_group(strategy):
    assert assembly.prepare_process(tiny_run.spec(strategy=strategy)) == ALONE
    assert (dist.get_world_size(), dist.get_backend()) == (1, "gloo")
    assert assembly.prepare_process(tiny_run.spec(strategy=strategy)) == ALONE  # the group is there: no second one


@pytest.mark.parametrize(
    ("accelerator", "device", "given"),
    [
        ("cpu", torch.device("cpu"), ("gloo", None)),
        ("cuda", torch.device("cuda", 1), ("nccl", torch.device("cuda", 1))),
    ],
)
def test_each_of_several_ranks_has_its_device_in_the_group_that_torchrun_describes(
    monkeypatch, gpus, accelerator, device, given
):
    seen = []
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **kwargs: seen.append((args, kwargs)))
    environment(monkeypatch, rank=3, world=4, local_rank=1)
    found = assembly.prepare_process(tiny_run.spec(strategy="ddp", devices=2, accelerator=accelerator))
    assert found == RankContext(device=device, rank=3, world=4, local_rank=1)
    ((args, kwargs),) = seen
    assert (*args, kwargs.get("device_id")) == given
    assert not {"store", "rank", "world_size"} & kwargs.keys()  # from the environment
    assert gpus == ([device] if accelerator == "cuda" else [])


def test_sums_and_maxima_are_taken_over_the_ranks(monkeypatch):
    values = torch.tensor([1.0, 2.0])
    assert ALONE.reduced(values) is values  # there is no group to ask
    ALONE.barrier()
    asked, waited = [], []
    monkeypatch.setattr(dist, "all_reduce", lambda values, op: (asked.append(op), values.add_(1)))
    monkeypatch.setattr(dist, "barrier", lambda: waited.append(1))
    place = place_of(0, 2)
    assert place.reduced(values).tolist() == [2.0, 3.0]
    assert place.reduced(values, largest=True) is values
    assert asked == [dist.ReduceOp.SUM, dist.ReduceOp.MAX]
    place.barrier()
    assert waited == [1]


def test_only_a_gpu_is_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    ALONE.synchronize()
    gpu = torch.device("cuda", 1)
    RankContext(device=gpu, rank=1, world=2, local_rank=1).synchronize()
    assert waited == [gpu]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"size": 16, "micro": None, "parts": 1}),
        ({"micro_batch_size": 4}, {"size": 16, "micro": 4, "parts": 1}),
        ({"strategy": "dp", "devices": 2, "micro_batch_size": 4}, {"size": 16, "micro": 8, "parts": 2}),
        ({"strategy": "dp", "devices": 2}, {"size": 16, "micro": None, "parts": 2}),
        ({"strategy": "ddp", "devices": 2, "micro_batch_size": 4}, {"size": 16, "micro": 4, "parts": 1}),
        (
            {"strategy": "fsdp", "devices": 2, "batch_size_scope": "per_device"},
            {"size": 32, "micro": None, "parts": 1},
        ),
        *[(given, given) for given in ({"batching": "packed"}, {"head": "dense"}, {"max_length": 11})],
    ],
)
def test_texts_are_laid_out_as_the_spec_says(assemble, changes, expected):
    built = assemble()
    built.spec = tiny_run.spec(**changes)
    found = built.layout
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "per_epoch", "num_steps"),
    [
        ({"epochs": 2}, 3, 6),
        ({"epochs": 2, "batch_size": 17}, 3, 6),
        ({"epochs": 2, "batch_size": 47}, 2, 4),
        ({"epochs": 2, "batch_size": 100}, 1, 2),
        ({"max_steps": 5}, 3, 5),
    ],
)
def test_steps_are_counted_from_the_training_texts(assemble, changes, per_epoch, num_steps):
    built = assemble(**changes)
    assert len(built.train_texts) == 48
    assert (built.steps_per_epoch, built.num_steps) == (per_epoch, num_steps)


def test_a_trainer_holds_what_the_spec_names(assemble, assets):
    built = assemble(head="dense", precision="bf16-mixed")
    assert built.model is built.core
    assert (built.core.head, built.core.precision_name) == ("dense", "bf16-mixed")
    corpus = load(assets.tokens, 24)
    assert torch.equal(built.corpus.ids, corpus.ids)
    train, validation = split(corpus, "random", 0.2, 0)
    assert torch.equal(built.train_texts, train)
    assert torch.equal(built.validation_texts, validation)
    assert (built.graphed, built.losses) == (None, [])


@pytest.mark.parametrize(("rank", "repeat"), [(0, 1), (1, 1), (0, 2)])
def test_each_rank_and_repeat_has_its_own_dropout(assemble, monkeypatch, rank, repeat):
    monkeypatch.setattr(onednn, "choose", lambda *given: {})  # which asks the other rank
    assemble(place_of(rank, 2), repeat=repeat)
    assert torch.initial_seed() == 1000 * repeat + rank


@pytest.mark.parametrize("name", ["fp32", "fp16-mixed", "bf16-true", "bf16-kahan"])
def test_weights_are_cast_and_the_loss_is_scaled_as_the_precision_says(assemble, name):
    built = assemble(precision=name)
    expected = torch.bfloat16 if name in ("bf16-true", "bf16-kahan") else torch.float32
    assert (type(built.optimizer) is KahanAdamW) == (name == "bf16-kahan")
    assert {parameter.dtype for parameter in built.core.parameters()} == {expected}
    assert built.scaler.is_enabled() == (name == "fp16-mixed")


@pytest.mark.skipif(not onednn.available(), reason="this build of PyTorch has no oneDNN")
@pytest.mark.parametrize(
    ("changes", "adopted"),
    [
        ({}, True),
        ({"precision": "bf16-mixed"}, False),
        ({"precision": "bf16-true"}, False),
        ({"engine": "compile"}, False),
    ],
)
def test_linear_layers_compute_by_onednn_where_that_is_faster_and_the_same(assemble, monkeypatch, changes, adopted):
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **given: None)
    kinds = {type(module) for module in assemble(**changes).core.modules()}
    assert (onednn.Linear in kinds, torch.nn.Linear in kinds) == (adopted, not adopted)


def test_the_library_of_products_is_chosen_by_the_sizes_of_a_step(assemble, monkeypatch):
    """Of rank 0, on every rank: they time the same shapes."""
    seen = []

    def choose(model, rows, agreed):
        seen.append({name: rows(name) for name, _ in model.named_modules()})
        return {"shapes": []}

    monkeypatch.setattr(onednn, "choose", choose)
    for place in (place_of(0, 2), place_of(1, 2)):
        built = assemble(place, batching="packed", batch_size=40)
        assert built.products == {"shapes": []}
    assert seen[0] == seen[1]
    rows, head = (seen[0][name] for name in ("bert.encoder.layer.0.output.dense", "cls.predictions.decoder"))
    assert rows > 100 and rows % built.spec.max_length == 0  # 20 texts of 12 tokens or so
    assert 16 <= head <= 64 and head % data.CHOSEN_MULTIPLE == 0


def test_a_decoder_beside_an_encoder_is_given_targets(tmp_path, monkeypatch):
    seen = {}

    def choose(model, rows, agreed):
        seen.update({name: rows(name) for name, _ in model.named_modules()})
        return {}

    monkeypatch.setattr(onednn, "choose", choose)
    on = tiny_run.assets(tmp_path, "t5", targets=True, eos_id=tiny_run.SEP, prefix=[])
    spec = tiny_run.spec(task="seq2seq", batching="fixed", batch_size=10, max_target_length=11, head="dense")
    assembly.assemble(spec, on.model_folder, on.tokens, ALONE)
    read, written = (seen[f"{half}.block.1.layer.0.SelfAttention.q"] for half in ("encoder", "decoder"))
    assert (read, written, seen["lm_head"]) == (240, 110, 110)


@pytest.mark.parametrize(
    ("changes", "reason"), [({"precision": "bf16-mixed"}, "fp32"), ({"engine": "compile"}, "eager"), ({}, None)]
)
def test_a_record_says_which_library_computes_or_why_there_is_no_choice(assemble, monkeypatch, changes, reason):
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **given: None)
    found = assemble(**changes).products
    if reason is None:
        assert {row["library"] for row in found["shapes"]} == {"onednn"} and found["reason"] is None
    else:
        assert found["shapes"] == [] and reason in found["reason"]


@pytest.mark.parametrize("name", engine.ENGINES)
def test_compilation_is_in_place_for_all_lengths(assemble, monkeypatch, name):
    seen, calls = [], [{"dynamic": True}] * name.startswith("compile")
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **given: seen.append(given))
    built = assemble(engine=name)
    assert seen == calls
    assert not [name for name in built.core.state_dict() if "_orig_mod" in name]


@pytest.mark.parametrize("micro", [None, 4])
def test_the_strategy_is_told_whether_gradients_accumulate(assemble, monkeypatch, micro):
    seen = []
    monkeypatch.setattr(onednn, "choose", lambda *given: {})  # which asks the other rank
    monkeypatch.setattr(trainer.strategy, "wrap", lambda core, *given: (seen.append(given), core)[1])
    assemble(place_of(1, 2), strategy="ddp", devices=2, micro_batch_size=micro)
    ((name, setting),) = seen
    expected = Setting(devices=2, accelerator="cpu", local_rank=1, accumulates=micro is not None)
    assert (name, replace(setting, layers=())) == ("ddp", expected)
    assert len(setting.layers) == 2


@pytest.mark.parametrize(("again", "times"), [(False, 1), (True, 2)])
@pytest.mark.parametrize("method", ["full", "freeze-bottom"])
def test_activations_are_computed_again_if_the_spec_says_so(assemble, again, times, method):
    built, calls = assemble(checkpoint_activations=again, method=method), []
    layer = built.core.model.bert.encoder.layer[1]
    layer.intermediate.dense.register_forward_hook(lambda module, given, out: calls.append(1))
    masked = labels.mask(built.corpus, 0.3, 1, 1)
    (batch,), _ = next(data.steps(built.corpus, masked, built.train_texts, built.layout))
    built.model.train()(*batch.tensors)[0, 0].backward()
    assert len(calls) == times
    layer = built.core.model.bert.encoder.layer[0]
    assert (layer.output.dense.weight.grad is None) == (method == "freeze-bottom")


def test_older_versions_call_it_gradient_checkpointing(assemble, monkeypatch):
    from transformers import PreTrainedModel

    given = []
    monkeypatch.delattr(PreTrainedModel, "activation_checkpointing_enable", raising=False)
    monkeypatch.setattr(PreTrainedModel, "gradient_checkpointing_enable", lambda model, how: given.append(how))
    assemble(checkpoint_activations=True)
    assert given == [{"use_reentrant": False}]


@pytest.mark.parametrize("kind", ["albert", "mpnet", "funnel"])
def test_a_model_whose_activations_cannot_be_computed_again_is_unsupported(assemble, monkeypatch, kind):
    monkeypatch.setattr(assembly, "build", lambda *_: families.network(f"mlm-{kind}"))
    monkeypatch.setattr(assembly.fit, "unsupported_reason", lambda *_: None)  # Funnel's results depend on padding
    assemble()
    with pytest.raises(trainer.RunEnded) as stopped:
        assemble(checkpoint_activations=True)
    assert stopped.value.outcome.status == "unsupported"
    reason = stopped.value.outcome.reason
    assert reason.startswith("checkpoint_activations: this model fails: ValueError: ")
    assert "does not support" in reason and "\n" not in reason


PACKED = "batching packed: this model ignores the mask that separates packed texts; use batching: [dynamic]"
NO_HEAD = "head masked: the head of this model cannot be told from the rest; use head: [dense]"


@pytest.mark.parametrize("kind", ["mpnet"])
def test_a_model_that_would_mix_packed_texts_is_unsupported(assemble, kind):
    with pytest.raises(trainer.RunEnded) as stopped:
        assemble(kind=kind, batching="packed")
    assert stopped.value.outcome == Stopped(status="unsupported", reason=PACKED)
    assert assemble(kind=kind).num_steps == 3  # unpacked it trains


def test_a_model_whose_head_is_not_found_is_unsupported_but_for_a_dense_one(assemble, monkeypatch):
    monkeypatch.setattr("joulesweep.nets.language_model.head_name", lambda model: None)
    for batching in ("dynamic", "packed"):
        with pytest.raises(trainer.RunEnded) as stopped:
            assemble(batching=batching)
        assert stopped.value.outcome == Stopped(status="unsupported", reason=NO_HEAD)
    assert assemble(head="dense").num_steps == 3


@pytest.mark.parametrize(("batching", "max_length"), [("fixed", 24), ("dynamic", 24), ("packed", 64)])
def test_longer_texts_than_a_model_has_positions_for_are_unsupported(assemble, assets, tmp_path, batching, max_length):
    """Padded rows have max_length tokens; else the longest text counts, which has 22."""
    config = tiny_run.network().config
    changes = {"batching": batching, "max_length": max_length}
    assert assemble(**changes).corpus.lengths.max() == 22
    most = 24 if batching == "fixed" else 22
    for positions in (most, most - 1):
        config.max_position_embeddings = positions
        config.save_pretrained(tmp_path)
        if positions == most:
            assembly.assemble(tiny_run.spec(**changes), tmp_path, assets.tokens, ALONE)
            continue
        with pytest.raises(trainer.RunEnded) as stopped:
            assembly.assemble(tiny_run.spec(**changes), tmp_path, assets.tokens, ALONE)
        reason = f"{most} tokens of a text are more than the {positions} positions of this model"
        assert stopped.value.outcome.reason == f"{reason}; use a smaller max_length"


def test_a_tokenizer_larger_than_the_embeddings_is_refused_before_it_indexes_them(tmp_path, assets):
    tokens = tiny_run.token_file(tmp_path / "more.safetensors", vocab_size=101)
    with pytest.raises(UserError, match=r"^the tokenizer has 101 tokens, the model embeddings for 100$"):
        assembly.assemble(tiny_run.spec(), assets.model_folder, tokens, ALONE)


def test_too_few_texts_are_the_users_to_mend(tmp_path, assets):
    tokens = tiny_run.token_file(tmp_path / "one.safetensors", num_texts=1)
    with pytest.raises(UserError, match=r"^data set texts: too few texts to hold some out: 1 in all$"):
        assembly.assemble(tiny_run.spec(), assets.model_folder, tokens, ALONE)


def test_a_method_that_leaves_nothing_to_train_is_refused(assemble, monkeypatch):
    module = SimpleNamespace(
        Params=methods.load("full").Params, apply=lambda model, params: model.requires_grad_(False)
    )
    monkeypatch.setattr(methods, "load", lambda name: module)
    with pytest.raises(UserError, match=r"^method full: no parameter of the model is left to train$"):
        assemble()


def test_matrices_decay_and_vectors_do_not():
    model = tiny_run.network()
    model.bert.embeddings.requires_grad_(False)
    matrices, vectors = assembly._optimizer(model, tiny_run.spec(weight_decay=0.3), CPU).param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim for p in matrices["params"]} == {2}
    assert {p.ndim for p in vectors["params"]} == {1}
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(matrices["params"]) + len(vectors["params"]) == len(trained)


def test_a_captured_step_reads_its_learning_rate_from_the_device():
    eager, graph = (
        assembly._optimizer(tiny_run.network(), tiny_run.spec(engine=name, lr=0.5), CPU) for name in ("eager", "graph")
    )
    for group in (*eager.param_groups, *graph.param_groups):
        assert group["fused"]
        assert group["lr"] == 0.5
    assert {(type(group["lr"]), group["capturable"]) for group in eager.param_groups} == {(float, False)}
    assert {(type(group["lr"]), group["capturable"]) for group in graph.param_groups} == {(torch.Tensor, True)}


def take_steps(built, number):
    """Optimizer steps with dropout, straight from the batches. Returns their losses."""
    losses, masked = [], labels.mask(built.corpus, 0.3, 1, 1)
    built.model.train()
    for (batch,), num_predicted in data.steps(built.corpus, masked, built.train_texts, built.layout):
        loss = built.model(*batch.tensors)[0, 0] / num_predicted
        built.scaler.scale(loss).backward()
        built.scaler.step(built.optimizer)
        built.scaler.update()
        built.optimizer.zero_grad()
        losses.append(loss.item())
    return losses[:number]


def places(built):
    """Where weights and optimizer state lie in memory."""
    state = [value for state in built.optimizer.state.values() for value in state.values()]
    return [value.data_ptr() for value in (*built.core.state_dict().values(), *state)]


@pytest.mark.parametrize("precision", ["fp32", "fp16-mixed", "bf16-true"])
def test_a_restored_start_is_the_start_in_the_same_memory(assets, assemble, tmp_path, precision):
    folder = tiny_run.model(tmp_path / "model", dropout=0.3)
    built = assembly.assemble(tiny_run.spec(precision=precision), folder, assets.tokens, ALONE)
    start, weights = InitialState.of(built), {name: value.clone() for name, value in built.core.state_dict().items()}
    rng = torch.get_rng_state()
    losses = take_steps(built, 3)
    built.scaler.update(2.0)  # as after many overflows
    before = places(built)
    assert not all(torch.equal(value, weights[name]) for name, value in built.core.state_dict().items())
    assert not torch.equal(torch.get_rng_state(), rng)
    start.restore(built)
    assert places(built) == before
    assert all(torch.equal(value, weights[name]) for name, value in built.core.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    states = list(built.optimizer.state.values())
    assert len(states) == len(list(built.core.parameters()))
    assert not any(value.any() for state in states for value in state.values())
    assert built.scaler.get_scale() == (2.0**16 if precision == "fp16-mixed" else 1.0)
    assert take_steps(built, 3) == losses  # and once more
    start.restore(built)
    assert take_steps(built, 3) == losses
    assert places(built) == before


def test_a_start_is_not_what_became_of_it(assemble):
    built = assemble()
    start = InitialState.of(built)
    with torch.no_grad():
        for parameter in built.core.parameters():
            parameter.zero_()
    start.restore(built)
    assert built.core.model.bert.embeddings.word_embeddings.weight.any()


def test_the_random_state_of_gpus_is_put_back_too(assemble, monkeypatch):
    built, found = assemble(), []
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: ["first", "second"])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", found.append)
    InitialState.of(built).restore(built)
    assert found == []
    built.place = RankContext(device=torch.device("cuda", 0), rank=0, world=1, local_rank=0)
    InitialState.of(built).restore(built)
    assert found == [["first", "second"]]


@pytest.fixture
def torch_sees(monkeypatch):
    """Boards that PyTorch says it has, by position."""

    def sees(*uuids):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid=uuids[i]))

    return sees


@pytest.mark.parametrize(
    ("strategy", "world", "by_rank"),
    [
        ("single", 1, [[7, 5, 3, 1]]),
        ("dp", 1, [[7, 5, 3, 1]]),
        ("ddp", 2, [[7, 3, 1], [5]]),  # boards left over are the first rank's
        ("ddp", 4, [[7], [5], [3], [1]]),
        ("ddp", 5, [[7], [5], [3], [1], []]),
        ("fsdp", 2, [[7, 3, 1], [5]]),
    ],
)
@pytest.mark.parametrize("accelerator", ["cpu", "cuda"])
def test_each_board_is_metered_by_one_process(torch_sees, accelerator, strategy, world, by_rank):
    torch_sees("7", "5", "3", "1")
    boards, devices = [board(index) for index in (7, 5, 3, 1)], 2 if strategy == "dp" else world
    spec = tiny_run.spec(accelerator=accelerator, strategy=strategy, devices=devices)
    found = [assembly.measured_boards(spec, boards, place_of(rank, world)) for rank in range(world)]
    assert [[one.index for one in of_rank.values()] for of_rank in found] == by_rank
    assert all(boards[position] is one for of_rank in found for position, one in of_rank.items())
    assert sum(map(len, found)) == len(boards)


def test_a_run_without_boards_meters_none():
    assert assembly.measured_boards(tiny_run.spec(), [], ALONE) == {}


def test_pytorch_on_another_board_than_the_metered_one_is_refused(torch_sees):
    torch_sees("7", "9")
    boards = [board(7), board(5)]
    one, two = tiny_run.spec(accelerator="cuda"), tiny_run.spec(accelerator="cuda", strategy="ddp", devices=2)
    assert assembly.measured_boards(one, boards, ALONE)  # it does not compute on the second
    for rank in (0, 1):
        with pytest.raises(UserError, match=r"^PyTorch computes on GPU 9, and the run was given GPU-5$"):
            assembly.measured_boards(two, boards, place_of(rank, 2))


def test_what_pytorch_does_not_say_and_slices_are_not_compared(torch_sees):
    spec = tiny_run.spec(accelerator="cuda")
    torch_sees("")
    assert assembly.measured_boards(spec, [board(5)], ALONE)
    torch_sees("9")
    assert assembly.measured_boards(spec, [board(5, mig=True)], ALONE)
