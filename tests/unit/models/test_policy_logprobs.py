"""Log-probs of the policy against a slow loop without padding."""

import pytest
import torch

from lit_posttrain.batching import TrainingBatch
from lit_posttrain.models.networks.policy import Policy
from tests.conftest import FAMILIES

PROMPTS = [[3, 4, 5], [6], [7, 8, 9, 10, 11]]
COMPLETIONS = [[12, 13, 1], [14, 15, 16, 17, 18, 1], [19, 1]]


def padded(prompts, completions, *, left=0, right=0, pad_id=0):
    """Prompts padded on the left by `left` more than needed, completions on the right by `right` more."""
    width_p, width_c = max(map(len, prompts)) + left, max(map(len, completions)) + right
    prompt_ids = torch.tensor([[pad_id] * (width_p - len(p)) + p for p in prompts])
    prompt_mask = torch.tensor([[False] * (width_p - len(p)) + [True] * len(p) for p in prompts])
    completion_ids = torch.tensor([c + [pad_id] * (width_c - len(c)) for c in completions])
    completion_mask = torch.tensor([[True] * len(c) + [False] * (width_c - len(c)) for c in completions])
    return TrainingBatch(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=completion_ids,
        completion_mask=completion_mask,
        loss_mask=completion_mask,
    )


def slow_logprobs(model, prompt, completion, temperature):
    """One sequence, no padding, no shift arithmetic: a forward for every token."""
    values = []
    for t, token in enumerate(completion):
        logits = model(input_ids=torch.tensor([prompt + completion[:t]])).logits[0, -1]
        values.append(torch.log_softmax(logits / temperature, -1)[token])
    return torch.stack(values)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_comparison_notices_wrong_positions(make_model, family, monkeypatch):
    """Positions that count the left padding have to show with learned and, where they are uneven, rotary positions."""
    model = make_model(family)
    forward = model.base_model.forward

    def stretched(*args, position_ids=None, **rest):
        return forward(*args, position_ids=None if position_ids is None else 2 * position_ids, **rest)

    monkeypatch.setattr(model.base_model, "forward", stretched)
    policy = Policy(model)
    with torch.no_grad():
        got = policy(padded(PROMPTS, COMPLETIONS, left=7)).logprobs[0, :3]
        want = slow_logprobs(make_model(family), PROMPTS[0], COMPLETIONS[0], 1.0)
    assert (got - want).abs().max() > 1e-2


def loss_and_gradients(model, inputs, chunk_size):
    policy = Policy(model, chunk_size=chunk_size)
    model.zero_grad()
    statistics = policy(inputs, entropy_gradient=True)
    mask = inputs.loss_mask
    weights = torch.arange(1, mask.shape[0] + 1, dtype=torch.float64)[:, None]
    loss = (statistics.logprobs * mask * weights).sum() + (statistics.entropy * mask).sum()
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_batching_and_chunks_change_neither_loss_nor_gradient(make_model, family):
    atol = 1e-8 if family == "gemma2" else 1e-10
    model = make_model(family, dtype=torch.float64, scale=2.0)
    loss, gradients = loss_and_gradients(model, padded(PROMPTS, COMPLETIONS), 512)
    assert any(g.abs().max() > 1e-3 for g in gradients.values())
    variants = [
        (padded(PROMPTS, COMPLETIONS, left=16, right=5, pad_id=1), 2),
        (padded(PROMPTS, COMPLETIONS, right=16), 1),
    ]
    for inputs, chunk_size in variants:
        other, other_gradients = loss_and_gradients(model, inputs, chunk_size)
        torch.testing.assert_close(other, loss, atol=atol, rtol=0)
        for name, gradient in gradients.items():
            torch.testing.assert_close(other_gradients[name], gradient, atol=atol, rtol=0)


def test_gradient_checkpointing_changes_nothing(make_model):
    inputs = padded(PROMPTS, COMPLETIONS)
    plain = make_model("llama", dtype=torch.float64)
    loss, gradients = loss_and_gradients(plain, inputs, 512)
    saving = make_model("llama", dtype=torch.float64).train()
    saving.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    other, other_gradients = loss_and_gradients(saving, inputs, 512)
    torch.testing.assert_close(other, loss, atol=1e-10, rtol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(other_gradients[name], gradient, atol=1e-10, rtol=0)


def test_an_unknown_head_goes_through_the_models_own_logits(make_model):
    model = make_model("llama")
    model.lm_head.register_forward_hook(lambda module, inputs, output: output * 1.0)
    forward = model.forward

    def strange(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits * 0.5
        return output

    model.forward = strange
    with pytest.warns(UserWarning, match="own logits"):
        policy = Policy(model)
    with torch.no_grad():
        got = policy(padded(PROMPTS, COMPLETIONS, left=2)).logprobs[1, :6]
        want = slow_logprobs(model, PROMPTS[1], COMPLETIONS[1], 1.0)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_a_fully_masked_batch_gives_every_parameter_a_zero_gradient(make_model):
    model = make_model("llama")
    inputs = padded(PROMPTS, COMPLETIONS)
    inputs.loss_mask = torch.zeros_like(inputs.completion_mask)
    statistics = Policy(model)(inputs)
    (statistics.logprobs * inputs.loss_mask).sum().backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in model.parameters())


def test_dropout_is_off_in_training_mode(make_model):
    model = make_model("gpt2")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    policy = Policy(model)
    with torch.no_grad():
        first = policy.train()(padded(PROMPTS, COMPLETIONS)).logprobs
        second = policy.eval()(padded(PROMPTS, COMPLETIONS)).logprobs
    assert torch.equal(first, second)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_what_supervised_losses_need(make_model, family):
    """Hits, and the mean of the log-probs of all tokens, against a loop; its gradient against that of log_softmax."""
    model = make_model(family)
    inputs = padded(PROMPTS, COMPLETIONS, left=1, right=2)
    statistics = Policy(model, chunk_size=3)(inputs, temperature=0.7, supervised=True)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        ids = torch.tensor([prompt + completion])
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        want = torch.log_softmax(logits / 0.7, -1).mean(-1)
        torch.testing.assert_close(statistics.mean_logprobs[row, : len(completion)], want, atol=1e-5, rtol=0)
        assert (
            statistics.hits[row, : len(completion)].tolist() == (logits.argmax(-1) == torch.tensor(completion)).tolist()
        )
    assert not statistics.hits[~inputs.loss_mask].any()
    gradients = torch.autograd.grad(statistics.mean_logprobs.sum(), list(model.parameters()), allow_unused=True)
    total = sum(
        torch.log_softmax(model(input_ids=torch.tensor([p + c])).logits[0, len(p) - 1 : -1] / 0.7, -1).mean(-1).sum()
        for p, c in zip(PROMPTS, COMPLETIONS, strict=True)
    )
    for got, want in zip(
        gradients, torch.autograd.grad(total, list(model.parameters()), allow_unused=True), strict=True
    ):
        if want is not None:
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_supervised_statistics_are_made_on_demand(make_model):
    statistics = Policy(make_model("gpt2"))(padded(PROMPTS, COMPLETIONS))
    assert statistics.hits is None
    assert statistics.mean_logprobs is None
