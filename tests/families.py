"""Small networks with weights of kinds that torch's own layers do not have, as users bring them."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.compat.hugging_rows import MODELS, transformers

WORDS = 32
_DECODER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": WORDS,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def mixtral() -> nn.Module:
    return MODELS["Mixtral"].make()


def gpt_oss() -> nn.Module:
    return transformers.GptOssForCausalLM(transformers.GptOssConfig(**_DECODER))


def llama4() -> nn.Module:
    return transformers.Llama4TextModel(transformers.Llama4TextConfig(**_DECODER, intermediate_size_mlp=48))


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
