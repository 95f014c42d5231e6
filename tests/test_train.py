"""The one training loop: exact where it must be, measured only where it trains, and honest when it stops."""

from __future__ import annotations

import contextlib
import json
import math
from types import SimpleNamespace

import pytest
import tiny_run
import torch
from torch.nn import functional

from joulesweep import data, methods, train
from joulesweep.data import IGNORED
from joulesweep.errors import UserError
from joulesweep.model import MaskedLanguageModel
from joulesweep.spec import full

NUM_TRAIN = 48  # of the 60 tiny texts, 12 being held out
NUM_STEPS = 3  # in one epoch, 16 texts each


@pytest.fixture(autouse=True)
def torch_as_it_was():
    threads, matmul, rng = torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(matmul)
    torch.set_rng_state(rng)


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    return tiny_run.assets(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def with_dropout(tmp_path_factory, assets):
    folder = tiny_run.model(tmp_path_factory.mktemp("dropout") / "model", dropout=0.3)
    return tiny_run.Assets(model_folder=folder, tokens=assets.tokens)


@pytest.fixture
def run(assets, tmp_path):
    """Train in this process."""

    def run(on=assets, **changes):
        return train.train(tiny_run.spec(**changes), on.model_folder, on.tokens, tmp_path)

    return run


def board(index, **changes):
    """A board as a job names it."""
    described = {"name": "Fake", "memory_bytes": 1, "has_counter": True, "mig": False}
    return {"device": f"gpu:{index}", "index": index, "uuid": f"GPU-{index}", **described, **changes}


def quality(outcome):
    names = ("validation_loss", "perplexity", "masked_accuracy")
    return [[row[name] for name in names] for row in outcome["epochs"]]


def saved(folder):
    from transformers import AutoModelForMaskedLM

    return AutoModelForMaskedLM.from_pretrained(folder, local_files_only=True)


def test_an_outcome_counts_what_was_done(run, assets):
    outcome = run(epochs=2)
    corpus = data.load(assets.tokens, 24)
    texts, held_out = data.split(corpus, "random", 0.2, 0)
    measured = outcome["measurement"]
    assert (outcome["status"], outcome["num_train_texts"]) == ("ok", NUM_TRAIN)
    assert (measured["num_steps"], measured["num_skipped_steps"]) == (2 * NUM_STEPS, 0)
    assert measured["num_texts"] == 2 * NUM_TRAIN
    assert measured["num_tokens"] == 2 * int(corpus.lengths[texts].sum())
    assert measured["num_tokens"] < measured["num_padded_tokens"] <= 2 * NUM_TRAIN * 24
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
    assert {row["num_validation_texts"] for row in outcome["epochs"]} == {len(held_out)}
    assert json.loads(json.dumps(outcome, allow_nan=False)) == outcome


def test_clocks_of_epochs_run_from_the_windows_opening(run):
    outcome = run(epochs=3)
    elapsed = [row["elapsed_s"] for row in outcome["epochs"]]
    cpu = [row["cpu_s"] for row in outcome["epochs"]]
    assert elapsed[0] == cpu[0] == 0
    assert elapsed == sorted(elapsed)
    assert cpu == sorted(cpu)
    assert elapsed[-1] <= outcome["measurement"]["total_window_s"] + 0.01
    assert cpu[-1] <= outcome["measurement"]["cpu_s"]


@pytest.fixture
def steps(monkeypatch):
    """Every step from now on: its batch, the learning rate, the loss."""
    seen, step = [], train._step

    def noted(trainer, optimizer, scaler, batch):
        loss = step(trainer, optimizer, scaler, batch)
        seen.append((batch.input_ids.tolist(), batch.labels.tolist(), optimizer.param_groups[0]["lr"], loss.item()))
        return loss

    monkeypatch.setattr(train, "_step", noted)
    return seen


LONG = {"min_seconds": 0.4, "epochs": 2, "warmup_steps": 0}


@pytest.mark.parametrize("precision", ["fp32", "fp16-mixed"])
def test_a_short_training_is_repeated_until_the_window_is_long_enough(run, with_dropout, steps, precision):
    outcome = run(with_dropout, **LONG, precision=precision)
    measured, once = outcome["measurement"], 2 * NUM_STEPS
    assert measured["total_window_s"] >= 0.4
    assert measured["num_passes"] > 1
    assert len(steps) == measured["num_passes"] * once
    for begin in range(0, len(steps), once):  # the same texts and masks, the same rates, the same dropout
        assert steps[begin : begin + once] == steps[:once]
    assert (measured["num_steps"], measured["num_texts"]) == (once, 2 * NUM_TRAIN)  # of one pass
    assert outcome["losses"] == [loss for *_, loss in steps[:once]]


def test_passes_after_the_first_leave_no_trace_in_what_was_learned(with_dropout, tmp_path):
    def trained(folder, **changes):
        spec = tiny_run.spec(repeat=3, epochs=2, keep_model="last", **changes)
        outcome = train.train(spec, with_dropout.model_folder, with_dropout.tokens, tmp_path / folder)
        return outcome, saved(tmp_path / folder / "model").state_dict()

    (once, model), (long, same_model) = trained("once"), trained("long", min_seconds=0.4)
    assert (once["measurement"]["num_passes"], long["measurement"]["num_passes"] > 1) == (1, True)
    assert long["losses"] == once["losses"]
    assert quality(long) == quality(once)
    assert [row["train_loss"] for row in long["epochs"]] == [row["train_loss"] for row in once["epochs"]]
    assert len(long["epochs"]) == len(once["epochs"]) == 3
    for name in ("num_steps", "num_skipped_steps", "num_texts", "num_tokens", "num_padded_tokens"):
        assert long["measurement"][name] == once["measurement"][name]
    assert all(torch.equal(model[name], same_model[name]) for name in model)


def test_cpu_seconds_are_those_of_a_pass(run, monkeypatch):
    clock = iter([100.0, 110.0, 120.0, 140.0])  # at the window's begin, after the epochs of pass 1, at its end
    monkeypatch.setattr(train.time, "process_time", lambda: next(clock))
    outcome = run(**LONG)
    assert [row["cpu_s"] for row in outcome["epochs"]] == [0.0, 10.0, 20.0]
    assert outcome["measurement"]["cpu_s"] == 40.0 / outcome["measurement"]["num_passes"]


def test_a_training_that_fills_the_window_is_not_repeated(run, steps):
    assert run(epochs=2, min_seconds=1e-6, warmup_steps=0)["measurement"]["num_passes"] == 1
    assert len(steps) == 2 * NUM_STEPS


@pytest.mark.parametrize(("others_s", "short"), [(9.0, True), (10.0, False)])
def test_ranks_agree_on_another_pass_by_the_slowest(monkeypatch, others_s, short):
    def all_reduce(seconds, op):
        assert op is train.dist.ReduceOp.MAX
        seconds.fill_(max(seconds.item(), others_s))

    monkeypatch.setattr(train.dist, "all_reduce", all_reduce)
    trainer = SimpleNamespace(spec=tiny_run.spec(min_seconds=10.0), device=torch.device("cpu"), world=2)
    assert train._is_short(trainer, 8.0) is short


def test_the_idle_baseline_is_a_rest_before_the_window(run):
    span = run(idle_s=0.2)["measurement"]["span"]
    assert 0.2 <= span["idle_end_s"] - span["idle_begin_s"] < 2
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
    for row in run(epochs=2)["epochs"]:
        assert row["perplexity"] == pytest.approx(math.exp(row["validation_loss"]))
        assert (row["masked_accuracy"] * row["num_masked"]) == pytest.approx(
            round(row["masked_accuracy"] * row["num_masked"])
        )


def reference_losses(assets, spec):
    """The same training written out in the plainest PyTorch: dense head, mean loss, one parameter group per rule."""
    model = saved(assets.model_folder)
    corpus = data.load(assets.tokens, spec.max_length)
    texts, _ = data.split(corpus, "random", 0.2, 0)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": spec.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=spec.lr)
    num_steps = math.ceil(len(texts) / spec.batch_size) * spec.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / num_steps)
    losses = []
    model.train()
    for epoch in range(1, spec.epochs + 1):
        masked = data.mask(corpus, spec.mask_probability, spec.repeat, epoch)
        for rows in data.order(texts, spec.repeat, epoch).split(spec.batch_size):
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
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


