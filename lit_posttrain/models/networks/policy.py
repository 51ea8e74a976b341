"""A causal language model as a policy: log-probs of given completions without the (B, T, V) logits."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from lit_posttrain.batching import TrainingBatch
from lit_posttrain.functional import token_entropy, token_logprobs
from lit_posttrain.models.networks.layout import PacksRows

# Relative agreement asked of the head with the model's own logits. A forgotten scale or soft cap is far above it.
TOLERANCE = 1e-3


class TokenStatistics(NamedTuple):
    """What a policy says of every completion token, (B, C) each, 0 where the mask is False.

    Attributes:
        logprobs: log-probability of the token that was taken, in nats.
        entropy: entropy of the distribution that it was taken from, in nats.
        hits: whether the token was the most probable one; None unless asked for.
        mean_logprobs: mean of the log-probabilities of all tokens of the vocabulary, in nats; None unless asked for.
        values: what a head on the trunk says of the state before the token; None unless asked for.
    """

    logprobs: Tensor
    entropy: Tensor
    hits: Tensor | None = None
    mean_logprobs: Tensor | None = None
    values: Tensor | None = None


class Policy(PacksRows):
    """Wraps a `transformers` causal language model so that its forward gives log-probs of completions.

    The trunk runs once; the output head only at the positions that count, `chunk_size` of them at a time, and again
    in backward instead of keeping its logits. Trunk and head are both called from inside this module's forward, the
    root that a sharding strategy wraps.

    Dropout is switched off: with it a fresh policy would differ from itself (ratio != 1, KL != 0).

    Args:
        model: a causal language model.
        chunk_size: positions whose logits exist at the same time; bounds memory, does not change the result.

    Raises:
        ValueError: if `chunk_size` < 1.
    """

    def __init__(self, model: PreTrainedModel, *, chunk_size: int = 512) -> None:
        super().__init__()
        if chunk_size < 1:
            raise ValueError(f"`chunk_size` must be >= 1, got {chunk_size}: it counts positions.")
        self.model = model
        self.chunk_size = chunk_size
        disable_dropout(model)
        self._head = OutputHead.of(model)
        if self._head is None:
            warnings.warn(
                f"{type(model).__name__} computes its logits in a way that is not known here: log-probs go through the "
                "model's own logits, which need memory for all of them.",
                stacklevel=2,
            )

    @property
    def has_known_head(self) -> bool:
        """Whether hidden states are to be had apart from the logits."""
        return self._head is not None

    def forward(
        self,
        batch: TrainingBatch,
        *,
        temperature: float = 1.0,
        entropy_gradient: bool = False,
        supervised: bool = False,
        value_head: nn.Module | None = None,
    ) -> TokenStatistics:
        """Compute log-probs and entropies of the completion tokens given all before them.

        The logits at position i speak of token i + 1: with p prompt tokens in a row, those of its completion token t
        are read at p - 1 + t.

        Args:
            batch: B sequences; log-probs are wanted where its `loss_mask` is True.
            temperature: that of the sampler; divides the logits.
            entropy_gradient: whether gradients flow through the entropy.
            supervised: whether `hits` and `mean_logprobs` are wanted, too.
            value_head: makes a value of the hidden state that a token is predicted from, (n, H) to (n,); needs
                `has_known_head`.

        Raises:
            ValueError: if rows shall be packed and the model cannot keep them apart.
        """
        wanted, rows, predictors = prediction_places(batch)
        inputs, sequences, offsets = self.lay_out(batch)
        rows, predictors = sequences[rows], offsets[rows] + predictors
        if self._head is None:
            hidden = self.model(**inputs).logits[rows, predictors]
        else:
            hidden = self.model.base_model(**inputs)[0][rows, predictors]

        token_ids = batch.completion_ids[wanted]
        parts = [
            checkpoint(
                self._statistics,
                states,
                ids,
                temperature,
                entropy_gradient,
                supervised,
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for states, ids in zip(hidden.split(self.chunk_size), token_ids.split(self.chunk_size), strict=True)
        ]
        statistics = [torch.cat(pieces) for pieces in zip(*parts, strict=True)]
        empty = statistics[0].new_zeros(wanted.shape)
        places = TokenStatistics(*(empty.to(each.dtype).masked_scatter(wanted, each) for each in statistics))
        if value_head is None:
            return places
        values = value_head(hidden)
        return places._replace(values=empty.to(values.dtype).masked_scatter(wanted, values))

    @torch.no_grad()
    def try_out(self) -> None:
        """Compute two tokens."""
        token = torch.zeros(1, 1, dtype=torch.long, device=self.model.device)
        real = torch.ones_like(token, dtype=torch.bool)
        self(
            TrainingBatch(
                prompt_ids=token, prompt_mask=real, completion_ids=token, completion_mask=real, loss_mask=real
            )
        )

    def _statistics(
        self, hidden: Tensor, token_ids: Tensor, temperature: float, entropy_gradient: bool, supervised: bool
    ) -> tuple[Tensor, ...]:
        logits = hidden if self._head is None else self._head(self.model, hidden)
        logprobs = token_logprobs(logits, token_ids, temperature=temperature)
        with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
            entropy = token_entropy(logits, temperature=temperature)
        if not supervised:
            return logprobs, entropy
        mean_logit = logits.to(logprobs.dtype).mean(-1) / temperature
        taken = logits.gather(-1, token_ids[..., None]).squeeze(-1).to(logprobs.dtype) / temperature
        mean_logprobs = logprobs + mean_logit - taken  # every log p is its logit less the same normaliser
        return logprobs, entropy, logits.argmax(-1) == token_ids, mean_logprobs


def prediction_places(batch: TrainingBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Find where the completion tokens that count are predicted from: at the token before each.

    Returns:
        `loss_mask` with one place at least, so that a fully masked batch still runs the head and every parameter gets
        a gradient, (B, C); row and position of each of its n places in rows without left padding, (n,) and (n,).
    """
    wanted = batch.loss_mask.clone()
    wanted[0, 0] |= ~batch.loss_mask.any()
    rows, tokens = wanted.nonzero(as_tuple=True)
    return wanted, rows, batch.prompt_mask.sum(1)[rows] - 1 + tokens


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability in the module tree to 0, in modules and in plain attributes."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


@contextmanager
def evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """`eval()` with gradients off; every sub-module gets its own mode back."""
    training = {child: child.training for module in modules for child in module.modules()}
    for module in modules:
        module.eval()
    try:
        with torch.no_grad():  # not inference_mode: its tensors may not take part in a later backward
            yield
    finally:
        for child, mode in training.items():
            child.training = mode


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
