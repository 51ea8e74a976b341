"""GRPO's loss put together, against a slow loop with numbers of its own."""

import math
from types import SimpleNamespace

import pytest
import torch

from lit_posttrain import GRPO, Rollouts
from lit_posttrain.batching import Ranks, TokenBatch
from lit_posttrain.batching.ranks import StepStatistics
from lit_posttrain.models.networks.policy import TokenStatistics
from lit_posttrain.rewards import RewardFunctions
from lit_posttrain.rollout.collector import RolloutCollector
from lit_posttrain.rollout.engine import Completions

LOGPROBS = [[-1.0, -2.0], [-0.5, -1.5]]
OLD = [[-1.1, -1.2], [-0.9, -1.5]]
REF = [[-1.3, -1.9], [-0.2, -1.0]]
ENTROPY = [[0.7, 0.3], [0.2, 0.9]]
ADVANTAGES = [1.0, -2.0]
MASK = [[True, True], [True, False]]


@pytest.mark.filterwarnings("ignore:a KL term")
def test_loss_is_that_of_a_slow_loop():
    module = GRPO("tiny", lambda completions: [0.0], kl_coef=0.1, entropy_coef=0.05)
    tensor = torch.tensor
    module.statistics = StepStatistics()
    module.token_statistics = lambda batch, **settings: TokenStatistics(tensor(LOGPROBS), tensor(ENTROPY))
    rollout = SimpleNamespace(
        loss_mask=tensor(MASK),
        old_logprobs=tensor(OLD),
        ref_logprobs=tensor(REF),
        advantages=tensor(ADVANTAGES)[:, None].expand(2, 2),
    )
    loss = module.loss(SimpleNamespace(rollout=rollout, normalizer=tensor(3.0)))
    total = 0.0
    for i, t in ((0, 0), (0, 1), (1, 0)):
        ratio, advantage = math.exp(LOGPROBS[i][t] - OLD[i][t]), ADVANTAGES[i]
        total -= min(ratio * advantage, min(max(ratio, 0.8), 1.28) * advantage)
        log_ratio = LOGPROBS[i][t] - REF[i][t]
        total += 0.1 * (math.exp(-log_ratio) - 1 + log_ratio) - 0.05 * ENTROPY[i][t]
    assert loss.item() == pytest.approx(total / 3, abs=1e-6)


def collected(module, mask, *, truncated):
    """The rollout that is made for a module of completions of one prompt."""
    mask = torch.tensor(mask)
    ids = torch.ones(mask.shape, dtype=torch.long)
    prompts = {"prompt_ids": ids[:, :1], "prompt_mask": torch.ones(len(mask), 1, dtype=torch.bool)}
    rows = [{"prompt": "w1"}] * len(mask)
    written = Completions(
        rows=rows,
        completions=["w2"] * len(mask),
        texts=["w2"] * len(mask),
        tokens=TokenBatch(**prompts, completion_ids=ids, completion_mask=mask),
        truncated=torch.tensor(truncated),
        generate_s=0.0,
    )
    collector = RolloutCollector(
        module,
        RewardFunctions(lambda completions: [float(i) for i in range(len(completions))]),
        engine=SimpleNamespace(complete=lambda rows, **settings: written),
        ranks=Ranks(SimpleNamespace(_trainer=None, device=torch.device("cpu"))),
        rollouts=Rollouts(num_epochs=1),
    )
    module.policy, module.add_logprobs = torch.nn.Identity(), lambda rollout: None
    settings = {"index": 0, "step": 0, "micro_batches": 1, "more_rows": list, "metrics": None}
    return collector.collect(rows[:1], **settings)[0].rollout


@pytest.mark.parametrize(("mask_truncated", "expected"), [(False, MASK), (True, [[False, False], [True, False]])])
def test_truncated_completions_are_masked_when_asked(mask_truncated, expected):
    module = GRPO("tiny", lambda completions: [0.0], group_size=2, mask_truncated=mask_truncated)
    assert collected(module, MASK, truncated=[True, False]).loss_mask.tolist() == expected