def test_each_steps_loss_is_that_of_a_plain_training_loop(run, assets):
    changes = {"epochs": 3, "weight_decay": 0.5, "lr": 0.02}  # strong enough that a wrong rule shows
    assert run(**changes)["losses"] == pytest.approx(reference_losses(assets, tiny_run.spec(**changes)), rel=1e-4)


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


def test_fixed_and_dynamic_batches_give_the_same_losses(run):
    fixed, dynamic = run(epochs=2, batching="fixed"), run(epochs=2)
    assert fixed["losses"] == pytest.approx(dynamic["losses"], rel=1e-4)
    assert fixed["measurement"]["num_padded_tokens"] == 2 * NUM_TRAIN * 24
    assert fixed["measurement"]["num_padded_tokens"] > dynamic["measurement"]["num_padded_tokens"]


@pytest.mark.parametrize("name", ["bf16-mixed", "fp16-mixed", "bf16-true"])
def test_another_precision_gives_close_but_other_losses(run, name):
    exact, rounded = run(epochs=2), run(epochs=2, precision=name)
    assert rounded["losses"] == pytest.approx(exact["losses"], rel=2e-3)
    assert rounded["losses"] != exact["losses"]
    assert rounded["epochs"][-1]["validation_loss"] == pytest.approx(exact["epochs"][-1]["validation_loss"], rel=2e-3)


