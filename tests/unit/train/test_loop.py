"""The one training loop: exact where it must be, measured only where it trains, and honest when it stops."""

from __future__ import annotations

import contextlib
import json
import math
from types import SimpleNamespace

import pytest
import tiers
import tiny_run
import torch
from outcomes import trained
from places import place_of
from torch.nn import functional

from joulesweep.axes import engine, precision
from joulesweep.core import work
from joulesweep.core.outcome import Stopped
from joulesweep.core.spec import full
from joulesweep.measure.devices import Board
from joulesweep.nets.language_model import IGNORED, LanguageModel
from joulesweep.train import data, loop
from joulesweep.train.corpus import load, split
from joulesweep.train.labels import mask, order
from joulesweep.train.trainer import InitialState, learning_rate

pytestmark = pytest.mark.usefixtures("torch_as_it_was")

NUM_TRAIN = 48  # of the 60 tiny texts, 12 being held out
NUM_STEPS = 3  # in one epoch, 16 texts each


@pytest.fixture(scope="module")
def with_dropout(tmp_path_factory, assets):
    folder = tiny_run.model(tmp_path_factory.mktemp("dropout") / "model", dropout=0.3)
    return tiny_run.Assets(model_folder=folder, tokens=assets.tokens)


@pytest.fixture
def run(assets, tmp_path):
    """Train in this process."""

    def run(on=assets, **changes):
        return trained(tiny_run.spec(**changes), on.model_folder, on.tokens, tmp_path)

    return run


def board(index, **changes):
    """A board as a job names it."""
    described = {"name": "Fake", "memory_bytes": 1, "has_counter": True, "mig": False}
    return {"index": index, "uuid": f"GPU-{index}", **described, **changes}


def quality(outcome):
    names = ("validation_loss", "perplexity", "masked_accuracy")
    return [[row[name] for name in names] for row in outcome["epochs"]]


def saved(folder):
    from transformers import AutoModelForMaskedLM

    return AutoModelForMaskedLM.from_pretrained(folder, local_files_only=True)


def num_predicted(corpus, texts, epoch):
    """Hidden tokens of the training texts in an epoch of repeat 1."""
    labels = mask(corpus, 0.15, 1, epoch).labels.tensor_split(corpus.offsets[1:-1])
    return sum(int((labels[text] != IGNORED).sum()) for text in texts)


def test_an_outcome_counts_what_was_done(run, assets):
    outcome = run(epochs=2)
    corpus = load(assets.tokens, 24)
    texts, held_out = split(corpus, "random", 0.2, 0)
    measured = outcome["measurement"]
    assert (outcome["status"], outcome["num_train_texts"]) == ("ok", NUM_TRAIN)
    assert (measured["num_steps"], measured["num_skipped_steps"]) == (2 * NUM_STEPS, 0)
    assert measured["num_texts"] == 2 * NUM_TRAIN
    assert measured["num_tokens"] == 2 * int(corpus.lengths[texts].sum())
    assert measured["num_tokens"] < measured["num_padded_tokens"] <= 2 * NUM_TRAIN * 24
    assert measured["num_predicted"] == sum(num_predicted(corpus, texts, epoch) for epoch in (1, 2))
    assert measured["num_predicted"] < measured["num_head_positions"] <= measured["num_predicted"] + 2 * NUM_STEPS * 16
    assert measured["num_token_pairs"] == 2 * int((corpus.lengths[texts] ** 2).sum())
    assert measured["num_token_pairs"] < measured["num_padded_token_pairs"] <= 2 * NUM_TRAIN * 24 * 24
    assert measured["cpu_s"] > 0
    assert measured["total_window_s"] > 0
    assert measured["num_passes"] == 1
    assert measured["startup_s"] > 0
    assert {row["device"] for row in measured["energy"]} >= {"cpu:0", "dram:0"}
    assert measured["peak_memory"]["host_rss_bytes"] > 50 * 2**20
    assert measured["peak_memory"]["gpu_allocated_bytes"] is measured["peak_memory"]["gpu_reserved_bytes"] is None
    assert len(outcome["losses"]) == 2 * NUM_STEPS
    assert [row["epoch"] for row in outcome["epochs"]] == [0, 1, 2]
    assert [row["num_steps"] for row in outcome["epochs"]] == [0, NUM_STEPS, 2 * NUM_STEPS]
    assert outcome["quality"]["num_validation_texts"] == len(held_out)
    assert json.loads(json.dumps(outcome, allow_nan=False)) == outcome


