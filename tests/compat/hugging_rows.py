"""Small networks of transformers, each with a batch as its training step gets it. Nothing is downloaded."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

os.environ["HF_HUB_OFFLINE"] = "1"

import transformers

from lightning_signin.masks import SynFlow

MASKS: dict[str, Any] = {name: name for name in ("random", "magnitude", "snip", "grasp", "npb")}
MASKS["synflow"] = SynFlow(iterations=3)

TIED, UNTRACED = "it stays dense", "It could not be checked that the mask leaves a path"
MIXES = "mask='npb' is undefined for net."
WRITES = "cannot be traced to its units (the outermost forward writes into a part of a tensor)"


@dataclass(frozen=True)
class Model:
    """A row of the table.

    Args:
        network: The class in transformers.
        config: Arguments of its configuration.
        batch: Makes the keyword arguments of a call.
        sign_in: What `SignInCallback` needs here.
        says: What the warnings of this package say, for all masks that fit.
        refused: What the errors say, for masks that are undefined here.
    """

    network: str
    config: dict[str, Any]
    batch: Callable[[], dict[str, Tensor]]
    sign_in: dict[str, Any] = field(default_factory=dict)
    says: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=lambda: {"npb": MIXES})

    def make(self) -> nn.Module:
        kind = getattr(transformers, self.network)
        return kind(kind.config_class(**self.config))


def tokens(length: int = 6) -> Tensor:
    return torch.randint(3, 32, (4, length))


def text() -> dict[str, Tensor]:
    read = tokens()
    return {"input_ids": read, "labels": read}


def labels() -> Tensor:
    return torch.arange(4) % 3


def padded() -> dict[str, Tensor]:
    return {"input_ids": tokens(), "attention_mask": (torch.arange(6) < 5).long().expand(4, 6), "labels": labels()}


SPECIAL = {"vocab_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LAYERS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**SPECIAL, **LAYERS, "max_position_embeddings": 16}
GROUPED = {**TEXT, "num_key_value_heads": 1}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
SOUND = {"conv_dim": (16, 16), "conv_stride": (4, 4), "conv_kernel": (8, 8), "num_feat_extract_layers": 2}
SOUND |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16}
SPEECH = {"d_model": 16, "num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 16}
SPEECH |= {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in (("layers", 1), ("ffn_dim", 32))}
SPEECH |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_start_token_id": 1}

MODELS = {
    "GPT-2": Model(
        "GPT2LMHeadModel",
        {**SPECIAL, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16},
        text,
        says=(TIED,),
    ),
    "Llama": Model("LlamaForCausalLM", GROUPED, text),
    "Mixtral": Model("MixtralForCausalLM", {**GROUPED, **EXPERTS}, text),
    "BERT, masked words": Model("BertForMaskedLM", TEXT, text, says=(TIED,)),
    "BERT, classes": Model("BertForSequenceClassification", {**TEXT, "num_labels": 3}, padded),
    "T5": Model(
        "T5ForConditionalGeneration",
        {**SPECIAL, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
        lambda: {"input_ids": tokens(), "labels": tokens(5)},
        says=(TIED, UNTRACED),
        refused={"npb": WRITES},
    ),
    "ViT": Model(
        "ViTForImageClassification",
        {**LAYERS, "image_size": 8, "patch_size": 4, "num_labels": 3},
        lambda: {"pixel_values": torch.randn(4, 3, 8, 8), "labels": labels()},
    ),
    "Wav2Vec2": Model(
        "Wav2Vec2ForSequenceClassification",
        {**SPECIAL, **LAYERS, **SOUND, "num_labels": 3, "apply_spec_augment": False},
        lambda: {"input_values": torch.randn(4, 400), "labels": labels()},
        sign_in={"exclude": ["*.pos_conv_embed.conv.weight"]},  # under weight_norm
    ),
    "Whisper": Model(
        "WhisperForConditionalGeneration",
        {**SPECIAL, **SPEECH},
        lambda: {"input_features": torch.randn(4, 8, 20), "labels": tokens(5)},
        says=(TIED, UNTRACED),
        refused={"npb": WRITES},
    ),
    "Mamba": Model(
        "MambaForCausalLM",
        {**SPECIAL, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "time_step_rank": 8},
        text,
        sign_in={"sparsity": 0.6},  # fewer weights of x_proj leave no way to dt_proj
        says=(TIED, UNTRACED),
        refused={"npb": "(net.backbone.layers.0.mixer writes into a part of a tensor)"},
    ),
}
