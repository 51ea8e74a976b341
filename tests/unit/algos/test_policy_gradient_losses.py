"""Advantages and losses of the policy-gradient algorithms, against slow loops with numbers of their own."""

import math
from types import SimpleNamespace

import pytest
import torch

from lit_posttrain import GRPO, RLOO, ReinforcePlusPlus, Sampling
from lit_posttrain.batching import Rollout
from lit_posttrain.batching.ranks import StepStatistics
from lit_posttrain.functional import normalizer, whiten
from lit_posttrain.models.networks.policy import TokenStatistics

LOGPROBS = [[-1.0, -2.0, -0.7], [-0.5, -1.5, 0.0], [-2.2, 0.0, 0.0], [-0.3, -0.9, -1.1]]
OLD = [[-1.1, -1.2, -0.9], [-0.9, -1.5, 0.0], [-2.0, 0.0, 0.0], [-0.4, -0.8, -1.6]]
REF = [[-1.3, -1.9, -0.2], [-0.2, -1.0, 0.0], [-2.1, 0.0, 0.0], [-0.7, -0.9, -1.0]]
LENGTHS = [3, 2, 1, 3]
ADVANTAGES = [1.0, -2.0, 0.5, -0.3]


def rollout_of(rows=(0, 1, 2, 3), *, dtype=torch.float64):
    """The numbers above as a rollout; prompts do not matter."""
    rows = list(rows)
    mask = torch.arange(3) < torch.tensor(LENGTHS)[rows][:, None]
    return Rollout(
        prompt_ids=torch.zeros(len(rows), 1, dtype=torch.long),
        prompt_mask=torch.ones(len(rows), 1, dtype=torch.bool),
        completion_ids=torch.zeros(len(rows), 3, dtype=torch.long),
        completion_mask=mask,
        loss_mask=mask,
        rewards=torch.zeros(len(rows), dtype=dtype),
        token_rewards=torch.zeros(len(rows), 3, dtype=dtype),
        truncated=torch.zeros(len(rows), dtype=torch.bool),
        advantages=torch.tensor(ADVANTAGES, dtype=dtype)[rows][:, None].expand(len(rows), 3),
        old_logprobs=torch.tensor(OLD, dtype=dtype)[rows],
        ref_logprobs=torch.tensor(REF, dtype=dtype)[rows],
    )


def loss_of(module, rows=(0, 1, 2, 3), *, normalizer):
    """The module's loss of some rows, and its gradient by their log-probs."""
    logprobs = torch.tensor(LOGPROBS, dtype=torch.float64)[list(rows)].requires_grad_()
    module.statistics = StepStatistics()
    module.token_statistics = lambda batch, **settings: TokenStatistics(logprobs, torch.zeros_like(logprobs))
    batch = SimpleNamespace(rollout=rollout_of(rows), normalizer=torch.tensor(normalizer, dtype=torch.float64))
    loss = module.loss(batch)
    return loss, torch.autograd.grad(loss, logprobs)[0]


def clipped(ratio, advantage, low=0.2, high=0.2):
    return -min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


def grpo(**settings):
    return GRPO("tiny", lambda completions: [0.0], **settings)


def test_gspo():
    module = grpo(ratio="sequence", aggregation="seq-mean-token-mean", clip_low=0.1, clip_high=0.15)
    total = 0.0
    for i, length in enumerate(LENGTHS):
        log_ratio = sum(LOGPROBS[i][t] - OLD[i][t] for t in range(length)) / length
        total += clipped(math.exp(log_ratio), ADVANTAGES[i], 0.1, 0.15)
    assert loss_of(module, normalizer=4.0)[0].item() == pytest.approx(total / 4, abs=1e-12)


def test_cispo():
    module = grpo(clipping="weight", clip_low=1.0, clip_high=0.1)
    loss, gradient = loss_of(module, normalizer=9.0)
    total = 0.0
    for i, length in enumerate(LENGTHS):
        for t in range(3):
            weight = min(math.exp(LOGPROBS[i][t] - OLD[i][t]), 1.1) if t < length else 0.0
            total -= weight * ADVANTAGES[i] * LOGPROBS[i][t]
            assert gradient[i, t].item() == pytest.approx(-weight * ADVANTAGES[i] / 9, abs=1e-12)
    assert loss.item() == pytest.approx(total / 9, abs=1e-12)