def test_clocks_of_epochs_run_from_the_windows_opening(run):
    outcome = run(epochs=3)
    elapsed = [row["elapsed_s"] for row in outcome["epochs"]]
    cpu = [row["cpu_s"] for row in outcome["epochs"]]
    assert elapsed[0] == cpu[0] == 0
    assert elapsed == sorted(elapsed)
    assert cpu == sorted(cpu)
    span = outcome["measurement"]["span"]
    assert elapsed[-1] <= span["end_s"] - span["begin_s"]
    assert cpu[-1] <= outcome["measurement"]["cpu_s"]


@pytest.fixture
def steps(monkeypatch):
    """Every step from now on: its batches, the learning rate, the loss."""
    seen, step = [], loop._step

    def noted(trainer, batches, num_predicted, lr):
        loss = step(trainer, batches, num_predicted, lr)
        assert {group["lr"] for group in trainer.optimizer.param_groups} == {lr}
        tensors = [[None if t is None else t.tolist() for t in batch.tensors] for batch in batches]
        seen.append((tensors, num_predicted, lr, loss.item()))
        return loss

    monkeypatch.setattr(loop, "_step", noted)
    return seen


LONG = {"min_seconds": 1.0, "epochs": 2, "warmup_steps": 0}


@pytest.fixture
def three_passes(monkeypatch):
    """Windows are long enough after three passes, however fast the machine is."""
    asked = []

    def is_short(trainer, elapsed_s):
        asked.append(elapsed_s)
        return len(asked) % 3 > 0

    monkeypatch.setattr(loop, "_is_short", is_short)
    return asked


@pytest.mark.parametrize("precision", ["fp32", "fp16-mixed"])
def test_a_short_training_is_repeated_until_the_window_is_long_enough(
    run, with_dropout, steps, three_passes, precision
):
    outcome = run(with_dropout, **LONG, precision=precision)
    measured, once = outcome["measurement"], 2 * NUM_STEPS
    assert measured["num_passes"] == len(three_passes) == 3
    assert 0 < three_passes[0] < three_passes[1] < three_passes[2]
    assert len(steps) == measured["num_passes"] * once
    for begin in range(0, len(steps), once):  # the same texts and masks, the same rates, the same dropout
        assert steps[begin : begin + once] == steps[:once]
    assert (measured["num_steps"], measured["num_texts"]) == (once, 2 * NUM_TRAIN)  # of one pass
    assert outcome["losses"] == [loss for *_, loss in steps[:once]]


@pytest.mark.parametrize(("elapsed_s", "short"), [(9.99, True), (10.0, False)])
def test_a_window_is_short_below_its_least_seconds(elapsed_s, short):
    trainer = SimpleNamespace(spec=tiny_run.spec(min_seconds=10.0), place=place_of(0, 1))
    assert loop._is_short(trainer, elapsed_s) is short


def test_passes_after_the_first_leave_no_trace_in_what_was_learned(with_dropout, three_passes, tmp_path):
    def kept(folder, **changes):
        spec = tiny_run.spec(repeat=3, epochs=2, keep_model="last", **changes)
        outcome = trained(spec, with_dropout.model_folder, with_dropout.tokens, tmp_path / folder)
        return outcome, saved(tmp_path / folder / "model").state_dict()

    (once, model), (long, same_model) = kept("once"), kept("long", min_seconds=1.0)
    assert (once["measurement"]["num_passes"], long["measurement"]["num_passes"]) == (1, 3)
    assert long["losses"] == once["losses"]
    assert quality(long) == quality(once)
    assert [row["train_loss"] for row in long["epochs"]] == [row["train_loss"] for row in once["epochs"]]
    assert len(long["epochs"]) == len(once["epochs"]) == 3
    for name in ("num_steps", "num_skipped_steps", *work.COUNTED):
        assert long["measurement"][name] == once["measurement"][name]
    assert all(torch.equal(model[name], same_model[name]) for name in model)


def test_cpu_seconds_are_those_of_a_pass(run, three_passes, monkeypatch):
    clock = iter([100.0, 110.0, 120.0, 140.0])  # at the window's begin, after the epochs of pass 1, at its end
    monkeypatch.setattr(loop.time, "process_time", lambda: next(clock))
    outcome = run(**LONG)
    assert [row["cpu_s"] for row in outcome["epochs"]] == [0.0, 10.0, 20.0]
    assert outcome["measurement"]["cpu_s"] == 40.0 / 3


