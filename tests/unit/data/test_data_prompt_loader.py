import random

import pytest
import torch

from lit_posttrain.data import PromptLoader

ROWS = [{"prompt": str(n), "tags": [n]} for n in range(11)]


def prompts(batches) -> list[list[str]]:
    return [[row["prompt"] for row in batch] for batch in batches]


def test_an_epoch_holds_every_prompt_once_and_a_smaller_last_batch():
    loader = PromptLoader(ROWS, batch_size=4, shuffle=True, seed=0)
    batches = prompts(loader)
    assert [len(batch) for batch in batches] == [4, 4, 3]
    assert len(loader) == 3
    assert sorted((prompt for batch in batches for prompt in batch), key=int) == [row["prompt"] for row in ROWS]


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_a_batch_is_the_same_prompts_on_any_number_of_ranks(world_size):
    whole = prompts(PromptLoader(ROWS, batch_size=4, shuffle=True, seed=7))
    ranks = [
        PromptLoader(ROWS, batch_size=4, shuffle=True, seed=7, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert {len(loader) for loader in ranks} == {3}
    shares = [prompts(loader) for loader in ranks]
    for number, batch in enumerate(whole):
        for rank in range(world_size):
            assert shares[rank][number] == batch[rank::world_size]


def test_a_rank_without_a_prompt_gets_an_empty_batch():
    loader = PromptLoader(ROWS[:3], batch_size=2, shuffle=False, seed=0, rank=1, world_size=2)
    assert prompts(loader) == [["1"], []]


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    loader = PromptLoader(ROWS, batch_size=4, shuffle=True, seed=0)
    random.seed(1)
    torch.manual_seed(1)
    first = prompts(loader)
    states = random.getstate(), torch.get_rng_state()
    assert prompts(loader) == first
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    loader.set_epoch(1)
    second = prompts(loader)
    assert second != first
    assert prompts(PromptLoader(ROWS, batch_size=4, shuffle=True, seed=1)) not in (first, second)
    loader.set_epoch(0)
    assert prompts(loader) == first


def test_without_shuffling_every_epoch_is_in_order():
    loader = PromptLoader(ROWS, batch_size=6, shuffle=False, seed=0)
    loader.set_epoch(3)
    assert prompts(loader) == [["0", "1", "2", "3", "4", "5"], ["6", "7", "8", "9", "10"]]


def test_going_on_from_a_batch_gives_the_rest_of_the_epoch():
    loader = PromptLoader(ROWS, batch_size=2, shuffle=True, seed=3, rank=1, world_size=2)
    loader.set_epoch(5)
    whole = prompts(loader)
    for start in range(7):
        assert prompts(loader.batches(start)) == whole[start:]
    with pytest.raises(ValueError, match="`start` must be from 0 to the number of batches, 6, got 7"):
        loader.batches(7)


def test_a_pass_that_has_begun_keeps_its_order():
    loader = PromptLoader(ROWS, batch_size=4, shuffle=True, seed=0)
    whole = prompts(loader)
    begun = loader.batches()
    loader.set_epoch(1)
    assert prompts(begun) == whole


def test_what_is_done_to_a_row_does_not_come_back():
    loader = PromptLoader(ROWS, batch_size=4, shuffle=False, seed=0)
    row = next(iter(loader))[0]
    row["prompt"] = "changed"
    row["tags"].append("changed")
    assert next(iter(loader))[0] == {"prompt": "0", "tags": [0]}


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be >= 1, got 0"),
        ({"world_size": 0}, "`world_size` must be >= 1, got 0"),
        ({"rank": 2, "world_size": 2}, "`rank` must be from 0 to `world_size` - 1 = 1, got 2"),
        ({"rank": -1}, "`rank` must be from 0 to `world_size` - 1 = 0, got -1"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        PromptLoader(ROWS, **{"batch_size": 4, "shuffle": False, "seed": 0, **numbers})
