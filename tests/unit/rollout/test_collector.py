"""From prompts to a planned rollout, with an engine that writes what it is told to and an algorithm of a few lines."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lit_posttrain import RewardFunctions, Rollouts, Sampling
from lit_posttrain.batching import Ranks
from lit_posttrain.models.weights import NonFiniteError
from lit_posttrain.rollout.collector import PLACE_BITS, RolloutCollector, first_with_spread
from tests.rollout_stubs import StubEngine

CPU = torch.device("cpu")
ROWS = [
    {"prompt": "a", "lengths": [4, 1], "cut": True},
    {"prompt": "b", "lengths": [3, 3]},  # no spread
    {"prompt": "c", "lengths": [2, 6]},
]
LENGTHS = [4, 1, 3, 3, 2, 6]


class StubAlgorithm:
    """Advantages are rewards less 3, a token's is that of its completion times its number from 1."""

    group_size = 2
    sampling = Sampling(max_new_tokens=8)
    aggregation = "token"
    mask_truncated = False
    max_resample_batches = 0
    device = CPU

    def __init__(self, tokenizer, **settings):
        self.source = SimpleNamespace(tokenizer=tokenizer)
        self.main_network = torch.nn.Identity()
        self.compared = []
        self.called = []
        vars(self).update(settings)

    def add_logprobs(self, rollout):
        self.called.append("add_logprobs")
        rollout.old_logprobs = -torch.ones(rollout.completion_ids.shape)

    def reward_shaping(self, rollout):
        self.called.append("reward_shaping")
        assert rollout.old_logprobs is not None
        return -0.5 * rollout.truncated.float()

    def advantages(self, rewards):
        self.called.append("advantages")
        self.compared.append(rewards)
        return rewards - 3

    def token_advantages(self, advantages, rollout):
        self.called.append("token_advantages")
        return advantages[:, None] * torch.arange(1, 1 + rollout.loss_mask.shape[1])

    def learning_mask(self, rollout):
        return rollout.loss_mask & (rollout.advantages != 0)


def length(completion_ids, **columns):
    return [float(len(ids)) for ids in completion_ids]


def no_single_token(completion_ids, **columns):
    return [None if len(ids) == 1 else float(len(ids)) for ids in completion_ids]


@pytest.fixture
def stub(word_tokenizer):
    return lambda **settings: StubAlgorithm(word_tokenizer, **settings)


def one_process():
    return Ranks(SimpleNamespace(_trainer=None, device=CPU))


def collect(algorithm, rows=ROWS, *, engine=None, reward=length, ranks=None, rollouts=None, **arguments):
    collector = RolloutCollector(
        algorithm,
        RewardFunctions(reward),
        engine=engine or StubEngine(),
        ranks=ranks or one_process(),
        rollouts=rollouts or Rollouts(num_epochs=1),
    )
    defaults = {"index": 0, "step": 0, "micro_batches": 1, "more_rows": lambda: [], "metrics": None}
    return collector.collect(rows, **{**defaults, **arguments})


def test_rewards_are_shaped_before_they_are_compared(stub):
    algorithm = stub()
    planned, record = collect(algorithm)
    assert algorithm.called == ["add_logprobs", "reward_shaping", "advantages", "token_advantages"]
    want = [4.0, 0.5, 3.0, 3.0, 2.0, 6.0]  # the second sample of the first prompt was cut off
    assert algorithm.compared[0].tolist() == want
    assert record.scored.rewards.tolist() == LENGTHS  # as the functions gave them
    assert record.shaping.tolist() == [0, -0.5, 0, 0, 0, 0]
    assert planned.rollout.rewards.tolist() == LENGTHS
    assert planned.rollout.truncated.tolist() == [False, True, False, False, False, False]
    assert planned.rollout.advantages[0].tolist() == [1, 2, 3, 4, 5, 6]
    means = [(reward - 3) * (1 + n) / 2 for reward, n in zip(want, LENGTHS, strict=True)]
    assert record.advantages.tolist() == pytest.approx(means)  # over the tokens of each completion
    assert (record.index, record.step, record.groups_kept) == (0, 0, None)
    assert record.num_tokens == sum(LENGTHS)