def test_a_training_that_fills_the_window_is_not_repeated(run, steps):
    assert run(epochs=2, min_seconds=1e-6, warmup_steps=0)["measurement"]["num_passes"] == 1
    assert len(steps) == 2 * NUM_STEPS


@pytest.mark.parametrize(("others_s", "short"), [(9.0, True), (10.0, False)])
def test_ranks_agree_on_another_pass_by_the_slowest(monkeypatch, others_s, short):
    def all_reduce(seconds, op):
        assert op is loop.dist.ReduceOp.MAX
        seconds.fill_(max(seconds.item(), others_s))

    monkeypatch.setattr(loop.dist, "all_reduce", all_reduce)
    trainer = SimpleNamespace(spec=tiny_run.spec(min_seconds=10.0), place=place_of(0, 2))
    assert loop._is_short(trainer, 8.0) is short


@pytest.mark.parametrize(("own", "others", "stops"), [(1.0, 0.0, False), (math.nan, 0.0, True), (1.0, 1.0, True)])
def test_ranks_stop_together_when_the_loss_of_one_is_not_finite(monkeypatch, own, others, stops):
    def all_reduce(bad, op):
        assert op is loop.dist.ReduceOp.MAX
        bad.fill_(max(bad.item(), others))

    monkeypatch.setattr(loop.dist, "all_reduce", all_reduce)
    with pytest.raises(loop.RunEnded) if stops else contextlib.nullcontext():
        loop._check_finite(place_of(0, 2), [torch.tensor(1.0), torch.tensor(own)], 2)


def test_the_idle_baseline_is_a_rest_before_the_window(run):
    span = run(idle_s=0.2)["measurement"]["span"]
    assert span["idle_end_s"] - span["idle_begin_s"] >= 0.2
    assert span["idle_end_s"] <= span["begin_s"] < span["end_s"]
    assert span["meter_s"] >= 0
    none = run()["measurement"]["span"]
    assert none["idle_end_s"] == none["idle_begin_s"]  # not a few microseconds: there is no baseline


def test_the_training_loss_of_an_epoch_is_the_mean_of_its_steps(run):
    outcome = run(epochs=2)
    first, second = outcome["losses"][:NUM_STEPS], outcome["losses"][NUM_STEPS:]
    assert outcome["epochs"][0]["train_loss"] is None
    assert [row["train_loss"] for row in outcome["epochs"][1:]] == [sum(first) / NUM_STEPS, sum(second) / NUM_STEPS]


def test_it_learns(run):
    losses = [row["validation_loss"] for row in run(epochs=4)["epochs"]]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.1


def test_perplexity_and_accuracy_are_those_of_the_validation_loss(run):
    outcome = run(epochs=2)
    for row in outcome["epochs"]:
        assert row["perplexity"] == pytest.approx(math.exp(row["validation_loss"]))
        num_right = row["masked_accuracy"] * outcome["quality"]["num_masked"]
        assert num_right == pytest.approx(round(num_right))
    assert {name: outcome["quality"][name] for name in outcome["quality"] if name in row}.items() <= row.items()


