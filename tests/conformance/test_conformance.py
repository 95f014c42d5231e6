"""Every method × precision × batching × head, under every strategy, learns the same: one loss, one gradient.

So does every task: a decoder next tokens, an encoder-decoder targets, and an encoder that becomes one. The quick tier
trains cases in which every two values meet; the rest of the product is marked `product`.

The reference is full training in one process, fp32, padded to a fixed length, the head computed everywhere: what the
Hugging Face model does when it is called with labels.
"""

from __future__ import annotations

import functools
import itertools
import json
import math

import pairwise
import pytest
import ranks
import tiers
import tiny_run
import tolerances
import torch
from places import ALONE
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from joulesweep import methods
from joulesweep.analyse import roofline
from joulesweep.axes.precision import PRECISIONS, Precision
from joulesweep.axes.strategy import STRATEGIES
from joulesweep.nets import onednn
from joulesweep.plan.config import BATCHINGS, HEADS
from joulesweep.train import assembly, loop
from joulesweep.train.adaptive import choosing

GOLDEN = tiny_run.SUPPORT / "golden" / "losses.json"
LOSS_SCALE = 2.0**16  # GradScaler's first
#: The reference.
PLAIN = {"method": "full", "precision": "fp32", "batching": "fixed", "head": "dense"}
#: A method's own chance is left out.
DROPPED = {
    "lora": {"method_params": {"dropout": 0.0}},
    "sampled-backward": {"method_params": {"keep": 1.0}},
}
SPREAD = [name for name, row in STRATEGIES.items() if row.multi_process]

#: Models of the other tasks. The padded rows of an encoder-decoder cannot be packed.
WRITERS = [
    {"model": "opt", "task": "clm", "max_target_length": 8},
    {"model": "t5", "task": "seq2seq", "max_target_length": 8},
    {"model": "bert", "task": "seq2seq", "max_target_length": 8},
]
#: What a method is tried on that does not fit hidden words.
#: A method that only GPUs have is tried by its own tests.
HERE = [name for name in methods.names() if methods.unsupported_reason(name, "cpu") is None]
ON = {m: {} if methods.incompatible_reason(tiny_run.spec(method=m)) is None else WRITERS[0] for m in HERE}
MASKED = [
    {"method": method, **ON[method], **DROPPED.get(method, {})}
    | {"precision": precision, "batching": batching, "head": head}
    for method, precision, batching, head in itertools.product(HERE, PRECISIONS, BATCHINGS, HEADS)
]


def batchings(writer):
    return BATCHINGS if writer["task"] == "clm" else [one for one in BATCHINGS if one != "packed"]


WRITING = [
    {**writer, "method": "full", "precision": precision, "batching": batching, "head": head}
    for writer in WRITERS
    for precision, batching, head in itertools.product(PRECISIONS, batchings(writer), HEADS)
    if precision == "fp32" or (writer["model"] != "bert" and precision != "tf32")
]
SINGLE = MASKED + WRITING
SAVING = [
    {
        **writer,
        **PLAIN,
        "batching": batching,
        "head": "masked",
        "micro_batch_size": micro,
        "checkpoint_activations": checkpointed,
    }
    for writer in ({}, *WRITERS)
    for batching, micro, checkpointed in itertools.product(
        batchings(writer) if writer else BATCHINGS, (None, 3), (False, True)
    )
    if micro or checkpointed
]
#: A norm that every gradient of these trainings exceeds.
NORM = 0.01
CLIPPED = [
    {**PLAIN, "max_grad_norm": NORM, **changes}
    for changes in (
        {},
        {"batching": "packed", "head": "masked", "micro_batch_size": 3},
        {"precision": "fp16-mixed"},
        {"method": "lora", **DROPPED["lora"]},
        WRITERS[0],
        WRITERS[1],
    )
]
PAIRS = [
    {**case, "strategy": strategy, "devices": 2}
    for strategy in SPREAD
    for case in (
        *(case for case in SINGLE if case["head"] == "masked" and case["precision"] != "tf32"),
        PLAIN,
        *({**writer, **PLAIN} for writer in WRITERS),
        *CLIPPED,
        *(case for case in SAVING if case["batching"] == ("dynamic" if case.get("task") == "seq2seq" else "packed")),
    )
]


def name(case):
    unsaid = ("devices", "method_params", "max_target_length")
    return " ".join(str(value) for key, value in case.items() if key not in unsaid)


def plain_of(case):
    """The reference of a case: the same method, model and task."""
    same = ("method", "method_params", "model", "task", "max_target_length", "max_grad_norm")
    return {**PLAIN, **{key: case[key] for key in same if key in case}}


def impossible(case):
    """Why a method does not fit the rest of a case, or None."""
    return methods.incompatible_reason(tiny_run.spec(**case))


