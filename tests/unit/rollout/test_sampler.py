"""The decode loop against `model.generate`, and what must not change with the batch."""

import hashlib

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lit_posttrain.batching import stable_hash
from lit_posttrain.functional import random as counter_rng
from lit_posttrain.functional.random import pick_tokens, sample_keys, uniforms
from lit_posttrain.rollout.engine import sample_completions
from lit_posttrain.rollout.options import Sampling
from tests.conftest import EOS, FAMILIES

PROMPTS = [[3, 4, 5], [6], [7, 8, 9, 10, 11], [12, 13]]


def sample(model, *, num_samples=1, seed=0, batch_size=None, prompts=PROMPTS, eos_ids=(EOS,), **settings):
    keys = sample_keys(torch.arange(len(prompts)), num_samples=num_samples, seed=seed)
    sampling = Sampling(**{"max_new_tokens": 12, **settings})
    return sample_completions(
        model,
        prompts,
        sampling=sampling,
        num_samples=num_samples,
        keys=keys,
        eos_ids=eos_ids,
        pad_id=0,
        batch_size=batch_size,
    )


def rows(sampled):
    tokens, _ = sampled
    return [ids[mask].tolist() for ids, mask in zip(tokens.completion_ids, tokens.completion_mask, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_sampled_does_not_depend_on_the_batch(make_model, family):
    model = make_model(family, scale=2.0)
    whole = rows(sample(model, num_samples=3))
    assert rows(sample(model, num_samples=3, batch_size=3)) == whole
    assert rows(sample(model, num_samples=3, batch_size=7)) == whole
    alone = sample_completions(
        model,
        [PROMPTS[2]],
        sampling=Sampling(max_new_tokens=12),
        num_samples=1,
        keys=sample_keys(torch.arange(4), num_samples=3, seed=0)[7:8],
        eos_ids=(EOS,),
        pad_id=0,
    )
    assert rows(alone)[0] == whole[7]
    assert len({tuple(row) for row in whole}) > 8


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("error::FutureWarning")
def test_a_model_is_called_as_this_transformers_wants_it(make_model, family):
    sample(make_model(family), max_new_tokens=2)


def test_seed_prompt_and_sample_each_change_the_draw(make_model):
    model = make_model("gpt2", scale=1.0)
    first = rows(sample(model, num_samples=4))
    assert rows(sample(model, num_samples=4)) == first
    assert rows(sample(model, num_samples=4, seed=1)) != first
    twice = rows(sample(model, num_samples=2, prompts=[PROMPTS[0], PROMPTS[0]]))
    assert len({tuple(row) for row in twice}) == 4


def test_masks_include_the_eos_and_nothing_behind_it(make_model):
    sampled = tokens, cut = sample(make_model("gpt2", scale=1.0), num_samples=8)
    ended = 0
    for row, truncated in zip(rows(sampled), cut.tolist(), strict=True):
        assert EOS not in row[:-1]
        assert truncated == (row[-1] != EOS)
        assert truncated == (len(row) == 12 and row[-1] != EOS)
        ended += not truncated
    assert 0 < ended < len(rows(sampled))
    assert tokens.completion_mask.any(0).all()  # no column of padding alone


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def widest(request, monkeypatch):
    """The numbers of an ordinary device, and of one that has no float64."""
    monkeypatch.setattr(counter_rng, "accumulation_dtype", lambda device: request.param)
    return request.param


def test_draws_follow_the_distribution(widest):
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05])
    keys = sample_keys(torch.arange(200_000), num_samples=1, seed=3)
    logits = probabilities.log().expand(200_000, -1)
    tokens = pick_tokens(logits, uniforms(keys, 5))
    share = torch.bincount(tokens, minlength=5) / 200_000
    torch.testing.assert_close(share, probabilities, atol=4 * (0.25 / 200_000) ** 0.5, rtol=0)
    assert share[1] == 0


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.6), (5, 0.8), (1, 0.5)])
def test_top_k_and_top_p_keep_what_transformers_keeps(widest, top_k, top_p):
    torch.manual_seed(0)
    logits = 2 * torch.randn(6, 12)
    want = TemperatureLogitsWarper(0.7)(None, logits)
    want = TopKLogitsWarper(top_k)(None, want) if top_k else want
    want = TopPLogitsWarper(top_p)(None, want) if top_p < 1 else want
    draws = torch.linspace(0, 1 - 1e-7, 20_001, dtype=torch.float64).to(widest)
    for row in range(6):
        tokens = pick_tokens(logits[row].expand(len(draws), -1), draws, temperature=0.7, top_k=top_k, top_p=top_p)
        share = torch.bincount(tokens, minlength=12) / len(draws)
        torch.testing.assert_close(share, want[row].softmax(-1), atol=2e-4, rtol=0)


