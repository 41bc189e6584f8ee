"""Small networks of transformers, PyTorch Geometric and torch, as users bring them, with random weights."""

import os
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from torch import Tensor, nn

transformers.logging.set_verbosity_error()
WORDS = 64
_DECODER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": WORDS,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def gpt2() -> nn.Module:
    ends = {"bos_token_id": 0, "eos_token_id": 1}
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=WORDS, n_positions=16, **ends)
    return transformers.GPT2LMHeadModel(config)


def mixtral() -> nn.Module:
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**_DECODER, num_local_experts=4))


def gpt_oss() -> nn.Module:
    config = transformers.GptOssConfig(**_DECODER, head_dim=16, num_local_experts=4, num_experts_per_tok=2)
    return transformers.GptOssForCausalLM(config)


def llama4() -> nn.Module:
    config = transformers.Llama4TextConfig(**_DECODER, head_dim=16, num_local_experts=4, intermediate_size_mlp=48)
    return transformers.Llama4TextModel(config)


def vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
    )
    return transformers.ViTForImageClassification(config)


class WordModel(nn.Module):
    """A language model with an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, 32), nn.Linear(48, WORDS)
        self.read = nn.LSTM(32, 48, 2, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.read(self.embed(tokens))[0])


class Graph(nn.Module):
    """A GCN that holds its one graph."""

    def __init__(self) -> None:
        super().__init__()
        from torch_geometric.nn import GCN

        self.net = GCN(16, 32, 2, 4)
        self.register_buffer("edges", torch.randint(20, (2, 60), generator=torch.Generator().manual_seed(0)))

    def forward(self, nodes: Tensor) -> Tensor:
        return self.net(nodes, self.edges)