def test_steps_that_the_loss_scaler_left_out_are_counted(run, monkeypatch):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)  # overflows until it was halved often enough
    monkeypatch.setattr(train.precision, "scaler", lambda name, device: scaler)
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
    assert many["epochs"][0]["num_masked"] > 2 * few["epochs"][0]["num_masked"]


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
    assert outcome["num_train_texts"] + outcome["epochs"][0]["num_validation_texts"] == tiny_run.NUM_TEXTS


def rates(**changes):
    spec = tiny_run.spec(lr=1.0, **changes)
    return [train.learning_rate(spec, step, 10) for step in range(10)]


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
        begin_s = end_s = window_s = calls_s = 0.0

        def __init__(self, boards, host, synchronize):
            assert (boards, host) == ([], True)
            synchronize()

        @contextlib.contextmanager
        def window(self):
            events.append("begin")
            yield
            events.append("end")

        def rows(self):
            return []

    def noted(name, inner):
        return lambda *given, **named: (events.append(name), inner(*given, **named))[1]

    monkeypatch.setattr(train, "Meter", Meter)
    for name in ("_idle", "_step", "_score", "_save"):
        monkeypatch.setattr(train, name, noted(name, getattr(train, name)))
    run(epochs=2, keep_model="last")
    before, within, after = (
        events.index("begin"),
        events[events.index("begin") + 1 : events.index("end")],
        events[events.index("end") :],
    )
    assert events[:before] == ["_idle", "_score", "_step", "_step"]  # at rest; the untrained model's; warm-up
    assert within == ["_step"] * 2 * NUM_STEPS
    assert after == ["end", "_score", "_score", "_save"]


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_kept_model_loads_as_any_other_and_scores_what_was_recorded(run, tmp_path, assets, keep):
    changes = {"epochs": 6, "lr": 0.05, "schedule": "constant"}  # too fast: the last epoch is not the best
    losses = [row["validation_loss"] for row in run(**changes, keep_model=keep)["epochs"]]
    assert min(losses[1:]) < losses[-1]
    again = train.train(tiny_run.spec(), tmp_path / "model", assets.tokens, tmp_path / "again")
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


