"""Critics: what is still to be expected before each token of a completion."""

import copy
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_posttrain.batching import TrainingBatch
from lit_posttrain.models.loading import Pretrained
from lit_posttrain.models.networks.layout import without_left_padding
from lit_posttrain.models.networks.policy import disable_dropout, prediction_places
from lit_posttrain.models.networks.reward import RewardNetwork


class ValueHead(nn.Module):
    """A linear layer from hidden states to values, in float32 at least, under autocast too; 0 to begin with.

    Args:
        width: of the hidden states.
        like: whose device and dtype it gets, but for half precision.
    """

    def __init__(self, width: int, *, like: Tensor) -> None:
        super().__init__()
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.linear = nn.Linear(width, 1, device=like.device, dtype=dtype)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Values of hidden states, (..., H) to (...)."""
        weight, bias = self.linear.weight, self.linear.bias
        dtype = torch.promote_types(weight.dtype, torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            values = functional.linear(hidden.to(dtype), weight.to(dtype), bias.to(dtype))
        return values.squeeze(-1).clone()  # no view: torch hooks into what a sharded module returns


class ValueNetwork(nn.Module):
    """A trunk of its own with a scalar head: the value of the state before each completion token.

    Dropout is switched off, as in the policy.

    Args:
        trunk: a `transformers` model that gives hidden states.
        head: on top of it.
    """

    def __init__(self, trunk: PreTrainedModel, head: ValueHead) -> None:
        super().__init__()
        self.trunk = trunk.requires_grad_(True)
        self.head = head
        disable_dropout(trunk)

    @classmethod
    def from_causal_lm(cls, model: PreTrainedModel) -> Self:
        """A copy of the trunk of a language model with a head of zeros: every value is 0 to begin with.

        Raises:
            ValueError: if the model's hidden states are not to be had.
        """
        embeddings = model.get_output_embeddings()
        if embeddings is None or model.base_model is model:
            raise ValueError(
                f"{type(model).__name__} has no trunk apart from its output head, so that no critic can be made of it: "
                "give the folder of a reward model as `critic`."
            )
        weight = embeddings.weight
        return cls(copy.deepcopy(model.base_model), value_head_of(model, like=weight))

    @classmethod
    def from_reward_model(cls, path: str, *, dtype: torch.dtype = torch.float32) -> Self:
        """A reward model's trunk and head; values are on the scale that its training measured, as rewards are.

        Args:
            path: export of a `RewardModel`, or any sequence classifier of one label: a folder or a name on the Hub.
            dtype: of the weights.

        Raises:
            FileNotFoundError: if there is no such folder, or the Hub is needed and cannot be reached.
            ValueError: if it is no reward model.
        """
        network = RewardNetwork.load(path, dtype=dtype)
        score = network.model.score.weight
        head = ValueHead(score.shape[1], like=score)
        with torch.no_grad():
            head.linear.weight.copy_(score / network.score_scale)
            head.linear.bias.copy_(-network.score_mean / network.score_scale)
        return cls(network.model.base_model, head)

    def forward(self, batch: TrainingBatch) -> Tensor:
        """Compute values before the completion tokens, (B, C), 0 where `loss_mask` is False.

        With p prompt tokens in a row the value before its completion token t is read at p - 1 + t, where the policy
        reads the logits of that token: it has not seen it.
        """
        wanted, rows, places = prediction_places(batch)
        values = self.head(self.trunk(**without_left_padding(batch))[0][rows, places])
        return values.new_zeros(wanted.shape).masked_scatter(wanted, values)


def value_head_of(model: PreTrainedModel, *, like: Tensor) -> ValueHead:
    """A head of zeros that fits what the output head of a language model is given."""
    return ValueHead(model.get_output_embeddings().weight.shape[-1], like=like)


def check_same_tokens(path: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Find out whether a reward model reads the tokens that a policy writes; it may know further ones.

    Args:
        path: of the reward model.
        tokenizer: that of the policy.

    Raises:
        ValueError: if a token has another number there, or none.
    """
    theirs = Pretrained(path).load_tokenizer().get_vocab()
    for token, number in tokenizer.get_vocab().items():
        if theirs.get(token) != number:
            raise ValueError(
                f"the critic `{path}` has another tokenizer than the policy, whose tokens it must read: {token!r} is "
                f"{theirs.get(token, 'unknown')} there and {number} here. Give a reward model that was trained from a "
                'model of the policy\'s family, or `critic="policy"`.'
            )
