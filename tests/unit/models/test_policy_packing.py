"""Rows in one sequence against each by itself, and models that cannot keep them apart."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig

from lit_posttrain.batching import EncodedRow, SupervisedBatch
from lit_posttrain.models.networks.policy import Policy
from tests.conftest import EOS, VOCAB
from tests.unit.models.test_policy_logprobs import padded, slow_logprobs

# Lengths 5, 3, 9, 2: the first two and the fourth in one sequence with room to spare, though not side by side.
ROWS = [([3, 4], [5, EOS, 6]), ([7], [8, EOS]), ([9, 10, 11, 12], [13, 14, 15, 16, EOS]), ([17], [EOS])]
PACKS = [7, 7, 3, 7]


def batch(rows=ROWS, packs=PACKS) -> SupervisedBatch:
    encoded = [EncodedRow(prompt, completion, [t != 1 for t in range(len(completion))]) for prompt, completion in rows]
    return SupervisedBatch.collate(encoded, pad_id=EOS, pack_ids=packs)


def attending(model, attention):
    model.set_attn_implementation(attention)
    return model


def statistics_and_gradients(policy, rows):
    policy.zero_grad()
    got = policy(rows, supervised=True, entropy_gradient=True)
    weights = torch.arange(1.0, 5.0, dtype=torch.float64)[:, None] * rows.loss_mask
    ((got.logprobs + 0.3 * got.mean_logprobs + 0.1 * got.entropy) * weights).sum().backward()
    return got, {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_packed_rows_are_those_by_themselves(make_model, family, attention):
    policy = Policy(attending(make_model(family, dtype=torch.float64, scale=2.0), attention), chunk_size=3)
    want, gradients = statistics_and_gradients(policy, batch(packs=None))
    got, packed = statistics_and_gradients(policy, batch())
    for name in ("logprobs", "entropy", "mean_logprobs"):
        torch.testing.assert_close(getattr(got, name), getattr(want, name), atol=1e-10, rtol=0, msg=name)
    assert torch.equal(got.hits, want.hits)
    assert any(gradient.abs().max() > 1e-3 for gradient in packed.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(packed[name], gradient, atol=1e-10, rtol=0, msg=name)


def test_packed_rows_equal_a_slow_loop(make_model):
    """Nothing of the packing or of the shift in common; the first tokens of rows behind others are among them."""
    model = make_model("gpt2")
    with torch.no_grad():
        got = Policy(model)(batch()).logprobs
        for row, (prompt, completion) in enumerate(ROWS):
            want = slow_logprobs(model, prompt, completion, 1.0)
            want[1:2] = 0  # not supervised
            torch.testing.assert_close(got[row, : len(completion)], want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_another_row_says_changes_not_a_bit(make_model, family, attention):
    policy = Policy(attending(make_model(family), attention))
    other = [([30, 31], [32, 33, 34]), *ROWS[1:]]
    with torch.no_grad():
        first, second = (policy(batch(rows)).logprobs for rows in (ROWS, other))
    assert torch.equal(first[1:], second[1:])
    assert not torch.equal(first[0], second[0])


def test_the_model_sees_fewer_tokens(make_model):
    policy, seen = Policy(make_model("llama")), []
    policy.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    policy(batch(packs=None))
    policy(batch())
    assert (seen[0], seen[-1]) == ((4, 9), (2, 10))


def test_a_batch_that_counts_for_nothing_may_be_packed(make_model):
    inputs = batch([ROWS[3], ROWS[3]], [0, 0])
    inputs.loss_mask[:] = False
    got = Policy(make_model("gpt2"))(inputs)
    (got.logprobs * inputs.loss_mask).sum().backward()


def test_attention_that_takes_no_mask_is_refused(make_model):
    policy = Policy(make_model("llama"))
    policy.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"`flash_attention_2` does not take.*`attention=.sdpa.`.*`packing="):
        policy(batch())


def test_a_model_that_lets_rows_see_one_another_is_refused(make_model, monkeypatch):
    """The leak of a mask that is lost on the way, and of positions that go on."""
    for lost in ("attention_mask", "position_ids"):
        policy = Policy(make_model("gpt2"))
        forward = policy.model.base_model.forward

        def without(lost=lost, forward=forward, **inputs):
            length = inputs["input_ids"].shape[1]
            dropped = {"attention_mask": torch.ones(1, length), "position_ids": torch.arange(length)[None]}
            return forward(**{**inputs, lost: dropped[lost]})

        monkeypatch.setattr(policy.model.base_model, "forward", without)
        with pytest.raises(ValueError, match="`packing` does not work with GPT2LMHeadModel"):
            policy(batch())


def test_a_model_of_another_form_of_mask_is_refused():
    config = BloomConfig(vocab_size=VOCAB, hidden_size=16, n_layer=1, n_head=2)
    with pytest.raises(ValueError, match="`packing` does not work with BloomForCausalLM"):
        Policy(AutoModelForCausalLM.from_config(config))(batch())


def test_rows_longer_than_the_window_of_some_layers_are_refused(make_model):
    """Gemma 2's here is 8 tokens; up to there packed and unpacked rows are equal."""
    policy = Policy(make_model("gemma2", dtype=torch.float64))
    short = [ROWS[0], ROWS[1], ROWS[3]]
    with torch.no_grad():
        want = policy(batch(short, None)).logprobs
        torch.testing.assert_close(policy(batch(short, [0, 0, 0])).logprobs, want, atol=1e-8, rtol=0)
        with pytest.raises(ValueError, match=r"look back 8 tokens.*9 of the longest row.*`max_length=8`"):
            policy(batch())


def test_left_padding_stays_outside(make_model):
    policy = Policy(make_model("qwen2", dtype=torch.float64))
    prompts, completions = [prompt for prompt, _ in ROWS], [completion for _, completion in ROWS]
    with torch.no_grad():
        want = policy(padded(prompts, completions, left=3, right=4, pad_id=1))
        rows = padded(prompts, completions, left=3, right=4, pad_id=1)
        got = policy(replace(rows, pack_ids=torch.tensor(PACKS)))
    torch.testing.assert_close(got.logprobs, want.logprobs, atol=1e-10, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_mixed_precision(make_model, attention):
    """The mask fits scores of either type, and rounding is not taken for a leak."""
    policy = Policy(attending(make_model("llama", scale=2.0), attention))
    with torch.no_grad():
        want = policy(batch(packs=None)).logprobs
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = policy(batch()).logprobs
    torch.testing.assert_close(got, want, atol=0.1, rtol=0.02)
    assert not torch.equal(got, want)