def test_gradients_that_ddp_averages_are_those_of_the_whole_batch(assets):
    """Losses cannot show it: AdamW's steps do not depend on the scale of the gradients."""
    corpus = data.load(assets.tokens, 24)
    masked, texts = data.mask(corpus, 0.3, 1, 1), torch.arange(7)  # an odd number: the ranks' shares differ

    def gradients(rank, world):
        core = MaskedLanguageModel(tiny_run.network())
        kept = {}
        optimizer = torch.optim.SGD(core.parameters(), lr=0.0)
        optimizer.register_step_pre_hook(
            lambda *given: kept.update({name: p.grad.clone() for name, p in core.named_parameters()})
        )
        trainer = SimpleNamespace(spec=tiny_run.spec(), model=core, device=torch.device("cpu"), world=world)
        (batch,) = data.batches(corpus, masked, texts, len(texts), rank, world, None)
        train._step(trainer, optimizer, torch.amp.GradScaler("cpu", enabled=False), batch)
        return kept

    whole, shares = gradients(0, 1), [gradients(rank, 3) for rank in range(3)]
    assert max(gradient.abs().max() for gradient in whole.values()) > 0.01
    for name, expected in whole.items():
        averaged = sum(share[name] for share in shares) / 3
        torch.testing.assert_close(averaged, expected, rtol=1e-4, atol=1e-6, msg=name)


def test_matrices_decay_and_vectors_do_not():
    model = tiny_run.network()
    model.bert.embeddings.requires_grad_(False)
    trainer = SimpleNamespace(core=model, spec=tiny_run.spec(weight_decay=0.3))
    matrices, vectors = train._optimizer(trainer).param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim for p in matrices["params"]} == {2}
    assert {p.ndim for p in vectors["params"]} == {1}
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(matrices["params"]) + len(vectors["params"]) == len(trained)


def test_a_loss_that_is_not_finite_is_diverged(run):
    with pytest.raises(train.Stop) as stopped:
        run(lr=1e30)
    assert stopped.value.outcome == {
        "status": "diverged",
        "reason": f"the loss was not finite by step {NUM_STEPS}",
        "oom_bytes": None,
    }


def test_a_model_that_is_not_finite_is_diverged(run, tmp_path, assets):
    model = tiny_run.network()
    model.cls.predictions.bias.data.fill_(math.nan)
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(train.Stop, match="the validation loss was not finite"):
        run(tiny_run.Assets(model_folder=tmp_path / "broken", tokens=assets.tokens))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"strategy": "dp", "devices": 2}, "dp needs at least two GPUs; this run uses the CPU"),
        ({"precision": "tf32"}, "tf32 exists on NVIDIA GPUs only; this run uses the CPU"),
        ({"accelerator": "cuda"}, "accelerator cuda: PyTorch sees no GPU here"),
    ],
)
def test_what_this_machine_cannot_run_is_unsupported_with_the_reason(run, monkeypatch, changes, reason):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(train.Stop) as stopped:
        run(**changes)
    assert stopped.value.outcome == {"status": "unsupported", "reason": reason, "oom_bytes": None}


def test_too_few_texts_are_the_users_to_mend(run, tmp_path, assets):
    tokens = tiny_run.token_file(tmp_path / "one.safetensors", num_texts=1)
    with pytest.raises(UserError, match=r"^data set texts: too few texts to hold some out: 1 in all$"):
        run(tiny_run.Assets(model_folder=assets.model_folder, tokens=tokens))


def test_no_masked_token_to_score_is_the_users_to_mend(run):
    with pytest.raises(UserError, match="the validation texts have no masked token"):
        run(mask_probability=1e-9)


def test_a_method_that_leaves_nothing_to_train_is_refused(run, monkeypatch):
    module = SimpleNamespace(
        Params=methods.load("full").Params, apply=lambda model, params: model.requires_grad_(False)
    )
    monkeypatch.setattr(methods, "load", lambda name: module)
    with pytest.raises(UserError, match=r"^method full: no parameter of the model is left to train$"):
        run()


