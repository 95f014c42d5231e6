"""A step asks the device for no value: the host runs ahead of a GPU only as long as it need not wait for an answer.

What would make it wait is seen on the CPU too, among the operators that PyTorch executes.
"""

from __future__ import annotations

import itertools

import pytest
import tiers
import tiny_run
import torch
from places import ALONE
from torch.utils._python_dispatch import TorchDispatchMode

from joulesweep.nets.language_model import LanguageModel
from joulesweep.train import assembly, data, labels, loop, trainer
from joulesweep.train.corpus import load

pytestmark = [pytest.mark.usefixtures("torch_as_it_was"), pytest.mark.filterwarnings("ignore")]

#: Operators that end only when their result's value, or its size, has come to the host.
ASKING = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "unique_consecutive", "bincount"}
ASKING |= {"unique_dim", "repeat_interleave", "is_nonzero", "item"}
BY_INDEX = {"index", "index_put", "index_put_", "_index_put_impl_"}


class Asked(TorchDispatchMode):
    """Takes note of what asks, while it is active: operators, and methods that hand over memory of the host."""

    def __init__(self):
        super().__init__()
        self.names = []
        self.methods = {name: getattr(torch.Tensor, name) for name in ("tolist", "numpy", "cpu")}

    def __enter__(self):
        for name, inner in self.methods.items():
            setattr(
                torch.Tensor, name, lambda *given, name=name, inner=inner: (self.names.append(name), inner(*given))[1]
            )
        return super().__enter__()

    def __exit__(self, *error):
        for name, inner in self.methods.items():
            setattr(torch.Tensor, name, inner)
        super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._overloadpacket.__name__
        masks = name in BY_INDEX and any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
        if masks or name in ASKING:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "ask",
    [
        lambda t: t.sum().item(),
        lambda t: bool((t > 0).all()),
        lambda t: 1 if t.max() > 0 else 0,
        lambda t: t[t > 0],
        lambda t: torch.nonzero(t),
        lambda t: torch.where(t > 0),
        lambda t: t.masked_select(t > 0),
        lambda t: torch.repeat_interleave(t.long()),
        lambda t: t.unique(),
        lambda t: float(t.sum()),
        lambda t: t.tolist(),
        lambda t: t.cpu(),
        lambda t: t.numpy(),
    ],
)
def test_what_asks_is_seen(ask):
    """Else the tests below prove nothing."""
    with Asked() as asked:
        ask(torch.ones(4))
    assert asked.names


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("waits")
    about = {"clm": {"suffix": []}, "seq2seq": {"prefix": [], "targets": True}, "mlm": {}}
    found = {}
    for kind in ("bert", "roberta", "distilbert", "modernbert", *tiny_run.WRITERS):
        more = about[tiny_run.task_of(kind)]
        found[kind] = tiny_run.assets(folder / kind, kind, eos_id=tiny_run.SEP, **more)
    return found


@pytest.fixture
def assemble(assets):
    def assemble(kind="bert", **changes):
        spec = tiny_run.spec(task=tiny_run.task_of(kind), max_target_length=12, **changes)
        return assembly.assemble(spec, assets[kind].model_folder, assets[kind].tokens, ALONE)

    return assemble


def asked_by_steps(built, number=2):
    """What all steps after the first one ask; the first one makes the optimizer's state."""
    made = list(itertools.islice(built.batches(epoch=1), number + 1))
    built.core.train()
    built.open_phase("training", 1)
    loop._step(built, *made[0], lr=1e-3)
    with Asked() as asked:
        for batches, num_predicted in made[1:]:
            loop._step(built, batches, num_predicted, lr=1e-3)
            built.count(batches)
    return asked.names


KINDS = {
    **dict.fromkeys(("bert", "roberta", "distilbert", "modernbert", "opt", "llama", "gpt2"), True),
    **dict.fromkeys(("t5", "bart", "bert2bert"), False),
}
BATCHINGS = [
    (kind, batching)
    for kind, packs in KINDS.items()
    for batching in ("dynamic", "fixed", "packed")
    if packs or batching != "packed"
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "batching"), BATCHINGS)
def test_a_step_asks_the_device_for_nothing_in_any_batching(assemble, kind, batching):
    assert asked_by_steps(assemble(kind, batching=batching)) == []


@pytest.mark.parametrize("batching", tiers.first(1, ["dynamic", "fixed", "packed"]))
@pytest.mark.parametrize("precision", ["bf16-mixed", "fp16-mixed", "bf16-true"])
def test_nor_in_any_precision(assemble, precision, batching):
    for kind in ("bert", "llama"):
        assert asked_by_steps(assemble(kind, precision=precision, batching=batching)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"head": "dense"},
        {"micro_batch_size": 3},
        {"max_grad_norm": 0.5},
        {"max_grad_norm": 0.5, "precision": "fp16-mixed"},
        {"checkpoint_activations": True},
        {"method": "lora", "batching": "packed"},
    ],
)
def test_nor_with_what_else_a_step_may_do(assemble, changes):
    assert asked_by_steps(assemble(**changes)) == []


def test_a_mask_of_padding_alone_would_be_asked_about(assemble):
    built = assemble()
    assert built.core.mask_form == "bool"
    built.core.mask_form = "padding"
    assert asked_by_steps(built)


def test_counters_of_steps_are_read_after_the_window(assemble):
    built = assemble(precision="fp16-mixed")
    built.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=10**6)  # the first steps overflow
    made = list(built.batches(epoch=1))
    built.core.train()
    built.open_phase("training", 1)
    for number in range(70):
        loop._step(built, *made[number % len(made)], lr=1e-4)
        built.count(made[0][0])
        if number == 60:
            with Asked() as asked:
                built.close_epoch()
                built.open_phase("training", 2)
            assert asked.names == []
    built.close_epoch()
    trainer.read_counters(built.phases)
    first, second = (phase.num_skipped_steps for phase in built.phases)
    taken = {int(state["step"]) for state in built.optimizer.state.values()}
    assert {70 - first - second} == taken
    assert 0 < first < 61
    assert second == 0


def test_a_replica_of_dataparallel_is_told_its_places(assets):
    """It has a part of the rows, as DataParallel cuts them, and of their places and answers."""
    corpus = load(assets["bert"].tokens, 24)
    masked, core = labels.mask(corpus, 0.3, 1, 1), LanguageModel(tiny_run.network())
    core.mask_form = "bool"
    for parts, size in ((2, 7), (4, 5), (3, 2)):  # four GPUs have three parts of five rows, three have two of two
        layout = data.BatchLayout(batching="dynamic", size=size, micro=None, max_length=24, head="masked", parts=parts)
        (batch,), _ = next(data.steps(corpus, masked, torch.arange(size), layout))
        shares = zip(*(t.chunk(parts) if t is not None else [None] * parts for t in batch.tensors), strict=False)
        with Asked() as asked:
            for share in shares:
                core(*share)[0, 0].backward()
        assert asked.names == []
