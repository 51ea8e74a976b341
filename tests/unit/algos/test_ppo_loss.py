"""PPO's rewards, advantages, returns and losses, against slow loops with numbers of their own."""

import math
from types import SimpleNamespace

import pytest
import torch

from lit_posttrain import PPO
from lit_posttrain.algos.kl_control import KLControl
from lit_posttrain.batching.ranks import StepStatistics
from lit_posttrain.models.networks.policy import TokenStatistics
from tests.groups import grouped
from tests.unit.algos.test_grpo_loss import collected
from tests.unit.algos.test_policy_gradient_losses import LENGTHS, LOGPROBS, OLD, REF, clipped, rollout_of

VALUES = [[0.3, -0.2, 0.5], [0.1, 0.9, 0.0], [-0.4, 0.0, 0.0], [0.6, 0.2, -0.7]]
NEW_VALUES = [[0.7, -0.1, 0.1], [0.1, 0.5, 0.0], [-0.1, 0.0, 0.0], [0.6, 0.9, -0.6]]
SCORES = [1.0, 0.0, -0.5, 0.75]
PER_TOKEN = [[0.1, -0.2, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [-0.3, 0.2, 0.4]]
PLACES = [(i, t) for i, length in enumerate(LENGTHS) for t in range(length)]


def tensor(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def make(*, step=0, **settings):
    module = PPO("tiny", lambda completions: [0.0], **grouped({"missing_eos": "keep", **settings}))
    module._trainer = SimpleNamespace(global_step=step, global_rank=0, world_size=1, accumulate_grad_batches=1)
    module.statistics = StepStatistics()
    return module


def judged(scores=SCORES, *, truncated=(False,) * 4, per_token=PER_TOKEN):
    rollout = rollout_of()
    rollout.rewards, rollout.token_rewards = tensor(scores), tensor(per_token)
    rollout.truncated = torch.tensor(truncated)
    rollout.values = tensor(VALUES).masked_fill(~rollout.completion_mask, 5.0)  # padding counts for nothing
    return rollout


def advantages_of(module, rollout=None):
    rollout = rollout or judged()
    rewards = rollout.rewards + module.reward_shaping(rollout)
    rollout.advantages = module.token_advantages(module.advantages(rewards), rollout)
    return rollout


def slow_rewards(beta, scores=SCORES):
    """-beta k1 at each token, what it was given, and the rest of the score at the last one."""
    rewards = {}
    for i, t in PLACES:
        rewards[i, t] = -beta * (OLD[i][t] - REF[i][t]) + PER_TOKEN[i][t]
        if t == LENGTHS[i] - 1:
            rewards[i, t] += scores[i] - sum(PER_TOKEN[i])
    return rewards


def slow_gae(rewards, lam, discount):
    advantages = {}
    for i, t in PLACES:
        total = 0.0
        for s in range(t, LENGTHS[i]):
            following = VALUES[i][s + 1] if s + 1 < LENGTHS[i] else 0.0
            total += (discount * lam) ** (s - t) * (rewards[i, s] + discount * following - VALUES[i][s])
        advantages[i, t] = total
    return advantages


def slow_whiten(numbers):
    mean = sum(numbers.values()) / len(numbers)
    std = math.sqrt(sum((value - mean) ** 2 for value in numbers.values()) / len(numbers) + 1e-8)
    return {place: (value - mean) / std for place, value in numbers.items()}


def assert_places(got, want):
    for i in range(4):
        for t in range(3):
            assert got[i, t].item() == pytest.approx(want.get((i, t), 0.0), abs=1e-10), (i, t)


def test_advantages_and_returns_are_those_of_a_slow_loop():
    rollout = advantages_of(make(kl_coef=0.3, gae_lambda=0.9, critic__gae_lambda=0.6, discount=0.8))
    rewards = slow_rewards(0.3)
    assert_places(rollout.advantages, slow_whiten(slow_gae(rewards, 0.9, 0.8)))
    targets = slow_gae(rewards, 0.6, 0.8)
    assert_places(rollout.returns, {(i, t): a + VALUES[i][t] for (i, t), a in targets.items()})


def test_without_whitening_and_lambda_1_rewards_to_go_less_the_value():
    rollout = advantages_of(make(kl_coef=0.0, gae_lambda=1.0, whiten_advantages=False))
    for i, t in PLACES:
        to_go = SCORES[i] - sum(PER_TOKEN[i][:t])
        assert rollout.returns[i, t].item() == pytest.approx(to_go)
        assert rollout.advantages[i, t].item() == pytest.approx(to_go - VALUES[i][t])


def test_whitened_rewards_keep_their_mean():
    rollout = advantages_of(make(kl_coef=0.3, whiten_rewards=True, whiten_advantages=False, gae_lambda=1.0))
    rewards = slow_rewards(0.3)
    mean, white = sum(rewards.values()) / len(rewards), slow_whiten(rewards)
    for i, t in PLACES:
        to_go = sum(white[i, s] + mean for s in range(t, LENGTHS[i]))
        assert rollout.returns[i, t].item() == pytest.approx(to_go, abs=1e-6)


def test_warm_up_fits_returns_with_lambda_1():
    rollout = advantages_of(make(kl_coef=0.3, critic__warmup_steps=3, step=2))
    targets = slow_gae(slow_rewards(0.3), 1.0, 1.0)
    assert_places(rollout.returns, {(i, t): a + VALUES[i][t] for (i, t), a in targets.items()})
    after = advantages_of(make(kl_coef=0.3, critic__warmup_steps=3, step=3))
    assert not torch.allclose(after.returns, rollout.returns)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"missing_eos": "replace"}, [-1.1, 0.0, 0.0, -1.0 + 0.3]),  # of the score beside what single tokens got
        ({"missing_eos": "replace", "missing_eos_penalty": 0.0}, [1.1, 0.0, 0.0, 0.75 - 0.3 - 0.0]),
        ({"missing_eos": "subtract"}, [1.0 - 1.0, 0.0, 0.0, -0.25]),
        ({"missing_eos": "keep"}, [1.0, 0.0, 0.0, 0.75]),
    ],
)
def test_missing_eos(settings, expected):
    rollout = judged(truncated=(True, False, False, True))
    rewards = rollout.rewards + make(**settings).reward_shaping(rollout)
    if settings["missing_eos"] == "replace":
        penalty = settings.get("missing_eos_penalty", 1.0)
        expected = [-penalty + sum(PER_TOKEN[0]), 0.0, -0.5, -penalty + sum(PER_TOKEN[3])]
    else:
        expected = [expected[0], 0.0, -0.5, expected[3]]
    assert rewards.tolist() == pytest.approx(expected)


