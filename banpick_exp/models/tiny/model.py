"""The training-time form of the embedded checkpoint: Qwen3-MoE in plain torch, fast on two CPU cores.

Parameter names are those of the published Qwen3-MoE checkpoints, so `state_dict()` is the checkpoint. Tests hold
its logits against `transformers`; the sweep itself only ever runs the checkpoint in vLLM.

Shapes: B examples, S positions, T unpadded tokens, H hidden, E experts, K experts a token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3MoeConfig

PAD, BOS, EOS = 0, 1, 2
VOCAB_SIZE = 128
"""Token id = character code; 0, 1 and 2 are pad, bos and eos."""


def tiny_config() -> Qwen3MoeConfig:
    """Architecture of the embedded checkpoint: 1.8 M parameters, 32 experts of which 8 a token."""
    return Qwen3MoeConfig(
        architectures=["Qwen3MoeForCausalLM"],
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=32,
        num_experts_per_tok=8,
        moe_intermediate_size=32,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        tie_word_embeddings=True,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        rms_norm_eps=1e-6,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        dtype="bfloat16",
    )


def _rope(x_BNSD: Tensor, theta: float) -> Tensor:
    length, dim = x_BNSD.shape[-2:]
    frequency = theta ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), frequency)
    cos, sin = torch.cat((angle, angle), -1).cos(), torch.cat((angle, angle), -1).sin()
    a, b = x_BNSD.chunk(2, -1)
    return x_BNSD * cos + torch.cat((-b, a), -1) * sin


class Attention(nn.Module):
    def __init__(self, config: Qwen3MoeConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.num_attention_heads * dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * dim, config.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(dim, config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(dim, config.rms_norm_eps)

    def forward(self, x_BSH: Tensor) -> Tensor:
        batch, length, _ = x_BSH.shape
        shape, theta = (batch, length, -1, self.config.head_dim), self.config.rope_parameters["rope_theta"]
        q = _rope(self.q_norm(self.q_proj(x_BSH).view(shape)).transpose(1, 2), theta)
        k = _rope(self.k_norm(self.k_proj(x_BSH).view(shape)).transpose(1, 2), theta)
        v = self.v_proj(x_BSH).view(shape).transpose(1, 2)
        # Right padding under a causal mask never leaks into an earlier, unpadded position.
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


class Expert(nn.Module):
    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, intermediate, bias=False)
        self.up_proj = nn.Linear(hidden, intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class SparseMoe(nn.Module):
    """Top-K routed experts; tokens sorted by expert, one matmul an expert and projection."""

    def __init__(self, config: Qwen3MoeConfig) -> None:
        super().__init__()
        self.top_k, self.num_experts = config.num_experts_per_tok, config.num_experts
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(
            Expert(config.hidden_size, config.moe_intermediate_size) for _ in range(config.num_experts)
        )
        self.balance_loss = torch.zeros(())

    def forward(self, x_TH: Tensor) -> Tensor:
        scores_TE = self.gate(x_TH).float().softmax(-1)
        weights_TK, ids_TK = scores_TE.topk(self.top_k, -1)
        weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
        order = ids_TK.flatten().argsort(stable=True)
        counts_E = torch.bincount(ids_TK.flatten(), minlength=self.num_experts)
        token = order // self.top_k
        rows = x_TH[token].split(counts_E.tolist())
        outputs = torch.cat([expert(row) for expert, row in zip(self.experts, rows, strict=True)])
        weighted = outputs * weights_TK.flatten()[order, None]
        share_E = counts_E.float() / counts_E.sum()
        self.balance_loss = self.num_experts * (share_E * scores_TE.mean(0)).sum()
        return torch.zeros_like(x_TH).index_add(0, token, weighted)


class Layer(nn.Module):
    def __init__(self, config: Qwen3MoeConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = SparseMoe(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x_BSH: Tensor, unpadded: Tensor) -> Tensor:
        x_BSH = x_BSH + self.self_attn(self.input_layernorm(x_BSH))
        flat = x_BSH.flatten(0, 1)
        moe_TH = self.mlp(self.post_attention_layernorm(flat[unpadded]))
        return flat.index_add(0, unpadded, moe_TH).view_as(x_BSH)


class Backbone(nn.Module):
    def __init__(self, config: Qwen3MoeConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def moe_blocks(self) -> list[SparseMoe]:
        """One a layer, in order."""
        return [module for module in self.modules() if isinstance(module, SparseMoe)]


class TinyMoe(nn.Module):
    """Token ids [B, S] (0 = padding, on the right) to logits [T, V] of the unpadded positions, row by row."""

    def __init__(self, config: Qwen3MoeConfig) -> None:
        super().__init__()
        self.model = Backbone(config)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=config.hidden_size**-0.5)

    def forward(self, ids_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits [T, V] and the flat indices [T] of the positions they belong to."""
        unpadded = ids_BS.flatten().ne(PAD).nonzero().squeeze(1)
        x_BSH = self.model.embed_tokens(ids_BS)
        for layer in self.model.layers:
            x_BSH = layer(x_BSH, unpadded)
        x_TH = self.model.norm(x_BSH.flatten(0, 1)[unpadded])
        return x_TH @ self.model.embed_tokens.weight.T, unpadded

    def balance_loss(self) -> Tensor:
        return torch.stack([block.balance_loss for block in self.model.moe_blocks()]).sum()
