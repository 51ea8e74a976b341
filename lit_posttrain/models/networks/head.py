"""The last layer of a causal language model on its own, so that it can run at a few positions only."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

# Relative agreement asked of the head with the model's own logits. A forgotten scale or soft cap is far above it.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class OutputHead:
    """`soft_cap(scale * (hidden @ W.T + b))`: the linear output head and what some models do to its logits.

    Args:
        scale: Cohere multiplies its logits by `logit_scale`, Granite divides them by `logits_scaling`.
        soft_cap: Gemma 2 bounds its logits to `soft_cap * tanh(logits / soft_cap)`.
    """

    scale: float = 1.0
    soft_cap: float | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> Self | None:
        """The head of `model`, or None where it does not reproduce the model's own logits."""
        settings = model.config.to_dict()
        head = cls(
            scale=(settings.get("logit_scale") or 1.0) / (settings.get("logits_scaling") or 1.0),
            soft_cap=settings.get("final_logit_softcapping"),
        )
        return head if head._reproduces(model) else None

    def __call__(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., H)."""
        logits = model.get_output_embeddings()(hidden)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.soft_cap is not None:
            logits = torch.tanh(logits / self.soft_cap) * self.soft_cap
        return logits

    @torch.no_grad()
    def _reproduces(self, model: PreTrainedModel) -> bool:
        """One forward of a few tokens through the whole model and through its parts."""
        if model.get_output_embeddings() is None or model.base_model is model:
            return False
        ids = torch.arange(4, device=model.device)[None] % model.config.get_text_config().vocab_size
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        with _attention_for_any_weights(model):
            expected = model(**inputs).logits
            hidden = model.base_model(**inputs)[0]
        if hidden.shape[-1] != model.get_output_embeddings().weight.shape[-1]:
            return False
        error = (self(model, hidden) - expected).abs().max()
        return bool(error <= TOLERANCE * expected.abs().max().clamp(min=1.0))


@contextmanager
def _attention_for_any_weights(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model has an attention that runs on the CPU and in float32; a head does not depend on it.

    Kernels such as flash attention do not. They are for where the model trains: on a GPU, under autocast.
    """
    kind = model.config._attn_implementation
    if kind in ("sdpa", "eager"):
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(kind)