@pytest.fixture
def job(tmp_path, assets):
    """Run `main` on a job; returns its exit code and what it left behind."""

    def run_main(boards=(), **changes):
        paths = {"model_folder": assets.model_folder, "tokens": assets.tokens, "folder": tmp_path}
        described = {"spec": full(tiny_run.spec(**changes)), **{name: str(path) for name, path in paths.items()}}
        described["boards"] = boards
        (tmp_path / "job.json").write_text(json.dumps(described))
        code = train.main(["train", str(tmp_path / "job.json")])
        return code, json.loads((tmp_path / "rank0.json").read_text())

    return run_main


def test_a_job_leaves_its_outcome_and_exits_with_0(job):
    code, outcome = job()
    assert (code, outcome["status"], len(outcome["losses"])) == (0, "ok", NUM_STEPS)


def test_a_job_meters_the_boards_that_it_names(job, monkeypatch):
    metered = []

    class Meter(train.Meter):
        def __init__(self, boards, host, synchronize):
            metered.extend(boards)
            super().__init__([], host, synchronize)

    monkeypatch.setattr(train, "Meter", Meter)
    assert job(boards=[board(3)])[0] == 0
    assert metered == [{**board(3), "position": 0}]


def test_a_stopped_job_leaves_its_outcome_and_exits_with_3(job):
    code, outcome = job(precision="tf32")
    assert (code, outcome["status"]) == (3, "unsupported")


def test_a_users_mistake_is_left_as_an_error(job):
    code, outcome = job(mask_probability=1e-9)
    assert (code, outcome["status"]) == (3, "error")
    assert outcome["reason"].startswith("the validation texts have no masked token")


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

    monkeypatch.setattr(train, "train", exhausted)
    assert job() == (3, {"status": "oom", "reason": reason, "oom_bytes": num_bytes})


def test_any_other_error_is_a_bug_and_leaves_nothing(job, monkeypatch, tmp_path):
    def broken(*given):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(train, "train", broken)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        job()
    assert not (tmp_path / "rank0.json").exists()


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
    ],
)
@pytest.mark.parametrize("accelerator", ["cpu", "cuda"])
def test_each_board_is_metered_by_one_process(torch_sees, accelerator, strategy, world, by_rank):
    torch_sees("7", "5", "3", "1")
    boards, devices = [board(index) for index in (7, 5, 3, 1)], 2 if strategy == "dp" else world
    spec = tiny_run.spec(accelerator=accelerator, strategy=strategy, devices=devices)
    found = [train._measured_boards(spec, boards, rank, world) for rank in range(world)]
    assert [[row["index"] for row in rows] for rows in found] == by_rank
    assert all(boards[row["position"]]["index"] == row["index"] for rows in found for row in rows)
    assert sum(map(len, found)) == len(boards)


def test_a_run_without_boards_meters_none():
    assert train._measured_boards(tiny_run.spec(), [], 0, 1) == []


def test_pytorch_on_another_board_than_the_metered_one_is_refused(torch_sees):
    torch_sees("7", "9")
    boards = [board(7), board(5)]
    one, two = tiny_run.spec(accelerator="cuda"), tiny_run.spec(accelerator="cuda", strategy="ddp", devices=2)
    assert train._measured_boards(one, boards, 0, 1)  # it does not compute on the second
    for rank in (0, 1):
        with pytest.raises(UserError, match=r"^PyTorch computes on GPU 9, and the run was given GPU-5$"):
            train._measured_boards(two, boards, rank, 2)


def test_what_pytorch_does_not_say_and_slices_are_not_compared(torch_sees):
    spec = tiny_run.spec(accelerator="cuda")
    torch_sees("")
    assert train._measured_boards(spec, [board(5)], 0, 1)
    torch_sees("9")
    assert train._measured_boards(spec, [board(5, mig=True)], 0, 1)
