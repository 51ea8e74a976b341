"""Values of the state before each token: where they are read, that padding is not, and what they start from."""

import copy

import pytest
import torch

from lit_posttrain.batching import TrainingBatch
from lit_posttrain.models import Pretrained
from lit_posttrain.models.networks.policy import Policy
from lit_posttrain.models.networks.reward import RewardNetwork
from lit_posttrain.models.networks.value import ValueHead, ValueNetwork, check_same_tokens
from tests.conftest import EOS, VOCAB
from tests.unit.models.test_reward_network import padded

PROMPTS = [[3, 4, 5], [6], [7, 8, EOS, 10, 11]]
COMPLETIONS = [[12, EOS, 13, 14, EOS], [15, 16, 17, 18, EOS, EOS], [EOS]]


def inputs(prompts=PROMPTS, completions=COMPLETIONS, **padding):
    batch = padded(prompts, completions, **padding)
    return TrainingBatch(**vars(batch), loss_mask=batch.completion_mask)


def with_random_head(network):
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return network


@pytest.fixture(params=["gpt2", "llama", "opt_350m"])
def network(request, make_model):
    return with_random_head(ValueNetwork.from_causal_lm(make_model(request.param, dtype=torch.float64)))


def test_a_value_is_read_before_its_token(network):  # 0.2: the slice of the logits
    with torch.no_grad():
        values = network(inputs())
        for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
            for t in range(len(completion)):
                seen = torch.tensor([prompt + completion[:t]])
                hidden = network.trunk(input_ids=seen, use_cache=False)[0][0, -1]
                assert values[row, t].item() == pytest.approx(network.head(hidden).item(), abs=1e-10)
            assert (values[row, len(completion) :] == 0).all()


@pytest.mark.parametrize("padding", [{"left": 5}, {"right": 7}, {"left": 3, "right": 2, "pad_id": EOS}])
def test_padding_changes_nothing(network, padding):
    with torch.no_grad():
        want, got = network(inputs()), network(inputs(**padding))
    torch.testing.assert_close(got[:, : want.shape[1]], want, atol=1e-12, rtol=0)


def test_a_critic_from_the_policy_begins_with_zeros_and_shares_nothing(make_model):
    model = make_model("gpt2")
    network = ValueNetwork.from_causal_lm(model)
    assert (network(inputs()) == 0).all()
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in network.parameters()}
    assert not shared
    frozen = copy.deepcopy(model).requires_grad_(False)
    assert all(p.requires_grad for p in ValueNetwork.from_causal_lm(frozen).parameters())


def test_every_parameter_gets_a_gradient_even_where_nothing_counts(make_model):
    network = with_random_head(ValueNetwork.from_causal_lm(make_model("gpt2")))
    batch = inputs()
    batch.loss_mask = torch.zeros_like(batch.loss_mask)
    torch.where(batch.loss_mask, network(batch), 0).sum().backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in network.parameters())


def test_a_head_on_the_policys_trunk_reads_the_same_states(make_model):
    model = make_model("gpt2", dtype=torch.float64)
    network = with_random_head(ValueNetwork.from_causal_lm(model))
    policy = Policy(model)
    assert policy.has_known_head
    with torch.no_grad():
        statistics = policy(inputs(), value_head=network.head)
        torch.testing.assert_close(statistics.values, network(inputs()), atol=1e-12, rtol=0)
        torch.testing.assert_close(statistics.logprobs, policy(inputs()).logprobs, atol=0, rtol=0)
    assert policy(inputs()).values is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_values_are_in_float32_at_least(make_model, dtype):
    network = ValueNetwork.from_causal_lm(make_model("gpt2", dtype=dtype))
    want = torch.promote_types(dtype, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.float32):
        assert network(inputs()).dtype == want
    assert isinstance(network.head, ValueHead)


@pytest.fixture
def reward_folder(make_model, word_tokenizer, tmp_path):
    torch.manual_seed(0)
    network = RewardNetwork.from_causal_lm(make_model("gpt2"), pad_id=0, vocab_size=VOCAB)
    network.score_mean.fill_(0.7)
    network.score_scale.fill_(2.0)
    network.save_pretrained(tmp_path / "rm")
    word_tokenizer.save_pretrained(tmp_path / "rm")
    return str(tmp_path / "rm")


def test_a_critic_from_a_reward_model_says_what_it_said(reward_folder):
    """The value after a token is the reward model's normalised score of the text up to it."""
    reward_model, critic = RewardNetwork.load(reward_folder), ValueNetwork.from_reward_model(reward_folder)
    with torch.no_grad():
        values = critic(inputs())
        for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
            for t in range(1, len(completion)):
                score = reward_model.normalized(reward_model(padded([prompt], [completion[:t]])))
                assert values[row, t].item() == pytest.approx(score.item(), abs=1e-5)


def test_a_critic_must_read_the_policys_tokens(reward_folder, word_tokenizer):
    check_same_tokens(reward_folder, word_tokenizer)
    with pytest.raises(ValueError, match="has another tokenizer than the policy"):
        check_same_tokens(reward_folder, Pretrained("tiny").load_tokenizer())
    fewer = copy.deepcopy(word_tokenizer)
    fewer.add_tokens(["further"])
    with pytest.raises(ValueError, match="'further' is unknown there and 40 here"):
        check_same_tokens(reward_folder, fewer)