def test_masked_completions_are_no_part_of_the_loss():
    module = make(missing_eos="mask")
    module.group_size = 2
    module.token_advantages = lambda advantages, rollout: advantages[:, None].expand(rollout.loss_mask.shape)
    assert collected(module, [[True] * 3] * 2, truncated=[True, False]).loss_mask.sum(1).tolist() == [0, 3]
    assert (module.reward_shaping(judged(truncated=(True,) * 4)) == 0).all()


@pytest.mark.parametrize("missing_eos", ["replace", "subtract", "keep"])
def test_what_cannot_be_scored_teaches_nobody(missing_eos):
    scores = [1.0, 0.0, math.nan, 0.75]
    rollout = advantages_of(make(missing_eos=missing_eos), judged(scores, truncated=(False, False, True, False)))
    assert rollout.loss_mask.sum(1).tolist() == [3, 2, 0, 3]
    assert rollout.advantages[2].tolist() == rollout.returns[2].tolist() == [0.0] * 3
    assert rollout.advantages.isfinite().all()


def test_kl_estimators_by_name():
    for estimator, of in (("k2", lambda x: x * x / 2), ("k3", lambda x: math.exp(-x) - 1 + x)):
        rollout = advantages_of(make(kl_coef=0.5, kl_estimator=estimator, gae_lambda=1.0, whiten_advantages=False))
        want = SCORES[2] - 0.5 * of(OLD[2][0] - REF[2][0])
        assert rollout.returns[2, 0].item() == pytest.approx(want)


def loss_of(module, rollout, *, normalizer):
    logprobs, values = (tensor(x).requires_grad_() for x in (LOGPROBS, NEW_VALUES))
    entropy = tensor([[0.5, 0.6, 0.7]] * 4)
    module.token_statistics = lambda batch, **settings: TokenStatistics(logprobs, entropy, values=values)
    loss = module.loss(SimpleNamespace(rollout=rollout, normalizer=tensor(normalizer)))
    return loss, *torch.autograd.grad(loss, (logprobs, values))


def test_the_loss_is_that_of_a_slow_loop():
    weights = {"kl_coef": 0.3, "entropy_coef": 0.02, "critic__coef": 0.4}
    module = make(critic__clip=0.3, clip_low=0.1, clip_high=0.15, dual_clip=1.2, **weights)
    rollout = advantages_of(module)
    loss, by_logprobs, by_values = loss_of(module, rollout, normalizer=9.0)
    total = value_total = 0.0
    for i, t in PLACES:
        ratio, advantage = math.exp(LOGPROBS[i][t] - OLD[i][t]), rollout.advantages[i, t].item()
        policy = clipped(ratio, advantage, 0.1, 0.15)
        total += min(policy, -1.2 * advantage) if advantage < 0 else policy
        total -= 0.02 * (0.5 + 0.1 * t)
        ret, old, new = rollout.returns[i, t].item(), VALUES[i][t], NEW_VALUES[i][t]
        held = min(max(new, old - 0.3), old + 0.3)
        value_total += max((new - ret) ** 2, (held - ret) ** 2) / 2
        slope = 0.0 if (held - ret) ** 2 > (new - ret) ** 2 else new - ret
        assert by_values[i, t].item() == pytest.approx(0.4 * slope / 9, abs=1e-12)
    assert loss.item() == pytest.approx((total + 0.4 * value_total) / 9, abs=1e-12)
    metrics = {}
    module.statistics, module.log = StepStatistics(), lambda name, value, **how: metrics.update({name: value})
    module.training_step(SimpleNamespace(rollout=rollout, normalizer=tensor(9.0)), 0)
    assert metrics["value/loss"].item() == pytest.approx(value_total / 9, abs=1e-6)
    assert metrics["train/loss"].item() == pytest.approx(loss.item(), abs=1e-6)
    assert (by_logprobs[~rollout.loss_mask] == 0).all()
    assert (by_values[~rollout.loss_mask] == 0).all()


