"""A learned reward model as a reward function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from lit_posttrain.batching import EncodedRow, SupervisedBatch
from lit_posttrain.models.loading import Pretrained
from lit_posttrain.rewards.protocol import RewardFunctions

if TYPE_CHECKING:
    from lit_posttrain.data.formats.encoder import Encoder
    from lit_posttrain.models.networks.reward import RewardNetwork

DType = Literal["float32", "bfloat16", "float64"]


class LearnedReward:
    """Scores text by a frozen reward model, on the scale that its training measured.

    Prompt and completion are made tokens of by the model's own tokenizer and chat template, as its training data were;
    the EOS is appended where a completion has none, so one that was cut off is judged as if it ended there. Weights are
    loaded at the first call. Not an `nn.Module`, so that they stay out of the checkpoint and the optimiser.

    Args:
        path: export of a `RewardModel`, or any sequence classifier of one label: a folder or a name on the Hub.
        batch_size: sequences that are scored together, a knob of memory and speed; those of like length are.
        dtype: of the weights.
        device: where it runs; None = the current GPU where there is one, else the CPU.

    Raises:
        FileNotFoundError: if there is no such folder, or the Hub is needed and cannot be reached.
        ValueError: if it is no reward model, or an argument is out of its range.
    """

    def __init__(self, path: str, *, batch_size: int = 64, dtype: DType = "float32", device: str | None = None) -> None:
        from lit_posttrain.models.networks.reward import check_reward_model

        if batch_size < 1:
            raise ValueError(f"`batch_size` must be >= 1, got {batch_size}: it counts sequences.")
        if dtype not in get_args(DType):
            raise ValueError(f"`dtype` must be one of {', '.join(get_args(DType))}, got `{dtype}`.")
        check_reward_model(path)
        self.path = path
        self.batch_size = batch_size
        self.dtype = getattr(torch, dtype)
        self.device = device
        self._network: RewardNetwork | None = None
        self._encoder: Encoder | None = None

    def learned(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
        """Score completions; a reward function, called `learned` in metrics.

        Args:
            prompts: texts or lists of chat messages.
            completions: as many, each in the shape of its prompt.

        Raises:
            ValueError: if a sequence is longer than the reward model has positions for.
        """
        if not completions:
            return []
        from lit_posttrain.models.tokenizers import context_length

        network, encoder = self._load()
        rows = [encoder.encode(prompt, text)[0] for prompt, text in zip(prompts, completions, strict=True)]
        self._check_lengths(rows, context_length(network.model.config))
        pad_id = network.model.config.get_text_config().pad_token_id or 0
        order = sorted(range(len(rows)), key=lambda index: rows[index].length)
        scores = [0.0] * len(rows)
        for first in range(0, len(order), self.batch_size):
            places = order[first : first + self.batch_size]
            batch = SupervisedBatch.collate([rows[index] for index in places], pad_id=pad_id)
            batch = batch.to(network.score_mean.device)
            with torch.no_grad():
                raw = network(batch)
            for index, score in zip(places, network.normalized(raw).tolist(), strict=True):
                scores[index] = score
        return scores

    def _load(self) -> tuple[RewardNetwork, Encoder]:
        from lit_posttrain.data.formats.encoder import Encoder
        from lit_posttrain.models.networks.reward import RewardNetwork

        if self._network is None or self._encoder is None:
            device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            self._network = RewardNetwork.load(self.path, dtype=self.dtype).requires_grad_(False).eval().to(device)
            self._encoder = Encoder(Pretrained(self.path).load_tokenizer())
        return self._network, self._encoder

    def _check_lengths(self, rows: Sequence[EncodedRow], context: int | None) -> None:
        longest = max(row.length for row in rows)
        if context is not None and longest > context:
            raise ValueError(
                f"a prompt with its completion has {longest} tokens, but the reward model `{self.path}` has positions "
                f"for {context}: shorten prompts, lower `sampling.max_new_tokens`, or take another reward model."
            )


def load_reward_model(
    path: str, *, batch_size: int = 64, dtype: DType = "float32", device: str | None = None
) -> RewardFunctions:
    """Make a learned reward the only reward function; the arguments are those of `LearnedReward`."""
    return RewardFunctions(LearnedReward(path, batch_size=batch_size, dtype=dtype, device=device).learned)
