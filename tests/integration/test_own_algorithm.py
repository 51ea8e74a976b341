"""What is said to somebody whose own algorithm gives something else than its hooks must."""

import pytest
import torch

from lit_posttrain import OnlineModule, PolicyLoss
from lit_posttrain.models.weights import NonFiniteError


class Own(OnlineModule):
    """REINFORCE; each test breaks one of its hooks."""

    def advantages(self, rewards):
        return rewards - rewards.nanmean()

    def token_loss(self, inputs):
        return PolicyLoss(-inputs.advantages * inputs.logprobs, torch.zeros_like(inputs.mask))


class Scalar(Own):
    def advantages(self, rewards):
        return rewards.mean()


class Groups(Own):
    def advantages(self, rewards):
        return rewards.view(-1, self.group_size)


class Nothing(Own):
    def advantages(self, rewards):
        return None


class Wide(Own):
    def reward_shaping(self, rollout):
        return torch.zeros_like(rollout.token_rewards)


class Narrow(Own):
    def token_advantages(self, advantages, rollout):
        return advantages


class Bare(Own):
    def token_loss(self, inputs):
        return -inputs.logprobs


class Mean(Own):
    def token_loss(self, inputs):
        return PolicyLoss(-inputs.logprobs.mean(), torch.zeros_like(inputs.mask))


@pytest.mark.parametrize(
    ("algorithm", "said"),
    [
        (Scalar, r"`Scalar.advantages` must give a tensor of shape \(B,\), .* here \(16,\); it gave \(\)\."),
        (Groups, r"`Groups.advantages` must .*; it gave \(4, 4\)\."),
        (Nothing, r"`Nothing.advantages` must .*; it gave NoneType\."),
        (Wide, r"`Wide.reward_shaping` must give a tensor of shape \(B,\)"),
        (Narrow, r"`Narrow.token_advantages` must give a tensor of shape \(B, C\)"),
        (Bare, r"`Bare.token_loss` must give a `PolicyLoss` of two tensors of shape \(B, C\)"),
        (Mean, r"`Mean.token_loss` must give a `PolicyLoss` of two tensors of shape \(B, C\)"),
    ],
)
def test_a_hook_that_gives_another_shape_is_named(run_online, algorithm, said):
    with pytest.raises(TypeError, match=said):
        run_online(algorithm=algorithm, group_size=4, trainer={"max_steps": 1})


def test_a_division_by_no_spread_is_named(run_online):
    class Divides(Own):
        def advantages(self, rewards):
            return (rewards - rewards.mean()) / (rewards * 0).std()

    with pytest.raises(NonFiniteError, match="the advantages of Divides are not finite, though the rewards are"):
        run_online(algorithm=Divides, group_size=4, trainer={"max_steps": 1})
