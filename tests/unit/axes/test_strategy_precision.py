"""Strategies and precisions are rows of tables; what a machine cannot do is said before it is tried."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny_run
import torch

from joulesweep.axes import precision, strategy
from joulesweep.nets.anatomy import stacks
from joulesweep.nets.language_model import LanguageModel
from joulesweep.train import memory

SETTING = strategy.Setting(devices=1, accelerator="cpu", local_rank=0)


@pytest.fixture(autouse=True)
def matmul_precision():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("name", strategy.STRATEGIES)
def test_each_strategy_is_described_and_names_what_torch_has(name):
    row = strategy.STRATEGIES[name]
    assert row.about
    assert (row.wrap is None) == (not row.multi_device)
    assert (row.synchronise is None) == (not row.multi_process)
    assert row.multi_device or not row.multi_process
    assert row.multi_process or row.ranks_per_text == 1


def test_fsdp_runs_where_ddp_does():
    ddp, fsdp = (strategy.STRATEGIES[name] for name in ("ddp", "fsdp"))
    assert (fsdp.multi_device, fsdp.multi_process, fsdp.cpu) == (ddp.multi_device, ddp.multi_process, ddp.cpu)
    assert (fsdp.shards_state, ddp.shards_state) == (True, False)


@pytest.mark.parametrize(
    ("name", "devices", "accelerator", "num_gpus", "reason"),
    [
        ("single", 1, "cpu", 0, None),
        ("ddp", 2, "cpu", 0, None),
        ("dp", 2, "cpu", 0, "dp needs at least two GPUs; this run uses the CPU"),
        ("single", 1, "cuda", 1, None),
        ("dp", 2, "cuda", 2, None),
        ("dp", 1, "cuda", 2, "dp on 1 device trains the bare module; it needs at least two GPUs"),
        ("dp", 4, "cuda", 2, "dp asks for 4 GPUs; 2 visible"),
        ("ddp", 1, "cuda", 1, None),
        ("ddp", 2, "cuda", 2, None),
        ("ddp", 2, "cuda", 1, "ddp asks for 2 GPUs; 1 visible"),
        ("fsdp", 2, "cpu", 0, None),
        ("fsdp", 1, "cuda", 1, None),
        ("fsdp", 4, "cuda", 4, None),
        ("fsdp", 4, "cuda", 2, "fsdp asks for 4 GPUs; 2 visible"),
    ],
)
def test_a_machine_that_cannot_run_a_strategy_says_why(name, devices, accelerator, num_gpus, reason):
    assert strategy.unsupported_reason(name, devices, accelerator, num_gpus) == reason


@pytest.mark.parametrize(
    ("name", "num_gpus", "reason"),
    [
        ("ddp", 4, None),
        ("fsdp", 3, "fsdp asks for 4 GPUs; 3 visible"),
        ("dp", 8, "dp is one process, which several nodes cannot share: use ddp or fsdp"),
    ],
)
def test_each_of_several_nodes_needs_its_own_share_of_gpus(name, num_gpus, reason):
    assert strategy.unsupported_reason(name, 8, "cuda", num_gpus, nodes=2) == reason


@pytest.mark.parametrize(
    ("given", "shown"),
    [(("single", 1), "single"), (("ddp", 8), "ddp8"), (("ddp", 8, None), "ddp8"), (("ddp", 8, 2), "ddp 2×4")],
)
def test_a_strategy_is_shown_with_its_devices_and_nodes(given, shown):
    assert strategy.spread(*given) == shown


def test_one_device_is_not_wrapped():
    model = tiny_run.network()
    assert strategy.wrap(model, "single", SETTING) is model


def test_data_parallel_takes_the_first_gpus(monkeypatch):
    monkeypatch.setattr(torch.nn, "DataParallel", lambda model, device_ids: (model, device_ids))
    assert strategy.wrap("model", "dp", replace(SETTING, devices=2, accelerator="cuda")) == ("model", [0, 1])


@pytest.mark.parametrize(("accelerator", "device_ids"), [("cuda", [1]), ("cpu", None)])
def test_each_rank_of_ddp_has_its_own_device(monkeypatch, accelerator, device_ids):
    seen = {}
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", lambda model, **given: seen.update(given))
    strategy.wrap(tiny_run.network(), "ddp", replace(SETTING, devices=2, accelerator=accelerator, local_rank=1))
    assert seen["device_ids"] == device_ids


@pytest.mark.parametrize(("accumulates", "static"), [(False, True), (True, False)])
def test_ddps_graph_is_static_unless_some_backward_passes_exchange_nothing(monkeypatch, accumulates, static):
    seen = {}
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", lambda model, **given: seen.update(given))
    strategy.wrap(tiny_run.network(), "ddp", replace(SETTING, devices=2, accumulates=accumulates))
    assert (seen["static_graph"], seen["broadcast_buffers"], seen["gradient_as_bucket_view"]) == (static, False, True)


@pytest.fixture
def group():
    """A process group of this process alone."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