def reference_losses(assets, spec, norms=None):
    """The same training written out in the plainest PyTorch: dense head, mean loss, one parameter group per rule.

    Norms of gradients, where they are cut, are added to the list.
    """
    model = saved(assets.model_folder)
    corpus = load(assets.tokens, spec.max_length)
    texts, _ = split(corpus, "random", 0.2, 0)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": spec.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=spec.lr)
    num_steps = math.ceil(len(texts) / spec.batch_size) * spec.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / num_steps)
    losses = []
    model.train()
    for epoch in range(1, spec.epochs + 1):
        masked = mask(corpus, spec.mask_probability, spec.repeat, epoch)
        for rows in order(texts, spec.repeat, epoch).split(spec.batch_size):
            width = int(corpus.lengths[rows].max())
            inputs, labels = torch.zeros(len(rows), width).long(), torch.full((len(rows), width), IGNORED)
            attention = torch.zeros(len(rows), width).long()
            for i, text in enumerate(rows.tolist()):
                at = slice(int(corpus.offsets[text]), int(corpus.offsets[text + 1]))
                inputs[i, : at.stop - at.start] = masked.inputs[at]
                labels[i, : at.stop - at.start] = masked.labels[at]
                attention[i, : at.stop - at.start] = 1
            logits = model(input_ids=inputs, attention_mask=attention).logits
            loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
            loss.backward()
            if spec.max_grad_norm is not None:
                norms.append(
                    float(torch.nn.utils.clip_grad_norm_(model.parameters(), spec.max_grad_norm, foreach=False))
                )
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"batching": "fixed", "head": "dense"},
        {"batching": "packed"},
        {"batching": "packed", "head": "dense", "micro_batch_size": 3},
        {"micro_batch_size": 5},
        {"checkpoint_activations": True},
    ],
)
def test_each_steps_loss_is_that_of_a_plain_training_loop(run, assets, layout):
    changes = {"epochs": 3, "weight_decay": 0.5, "lr": 0.02}  # strong enough that a wrong rule shows
    expected = reference_losses(assets, tiny_run.spec(**changes))
    assert run(**changes, **layout)["losses"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("layout", [{}, {"batching": "packed", "micro_batch_size": 3}])
def test_clipped_steps_are_those_of_a_plain_training_loop(run, assets, layout):
    changes = {"epochs": 4, "max_grad_norm": 1.0}
    norms = []
    expected = reference_losses(assets, tiny_run.spec(**changes), norms)
    free = reference_losses(assets, tiny_run.spec(epochs=4))
    assert min(norms) < 1.0 < max(norms), "some steps are clipped and some are not"
    assert max(abs(a - b) / b for a, b in zip(expected, free, strict=True)) > 1e-4
    assert run(**changes, **layout)["losses"] == pytest.approx(expected, rel=4e-6)


def test_a_step_that_overflows_is_left_out_with_clipping_too(run, monkeypatch):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    monkeypatch.setattr(precision, "scaler", lambda name, device: scaler)
    outcome = run(epochs=20, precision="fp16-mixed", warmup_steps=0, max_grad_norm=1.0)
    assert 0 < outcome["measurement"]["num_skipped_steps"] < 20 * NUM_STEPS
    assert outcome["epochs"][-1]["validation_loss"] < outcome["epochs"][0]["validation_loss"]


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("full", {}),
        ("freeze-bottom", {"num_layers": 2, "num_frozen_layers": 1}),
        ("last-k", {"num_layers": 2, "num_frozen_layers": 0}),
        ("lora", {"lora_targets": ["query", "value"]}),
    ],
)
def test_the_record_says_what_a_method_froze_and_where_it_added(run, method, said):
    (phase,) = run(method=method)["measurement"]["phases"]
    keys = {"num_layers", "num_frozen_layers", "lora_targets"}
    assert {key: value for key, value in phase.items() if key in keys} == said


def test_the_same_seed_twice_is_the_same_run_and_another_seed_another(run, with_dropout):
    one, same, other = (run(with_dropout, repeat=repeat) for repeat in (1, 1, 2))
    assert one["losses"] == same["losses"]
    assert quality(one) == quality(same)
    assert one["losses"] != other["losses"]


def test_warm_up_leaves_weights_and_randomness_as_they_were(run, with_dropout):
    cold = run(with_dropout, warmup_steps=0)
    for warmup_steps in (2, 50):
        warm = run(with_dropout, warmup_steps=warmup_steps)
        assert warm["losses"] == cold["losses"]
        assert quality(warm) == quality(cold)
        assert warm["measurement"]["num_steps"] == NUM_STEPS
        assert warm["measurement"]["num_texts"] == NUM_TRAIN


def test_dropout_is_on_in_training_and_off_in_scoring(run, assets, with_dropout):
    one, other = run(assets), run(with_dropout)
    assert one["epochs"][0]["validation_loss"] == other["epochs"][0]["validation_loss"]
    assert one["losses"][0] != other["losses"][0]


def test_batches_of_each_kind_give_the_same_losses(run):
    fixed, dynamic, packed = (run(epochs=2, batching=batching) for batching in ("fixed", "dynamic", "packed"))
    for other in (fixed, packed):
        assert other["losses"] == pytest.approx(dynamic["losses"], rel=1e-4)
        assert quality(other)[-1] == pytest.approx(quality(dynamic)[-1], rel=1e-4)
    texts, padded = (
        [row["measurement"][name] for row in (packed, dynamic, fixed)] for name in ("num_tokens", "num_padded_tokens")
    )
    assert texts[0] == texts[1] == texts[2]
    assert texts[0] < padded[0] < padded[1] < padded[2] == 2 * NUM_TRAIN * 24