def twin(number):
    """The number of the same case under ddp."""
    return PAIRS.index({**PAIRS[number], "strategy": "ddp"})


POSSIBLE = [i for i, case in enumerate(PAIRS) if not impossible(case)]
#: Of the quick tier: plain training, cases in which every two values meet, and what fsdp is compared with.
QUICK = {i for i in POSSIBLE if PAIRS[i].items() >= PLAIN.items() and "task" not in PAIRS[i]}
QUICK |= {POSSIBLE[i] for i in pairwise.chosen([PAIRS[i] for i in POSSIBLE])}
QUICK |= {twin(i) for i in QUICK}


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conformance")
    about = {"bert": tiny_run.PROMPT, "opt": {**tiny_run.PROMPT, "suffix": []}, "t5": {**tiny_run.PROMPT, "prefix": []}}
    return {kind: tiny_run.assets(folder / kind, kind, targets=True, **about[kind]) for kind in about}


@pytest.fixture(scope="module", autouse=True)
def torch_as_it_was():
    threads, matmul, rng = torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(matmul)
    torch.set_rng_state(rng)


@pytest.fixture(scope="module")
def single(assets, tmp_path_factory):
    """Outcomes of trainings in this process, each carried out once."""
    folder, done = tmp_path_factory.mktemp("single"), {}

    def single(case):
        key = json.dumps(case, sort_keys=True)
        if key not in done:
            done[key] = ranks.trained(assets[case.get("model", "bert")], folder, **case)
        return done[key]

    return single


#: In one process those that are not trained cost nothing, and are all tried.
REFUSED = [case for case in SINGLE if impossible(case) or case["precision"] == "tf32"]
FEW = [SINGLE[i] for i in pairwise.chosen([{} if case in REFUSED else case for case in SINGLE])]


def on_two_ranks(numbers):
    """Cases on two ranks by number, as parameters of a test."""
    return tiers.among(QUICK, numbers, lambda number: name(PAIRS[number]))


@pytest.fixture(scope="module")
def spread(assets, tmp_path_factory, once):
    """Outcomes of a case on two ranks, by rank: one process group for all cases of its tier."""
    paths = {kind: [str(found.model_folder), str(found.tokens)] for kind, found in assets.items()}

    @functools.cache
    def trained(quick):
        numbers = sorted(QUICK) if quick else sorted({*range(len(PAIRS))} - QUICK)
        trainings, script = [PAIRS[i] for i in numbers], tiny_run.SUPPORT / "ranks.py"
        folder = once(f"spread-{quick}", lambda folder: ranks.on_two(script, folder, assets=paths, trainings=trainings))
        outcomes = [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]
        return {number: [of_rank[i] for of_rank in outcomes] for i, number in enumerate(numbers)}

    return lambda number: trained(number in QUICK)[number]


def scale(case):
    scaled = PRECISIONS[case["precision"]].scale_loss and "max_grad_norm" not in case  # it is taken out before
    return LOSS_SCALE if scaled else 1.0


def distance(found, expected, factor=1.0):
    """Largest difference in any tensor's gradient, relative to its own largest element.

    Left out are gradients that are zero but for rounding: an attention's key biases shift all scores alike, and half of
    LoRA's matrices have none while the other half is zero. What one does not train, the other does not train.
    """
    assert [gradient is None for gradient in found] == [gradient is None for gradient in expected]
    pairs = [(a.float() / factor, b.float()) for a, b in zip(found, expected, strict=True) if a is not None]
    largest = max(b.abs().max() for _, b in pairs)
    kept = [(a, b) for a, b in pairs if b.abs().max() > 1e-7 * largest]
    assert len(kept) >= 0.5 * len(pairs)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in kept)


def check_losses(found, expected, precision):
    assert found["status"] == "ok"
    tolerance, _ = tolerances.of(precision)
    assert found["losses"] == pytest.approx(expected["losses"], rel=tolerance)
    assert found["validation_loss"] == pytest.approx(expected["validation_loss"], rel=tolerance)


@pytest.mark.parametrize("case", tiers.among(REFUSED + FEW, SINGLE, name))
def test_one_process_has_the_loss_of_the_reference(single, case):
    found = single(case)
    if case["precision"] == "tf32":
        assert found == {
            "status": "unsupported",
            "reason": "tf32 exists on NVIDIA GPUs only; this run uses the CPU",
        }
        return
    if impossible(case):
        assert found == {"status": "unsupported", "reason": impossible(case)}
        return
    check_losses(found, single(plain_of(case)), case["precision"])
    gradients = [g for step in found["gradients"] for g in step]
    assert all(g is not None for g in gradients) or methods.chooses(case["method"])  # no trained tensor without one
    assert all(torch.isfinite(g).all() for g in gradients if g is not None)