IDS = torch.randint(5, 100, (4, 12), generator=torch.Generator().manual_seed(0))


def cores(kind="bert", seeds=(0, 0)):
    """Modules as a training wraps them."""
    return [LanguageModel(tiny_run.network(kind, seed=seed)) for seed in seeds]


def layers_of(core):
    return [layer for _, stack in stacks(core.model) for layer in stack]


def loss_of(core):
    """Of predicting each token from all."""
    return core(IDS, torch.ones_like(IDS), IDS)[0, 0] / IDS.numel()


@pytest.mark.parametrize(
    ("kind", "layers"), [("bert", "model.bert.encoder.layer"), ("modernbert", "model.model.layers")]
)
def test_fsdp_divides_every_layer_apart_and_all_weights(group, kind, layers):
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    plain, model = cores(kind)
    assert strategy.wrap(model, "fsdp", replace(SETTING, layers=layers_of(model))) is model
    apart = {name for name, module in model.named_modules() if isinstance(module, FSDPModule)}
    assert apart == {"", *(f"{layers}.{i}" for i in range(2))}
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    assert list(model.state_dict()) == list(plain.state_dict())
    one, other = loss_of(plain), loss_of(model)
    assert other.item() == pytest.approx(one.item(), rel=1e-6)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters()), "resharded, the root as well"
    one.backward()
    other.backward()
    for (name, expected), found in zip(plain.named_parameters(), model.parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(found.grad.full_tensor(), expected.grad, msg=name)


def test_weights_that_change_between_two_passes_are_seen_by_the_second(group):
    """Scoring loads weights into the shards: a copy that was gathered before must not outlive its pass."""
    plain, model = cores(seeds=(1, 0))
    strategy.wrap(model, "fsdp", replace(SETTING, layers=layers_of(model)))
    with torch.no_grad():
        loss_of(model)
        memory.load_weights(model, memory.copy_weights(plain, []))
        assert loss_of(model).item() == pytest.approx(loss_of(plain).item(), rel=1e-6)


def test_a_model_without_layers_is_divided_whole(group):
    model = strategy.wrap(torch.nn.Linear(4, 4), "fsdp", SETTING)
    assert model(torch.ones(1, 4)).shape == (1, 4)


@pytest.mark.parametrize("name", strategy.STRATEGIES)
@pytest.mark.parametrize("wanted", [True, False])
def test_gradients_are_exchanged_when_wanted(name, wanted):
    said = []
    model = SimpleNamespace(require_backward_grad_sync=None, set_requires_gradient_sync=said.append)
    strategy.synchronise(model, name, wanted)
    assert model.require_backward_grad_sync is (wanted if name == "ddp" else None)
    assert said == ([wanted] if name == "fsdp" else [])


@pytest.mark.filterwarnings("ignore:`broadcast_buffers` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_gradients_of_several_passes_add_up_and_are_exchanged_once(group, name):
    plain, model = cores()
    wrapped = strategy.wrap(model, name, replace(SETTING, accumulates=True, layers=layers_of(model)))
    exchanged, counts = [], []
    if name == "ddp":
        wrapped.register_comm_hook(None, lambda state, bucket: (exchanged.append(1), ready(bucket.buffer()))[1])
    for wanted in (False, False, True):
        strategy.synchronise(wrapped, name, wanted)
        loss_of(plain).backward()
        loss_of(wrapped).backward()
        # FSDP leaves no gradient at the divided weights before it has exchanged them.
        counts.append(len(exchanged) if name == "ddp" else sum(p.grad is not None for p in model.parameters()))
    assert counts[:2] == [0, 0]
    assert counts[2] > 0
    for (title, expected), found in zip(plain.named_parameters(), model.parameters(), strict=True):
        if expected.grad is not None:
            gradient = found.grad.full_tensor() if name == "fsdp" else found.grad
            torch.testing.assert_close(gradient, expected.grad, msg=title)


def ready(value):
    future = torch.futures.Future()
    future.set_result(value)
    return future


@pytest.mark.parametrize("name", precision.PRECISIONS)
def test_each_precision_is_described_and_names_dtypes_of_torch(name):
    row = precision.PRECISIONS[name]
    assert row.about
    assert isinstance(getattr(torch, row.weights), torch.dtype)
    assert row.autocast is None or isinstance(getattr(torch, row.autocast), torch.dtype)
    assert name == "fp32" or name.endswith(("-mixed", "-true", "-kahan")) or row.tf32  # never a bare "fp16"


@pytest.mark.parametrize("name", precision.PRECISIONS)
def test_names_say_what_the_rows_do(name):
    row = precision.PRECISIONS[name]
    assert (row.autocast is not None) == name.endswith("-mixed")
    assert (row.weights != "float32") == name.endswith(("-true", "-kahan"))
    assert row.kahan == name.endswith("-kahan")
    assert row.scale_loss == (row.autocast == "float16")  # bfloat16 has the range of fp32


@pytest.mark.parametrize(
    ("name", "accelerator", "capability", "reason"),
    [
        ("fp32", "cpu", None, None),
        ("bf16-mixed", "cpu", None, None),
        ("tf32", "cpu", None, "tf32 exists on NVIDIA GPUs only; this run uses the CPU"),
        ("tf32", "cuda", (8, 0), None),
        ("tf32", "cuda", (9, 0), None),
        ("tf32", "cuda", (7, 5), "tf32 needs compute capability 8.0 or newer; this GPU has 7.5"),
        ("fp16-mixed", "cuda", (7, 5), None),
        ("bf16-mixed", "cuda", (7, 5), "bf16-mixed needs compute capability 8.0 or newer; this GPU has 7.5"),
        ("bf16-true", "cuda", (7, 0), "bf16-true needs compute capability 8.0 or newer; this GPU has 7.0"),
        ("bf16-kahan", "cuda", (7, 5), "bf16-kahan needs compute capability 8.0 or newer; this GPU has 7.5"),
        ("bf16-mixed", "cuda", (8, 0), None),
        ("bf16-mixed", "cpu", None, None),
    ],
)
def test_a_device_that_cannot_compute_in_a_precision_says_why(name, accelerator, capability, reason):
    assert precision.unsupported_reason(name, accelerator, capability) == reason


def test_a_row_says_which_gpu_it_needs_and_what_it_converts(monkeypatch):
    seen = []
    row = precision.Precision(
        about="eight bits", peak_rate="fp8", cpu=False, min_capability=(8, 9), convert=seen.append
    )
    monkeypatch.setitem(precision.PRECISIONS, "fp8", row)
    assert (
        precision.unsupported_reason("fp8", "cuda", (8, 6))
        == "fp8 needs compute capability 8.9 or newer; this GPU has 8.6"
    )
    assert precision.unsupported_reason("fp8", "cuda", (10, 0)) is None
    assert precision.unsupported_reason("fp8", "cpu", None) == "fp8 exists on NVIDIA GPUs only; this run uses the CPU"
    assert not precision.computes_in_fp32("fp8"), "or oneDNN would take the place of what was converted"
    for name in precision.PRECISIONS:
        precision.convert("model", name)
    assert seen == ["model"]


@pytest.mark.parametrize("name", precision.PRECISIONS)
def test_weights_and_matrix_products_are_brought_to_the_row(name):
    model = precision.cast(tiny_run.network(), name)
    row = precision.PRECISIONS[name]
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, row.weights)}
    assert torch.get_float32_matmul_precision() == ("high" if row.tf32 else "highest")
    assert torch.backends.cudnn.allow_tf32 == row.tf32, "of convolutions, to which PyTorch allows it on its own"