def test_rloo():
    module = RLOO("tiny", lambda completions: [0.0])
    total = 0.0
    for i, length in enumerate(LENGTHS):
        ratio = math.exp(sum(LOGPROBS[i][t] - OLD[i][t] for t in range(length)))
        total += clipped(ratio, ADVANTAGES[i])
    assert loss_of(module, normalizer=4.0)[0].item() == pytest.approx(total / 4, abs=1e-12)


def test_rloo_on_policy_is_reinforce(monkeypatch):
    """Its gradient is -A for every token, over the number of completions."""
    monkeypatch.setitem(globals(), "OLD", LOGPROBS)
    _, gradient = loss_of(RLOO("tiny", lambda completions: [0.0]), normalizer=4.0)
    for i, length in enumerate(LENGTHS):
        for t in range(3):
            assert gradient[i, t].item() == pytest.approx(-ADVANTAGES[i] / 4 if t < length else 0.0, abs=1e-12)


def test_rloo_rewards_have_the_kl_of_the_whole_completion():
    module = RLOO("tiny", lambda completions: [0.0], kl_coef=0.3)
    expected = [-0.3 * sum(OLD[i][t] - REF[i][t] for t in range(n)) for i, n in enumerate(LENGTHS)]
    rollout = rollout_of()
    rollout.ref_logprobs[~rollout.completion_mask] = 7.0  # padding counts for nothing
    assert module.reward_shaping(rollout).tolist() == pytest.approx(expected, abs=1e-12)
    assert module.advantages(torch.tensor([1.0, 0.0, 0.0, 0.0])).tolist() == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])


def test_reinforce_pp_advantages():
    module = ReinforcePlusPlus("tiny", lambda completions: [0.0], kl_coef=0.3)
    scores = [1.0, 0.0, math.nan, 0.5]
    advantages = module.token_advantages(torch.tensor(scores, dtype=torch.float64), rollout_of())
    returns = {}
    for i, length in enumerate(LENGTHS):
        for t in range(length):
            to_go = sum(-0.3 * (OLD[i][s] - REF[i][s]) for s in range(t, length))
            returns[i, t] = scores[i] + to_go
    returns = {place: value for place, value in returns.items() if not math.isnan(value)}
    mean = sum(returns.values()) / len(returns)
    std = math.sqrt(sum((value - mean) ** 2 for value in returns.values()) / len(returns) + 1e-8)
    for i in range(4):
        for t in range(3):
            expected = (returns[i, t] - mean) / std if (i, t) in returns else 0.0
            assert advantages[i, t].item() == pytest.approx(expected, abs=1e-12), (i, t)


def test_equal_rewards_are_no_advantage_to_the_last_bit():
    """A mean of equal numbers need not be that number, and a variance of 1e-15 would be blown up."""
    module = ReinforcePlusPlus("tiny", lambda completions: [0.0], kl_coef=0.0)
    rollout = rollout_of(dtype=torch.float32)
    rollout.old_logprobs = rollout.ref_logprobs = None
    for score in (0.7, 0.1, -1 / 3):
        assert (module.token_advantages(torch.full((4,), score), rollout) == 0).all()
    assert (whiten(torch.full((9,), 0.7), torch.ones(9, dtype=torch.bool)) == 0).all()


def test_reinforce_pp_baseline():
    module = ReinforcePlusPlus("tiny", lambda completions: [0.0], group_size=2, baseline="group")
    scores = torch.tensor([1.0, 0.0, torch.nan, 0.5])
    advantages = module.advantages(scores)
    assert advantages[[0, 1, 3]].tolist() == [0.5, -0.5, 0.0]
    assert advantages[2].isnan()


def test_overlong_penalty():
    module = grpo(overlong_fraction=0.5, overlong_factor=0.4, sampling=Sampling(max_new_tokens=4))
    assert module.reward_shaping(rollout_of()).tolist() == pytest.approx([-0.2, 0.0, 0.0, -0.2])
    assert grpo().reward_shaping(rollout_of()).tolist() == [0.0] * 4