@pytest.mark.parametrize("case", tiers.among(FEW, [c for c in SINGLE if c not in REFUSED], name))
def test_gradients_are_those_of_the_reference(single, case):
    found, plain = single(case), single(plain_of(case))
    check_gradients(case, found["gradients"], plain["gradients"])


def check_gradients(case, found, expected):
    """All steps in fp32. In other formats the first one, since weights that are rounded go their own way.

    There a method that chooses may also choose otherwise, and is not compared.
    """
    exact = case["precision"] == "fp32"
    for i, (step, other) in enumerate(list(zip(found, expected, strict=True))[: None if exact else 1]):
        if exact or not methods.chooses(case["method"]):
            assert distance(step, other, scale(case)) < rounding(case, i)


def rounding(case, step):
    """How far gradients of a step may be off. AdamW divides small gradients by themselves, their rounding too.

    So one that is all but zero, as T5 has some, moves its weight by a whole step in either direction.
    """
    _, exact = tolerances.of("fp32")
    return 10 * exact if step and "task" in case else tolerances.of(case["precision"])[1]


@pytest.mark.parametrize("case", tiers.among([SAVING[i] for i in pairwise.chosen(SAVING)], SAVING, name))
def test_accumulation_and_checkpointing_change_no_gradient(single, case):
    found, plain = single(case), single(plain_of(case))
    check_losses(found, plain, "fp32")
    assert found["counts"] == plain["counts"]
    check_gradients(case, found["gradients"], plain["gradients"])


@pytest.mark.parametrize("case", CLIPPED, ids=name)
def test_the_gradient_of_a_step_is_cut_to_the_norm(single, case):
    found, free = single(case), single({key: value for key, value in case.items() if key != "max_grad_norm"})
    check_losses(found, single(plain_of(case)), case["precision"])
    check_gradients(case, found["gradients"], single(plain_of(case))["gradients"])
    unscaled = [g.float() / scale({**PLAIN, "precision": case["precision"]}) for g in free["gradients"][0]]
    norm = torch.cat([g.flatten() for g in unscaled]).norm()
    assert norm > 10 * NORM
    for step in found["gradients"]:
        assert torch.cat([g.float().flatten() for g in step]).norm().item() == pytest.approx(NORM, rel=1e-3)
    assert distance(found["gradients"][0], [g * (NORM / norm) for g in unscaled]) < rounding(case, 0)


def test_a_gradient_within_the_norm_is_left_alone(single):
    free, loose = single(PLAIN), single({**PLAIN, "max_grad_norm": 1e6})
    assert loose["losses"] == free["losses"]
    assert all(torch.equal(a, b) for a, b in zip(loose["gradients"][1], free["gradients"][1], strict=True))


@pytest.mark.parametrize("number", on_two_ranks(range(len(PAIRS))))
def test_two_ranks_have_the_loss_and_the_gradients_of_one_process(single, spread, number):
    case = PAIRS[number]
    found, other = spread(number)
    if impossible(case):
        assert found == other == {"status": "unsupported", "reason": impossible(case)}
        return
    alone = single({key: value for key, value in case.items() if key not in ("strategy", "devices")})
    check_losses(found, alone, case["precision"])
    assert (found["losses"], found["validation_loss"]) == (other["losses"], other["validation_loss"])
    counts = {key: found["counts"][key] + other["counts"][key] for key in found["counts"]}
    assert counts == alone["counts"]  # no text twice, none left out
    check_gradients(case, found["gradients"], single(plain_of(case))["gradients"])
    for mine, others in zip(found["gradients"], other["gradients"], strict=True):
        assert [g is None for g in mine] == [g is None for g in others]
        assert all(torch.equal(a, b) for a, b in zip(mine, others, strict=True) if a is not None)


@pytest.mark.parametrize("number", on_two_ranks(i for i in POSSIBLE if PAIRS[i]["strategy"] == "fsdp"))
def test_fsdp_is_ddp(spread, number):
    case = PAIRS[twin(number)]
    fsdp, ddp = spread(number)[0], spread(twin(number))[0]
    if case["precision"] in ("bf16-true", "bf16-kahan") and case.get("task") == "seq2seq":
        # What the decoder's layers want of the encoder's states is summed in bfloat16, in the order of autograd.
        check_losses(fsdp, ddp, case["precision"])
        assert distance(fsdp["gradients"][0], ddp["gradients"][0]) < 0.02
        return
    assert fsdp["losses"] == pytest.approx(ddp["losses"], rel=1e-6)
    assert fsdp["validation_loss"] == pytest.approx(ddp["validation_loss"], rel=1e-6)
    assert all(distance(a, b) < 1e-5 for a, b in zip(fsdp["gradients"], ddp["gradients"], strict=True))