def test_micro_batches_give_the_same_losses_and_pad_less(run):
    whole, parts = run(epochs=2), run(epochs=2, micro_batch_size=3)
    assert parts["losses"] == pytest.approx(whole["losses"], rel=1e-4)
    whole, parts = whole["measurement"], parts["measurement"]
    for name in ("num_steps", "num_texts", "num_tokens", "num_predicted"):
        assert parts[name] == whole[name]
    assert parts["num_tokens"] < parts["num_padded_tokens"] < whole["num_padded_tokens"]


def test_activations_that_are_computed_again_drop_out_the_same(run, with_dropout):
    stored, again = (run(with_dropout, epochs=2, checkpoint_activations=given) for given in (False, True))
    assert again["losses"] == pytest.approx(stored["losses"], rel=1e-6)
    assert quality(again)[-1] == pytest.approx(quality(stored)[-1], rel=1e-6)


@pytest.mark.parametrize("name", ["bf16-mixed", "fp16-mixed", "bf16-true", "bf16-kahan"])
def test_another_precision_gives_close_but_other_losses(run, name):
    exact, rounded = run(epochs=2), run(epochs=2, precision=name)
    assert rounded["losses"] == pytest.approx(exact["losses"], rel=2e-3)
    assert rounded["losses"] != exact["losses"]
    assert rounded["epochs"][-1]["validation_loss"] == pytest.approx(exact["epochs"][-1]["validation_loss"], rel=2e-3)


def test_steps_that_the_loss_scaler_left_out_are_counted(run, monkeypatch):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)  # overflows until it was halved often enough
    monkeypatch.setattr(precision, "scaler", lambda name, device: scaler)
    measured = run(epochs=2, precision="fp16-mixed", warmup_steps=0)["measurement"]
    assert 0 < measured["num_skipped_steps"] <= 2 * NUM_STEPS


@pytest.mark.parametrize(("max_steps", "num_steps"), [(1, [0, 1]), (NUM_STEPS, [0, 3]), (NUM_STEPS + 1, [0, 3, 4])])
def test_max_steps_ends_training_also_within_an_epoch(run, max_steps, num_steps):
    outcome = run(max_steps=max_steps)
    assert len(outcome["losses"]) == outcome["measurement"]["num_steps"] == max_steps
    assert [row["num_steps"] for row in outcome["epochs"]] == num_steps


def test_shorter_texts_and_more_masks_reach_the_data(run):
    cut = run(max_length=6, epochs=2)["measurement"]
    assert cut["num_padded_tokens"] <= 2 * NUM_TRAIN * 6
    few, many = run(mask_probability=0.1), run(mask_probability=0.5)
    assert many["quality"]["num_masked"] > 2 * few["quality"]["num_masked"]


def test_the_data_sets_own_split_is_used(run):
    source = {
        "source": {"local": "t"},
        "format": "text",
        "validation_fraction": 0.5,
        "split": "unique",
        "split_seed": 4,
    }
    outcome = run(dataset_source=source)
    assert outcome["num_train_texts"] != NUM_TRAIN
    assert outcome["num_train_texts"] + outcome["quality"]["num_validation_texts"] == tiny_run.NUM_TEXTS


def rates(**changes):
    spec = tiny_run.spec(lr=1.0, **changes)
    return [learning_rate(spec, step, 10) for step in range(10)]