def test_the_sign_a_good_token_becomes_likelier_and_a_low_value_rises():
    module = make(kl_coef=0.0, whiten_advantages=False, critic__clip=None)
    rollout = advantages_of(module)
    rollout.old_logprobs = tensor(LOGPROBS)
    _, by_logprobs, by_values = loss_of(module, rollout, normalizer=9.0)
    for i, t in PLACES:
        assert by_logprobs[i, t].item() == pytest.approx(-rollout.advantages[i, t].item() / 9)
        assert (by_values[i, t] < 0) == (NEW_VALUES[i][t] < rollout.returns[i, t])


def test_the_policy_rests_while_the_critic_warms_up():
    module = make(critic__warmup_steps=1, entropy_coef=0.1)
    _, by_logprobs, by_values = loss_of(module, advantages_of(module), normalizer=9.0)
    assert (by_logprobs == 0).all()
    assert by_values.abs().sum() > 0


def test_the_adaptive_coefficient_changes_with_the_next_rollout():
    module = make(kl_coef=0.3, kl_target=0.1, kl_horizon=40)
    kl = sum(OLD[i][t] - REF[i][t] for i, t in PLACES) / 4
    module.kl_control.begin(0)
    advantages_of(module)
    assert module.kl_control.kl_coef == 0.3
    module.kl_control.begin(0)  # the same rollout once more, since it was interrupted
    assert module.kl_control.kl_coef == 0.3
    module.kl_control.begin(1)
    error = min(max(kl / 0.1 - 1, -0.2), 0.2)
    assert module.kl_control.kl_coef == pytest.approx(0.3 * (1 + error * 4 / 40))
    assert error != 0


def test_the_adaptive_coefficient_is_stored():
    control = KLControl(0.3, target=1.0, horizon=100)
    control.begin(0)
    control.measure(torch.full((10, 2), 1.0), torch.ones(10, 2, dtype=torch.bool), make().ranks)
    for index in (0, 1):
        restored = KLControl(0.9, target=1.0, horizon=100)
        restored.load_state_dict(control.state_dict())
        restored.begin(index)
        assert restored.kl_coef == pytest.approx(0.3 * (1 + index * 0.2 * 10 / 100))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"critic__start": "policy", "critic__lr": -1.0}, "`critic.lr` must be finite"),
        ({"critic__warmup_steps": -1}, "`critic.warmup_steps` must be >= 0"),
        ({"group_size": 0}, "`group_size` must be >= 1"),
        ({"dual_clip": 1.0}, "`dual_clip` must be > 1"),
        ({"critic__clip": 0.0}, "`critic.clip` must be > 0"),
        ({"target_kl": 0.0}, "`target_kl` must be > 0"),
        ({"kl_target": 1.0, "kl_coef": 0.0}, "begin with another"),
        ({"gae_lambda": 1.5}, r"`gae_lambda` must be in \[0, 1\]"),
        ({"critic__gae_lambda": -0.1}, r"`critic.gae_lambda` must be in \[0, 1\]"),
        ({"discount": 2.0}, r"`discount` must be in \[0, 1\]"),
        ({"missing_eos": "drop"}, "`missing_eos` must be one of replace, subtract, mask, keep"),
        ({"kl_estimator": "k4"}, "`kl_estimator` must be one of k1, k2, k3"),
        ({"kl_coef": math.inf}, "`kl_coef` must be finite"),
        ({"kl_horizon": 0}, "`kl_horizon` must be >= 1"),
        ({"clip_low": 1.0}, r"`clip_low` must be in \[0, 1\)"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        PPO("tiny", lambda completions: [0.0], **grouped(settings))


@pytest.mark.parametrize(("critic", "shown"), [(3, "int"), (None, "null")])
def test_a_critic_of_another_kind_is_refused(critic, shown):
    with pytest.raises(TypeError, match=f'`critic` must start from "policy", "shared", the folder .* got {shown}'):
        PPO("tiny", lambda completions: [0.0], critic=critic)
