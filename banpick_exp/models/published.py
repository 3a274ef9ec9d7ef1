"""What the config.json of each checkpoint in conf/model/ says, as far as routing, sizes and prices depend on it.

The one place for such numbers: a Hub id without a local folder is described by them, and a test holds the files of
conf/model/ to them. A folder's own config.json always wins.

Where they are from: configuration classes of Transformers 5.19 (Qwen3-Next, DeepSeek-V3, gpt-oss, Mixtral, GLM-4.5,
ERNIE 4.5); config.json files and model descriptions in public repositories (Kimi K2 and Qwen3-Next: aiconfigurator;
DeepSeek-V2, gpt-oss, Mixtral: MaxText; the groups of DeepSeek-V2: its own first commit; Granite: its model card); and
from memory: `norm_topk_prob` of Qwen3, the width of an expert of OLMoE, all of Ling-lite. What the numbers add up to is
held against the parameters that each model card states (tests/sweep/test_price.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_QWEN3 = {
    "architectures": ["Qwen3MoeForCausalLM"], "dtype": "bfloat16", "head_dim": 128, "num_key_value_heads": 4,
    "vocab_size": 151936, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
}  # fmt: skip
_QWEN3_30B = _QWEN3 | {
    "num_hidden_layers": 48, "hidden_size": 2048, "num_attention_heads": 32, "moe_intermediate_size": 768,
}  # fmt: skip
_QWEN3_235B = _QWEN3 | {
    "num_hidden_layers": 94, "hidden_size": 4096, "num_attention_heads": 64, "moe_intermediate_size": 1536,
}  # fmt: skip
_LATENT = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
_DEEPSEEK2 = _LATENT | {
    "architectures": ["DeepseekV2ForCausalLM"], "dtype": "bfloat16", "n_shared_experts": 2, "vocab_size": 102400,
    "first_k_dense_replace": 1, "num_experts_per_tok": 6, "scoring_func": "softmax", "norm_topk_prob": False,
}  # fmt: skip
_DEEPSEEK3 = _LATENT | {
    "architectures": ["DeepseekV3ForCausalLM"], "dtype": "bfloat16", "num_hidden_layers": 61, "hidden_size": 7168,
    "moe_intermediate_size": 2048, "intermediate_size": 18432, "q_lora_rank": 1536, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}  # fmt: skip
_GPT_OSS = {
    "architectures": ["GptOssForCausalLM"], "dtype": "bfloat16", "hidden_size": 2880, "intermediate_size": 2880,
    "head_dim": 64, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 201088,
    "num_experts_per_tok": 4, "quantization_config": {"quant_method": "mxfp4"},
}  # fmt: skip

PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "Qwen/Qwen3-30B-A3B": _QWEN3_30B,
    "Qwen/Qwen3-30B-A3B-Instruct-2507": _QWEN3_30B,
    "Qwen/Qwen3-30B-A3B-Thinking-2507": _QWEN3_30B,
    "Qwen/Qwen3-Coder-30B-A3B-Instruct": _QWEN3_30B,
    "Qwen/Qwen3-235B-A22B": _QWEN3_235B,
    "Qwen/Qwen3-235B-A22B-Instruct-2507": _QWEN3_235B,
    "Qwen/Qwen3-235B-A22B-Thinking-2507": _QWEN3_235B,
    "Qwen/Qwen3-Next-80B-A3B-Instruct": {
        "architectures": ["Qwen3NextForCausalLM"], "dtype": "bfloat16", "num_hidden_layers": 48, "hidden_size": 2048,
        "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "vocab_size": 151936,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16,
        "linear_num_value_heads": 32, "full_attention_interval": 4, "num_experts": 512, "num_experts_per_tok": 10,
        "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "norm_topk_prob": True},
    "deepseek-ai/DeepSeek-V2-Lite-Chat": _DEEPSEEK2 | {
        "num_hidden_layers": 27, "hidden_size": 2048, "num_attention_heads": 16, "moe_intermediate_size": 1408,
        "intermediate_size": 10944, "n_routed_experts": 64, "n_group": 1, "topk_group": 1, "topk_method": "greedy",
        "routed_scaling_factor": 1.0},
    "deepseek-ai/DeepSeek-V2.5": _DEEPSEEK2 | {
        "num_hidden_layers": 60, "hidden_size": 5120, "num_attention_heads": 128, "moe_intermediate_size": 1536,
        "intermediate_size": 12288, "q_lora_rank": 1536, "n_routed_experts": 160, "n_group": 8, "topk_group": 3,
        "topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0},
    "deepseek-ai/DeepSeek-V3": _DEEPSEEK3 | {
        "num_attention_heads": 128, "vocab_size": 129280, "n_routed_experts": 256, "first_k_dense_replace": 3,
        "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5},
    "moonshotai/Kimi-K2-Instruct": _DEEPSEEK3 | {
        "num_attention_heads": 64, "vocab_size": 163840, "n_routed_experts": 384, "first_k_dense_replace": 1,
        "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827,
        "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}},
    "openai/gpt-oss-20b": _GPT_OSS | {"num_hidden_layers": 24, "num_local_experts": 32},
    "openai/gpt-oss-120b": _GPT_OSS | {"num_hidden_layers": 36, "num_local_experts": 128},
    "allenai/OLMoE-1B-7B-0924-Instruct": {
        "architectures": ["OlmoeForCausalLM"], "dtype": "bfloat16", "num_hidden_layers": 16, "hidden_size": 2048,
        "num_attention_heads": 16, "num_key_value_heads": 16, "intermediate_size": 1024, "vocab_size": 50304,
        "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False},
    "mistralai/Mixtral-8x7B-Instruct-v0.1": {
        "architectures": ["MixtralForCausalLM"], "dtype": "bfloat16", "num_hidden_layers": 32, "hidden_size": 4096,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32000,
        "num_local_experts": 8, "num_experts_per_tok": 2},
    "zai-org/GLM-4.5-Air": {
        "architectures": ["Glm4MoeForCausalLM"], "dtype": "bfloat16", "num_hidden_layers": 46, "hidden_size": 4096,
        "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151552,
        "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_routed_experts": 128, "n_shared_experts": 1,
        "num_experts_per_tok": 8, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "norm_topk_prob": True,
        "routed_scaling_factor": 1.0},
    "baidu/ERNIE-4.5-21B-A3B-PT": {
        "architectures": ["Ernie4_5_MoeForCausalLM"], "dtype": "bfloat16", "num_hidden_layers": 28,
        "hidden_size": 2560, "num_attention_heads": 20, "num_key_value_heads": 4, "head_dim": 128,
        "vocab_size": 103424, "intermediate_size": 12288, "moe_intermediate_size": 1536, "moe_num_experts": 64,
        "moe_num_shared_experts": 2, "moe_k": 6, "moe_layer_start_index": 1, "tie_word_embeddings": True},
    "ibm-granite/granite-3.1-3b-a800m-instruct": {
        "architectures": ["GraniteMoeForCausalLM"], "dtype": "bfloat16", "num_hidden_layers": 32, "hidden_size": 1536,
        "num_attention_heads": 24, "num_key_value_heads": 8, "intermediate_size": 512, "vocab_size": 49155,
        "num_local_experts": 40, "num_experts_per_tok": 8, "tie_word_embeddings": True},
    "inclusionAI/Ling-lite": {
        "architectures": ["BailingMoeForCausalLM"], "dtype": "bfloat16", "num_hidden_layers": 28, "hidden_size": 2048,
        "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 126464,
        "intermediate_size": 5632, "moe_intermediate_size": 1408, "num_experts": 64, "num_shared_experts": 2,
        "num_experts_per_tok": 6, "first_k_dense_replace": 0, "norm_topk_prob": True,
        "auto_map": {"AutoConfig": "configuration_bailing_moe.BailingMoeConfig"}},
}  # fmt: skip
"""Hub id -> its config.json, shortened."""