def test_learning_rate_schedules():
    assert rates(schedule="constant") == [1.0] * 10
    assert rates(schedule="linear") == pytest.approx([1 - i / 10 for i in range(10)])
    assert rates(schedule="cosine") == pytest.approx([(1 + math.cos(math.pi * i / 10)) / 2 for i in range(10)])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_learning_rate_rises_to_its_peak_and_then_follows_the_schedule(schedule):
    found = rates(schedule=schedule, lr_warmup_fraction=0.4)
    assert found[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    after = {"constant": 1.0, "linear": 1 / 6, "cosine": (1 + math.cos(math.pi * 5 / 6)) / 2}
    assert found[-1] == pytest.approx(after[schedule])
    assert min(found) > 0


def test_the_schedule_reaches_the_optimizer(run):
    flat, falling = run(epochs=2, schedule="constant"), run(epochs=2, schedule="linear")
    assert flat["losses"][:2] == falling["losses"][:2]  # both take their first step at the peak
    assert flat["losses"][2:] != falling["losses"][2:]


def test_nothing_but_training_happens_in_the_window(run, monkeypatch):
    events = []

    class Meter:
        begin_s = end_s = window_s = calls_s = clock_step_s = 0.0

        def __init__(self, boards, host, synchronize):
            assert (boards, host) == ({}, True)
            synchronize()

        @contextlib.contextmanager
        def window(self):
            events.append("begin")
            yield
            events.append("end")

        def readings(self):
            return []

    def noted(name, inner):
        return lambda *given, **named: (events.append(name), inner(*given, **named))[1]

    monkeypatch.setattr(loop, "Meter", Meter)
    for name in ("_idle", "_step", "score", "save"):
        monkeypatch.setattr(loop, name, noted(name, getattr(loop, name)))
    for name in ("room_for", "fill"):
        monkeypatch.setattr(loop.memory, name, noted(name, getattr(loop.memory, name)))
    run(epochs=2, keep_model="last")
    before, within, after = (
        events.index("begin"),
        events[events.index("begin") + 1 : events.index("end")],
        events[events.index("end") :],
    )
    copying = ("room_for", "fill")
    # At rest; the untrained model's; warm-up; memory for the weights of two epochs.
    assert [event for event in events[:before] if event not in copying] == ["_idle", "score", "_step", "_step"]
    assert events[before - 2 : before] == ["room_for", "room_for"]
    assert within == ["_step"] * NUM_STEPS + ["fill"] + ["_step"] * NUM_STEPS, "those of the last epoch can wait"
    assert [event for event in after if event not in copying] == ["end", "score", "score", "save"]
    assert after[1] == "fill"


@pytest.mark.parametrize(("changes", "num_copies"), [({"epochs": 1}, 0), ({"epochs": 3}, 2), (LONG, 2 + 2)])
def test_seconds_of_copying_weights_in_the_window_are_told(run, three_passes, monkeypatch, changes, num_copies):
    """A repeated training's last weights too, and two ways back to the start."""
    fill, restore, clock, inside = loop.memory.fill, InitialState.restore, [0.0], []

    def slow(inner, seconds):
        def copy(*given):
            clock[0] += seconds * bool(inside)
            return inner(*given)

        return copy

    class Meter(loop.Meter):
        @contextlib.contextmanager
        def window(self):
            with super().window():
                inside.append(1)
                yield
                inside.clear()

    monkeypatch.setattr(loop, "Meter", Meter)
    monkeypatch.setattr(loop.memory, "fill", slow(fill, 100.0))
    monkeypatch.setattr(InitialState, "restore", slow(restore, 100.0))
    monotonic = loop.time.monotonic
    monkeypatch.setattr(loop.time, "monotonic", lambda: monotonic() + clock[0])
    measured = run(**changes)["measurement"]
    assert measured["span"]["weights_s"] // 100 == num_copies
    assert measured["total_window_s"] > measured["span"]["weights_s"]
    assert sum(phase["elapsed_s"] for phase in measured["phases"]) < 100, "phases are of training alone"


@pytest.mark.parametrize("num_passes", [1, 3])
def test_weights_are_kept_of_every_epoch(run, three_passes, num_passes):
    """Each epoch's are scored: what a run of fewer epochs ends with."""
    long = {"min_seconds": 1.0} if num_passes > 1 else {}
    losses = [row["validation_loss"] for row in run(epochs=3, schedule="constant", **long)["epochs"]]
    for epochs in (1, 2):
        assert run(epochs=epochs, schedule="constant")["epochs"][-1]["validation_loss"] == losses[epochs]


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_kept_model_loads_as_any_other_and_scores_what_was_recorded(run, tmp_path, assets, keep):
    changes = {"epochs": 6, "lr": 0.05, "schedule": "constant"}  # too fast: the last epoch is not the best
    losses = [row["validation_loss"] for row in run(**changes, keep_model=keep)["epochs"]]
    assert min(losses[1:]) < losses[-1]
    again = trained(tiny_run.spec(), tmp_path / "model", assets.tokens, tmp_path / "again")
    expected = min(losses[1:]) if keep == "best" else losses[-1]
    assert again["epochs"][0]["validation_loss"] == pytest.approx(expected, rel=1e-6)
    assert type(saved(tmp_path / "model")).__name__ == "BertForMaskedLM"
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert files >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_no_model_is_kept_unless_asked_for(run, tmp_path):
    run()
    assert list(tmp_path.iterdir()) == []


def test_frozen_parameters_stay_and_the_others_train(run, assets, tmp_path):
    run(method="freeze-bottom", keep_model="last")
    before, after = saved(assets.model_folder).state_dict(), saved(tmp_path / "model").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in changed if "embeddings" in name or "layer.0." in name or "decoder.weight" in name]
    assert "bert.encoder.layer.1.attention.self.query.weight" in changed