@pytest.mark.parametrize("name", precision.PRECISIONS)
def test_the_forward_pass_runs_in_the_rows_dtype(name):
    model = precision.cast(torch.nn.Linear(4, 4), name)
    row = precision.PRECISIONS[name]
    with precision.autocast(name, "cpu"):
        out = model(torch.ones(1, 4, dtype=getattr(torch, row.weights)))
    assert out.dtype == getattr(torch, row.autocast or row.weights)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fp32", True),
        ("tf32", True),
        ("fp16-mixed", False),
        ("bf16-mixed", False),
        ("bf16-true", False),
        ("bf16-kahan", False),
    ],
)
def test_which_precisions_take_and_give_single_precision(name, expected):
    assert precision.computes_in_fp32(name) is expected
    model, seen = precision.cast(torch.nn.Sequential(torch.nn.Linear(4, 4)), name), []
    model[0].register_forward_hook(lambda module, given, out: seen.extend([module.weight.dtype, out.dtype]))
    with precision.autocast(name, "cpu"):
        model(torch.ones(1, 4, dtype=getattr(torch, precision.PRECISIONS[name].weights)))
    assert (set(seen) == {torch.float32}) is expected


def test_every_precision_is_known_to_take_single_precision_or_not():
    assert {name for name in precision.PRECISIONS if precision.computes_in_fp32(name)} == {"fp32", "tf32"}