ALGORITHMS = {
    "grpo": grpo(),
    "original": grpo(aggregation="seq-mean-token-mean", kl_coef=0.1, kl_gradient="k3", scale="none"),
    "dr_grpo": grpo(aggregation="constant", scale="none"),
    "gspo": grpo(ratio="sequence", aggregation="seq-mean-token-mean"),
    "cispo": grpo(clipping="weight", clip_low=1.0, clip_high=4.0),
    "rloo": RLOO("tiny", lambda completions: [0.0]),
    "reinforce_pp": ReinforcePlusPlus("tiny", lambda completions: [0.0]),
}


def normalizer_of(module, rollout):
    """The denominator that a step of all its sequences gets."""
    return normalizer(rollout.loss_mask, module.aggregation, max_length=module.sampling.max_new_tokens).item()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_order_and_repetition_leave_loss_and_gradient(name):
    module = ALGORITHMS[name]
    rows, order = [0, 1, 2, 3], [2, 0, 3, 1]
    normalizer = normalizer_of(module, rollout_of())
    loss, gradient = loss_of(module, rows, normalizer=normalizer)
    permuted, permuted_gradient = loss_of(module, order, normalizer=normalizer)
    assert permuted.item() == pytest.approx(loss.item(), abs=1e-12)
    torch.testing.assert_close(permuted_gradient, gradient[order], atol=1e-12, rtol=0)
    twice = normalizer_of(module, rollout_of(rows + order))
    repeated, _ = loss_of(module, rows + order, normalizer=twice)
    assert repeated.item() == pytest.approx(loss.item(), abs=1e-12)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_the_order_within_a_group_leaves_each_advantage(name):
    module = ALGORITHMS[name]
    rewards = torch.linspace(0, 1, module.group_size * 2, dtype=torch.float64).square()
    order = torch.cat([torch.randperm(module.group_size), module.group_size + torch.randperm(module.group_size)])
    torch.testing.assert_close(module.advantages(rewards[order]), module.advantages(rewards)[order])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": "word"}, "`ratio` must be one of token, sequence"),
        ({"clipping": "hard"}, "`clipping` must be one of surrogate, weight"),
        ({"clipping": "weight", "clip_low": 1.5}, r"`clip_low` must be in \[0, 1\]"),
        ({"clipping": "weight", "dual_clip": 3.0}, "leave it None"),
        ({"clip_high": 4.0}, r"`clip_high` must be in \[0, 1\)"),
        ({"overlong_fraction": 1.5}, r"`overlong_fraction` must be None or in \(0, 1\]"),
        ({"overlong_fraction": 0.5, "overlong_factor": -1.0}, "`overlong_factor` must be finite and >= 0"),
        ({"max_resample_batches": 256}, "`max_resample_batches` must be from 0 to 255"),
        ({"max_resample_batches": -1}, "`max_resample_batches` must be from 0 to 255"),
    ],
)
def test_bad_settings_of_grpo(settings, message):
    with pytest.raises(ValueError, match=message):
        grpo(**settings)


def test_bad_settings_of_the_others():
    with pytest.raises(ValueError, match="`group_size` must be >= 2, got 1"):
        RLOO("tiny", lambda completions: [0.0], group_size=1)
    with pytest.raises(ValueError, match='>= 2 with baseline="group", got 1'):
        ReinforcePlusPlus("tiny", lambda completions: [0.0], baseline="group")
    with pytest.raises(ValueError, match="`baseline` must be one of none, group"):
        ReinforcePlusPlus("tiny", lambda completions: [0.0], baseline="mean")
    for algorithm in (RLOO, ReinforcePlusPlus):
        with pytest.raises(ValueError, match="`kl_coef` must be finite and >= 0"):
            algorithm("tiny", lambda completions: [0.0], kl_coef=-0.1)
        with pytest.raises(ValueError, match=r"`clip_low` must be in \[0, 1\)"):
            algorithm("tiny", lambda completions: [0.0], clip_low=1.0)


def test_punishing_and_masking_overlong_completions_is_said():
    with pytest.warns(UserWarning, match="One of the two is usually enough"):
        grpo(overlong_fraction=0.2, mask_truncated=True)