def test_the_plan_has_the_denominators_of_its_steps(stub):
    planned, _ = collect(stub(), rollouts=Rollouts(num_epochs=2, num_minibatches=3), micro_batches=2)
    assert len(planned.steps) == 6
    for step, normalizer in zip(planned.steps, planned.normalizers.tolist(), strict=True):
        assert len(step) == 2
        assert normalizer == sum(LENGTHS[row] for row in torch.cat(step).tolist())
    again, _ = collect(stub(), rollouts=Rollouts(num_epochs=2, num_minibatches=3), micro_batches=2)
    assert [torch.cat(step).tolist() for step in again.steps] == [torch.cat(step).tolist() for step in planned.steps]
    for other in ({"index": 1}, {"rollouts": Rollouts(num_epochs=2, num_minibatches=3, seed=1)}):
        settings = {"rollouts": Rollouts(num_epochs=2, num_minibatches=3), "micro_batches": 2, **other}
        different, _ = collect(stub(), **settings)
        assert any(
            sorted(torch.cat(a).tolist()) != sorted(torch.cat(b).tolist())
            for a, b in zip(planned.steps, different.steps, strict=True)
        )


def test_a_step_in_which_nothing_has_a_gradient_is_skipped(stub):
    planned, _ = collect(stub(), [ROWS[1]])  # rewards of 3, whose advantage is 0
    assert planned.skip_steps.tolist() == [True]
    assert collect(stub())[0].skip_steps.tolist() == [False]
    everything = stub(learning_mask=lambda rollout: rollout.loss_mask)
    assert collect(everything, [ROWS[1]])[0].skip_steps.tolist() == [False]


def test_what_cannot_be_scored_has_no_advantage(stub):
    planned, record = collect(stub(), reward=no_single_token)
    assert record.scored.rewards.isnan().tolist() == [False, True, False, False, False, False]
    assert (planned.rollout.advantages[1] == 0).all()
    assert record.advantages[1] == 0


def test_random_numbers_are_keyed_by_rollout_and_place(stub):
    engine = StubEngine()
    collect(stub(), engine=engine, index=5, rollouts=Rollouts(num_epochs=1, seed=9, batch_size=4))
    (call,) = engine.calls
    assert call["prompt_keys"].tolist() == [(5 << 32) + place for place in range(3)]
    assert (call["seed"], call["batch_size"], call["num_samples"]) == (9, 4, 2)
    assert call["sampling"] == StubAlgorithm.sampling


def test_groups_without_spread_are_replaced_in_the_order_of_their_prompts(stub):
    engine, further = StubEngine(), iter([[ROWS[1], ROWS[1]], [ROWS[2], ROWS[0]], [ROWS[0]]])
    algorithm = stub(max_resample_batches=7)
    planned, record = collect(algorithm, engine=engine, index=1, more_rows=lambda: next(further))
    assert [len(call["rows"]) for call in engine.calls] == [3, 2, 2]  # there are 3 groups with spread by then
    keys = [call["prompt_keys"] - (1 << 32) for call in engine.calls]
    assert [(batch.tolist()) for batch in keys] == [
        [(number << PLACE_BITS) + place for place in range(count)] for number, count in enumerate((3, 2, 2))
    ]
    assert record.groups_kept == 3
    assert len(record.scored.rewards) == 14
    assert planned.rollout.rewards.tolist() == [4, 1, 2, 6, 2, 6]
    learnt = [0, 1, 4, 5, 10, 11]
    others = [row for row in range(14) if row not in learnt]
    assert (record.advantages[others] == 0).all()
    assert (record.shaping[others] == 0).all()
    assert record.shaping[1] == -0.5


def test_it_ends_after_so_many_further_batches(stub):
    engine = StubEngine()
    algorithm = stub(max_resample_batches=2)
    planned, record = collect(algorithm, [ROWS[1]], engine=engine, more_rows=lambda: [ROWS[1]])
    assert len(engine.calls) == 3
    assert record.groups_kept == 0
    assert planned.skip_steps.tolist() == [True]
    assert not planned.rollout.loss_mask.any()


def test_a_rank_without_prompts_takes_part_with_a_masked_row(stub):
    engine = StubEngine()
    planned, record = collect(stub(), [], engine=engine)
    assert engine.calls == []
    assert record.scored.completions is None
    assert (len(record.scored.rewards), record.num_tokens) == (0, 0)
    assert len(planned.rollout) == 1
    assert not planned.rollout.loss_mask.any()
    assert planned.micro_batch(0).rollout.old_logprobs is not None  # as the others have
    assert planned.skip_steps.tolist() == [True]


