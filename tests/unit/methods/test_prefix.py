"""A prefix of virtual tokens: it alone trains, it is counted, it writes as it trained, and it can be read back."""

from __future__ import annotations

import json

import pytest
import tiny_run
import torch
from outcomes import trained
from torch.utils.flop_counter import FlopCounterMode

from joulesweep import methods
from joulesweep.core.errors import UserError
from joulesweep.nets import flops, products
from joulesweep.nets.language_model import LanguageModel
from joulesweep.train import assembly, loop, scoring, trainer

pytestmark = pytest.mark.usefixtures("torch_as_it_was")

KINDS = tiny_run.WRITERS
PREFIX = "prompt_encoder.default.embedding.weight"


def prefixed(kind, tokens=4):
    return methods.load("prefix").apply(tiny_run.writer(kind), methods.parameters("prefix", {"tokens": tokens}))


def spread_out(model):
    """Weights large enough that a model's output depends on what it is given."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
    return model.eval()


def tensors(core, ids):
    """What `LanguageModel.forward` is called with to predict these ids, int64 [rows, length]."""
    return ids, torch.ones_like(ids), ids, None, None, ids if core.task == "seq2seq" else None


@pytest.mark.parametrize("kind", KINDS)
def test_the_prefix_alone_trains_and_the_loss_falls(kind):
    core = LanguageModel(prefixed(kind), task=tiny_run.task_of(kind)).train()
    before = {name: parameter.detach().clone() for name, parameter in core.model.named_parameters()}
    trained = [parameter for parameter in core.parameters() if parameter.requires_grad]
    assert [p is core.model.get_parameter(PREFIX) for p in trained] == [True]
    optimizer = torch.optim.AdamW(trained, lr=0.3)
    losses = []
    for _ in range(12):
        loss = core(*tensors(core, torch.arange(5, 15).reshape(2, 5)))[0, 0]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    changed = {name for name, p in core.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {PREFIX}


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_is_found_behind_the_wrapper(kind):
    plain, wrapped = LanguageModel(tiny_run.writer(kind)), LanguageModel(prefixed(kind))
    assert wrapped.head_name == f"base_model.{plain.head_name}"


def test_a_prefix_of_what_a_model_keeps_of_a_text_acts_as_that_text():
    """By hand: the keys and values of three tokens, as the prefix of those that follow."""
    for kind in ("opt", "llama", "gpt2"):
        plain = spread_out(tiny_run.writer(kind))
        first, rest = torch.tensor([[7, 11, 9]]), torch.tensor([[20, 21, 22, 23]])
        whole = plain(input_ids=torch.cat((first, rest), 1)).logits[:, 3:]
        kept = plain(input_ids=first, use_cache=True).past_key_values
        pairs = [one[0] for layer in kept.layers for one in (layer.keys, layer.values)]  # [heads, 3, width]
        found = methods.load("prefix").apply(plain, methods.parameters("prefix", {"tokens": 3}))
        with torch.no_grad():
            found.get_parameter(PREFIX).copy_(torch.cat([one.transpose(0, 1).flatten(1) for one in pairs], 1))
        logits = found(input_ids=rest, attention_mask=torch.ones_like(rest), use_cache=False).logits
        torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_it_writes_what_it_predicts(kind):
    """Step by step, from padded rows, as from each whole text alone."""
    model, task = spread_out(prefixed(kind)), tiny_run.task_of(kind)
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        setattr(model.base_model.generation_config, name, None)
    ids, mask = torch.tensor([[9, 20, 31, 42], [13, 24, 35, 46]]), torch.ones((2, 4), dtype=torch.long)
    filled = slice(0, 1) if task == "clm" else slice(3, 4)
    ids[1, filled], mask[1, filled] = tiny_run.PAD, 0
    given = {"decoder_start_token_id": tiny_run.CLS} if task == "seq2seq" else {}
    ends = {"max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": tiny_run.PAD, "eos_token_id": tiny_run.SEP}
    with torch.no_grad():
        written = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, **ends, **given)
        for row in (0, 1):
            text = ids[row][mask[row] > 0][None]
            answer = written[row, 4:] if task == "clm" else written[row, 1:]
            read = torch.cat((text, answer[None]), 1) if task == "clm" else text
            own = {} if task == "clm" else {"decoder_input_ids": written[row][None]}
            logits = model(input_ids=read, attention_mask=torch.ones_like(read), use_cache=False, **own).logits[
                0, -7:-1
            ]
            logits[:, tiny_run.SEP] = -torch.inf
            assert logits.argmax(-1).tolist() == answer.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 5, 20])
@pytest.mark.parametrize("kind", KINDS)
def test_it_costs_what_pytorch_counts(kind, tokens, **changes):
    with torch.device("meta"):
        model = tiny_run.writer(kind, **changes)
        model.set_attn_implementation("eager")
        model.config.pad_token_id = None  # else GPT-2 looks for it among the ids
        model = methods.load("prefix").apply(model, methods.parameters("prefix", {"tokens": tokens}))
    assert_counted(LanguageModel(model.train(), task=tiny_run.task_of(kind)))


def assert_counted(core, rows=3, length=24, target_length=17):
    given = {"input_ids": torch.zeros((rows, length), dtype=torch.long, device="meta")}
    num = {"token": rows * length, "token_pair": rows * length**2, "head_position": rows * length}
    if core.task == "seq2seq":
        given["decoder_input_ids"] = torch.zeros((rows, target_length), dtype=torch.long, device="meta")
        written = rows * target_length
        num |= {"target_token": written, "target_pair": written * target_length, "cross_pair": written * length}
        num["head_position"] = written
    with FlopCounterMode(display=False) as counter:
        core.model(**given).logits.sum().backward()
    found = flops.coefficients(products.traced(core).products)
    total = sum(each * num[unit] for unit, each in found.items())
    assert total == pytest.approx(counter.get_total_flops(), rel=tiny_run.ANGLES)


@pytest.mark.parametrize("tokens", [3, 5])
def test_a_head_as_wide_as_prefix_and_traced_text_are_long_is_not_taken_for_them(tokens):
    """Of 16: 13 and 3, or 11 and 5."""
    test_it_costs_what_pytorch_counts("t5", tokens, d_kv=16)


def test_where_a_target_would_be_traced_as_long_as_a_text_nothing_is_counted():
    core = LanguageModel(prefixed("t5", tokens=products.LENGTH - products.TARGET_LENGTH), task="seq2seq")
    assert "a target is as long as a text" in flops.model_work(core).flop_reason
    assert flops.model_work(LanguageModel(prefixed("opt", tokens=2), task="clm")).flop_reason is None


def test_a_real_model_is_left_as_it_was_by_counting():
    core = LanguageModel(prefixed("opt"), task="clm")
    assert flops.model_work(core).flop_reason is None
    every = [*core.named_parameters(remove_duplicate=False), *core.named_buffers()]
    assert {tensor.device.type for _, tensor in every} == {"cpu"}


def replica(network):
    """As torch.nn.parallel.replicate makes one for DataParallel, on the CPU: its parameters are tensors."""
    modules = list(network.modules())
    copies = {module: module._replicate_for_data_parallel() for module in modules}
    tensors = {parameter: parameter * 1 for parameter in network.parameters()}
    for module, copied in copies.items():
        for name, child in module._modules.items():
            setattr(copied, name, None if child is None else copies[child])
        for name, parameter in module._parameters.items():
            setattr(copied, name, None if parameter is None else tensors[parameter])
    return copies[network]


def test_a_replica_of_dataparallel_learns_the_same():
    core = LanguageModel(prefixed("opt"), task="clm").train()
    given, weight = tensors(core, torch.arange(5, 15).reshape(2, 5)), core.model.get_parameter(PREFIX)
    (expected,) = torch.autograd.grad(core(*given)[0, 0], [weight])
    (found,) = torch.autograd.grad(replica(core)(*given)[0, 0], [weight])
    torch.testing.assert_close(found, expected)
    assert expected.abs().max() > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "mlm"}, "an encoder has no keys and values of earlier tokens to put a prefix before; use a decoder"),
        ({"batching": "packed"}, "packed row would share one prefix; use batching: [dynamic]"),
        ({"checkpoint_activations": True}, "use checkpoint_activations: [false]"),
        ({"engine": "graph"}, "use engine: [eager]"),
    ],
)
def test_what_a_prefix_cannot_be_combined_with_is_known_beforehand(changes, words):
    given = {"method": "prefix", "task": "clm", "batching": "dynamic"}
    assert methods.incompatible_reason(tiny_run.spec(**given)) is None
    for engine in ("compile", "eager"):
        assert methods.incompatible_reason(tiny_run.spec(**given, engine=engine)) is None
    reason = methods.incompatible_reason(tiny_run.spec(**{**given, **changes}))
    assert reason.startswith("method prefix: ")
    assert words in reason
    assert "\n" not in reason


def test_no_prefix_is_one_clear_line():
    with pytest.raises(UserError, match=r"^method prefix: tokens must be at least 1, got 0$"):
        methods.parameters("prefix", {"tokens": 0})


def test_models_that_keep_nothing_are_refused():
    from transformers import AutoConfig, AutoModelForCausalLM

    params = methods.parameters("prefix", {})
    with pytest.raises(UserError, match=r"^method prefix: a bert has no keys and values of earlier tokens"):
        methods.load("prefix").apply(tiny_run.network(), params)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4, "vocab_size": 50}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **shape))
    with pytest.raises(UserError, match=r"^method prefix: a mamba has no keys and values of earlier tokens"):
        methods.load("prefix").apply(model, params)


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prefix")
    return tiny_run.Assets(
        model_folder=tiny_run.model(folder / "decoder", kind="opt"),
        tokens=tiny_run.token_file(folder / "tokens.safetensors"),
    )


@pytest.fixture
def run(assets, tmp_path):
    def run(**changes):
        changes = {"method": "prefix", "task": "clm", "batching": "dynamic", "lr": 0.1, **changes}
        return trained(tiny_run.spec(**changes), assets.model_folder, assets.tokens, tmp_path)

    return run


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's
def test_a_whole_training_learns_is_counted_and_is_saved_beside_the_untouched_model(run, assets, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    outcome = run(epochs=5, keep_model="last")
    losses = [row["validation_loss"] for row in outcome["epochs"]]
    assert losses[-1] < losses[0]
    (phase,) = outcome["measurement"]["phases"]
    assert phase["flop_reason"] is None
    assert phase["flop_coefficients"]["token"] > 0

    plain, saved = (AutoModelForCausalLM.from_pretrained(f) for f in (assets.model_folder, tmp_path / "model"))
    for (name, one), (other_name, other) in zip(plain.named_parameters(), saved.named_parameters(), strict=True):
        assert name == other_name
        assert torch.equal(one, other)
    about = json.loads((tmp_path / "model" / "prefix" / "adapter_config.json").read_text())
    assert about["num_virtual_tokens"] == 20
    assert (tmp_path / "model" / "tokenizer.json").is_file()
    adapted = PeftModel.from_pretrained(saved, tmp_path / "model" / "prefix")

    place = trainer.RankContext(device=torch.device("cpu"), rank=0, world=1, local_rank=0)
    given = {"method": "prefix", "task": "clm", "batching": "dynamic", "epochs": 5}
    fresh = assembly.assemble(tiny_run.spec(**given), assets.model_folder, assets.tokens, place)
    with torch.no_grad():
        fresh.core.model.get_parameter(PREFIX).copy_(adapted.get_parameter(PREFIX))
    assert scoring.score(fresh).validation_loss == pytest.approx(losses[-1], rel=1e-6)
    ids = {"input_ids": torch.arange(5, 15).reshape(2, 5), "attention_mask": torch.ones(2, 5, dtype=torch.long)}
    torch.testing.assert_close(adapted.eval()(**ids).logits, fresh.core.model.eval()(**ids).logits)


def test_more_positions_than_a_model_has_are_refused(run):
    assert run(max_length=44, max_steps=1, batching="fixed")["status"] == "ok"
    with pytest.raises(loop.RunEnded) as stopped:
        run(max_length=45, max_steps=1, batching="fixed")
    both = "20 virtual tokens and 45 of a text are more than the 64 positions of this model"
    assert stopped.value.outcome.status == "unsupported"
    assert stopped.value.outcome.reason == f"{both}; use a smaller max_length"


def test_what_it_is_to_write_counts_too(assets):
    """Behind a prefix the longest prompt has fewer positions left for its target."""
    place = trainer.RankContext(device=torch.device("cpu"), rank=0, world=1, local_rank=0)
    generate = {"texts": 1, "beams": 1, "length_penalty": 1.0, "no_repeat_ngram": 0}
    given = {"task": "clm", "batching": "dynamic", "generate": generate, "max_target_length": 30}
    tokens = tiny_run.token_file(assets.tokens.with_name("targets.safetensors"), targets=True, **tiny_run.PROMPT)
    assembly.assemble(tiny_run.spec(**given), assets.model_folder, tokens, place)
    with pytest.raises(loop.RunEnded, match=r"20 virtual tokens and \d\d of a text are more than the 64 positions"):
        assembly.assemble(tiny_run.spec(method="prefix", **given), assets.model_folder, tokens, place)