def test_few_cases_are_impossible():
    """Methods that choose under fsdp, those for decoders alone with packed rows, a cache on two ranks; no others."""
    found = {(case["method"], case["batching"], case.get("strategy")) for case in SINGLE + PAIRS if impossible(case)}
    choosing = {(method, batching, "fsdp") for method in ("greentrainer", "random") for batching in BATCHINGS}
    caching = {("freeze-cache", batching, strategy) for batching in BATCHINGS for strategy in SPREAD}
    assert found == choosing | caching | {("prefix", "packed", strategy) for strategy in (None, *SPREAD)}


#: What PyTorch's counter can count: in each, the number of rows of which a share is drawn is even.
COUNTABLE = [
    {"method": "full"},
    {"method": "freeze-bottom"},
    {"method": "sampled-backward", "method_params": {"keep": 0.5}},
    {"method": "sampled-backward", "method_params": {"keep": 0.25}, "checkpoint_activations": True},
    {"method": "freeze-bottom", **WRITERS[0]},
    {"method": "freeze-cache", **WRITERS[0]},
    {"method": "freeze-cache", **WRITERS[2]},
    {"method": "sampled-backward", **WRITERS[1]},
]


@pytest.mark.slow
@pytest.mark.parametrize("case", COUNTABLE, ids=name)
def test_flops_of_a_training_are_those_that_pytorch_counts(assets, monkeypatch, case):
    monkeypatch.setattr(onednn, "available", lambda: False)
    on = assets[case.get("model", "bert")]
    trainer = assembly.assemble(tiny_run.spec(**{"epochs": 3, **case}), on.model_folder, on.tokens, ALONE)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # of a fused one it counts nothing
        for _ in loop._run_epochs(trainer):
            pass
    phases = choosing.phases(trainer, trainer.phases)
    assert len(phases) == (2 if case["method"] == "freeze-cache" else 1)
    assert roofline.totals(phases)["executed_flops"] == pytest.approx(counter.get_total_flops(), rel=1e-9)


class Coarse(torch.nn.Linear):
    """A linear layer whose input has a mantissa of four bits, and its gradients those of the exact one."""

    def forward(self, given):
        mantissa, exponent = torch.frexp(given.detach())
        coarse = torch.ldexp((mantissa * 16).round() / 16, exponent)
        return super().forward(given + (coarse - given.detach()))


def coarsen(model):
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.__class__ = Coarse


NEW_ROWS = {
    "fp16-unscaled": Precision(about="a new one", peak_rate="fp16", autocast="float16"),
    "coarse": Precision(about="four bits", peak_rate="fp8", convert=coarsen),
}


@pytest.mark.parametrize("name", NEW_ROWS)
@pytest.mark.parametrize(
    "changes", [{}, {"batching": "packed", "head": "masked"}, {"method": "lora", **DROPPED["lora"]}]
)
def test_a_new_precision_is_one_row(single, monkeypatch, name, changes):
    monkeypatch.setitem(PRECISIONS, name, NEW_ROWS[name])
    case = {**PLAIN, "precision": name, **changes}
    found, plain = single(case), single(plain_of(case))
    check_losses(found, plain, name)
    check_gradients(case, found["gradients"], plain["gradients"])
    assert distance(found["gradients"][0], plain["gradients"][0]) > 1e-4, "nothing was converted"


def test_float16_scales_its_gradients(single):
    """Else a tolerance above hides that nothing is scaled."""
    case = {**PLAIN, "precision": "fp16-mixed"}
    found, plain = single(case)["gradients"][0], single(PLAIN)["gradients"][0]
    assert distance(found, plain, scale(case)) < 1e-2
    assert distance(found, plain) > 1000


def test_an_encoder_decoder_packs_nothing_and_says_so(single):
    found = single({**WRITERS[1], **PLAIN, "batching": "packed", "head": "masked"})
    reason = "batching packed: texts and targets of an encoder-decoder are padded; use batching: [dynamic]"
    assert found == {"status": "unsupported", "reason": reason}


def test_means_of_shares_would_be_another_loss(single, spread):
    """The check of DDP is sharp: the ranks' numbers of masked tokens differ, so their means average to another loss."""
    number = PAIRS.index({**PLAIN, "strategy": "ddp", "devices": 2})
    shares = [outcome["counts"]["num_predicted"] for outcome in spread(number)]
    assert shares[0] != shares[1]
    assert not math.isclose(shares[0] / sum(shares), 0.5, rel_tol=1e-3)


def test_the_losses_of_a_seeded_run_are_those_of_the_golden_file(single):
    """To add a case, write its losses there; existing ones change only with PyTorch's or transformers' arithmetic."""
    for entry in json.loads(GOLDEN.read_text(encoding="utf-8")):
        found = single(entry["case"])
        assert found["losses"] == pytest.approx(entry["losses"], rel=1e-6)
        assert found["validation_loss"] == pytest.approx(entry["validation_loss"], rel=1e-6)