class TwoRanks(Ranks):
    """This process is the first of two; of the other's part is known what it would say, by the order of the calls."""

    place = 0, 2

    def __init__(self, *, groups, rewards):
        self.said = torch.tensor(groups), torch.tensor(rewards)

    def sum(self, tensor):
        return tensor

    def max(self, tensor):
        return torch.maximum(tensor, self.said[0].max())

    def gather(self, thing):
        return [thing, self.said]


def test_rewards_are_compared_over_all_ranks_in_the_order_of_the_prompts(stub):
    """The first of two has prompts 0, 2 and 4 of the batch; the other has 1 alone, so that there is a gap at 3."""
    algorithm, engine = stub(), StubEngine()
    planned, record = collect(algorithm, engine=engine, ranks=TwoRanks(groups=[1], rewards=[7.0, 8.0]))
    assert engine.calls[0]["prompt_keys"].tolist() == [0, 2, 4]
    assert record.scored.prompt_index.tolist() == [0, 2, 4]
    (compared,) = algorithm.compared
    assert compared[[0, 1, 2, 3]].tolist() == [4.0, 0.5, 7.0, 8.0]
    assert compared[[6, 7]].isnan().all()
    assert compared[[4, 5, 8, 9]].tolist() == [3.0, 3.0, 2.0, 6.0]
    assert planned.rollout.advantages[:, 0].tolist() == [1.0, -2.5, 0.0, 0.0, -1.0, 3.0]  # its own ones come back


def test_advantages_that_are_not_finite_end_the_run(stub):
    algorithm = stub(advantages=lambda rewards: rewards / 0)
    with pytest.raises(NonFiniteError, match=r"rollout 3, at step 12: the advantages of StubAlgorithm are not"):
        collect(algorithm, index=3, step=12)

    def overflowing(rollout):
        rollout.old_logprobs = torch.full(rollout.completion_ids.shape, torch.nan)

    algorithm = stub(add_logprobs=overflowing, advantages=lambda rewards: rewards / 0)
    with pytest.raises(NonFiniteError, match="the log-probs of the policy are not finite, though the weights are"):
        collect(algorithm)


def test_completions_are_judged_by_the_scores_of_validation_beside(stub):
    _, record = collect(stub(), metrics=RewardFunctions([no_single_token, length]))
    assert record.metric_names == ["no_single_token", "length"]
    assert record.metric_scores[:, 1].tolist() == LENGTHS
    assert record.metric_scores[1, 0].isnan()
    assert collect(stub())[1].metric_scores.shape == (0, 0)


def test_rewards_of_tokens_come_with_those_of_completions(stub):
    def by_token(completion_ids, **columns):
        return [[0.5] * len(ids) for ids in completion_ids]

    planned, record = collect(stub(), reward=by_token)
    assert planned.rollout.rewards.tolist() == [n / 2 for n in LENGTHS]
    assert torch.equal(planned.rollout.token_rewards, 0.5 * planned.rollout.completion_mask)
    assert [len(numbers) for numbers in record.scored.token_rewards] == LENGTHS


@pytest.mark.parametrize(("count", "chosen"), [(0, []), (1, [0]), (2, [0, 2]), (9, [0, 2])])
def test_the_first_groups_with_spread(stub, count, chosen):
    _, record = collect(stub())
    groups, numbers = first_with_spread(record.scored, count=count, gather=lambda slots: [slots])
    assert groups.tolist() == chosen
    assert numbers.tolist() == list(range(len(chosen)))


def test_the_first_groups_with_spread_of_two_ranks(stub):
    """This rank has prompts 0, 2 and 4 of the batch, the other found spread in 1 and 5."""
    scored = replace(collect(stub())[1].scored, prompt_index=torch.tensor([0, 2, 4]))
    groups, numbers = first_with_spread(scored, count=3, gather=lambda slots: [slots, [1, 5]])
    assert (groups.tolist(), numbers.tolist()) == ([0, 2], [0, 2])  # the other rank has number 1
    groups, numbers = first_with_spread(scored, count=2, gather=lambda slots: [slots, [1, 5]])
    assert (groups.tolist(), numbers.tolist()) == ([0], [0])