def test_no_autocast_is_no_context():
    assert isinstance(precision.autocast("fp32", "cpu"), contextlib.nullcontext)


@pytest.mark.parametrize("name", precision.PRECISIONS)
def test_only_float16_scales_its_loss(name):
    scaler = precision.scaler(name, "cpu")
    assert scaler.is_enabled() == (name == "fp16-mixed")
    scaled = scaler.scale(torch.ones(1))
    assert (scaled.item() == 1.0) == (name != "fp16-mixed")


@pytest.mark.parametrize("kind", ["llama", "modernbert"])
def test_rotary_frequencies_stay_in_float32_as_transformers_keeps_them(tmp_path, kind):
    """In bfloat16 a token far into a text is turned by a wrong angle."""
    import tiny_run
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    auto = AutoModelForCausalLM if kind == "llama" else AutoModelForMaskedLM
    plain = tiny_run.network(kind)
    exact = dict(plain.named_buffers())
    plain.save_pretrained(tmp_path)
    ours = precision.cast(tiny_run.network(kind), "bf16-true").eval()
    theirs = auto.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert {name: (b.dtype, b.shape) for name, b in ours.named_buffers()} == {
        name: (b.dtype, b.shape) for name, b in theirs.named_buffers()
    }
    assert exact and all(torch.equal(buffer, exact[name]) for name, buffer in ours.named_buffers())
    ids = torch.arange(5, 45)[None]
    assert torch.equal(ours(ids).logits, theirs(ids).logits)


def test_a_kept_model_is_read_back_as_the_one_that_was_trained(tmp_path):
    import tiny_run
    from transformers import AutoModelForCausalLM

    ours = precision.cast(tiny_run.network("llama"), "bf16-true").eval()
    ours.save_pretrained(tmp_path)
    ids = torch.arange(5, 45)[None]
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path).eval()(ids).logits, ours(ids).logits)


def test_tied_weights_stay_tied():
    import tiny_run

    model = precision.cast(tiny_run.network(), "bf16-true")
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
