"""Planning, padding and storing of rollouts."""

import pytest
import torch

from lit_posttrain.batching import PlannedRollout, Rollout, in_batches, lengths_to_mask, pad_left, plan_steps


def make_rollout(prompt_lengths, completion_lengths, *, old=True):
    count, width_p, width_c = len(prompt_lengths), max(prompt_lengths), max(completion_lengths)
    completion_mask = lengths_to_mask(torch.tensor(completion_lengths), width_c)
    values = torch.arange(count * width_c, dtype=torch.float32).view(count, width_c)
    return Rollout(
        prompt_ids=torch.arange(count * width_p).view(count, width_p),
        prompt_mask=lengths_to_mask(torch.tensor(prompt_lengths), width_p).flip(1),
        completion_ids=100 + torch.arange(count * width_c).view(count, width_c),
        completion_mask=completion_mask,
        loss_mask=completion_mask,
        rewards=torch.arange(count, dtype=torch.float32),
        token_rewards=values / 8,
        truncated=torch.arange(count) % 2 == 1,
        advantages=values,
        old_logprobs=-values if old else None,
        ref_logprobs=None,
    )


def plan(lengths, **settings):
    defaults = {"num_epochs": 1, "num_minibatches": 1, "num_micro_batches": 1, "seed": 0}
    ids = torch.arange(len(lengths))
    return plan_steps(torch.tensor(lengths), ids, num_sequences=len(lengths), **{**defaults, **settings})


def test_pad_left_and_masks_from_lengths():
    ids, mask = pad_left([[5, 6], [7]], pad_id=5)  # the pad id may be a token of the text
    assert ids.tolist() == [[5, 6], [5, 7]]
    assert mask.tolist() == [[True, True], [False, True]]
    assert lengths_to_mask(torch.tensor([0, 2, 3]), 3).tolist() == [[False] * 3, [True, True, False], [True] * 3]


@pytest.mark.parametrize("num_micro_batches", [1, 2, 3, 9])
@pytest.mark.parametrize("num_minibatches", [1, 2, 3, 9])
def test_every_sequence_is_in_one_micro_batch_of_every_epoch(num_micro_batches, num_minibatches):
    steps = plan(
        [3, 1, 4, 1, 5, 9, 2], num_epochs=2, num_minibatches=num_minibatches, num_micro_batches=num_micro_batches
    )
    assert len(steps) == 2 * num_minibatches
    assert all(len(step) == num_micro_batches for step in steps)
    for epoch in (steps[:num_minibatches], steps[num_minibatches:]):
        assert sorted(torch.cat([rows for step in epoch for rows in step]).tolist()) == list(range(7))


def test_what_makes_a_step_depends_on_the_seed_alone():
    def sets(**settings):
        return [set(torch.cat(step).tolist()) for step in plan(list(range(1, 13)), num_minibatches=3, **settings)]

    assert sets(num_micro_batches=1) == sets(num_micro_batches=4)
    assert sets(seed=0) != sets(seed=1)
    two_epochs = sets(num_epochs=2)
    assert two_epochs[:3] != two_epochs[3:]


def test_two_ranks_share_the_steps_of_one():
    lengths, whole = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6]), plan([3, 1, 4, 1, 5, 9, 2, 6], num_minibatches=2)
    shares = []
    for rank in (0, 1):
        ids = torch.arange(rank, 8, 2)
        steps = plan_steps(
            lengths[ids], ids, num_sequences=8, num_epochs=1, num_minibatches=2, num_micro_batches=2, seed=0
        )
        shares.append([set(ids[torch.cat(step)].tolist()) for step in steps])
    for step, first, second in zip(whole, *shares, strict=True):
        assert first | second == set(torch.cat(step).tolist())
        assert not first & second


def test_micro_batches_hold_similar_lengths():
    micro_batches = plan([9, 1, 8, 2, 7, 3], num_micro_batches=3)[0]
    assert [sorted(rows.tolist()) for rows in micro_batches] == [[1, 3], [4, 5], [0, 2]]


def test_select_trims_the_padding_of_the_chosen_rows_only():
    chosen = make_rollout([3, 1, 2], [2, 4, 1]).select(torch.tensor([1, 2]))
    assert chosen.prompt_ids.tolist() == [[4, 5], [7, 8]]
    assert chosen.prompt_mask.tolist() == [[False, True], [True, True]]
    assert chosen.completion_ids.tolist() == [[104, 105, 106, 107], [108, 109, 110, 111]]
    assert chosen.old_logprobs.tolist() == (-chosen.advantages).tolist()
    narrow = make_rollout([3, 1, 2], [2, 4, 1]).select(torch.tensor([0]))
    assert narrow.completion_ids.tolist() == [[100, 101]]
    assert narrow.advantages.tolist() == [[0, 1]]


def test_an_empty_micro_batch_is_one_masked_row():
    rollout = make_rollout([1, 1], [1, 1])
    planned = PlannedRollout(
        rollout,
        [[torch.tensor([0, 1]), torch.tensor([], dtype=torch.long)]],
        torch.tensor([2.0]),
        torch.tensor([False]),
        pad_id=7,
    )
    filler = planned.micro_batch(1)
    assert len(filler) == 1
    assert not filler.rollout.loss_mask.any()
    assert filler.rollout.completion_ids.tolist() == [[7]]
    assert filler.rollout.old_logprobs.tolist() == [[0]]
    assert filler.rollout.ref_logprobs is None
    assert filler.normalizer == 2


def test_a_rank_without_prompts_has_the_log_probs_that_the_others_have():
    alone = PlannedRollout(
        Rollout.masked_row(7, like=make_rollout([1], [2])),
        [[torch.tensor([], dtype=torch.long)]],
        torch.tensor([2.0]),
        torch.tensor([True]),
        pad_id=7,
    )
    batch = alone.micro_batch(0)
    assert batch.skip_step
    assert batch.rollout.old_logprobs is not None
    assert batch.rollout.ref_logprobs is None
    assert not batch.rollout.loss_mask.any()


def test_a_stored_rollout_gives_the_same_micro_batches(tmp_path):
    rollout = make_rollout([3, 1, 2, 2], [2, 4, 1, 3])
    steps = plan([5, 5, 3, 5], num_epochs=2, num_minibatches=2, num_micro_batches=2)
    planned = PlannedRollout(rollout, steps, torch.arange(4.0), torch.tensor([False, True, False, True]), pad_id=0)
    torch.save(planned.state_dict(), tmp_path / "state.pt")
    restored = PlannedRollout.from_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for index in range(8):
        want, got = planned.micro_batch(index), restored.micro_batch(index)
        assert (got.normalizer, got.skip_step) == (want.normalizer, want.skip_step)
        for name, tensor in vars(want.rollout).items():
            other = getattr(got.rollout, name)
            assert other is None if tensor is None else torch.equal(other, tensor), name


def test_lightning_leaves_the_floats_of_a_micro_batch_alone():
    from lightning.pytorch.plugins import HalfPrecision

    rollout = make_rollout([1], [2])
    batch = PlannedRollout(rollout, plan([3]), torch.tensor([2.0]), torch.tensor([False]), pad_id=0).micro_batch(0)
    converted = HalfPrecision("bf16-true").convert_input(batch)
    assert converted.rollout.old_logprobs.dtype == torch.float32


def test_values_in_batches_return_to_their_rows():
    rollout = make_rollout([3, 1, 2, 2], [2, 4, 1, 3])
    doubled = in_batches(rollout, lambda part: 2 * part.advantages * part.completion_mask, batch_size=2)
    torch.testing.assert_close(doubled, 2 * rollout.advantages * rollout.completion_mask)
