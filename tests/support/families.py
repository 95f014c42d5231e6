"""Models of many families of transformers, with random weights, so small that a step takes milliseconds."""

from __future__ import annotations

import copy
import functools
import warnings
from typing import Any

import tiny_run

OMIT = object()  #: a key of `SHAPE` that a family's config has not
#: Of every family; a config turns the names that it has others for.
SHAPE: dict[str, Any] = {
    "vocab_size": len(tiny_run.VOCABULARY),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "init_std": 0.2,
    "pad_token_id": tiny_run.PAD,
    "bos_token_id": tiny_run.CLS,
    "eos_token_id": tiny_run.SEP,
}
GROUPED = {"num_key_value_heads": 1, "head_dim": 8}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
HALVES = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "decoder_start_token_id": tiny_run.SEP,
    "forced_eos_token_id": None,
}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}  # as in all that are published
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2}
T5 |= {"feed_forward_proj": "gelu", "decoder_start_token_id": tiny_run.PAD}

#: What each family wants besides. Sliding windows are shorter than some texts where a family has them by default.
MLM: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 8, "inner_group_num": 1},
    "bert": {},
    "big_bird": {"attention_type": "block_sparse"},
    "camembert": {},
    "convbert": {"embedding_size": 16, "num_attention_heads": 4, "head_ratio": 2},
    "data2vec-text": {},
    "deberta": {**RELATIVE},
    "deberta-v2": {**RELATIVE},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "electra": {"embedding_size": 8},
    "ernie": {},
    "esm": {"position_embedding_type": "rotary", "mask_token_id": tiny_run.MASK, "token_dropout": False},
    "eurobert": {},
    "flaubert": {"emb_dim": 16, "n_layers": 2, "n_heads": 2},
    "fnet": {},
    "funnel": {
        "num_hidden_layers": OMIT,
        "block_sizes": [1, 1],
        "num_decoder_layers": 1,
        "d_model": 16,
        "n_head": 2,
        "d_head": 8,
        "d_inner": 32,
    },
    "ibert": {},
    "layoutlm": {"max_2d_position_embeddings": 8},
    "longformer": {"attention_window": 4},
    "luke": {"entity_vocab_size": 5, "entity_emb_size": 8},
    "megatron-bert": {},
    "mobilebert": {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
    "mpnet": {},
    "mra": {},
    "nomic_bert": {},
    "nystromformer": {"num_landmarks": 64, "segment_means_seq_len": 64},
    "perceiver": {"d_model": 16, "d_latents": 16, "num_latents": 4},
    "rembert": {"input_embedding_size": 8, "output_embedding_size": 8},
    "reformer": {"axial_pos_embds": False, "is_decoder": False, "attn_layers": ["local", "local"]},
    "roberta": {},
    "roberta-prelayernorm": {},
    "roc_bert": {"enable_pronunciation": False, "enable_shape": False},
    "roformer": {"embedding_size": 16},
    "squeezebert": {"embedding_size": 16, "q_groups": 2},
    "tapas": {},
    "xlm": {"emb_dim": 16, "n_layers": 2, "n_heads": 2},
    "xlm-roberta": {},
    "xlm-roberta-xl": {},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "yoso": {},
}
CLM: dict[str, dict[str, Any]] = {
    "bert-generation": {"is_decoder": True},
    "biogpt": {},
    "bitnet": {**GROUPED},
    "bloom": {"n_layer": 2, "n_head": 2},
    "codegen": {"num_attention_heads": 4, "n_embd": 16, "rotary_dim": 4, "n_positions": 64, "n_ctx": 64},
    "cohere": {**GROUPED},
    "ctrl": {"dff": 32, "n_positions": 64},
    "deepseek_v3": {
        **EXPERTS,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 2,
    },
    "exaone4": {**GROUPED, "sliding_window": 8, "sliding_window_pattern": 2},
    "falcon": {},
    "gemma": {**GROUPED},
    "gemma2": {**GROUPED, "sliding_window": 8},
    "gemma3_text": {**GROUPED, "sliding_window": 8},
    "glm": {**GROUPED},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "gpt_bigcode": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 2, "window_size": 8},
    "gpt_neox": {},
    "gpt_oss": {**GROUPED, **EXPERTS, "sliding_window": 8},
    "gptj": {"n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4, "n_positions": 64},
    "granite": {**GROUPED},
    "granitemoe": {**GROUPED, **EXPERTS},
    "helium": {**GROUPED},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        **EXPERTS,
        "use_mamba_kernels": False,
        "mamba_dt_rank": 4,
        "mamba_d_state": 4,
        **GROUPED,
    },
    "llama": {**GROUPED},
    "mamba": {"state_size": 4, "time_step_rank": 4, "use_mambapy": False},
    "mamba2": {"state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "minimax": {**GROUPED, **EXPERTS, "block_size": 8},
    "mistral": {**GROUPED, "sliding_window": None},
    "mixtral": {**GROUPED, **EXPERTS},
    "mpt": {"d_model": 16, "n_heads": 2, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": 64},
    "nemotron": {**GROUPED},
    "olmo": {**GROUPED},
    "olmo2": {**GROUPED},
    "olmoe": {**GROUPED, **EXPERTS},
    "openai-gpt": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "opt": {"word_embed_proj_dim": 16, "ffn_dim": 32},
    "persimmon": {},
    "phi": {**GROUPED},
    "phi3": {**GROUPED},
    "phimoe": {**GROUPED, **EXPERTS},
    "qwen2": {**GROUPED},
    "qwen2_moe": {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 24},
    "qwen3": {**GROUPED},
    "qwen3_moe": {**GROUPED, **EXPERTS},
    "recurrent_gemma": {**GROUPED, "lru_width": 16, "attention_window_size": 8},
    "rwkv": {"attention_hidden_size": 16, "context_length": 64},
    "smollm3": {**GROUPED},
    "stablelm": {**GROUPED},
    "starcoder2": {**GROUPED},
    "xglm": {"d_model": 16, "ffn_dim": 32, "num_layers": 2, "attention_heads": 2},
    "xlnet": {"max_position_embeddings": OMIT, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32},
}
SEQ2SEQ: dict[str, dict[str, Any]] = {
    "bart": {**HALVES},
    "bigbird_pegasus": {**HALVES, "attention_type": "original_full"},
    "blenderbot": {**HALVES},
    "blenderbot-small": {**HALVES},
    "fsmt": {**HALVES, "src_vocab_size": 100, "tgt_vocab_size": 100, "langs": ["en", "de"]},
    "led": {**HALVES, "attention_window": [4, 4], "max_encoder_position_embeddings": 64},
    "longt5": {**T5, "local_radius": 4},
    "m2m_100": {**HALVES},
    "marian": {**HALVES, "decoder_vocab_size": len(tiny_run.VOCABULARY)},
    "mbart": {**HALVES},
    "mt5": {**T5},
    "mvp": {**HALVES},
    "nllb-moe": {**HALVES, "num_experts": 4, "encoder_sparse_step": 2, "decoder_sparse_step": 2},
    "pegasus": {**HALVES},
    "pegasus_x": {**HALVES, "block_size": 4, "num_global_tokens": 4},
    "plbart": {**HALVES},
    "prophetnet": {
        "num_hidden_layers": OMIT,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "num_encoder_attention_heads": 2,
        "num_decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "decoder_start_token_id": tiny_run.SEP,
    },
    "switch_transformers": {**T5, "num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    "t5": {**T5},
    "umt5": {**T5},
    # Encoders as both halves.
    "bert": {},
    "electra": {},
    "roberta": {},
    "xlm-roberta": {},
}
TASKS = {"mlm": MLM, "clm": CLM, "seq2seq": SEQ2SEQ}
#: Of the quick tier, and the longest tried of all.
CHOSEN = ("mlm-bert", "mlm-deberta", "mlm-modernbert", "clm-qwen3_moe", "clm-llama", "clm-mamba", "seq2seq-t5")
#: Of every task.
FAMILIES = [f"{task}-{kind}" for task, kinds in TASKS.items() for kind in kinds]


#: How configs call the numbers of their layers.
LAYERS = (
    "num_hidden_layers",
    "num_layers",
    "num_encoder_layers",
    "num_decoder_layers",
    "n_layers",
    "n_layer",
    "encoder_layers",
    "decoder_layers",
)
#: Whose layers are listed.
LISTED = {
    "clm-gpt_neo": lambda num: {"attention_types": [[["global", "local"], num // 2]]},
    "seq2seq-led": lambda num: {"attention_window": [4] * num},
    "mlm-reformer": lambda num: {"attn_layers": ["local"] * num},
    "mlm-funnel": lambda num: {"block_sizes": [num // 2, num // 2], "num_decoder_layers": 1},
}


@functools.cache
def _network(family: str, num_layers: int) -> Any:
    import torch
    import transformers

    from joulesweep.axes import task as tasks

    task, _, kind = family.partition("-")
    both = task == "seq2seq" and kind in MLM
    shape = {**SHAPE, **(MLM[kind] if both else TASKS[task][kind])}
    shape |= {name: num_layers for name in LAYERS if shape.get(name) == 2} | LISTED.get(family, lambda num: {})(
        num_layers
    )
    config = transformers.AutoConfig.for_model(kind, **{k: v for k, v in shape.items() if v is not OMIT})
    for name, value in vars(config).items():
        if ("drop" in name and isinstance(value, float)) or name in ("layerdrop", "router_jitter_noise"):
            setattr(config, name, 0.0)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of shapes that are small
        torch.manual_seed(0)
        if not both:
            return getattr(transformers, tasks.TASKS[task].auto_class).from_config(config).float()
        decoder = copy.deepcopy(config)
        decoder.is_decoder = decoder.add_cross_attention = True
        return transformers.EncoderDecoderModel(
            encoder=transformers.AutoModel.from_config(config, add_pooling_layer=False)
            if kind != "electra"
            else transformers.AutoModel.from_config(config),
            decoder=transformers.AutoModelForCausalLM.from_config(decoder),
        ).float()


def network(family: str, num_layers: int = 2) -> Any:
    """A model of a family, named by its task and its kind: "mlm-bert"; of an even number of layers, or of each half."""
    return copy.deepcopy(_network(family, num_layers))