@pytest.mark.parametrize("micro", [None, 1, 2])
@pytest.mark.parametrize("batching", ["dynamic", "packed"])
def test_gradients_that_ddp_averages_are_those_of_the_whole_batch(assets, batching, micro):
    """Losses cannot show it: AdamW's steps do not depend on the scale of the gradients."""
    corpus = load(assets.tokens, 24)
    masked, texts = mask(corpus, 0.3, 1, 1), torch.arange(7)  # an odd number: the ranks' shares differ

    def gradients(rank, world, **changes):
        core = LanguageModel(tiny_run.network())
        kept = {}
        optimizer = torch.optim.SGD(core.parameters(), lr=0.0)
        optimizer.register_step_pre_hook(
            lambda *given: kept.update({name: p.grad.clone() for name, p in core.named_parameters()})
        )
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        given = {"batching": "dynamic", "size": 7, "micro": None, "max_length": 24, "head": "masked", **changes}
        trainer = SimpleNamespace(spec=tiny_run.spec(), model=core, place=place_of(rank, world), graphed=None,
                                  cache=None, optimizer=optimizer, scaler=scaler)  # fmt: skip
        (step,) = data.steps(corpus, masked, texts, data.BatchLayout(**given), rank, world)
        loss = loop._step(trainer, *step, lr=0.0)
        return loss.item(), kept

    loss, whole = gradients(0, 1)
    shares = [gradients(rank, 3, batching=batching, micro=micro) for rank in range(3)]
    assert sum(share for share, _ in shares) == pytest.approx(loss, rel=1e-5)
    assert max(gradient.abs().max() for gradient in whole.values()) > 0.01
    for name, expected in whole.items():
        averaged = sum(share[name] for _, share in shares) / 3
        torch.testing.assert_close(averaged, expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp"])
def test_only_the_last_micro_batch_exchanges_gradients(assets, monkeypatch, strategy):
    said, core = [], LanguageModel(tiny_run.network())
    monkeypatch.setattr(
        loop.strategy, "synchronise", lambda model, name, exchanges: said.append((model, name, exchanges))
    )
    layout = data.BatchLayout(batching="dynamic", size=7, micro=3, max_length=24, head="masked")
    corpus = load(assets.tokens, 24)
    (step,) = data.steps(corpus, mask(corpus, 0.3, 1, 1), torch.arange(7), layout)
    trainer = SimpleNamespace(
        spec=tiny_run.spec(strategy=strategy),
        model=core,
        place=place_of(0, 1),
        graphed=None,
        cache=None,
        optimizer=torch.optim.SGD(core.parameters(), lr=0.0),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
    )
    loop._step(trainer, *step, lr=0.0)
    assert said == [(core, strategy, exchanges) for exchanges in (False, False, True)]


@pytest.fixture
def graphs(monkeypatch):
    """A graph engine without a GPU: the shapes that it captured, and those that it replayed since."""
    captured, replayed = [], []

    class GraphedStep:
        def __init__(self, step, device):
            self.step = step

        def __call__(self, inputs, factor):
            shapes = engine.shapes(inputs)
            (replayed if shapes in captured else captured).append(shapes)
            return self.step(inputs, torch.tensor(factor))

    monkeypatch.setattr(engine, "GraphedStep", GraphedStep)
    monkeypatch.setattr(engine, "unsupported_reason", lambda name, accelerator, capability: None)
    return captured, replayed


@pytest.mark.parametrize(
    "changes",
    tiers.first(
        2,
        [
            {"batching": "packed", "epochs": 4},
            {"batching": "fixed", "epochs": 4, "micro_batch_size": 6},
            {"batching": "packed", "max_steps": 1},
            {"batching": "packed", "max_steps": NUM_STEPS + 1},
        ],
    ),
)
def test_every_shape_is_captured_before_the_window_and_nothing_learned_of_it(run, with_dropout, graphs, changes):
    eager = run(with_dropout, **changes)
    assert graphs == ([], [])
    graph = run(with_dropout, **changes, engine="graph")
    assert graph["losses"] == pytest.approx(eager["losses"], rel=1e-6)
    assert quality(graph)[-1] == pytest.approx(quality(eager)[-1], rel=1e-6)
    captured, replayed = graphs
    assert len(replayed) == len(graph["losses"])  # every step of the window, and none that captured
    assert all(captured.count(shapes) == 1 for shapes in captured)
    assert all(shapes in replayed for shapes in captured), "or captured in vain"


def test_a_loss_that_is_not_finite_is_diverged(run):
    with pytest.raises(loop.RunEnded) as stopped:
        run(lr=1e30)
    assert stopped.value.outcome == Stopped(status="diverged", reason=f"the loss was not finite by step {NUM_STEPS}")


def test_a_model_that_is_not_finite_is_diverged(run, tmp_path, assets):
    model = tiny_run.network()
    model.cls.predictions.bias.data.fill_(math.nan)
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(loop.RunEnded, match="the validation loss was not finite"):
        run(tiny_run.Assets(model_folder=tmp_path / "broken", tokens=assets.tokens))


@pytest.fixture
def job(tmp_path, assets):
    """Run `main` on a job; returns its exit code and what it left behind."""

    def run_main(boards=(), **changes):
        paths = {"model_folder": assets.model_folder, "tokens": assets.tokens, "folder": tmp_path}
        described = {"spec": full(tiny_run.spec(**changes)), **{name: str(path) for name, path in paths.items()}}
        described["boards"] = boards
        (tmp_path / "job.json").write_text(json.dumps(described))
        code = loop.main(["train", str(tmp_path / "job.json")])
        return code, json.loads((tmp_path / "rank0.json").read_text())

    return run_main


def test_a_job_leaves_its_outcome_and_exits_with_0(job):
    code, outcome = job()
    assert (code, outcome["status"], len(outcome["losses"])) == (0, "ok", NUM_STEPS)


def test_a_job_meters_the_boards_that_it_names(job, monkeypatch):
    metered = []

    class Meter(loop.Meter):
        def __init__(self, boards, host, synchronize):
            metered.extend(boards.items())
            super().__init__({}, host, synchronize)

    monkeypatch.setattr(loop, "Meter", Meter)
    assert job(boards=[board(3)])[0] == 0
    assert metered == [(0, Board(**board(3)))]


def test_a_stopped_job_leaves_its_outcome_and_exits_with_3(job):
    code, outcome = job(precision="tf32")
    assert (code, outcome["status"]) == (3, "unsupported")


def test_a_users_mistake_is_left_as_an_error(job):
    code, outcome = job(mask_probability=1e-9)
    assert (code, outcome["status"]) == (3, "error")
    assert outcome["reason"].startswith("the validation texts have no token to predict")


@pytest.mark.parametrize(
    ("error", "reason", "num_bytes"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nDetails"),
            "CUDA out of memory. Tried to allocate 20.00 MiB.",
            20 * 2**20,
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes."),
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes.",
            64,
        ),
        (
            RuntimeError("Caught it in replica 0\nCUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate",
            None,
        ),
        (MemoryError(), "out of host memory", None),
    ],
)
def test_running_out_of_memory_is_a_result(job, monkeypatch, error, reason, num_bytes):
    def exhausted(*given):
        raise error

    monkeypatch.setattr(loop, "train", exhausted)
    assert job() == (3, {"status": "oom", "reason": reason, "oom_bytes": num_bytes})


def test_any_other_error_is_a_bug_and_leaves_nothing(job, monkeypatch, tmp_path):
    def broken(*given):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(loop, "train", broken)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        job()
    assert not (tmp_path / "rank0.json").exists()


def test_a_model_that_an_engine_cannot_prepare_is_unsupported_and_a_bug_stays_one():
    from torch._dynamo.exc import Unsupported

    for error in (Unsupported("graph break", case_name="x"), RuntimeError("not permitted when stream is capturing")):
        with pytest.raises(loop.RunEnded) as stopped, loop._prepared_by("compile"):
            raise error
        assert stopped.value.outcome.status == "unsupported"
        assert str(stopped.value).startswith("engine compile: this model fails: ")
        assert "\n" not in str(stopped.value)
    with pytest.raises(TypeError), loop._prepared_by("eager"):
        learning_rate(tiny_run.spec(), None, 3)
    for error in (RuntimeError("CUDA error: device-side assert"),):
        with pytest.raises(type(error), match=str(error)), loop._prepared_by("eager"):
            raise error
