"""Which rows make a step: the same ones on any number of ranks and micro-batches; mixing of sources."""

import random
from collections import Counter
from functools import partial

import pytest

from lit_posttrain.batching import EncodedRow, SupervisedBatch
from lit_posttrain.data.sources.mixing import epoch_rows, permutation
from lit_posttrain.data.step_plan import StepPlan

ROWS = [EncodedRow([n], [7] * (1 + n % 4), [True] * (n % 4) + [True]) for n in range(11)]


def make_plan(sources=(ROWS,), **options) -> StepPlan:
    return StepPlan(sources, **{"collate": list, "batch_size": 4, "seed": 3, **options})


def numbers(part) -> list[int]:
    return [row.prompt_ids[0] for row in part.batch]


def steps(plan: StepPlan, epoch: int = 0) -> list[list[list[int]]]:
    """Row numbers of each micro-batch of each step."""
    parts = [numbers(part) for part in plan.parts(epoch)]
    return [parts[i : i + plan.micro_batches] for i in range(0, len(parts), plan.micro_batches)]


def members(plan: StepPlan, epoch: int = 0) -> list[set[int]]:
    return [{number for part in step for number in part} for step in steps(plan, epoch)]


def test_an_epoch_holds_every_row_once_and_a_smaller_last_step():
    order = permutation(11, seed=3, epoch=5)
    assert members(make_plan(), 5) == [set(order[:4]), set(order[4:8]), set(order[8:])]
    assert make_plan().num_steps == 3


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("micro_batches", [1, 2, 3, 7])
def test_ranks_and_micro_batches_part_a_step(world_size, micro_batches):
    whole = members(make_plan(), 1)
    ranks = [make_plan(rank=rank, world_size=world_size, micro_batches=micro_batches) for rank in range(world_size)]
    assert {plan.num_steps for plan in ranks} == {3}
    shares = [steps(plan, 1) for plan in ranks]
    for number, rows in enumerate(whole):
        assert {len(share[number]) for share in shares} == {micro_batches}
        dealt = [row for share in shares for part in share[number] for row in part]
        assert (sorted(dealt), len(dealt)) == (sorted(rows), len(rows))
    for plan in ranks:
        want = [sum(ROWS[row].num_terms for row in rows) for rows in whole for _ in range(micro_batches)]
        assert [part.normalizer.item() for part in plan.parts(1)] == want


def test_micro_batches_hold_similar_lengths():
    for step in steps(make_plan(batch_size=8, micro_batches=4)):
        lengths = [ROWS[row].length for part in step for row in part]
        assert lengths == sorted(lengths)


def test_going_on_from_a_micro_batch_gives_the_rest_of_the_epoch():
    plan = make_plan(micro_batches=2, rank=1, world_size=2)
    whole = [numbers(part) for part in plan.parts(2)]
    for start in range(7):
        assert [numbers(part) for part in plan.parts(2, start)] == whole[start:]


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    random.seed(1)
    first = steps(make_plan())
    state = random.getstate()
    assert steps(make_plan()) == first
    assert random.getstate() == state
    assert steps(make_plan(), 1) != first
    assert steps(make_plan(seed=4)) != first
    assert members(make_plan(shuffle=False), 9) == [{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 10}]


def test_weights_say_how_often_rows_come():
    seen = Counter()
    for epoch in range(4):
        rows = epoch_rows([8, 3, 4], [0.5, 2.0, 1.0], shuffle=True, seed=1, epoch=epoch)
        assert len(rows) == 4 + 6 + 4
        assert Counter(row for row in rows if row >= 8) == {8: 2, 9: 2, 10: 2, 11: 1, 12: 1, 13: 1, 14: 1}
        seen.update(row for row in rows if row < 8)
    assert seen == dict.fromkeys(range(8), 2)  # half of the rows in each of four epochs, none more often
    one, two = (epoch_rows([8, 3], [0.5, 1.0], shuffle=True, seed=1, epoch=epoch) for epoch in (0, 1))
    assert one != two
    assert epoch_rows([100], [0.001], shuffle=True, seed=0, epoch=0) in [[row] for row in range(100)]


def test_sources_are_mixed_in_a_plan():
    plan = make_plan([ROWS[:2], ROWS[2:]], weights=[3.0, 1.0], batch_size=15)
    (step,) = steps(plan)
    assert plan.num_steps == 1
    assert Counter(step[0]) == {0: 3, 1: 3} | dict.fromkeys(range(2, 11), 1)


def test_all_rows_of_a_step_may_be_completed_together():
    plan = make_plan(complete=lambda rows: rows[:1], micro_batches=2)
    assert [len(part) for part in plan.parts(0)] == [0, 1] * 3
    assert next(plan.parts(0)).normalizer == ROWS[permutation(11, seed=3)[0]].num_terms


PACKED = {"collate": partial(SupervisedBatch.collate, pad_id=0), "packing": True}


def laid_out(part) -> list[list[int]]:
    """Row numbers of each sequence of a micro-batch; none if it counts for nothing."""
    batch = part.batch
    if not batch.loss_mask.any():
        return []
    packs = range(len(batch)) if batch.pack_ids is None else batch.pack_ids.tolist()
    assert part.numbers.tolist() == batch.prompt_ids.flatten().tolist()
    return [[n for n, other in zip(part.numbers.tolist(), packs, strict=True) if other == pack] for pack in set(packs)]


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("micro_batches", [1, 2, 5])
def test_packing_leaves_a_step_its_rows_and_its_normalizer(world_size, micro_batches):
    whole = members(make_plan(batch_size=8), 1)
    longest = [max(ROWS[row].length for row in rows) for rows in whole]
    dealt, sequences = [[] for _ in whole], 0
    for rank in range(world_size):
        options = {"batch_size": 8, "rank": rank, "world_size": world_size, "micro_batches": micro_batches}
        parts = list(make_plan(**options, **PACKED).parts(1))
        assert [p.normalizer for p in parts] == [p.normalizer for p in make_plan(**options).parts(1)]
        for number, part in enumerate(parts):
            step = number // micro_batches
            for rows in laid_out(part):
                assert sum(ROWS[row].length for row in rows) <= longest[step]
                dealt[step] += rows
                sequences += 1
    assert [sorted(rows) for rows in dealt] == [sorted(rows) for rows in whole]
    assert sequences < 11


def test_going_on_from_a_micro_batch_of_a_packed_step():
    plan = make_plan(batch_size=8, micro_batches=2, **PACKED)
    whole = [laid_out(part) for part in plan.parts(2)]
    for start in range(5):
        assert [laid_out(part) for part in plan.parts(2, start)] == whole[start:]


def test_rows_that_share_no_sequence_are_an_ordinary_batch():
    """A mask would be for nothing."""
    (part,) = make_plan([ROWS[:1] * 3], **PACKED).parts(0)
    assert part.batch.pack_ids is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be >= 1, got 0"),
        ({"micro_batches": 0}, "`micro_batches` must be >= 1, got 0"),
        ({"rank": 1}, "`rank` must be from 0 to `world_size` - 1 = 0, got 1"),
        ({"sources": [ROWS, []]}, "there are no rows"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        make_plan(**options)