def test_uniforms_are_uniform_and_independent_of_their_neighbors(widest):
    keys = sample_keys(torch.arange(500), num_samples=200, seed=0)
    assert len(keys.unique()) == 100_000
    first, second = uniforms(keys, 0), uniforms(keys, 1)
    assert first.dtype == widest
    for values in (first, second):
        assert 0 <= values.min() < 1e-3
        assert 1 - 1e-3 < values.max() < 1
        assert abs(values.mean() - 0.5) < 4 / (12 * 100_000) ** 0.5
        counts = torch.histc(values.float(), bins=50, min=0, max=1)
        assert ((counts - 2000) ** 2 / 2000).sum() < 95  # chi-square with 49 degrees of freedom, p = 1e-4
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.015
    assert abs(torch.corrcoef(torch.stack([first[:-1], first[1:]]))[0, 1]) < 0.015


# Of 8 positions of 512 prompts, 4 samples each, over 500 tokens; the same on every CPU and for good.
DRAWN = [
    ({}, "ecc19f1b46536ffd"),
    ({"temperature": 0.7}, "d16e28b87893e21f"),
    ({"top_k": 40}, "94f50eabef2a468a"),
    ({"top_p": 0.9}, "3be6d9d536ee628d"),
    ({"temperature": 1.3, "top_k": 100, "top_p": 0.8}, "2df2dcef7ad32dd8"),
]


@pytest.mark.parametrize(("settings", "digest"), DRAWN)
def test_what_is_drawn_stays_what_it_was(settings, digest):
    logits = 3 * torch.randn(2048, 500, generator=torch.Generator().manual_seed(0))
    keys = sample_keys(torch.arange(512), num_samples=4, seed=11)
    tokens = [pick_tokens(logits, uniforms(keys, position), **settings) for position in range(8)]
    assert hashlib.sha256(torch.stack(tokens).numpy().tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_the_ends_of_the_cumulative_distribution(widest, top_p):
    """The smallest and the largest number that is drawn: a token of probability 0 is at neither end."""
    logits = torch.full((2, 1000), -torch.inf)
    logits[:, 100:900] = torch.randn(800, generator=torch.Generator().manual_seed(0))
    largest = 1 - torch.finfo(widest).eps / 2
    tokens = pick_tokens(logits, torch.tensor([0.0, largest], dtype=widest), top_p=top_p)
    assert logits[0, tokens].isfinite().all()
    assert 100 <= tokens[0] < 110
    assert 890 <= tokens[1] < 900


def test_probabilities_are_added_up_in_any_order():
    """Exactly: a draw depends on no other row, and not on how a device adds."""
    logits = 5 * torch.randn(3, 5000, generator=torch.Generator().manual_seed(1))
    units = counter_rng._in_units(logits.double())
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(2))
    assert torch.equal(units.cumsum(-1)[:, -1], units[:, order].cumsum(-1)[:, -1])
    torch.testing.assert_close(units.sum(-1).double() / counter_rng.UNITS, torch.ones(3).double(), atol=1e-12, rtol=0)


def test_hash_is_the_same_in_every_process():
    assert stable_hash("steps", 0, 1) == 8934933048774837001
    assert stable_hash("a", "b") != stable_hash("ab")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("max_new_tokens", 0),
    ],
)
def test_bad_settings_are_named(setting, value):
    with pytest.raises(ValueError, match=f"`sampling.{setting}` must be"):
        Sampling(**{setting: value})


def test_generation_config_does_not_leak_in(make_model):
    model = make_model("gpt2", scale=1.0)
    before = rows(sample(model, num_samples=4))
    model.generation_config.update(do_sample=True, top_k=1, temperature=0.01, repetition_penalty=5.0)
    assert rows(sample(model, num_samples=4)) == before
