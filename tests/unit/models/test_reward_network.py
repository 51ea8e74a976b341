"""Scores of the reward network against a forward without padding, and its export against plain transformers."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BlenderbotSmallConfig,
)

from lit_posttrain.batching import TokenBatch
from lit_posttrain.models import Pretrained, RewardNetwork
from lit_posttrain.models.networks.reward import check_reward_model
from lit_posttrain.models.tokenizers import with_own_pad_token
from tests.conftest import EOS, VOCAB

# Several EOS inside, one as the first token, a completion of one token.
PROMPTS = [[3, 4, 5], [6], [7, 8, EOS, 10, 11]]
COMPLETIONS = [[12, EOS, 13, 14, EOS], [15, 16, 17, 18, EOS, EOS], [EOS]]


def padded(prompts, completions, *, left=0, right=0, pad_id=0):
    """Prompts padded on the left by `left` more than needed, completions on the right by `right` more."""
    width_p, width_c = max(map(len, prompts)) + left, max(map(len, completions)) + right
    return TokenBatch(
        prompt_ids=torch.tensor([[pad_id] * (width_p - len(p)) + p for p in prompts]),
        prompt_mask=torch.tensor([[False] * (width_p - len(p)) + [True] * len(p) for p in prompts]),
        completion_ids=torch.tensor([c + [pad_id] * (width_c - len(c)) for c in completions]),
        completion_mask=torch.tensor([[True] * len(c) + [False] * (width_c - len(c)) for c in completions]),
    )


def make_network(make_model, family="gpt2", *, vocab_size=VOCAB, **model) -> RewardNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return RewardNetwork.from_causal_lm(make_model(family, **model), pad_id=0, vocab_size=vocab_size)


def test_one_sequence_alone_scores_as_in_a_batch(make_model):
    network = make_network(make_model, dtype=torch.float64)
    with torch.no_grad():
        together = network(padded(PROMPTS, COMPLETIONS))
        alone = [network(padded([p], [c])) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    torch.testing.assert_close(torch.cat(alone), together, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("dtype", "want"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_head_and_score_are_in_float32_at_least(make_model, dtype, want):
    network = make_network(make_model, dtype=dtype)
    assert network.model.base_model.dtype == dtype
    assert network.model.score.weight.dtype == want
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.float32):
        assert network(padded(PROMPTS, COMPLETIONS)).dtype == want


def test_a_new_head_is_normal_by_the_width(make_model):
    model = make_model()
    torch.manual_seed(0)
    heads = [RewardNetwork.from_causal_lm(model, pad_id=0, vocab_size=VOCAB).model.score.weight for _ in range(60)]
    drawn = torch.cat(heads).detach()  # 960 numbers
    assert drawn.std().item() == pytest.approx(17**-0.5, rel=0.1)
    assert abs(drawn.mean().item()) < 0.03


def test_every_weight_takes_part_and_none_is_of_the_vocabulary(make_model):
    network = make_network(make_model, "llama").train()
    network(padded(PROMPTS, COMPLETIONS)).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or p.is_meta] == []
    assert not any("lm_head" in name for name in network.state_dict())
    assert {"score_mean", "score_scale"} <= set(network.state_dict())


def test_dropout_is_off(make_model):
    model = make_model()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    network = RewardNetwork.from_causal_lm(model, pad_id=0, vocab_size=VOCAB).train()
    assert torch.equal(network(padded(PROMPTS, COMPLETIONS)), network(padded(PROMPTS, COMPLETIONS)))


def with_pad_as_eos(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def test_a_pad_token_of_its_own_stays(word_tokenizer):
    assert with_own_pad_token(word_tokenizer) is word_tokenizer
    before = with_pad_as_eos(word_tokenizer)
    after = with_own_pad_token(before)
    assert before.pad_token_id == EOS  # a copy was changed
    assert after("w1 w2")["input_ids"] == before("w1 w2")["input_ids"]


def test_a_causal_model_is_no_reward_model(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"holds GPT2LMHeadModel, which is no reward model.*Give the folder that `RewardModel` exports"
    ):
        check_reward_model(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no folder"):
        RewardNetwork.load(str(tmp_path / "nothing"))


def test_a_classifier_of_two_labels_is_no_reward_model(make_model, tmp_path):
    config = make_model().config.__class__(vocab_size=VOCAB, n_embd=16, n_layer=1, n_head=2, num_labels=2)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="of 2 labels, which is no reward model"):
        check_reward_model(str(tmp_path))


def test_a_reward_model_is_no_policy(make_model, tmp_path):
    make_network(make_model).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"GPT2ForSequenceClassification, a reward model.*`load_reward_model"):
        Pretrained(str(tmp_path)).check()


def test_an_architecture_without_a_classifier(make_model):
    config = BlenderbotSmallConfig(
        vocab_size=VOCAB, d_model=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16, is_decoder=True
    )
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match=r"no sequence classifier of the architecture `blender.*another model"):
        RewardNetwork.from_causal_lm(model, pad_id=0, vocab_size=VOCAB)


def test_another_head_is_refused(make_model):
    network = make_network(make_model)
    network.model.score = torch.nn.Linear(16, 1)
    with pytest.raises(ValueError, match="linear head `score` with one label and no bias"):
        RewardNetwork(network.model)
