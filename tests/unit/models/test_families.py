"""What has to hold for every family of models: its log-probs, scores, exports and samples are those of transformers."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from lit_posttrain import SFT, BuiltModel
from lit_posttrain.models import RewardNetwork
from lit_posttrain.models.networks.policy import Policy
from lit_posttrain.models.tokenizers import with_own_pad_token
from tests.conftest import EOS, FAMILIES, VOCAB
from tests.unit.models.test_policy_logprobs import COMPLETIONS, PROMPTS, padded, slow_logprobs
from tests.unit.models.test_reward_network import with_pad_as_eos
from tests.unit.rollout.test_sampler import rows, sample

# Several EOS inside, one as the first token, a completion of one token.
SCORED = [([3, 4, 5], [12, EOS, 13, 14, EOS]), ([6], [15, 16, 17, 18, EOS, EOS]), ([7, 8, EOS, 10, 11], [EOS])]


@pytest.fixture(params=FAMILIES)
def make(request, make_model):
    """Build a random model of the family. Whatever wraps a model, as adapters do, can be one more parameter here."""
    return lambda **settings: make_model(request.param, **settings)


def scored(**padding):
    return padded(*map(list, zip(*SCORED, strict=True)), **padding)


@pytest.mark.parametrize(("left", "right"), [(0, 0), (1, 0), (0, 7), (7, 1)])
def test_logprobs_equal_a_loop_without_padding(make, left, right):
    model = make()
    policy = Policy(model, chunk_size=3)
    with torch.no_grad():
        got = policy(padded(PROMPTS, COMPLETIONS, left=left, right=right), temperature=0.7).logprobs
        for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
            want = slow_logprobs(model, prompt, completion, 0.7)
            torch.testing.assert_close(got[row, : len(completion)], want, atol=1e-5, rtol=0)
            assert (got[row, len(completion) :] == 0).all()


def test_the_head_runs_in_chunks(make, recwarn):
    assert Policy(make())._head is not None
    assert not [w for w in recwarn if "own logits" in str(w.message)]


def test_packed_rows_are_those_by_themselves(make):
    policy = Policy(make(dtype=torch.float64))
    prompts, completions = PROMPTS[:2], [[12, 13, EOS], [14, EOS]]  # within the window of Gemma 2
    with torch.no_grad():
        want = policy(padded(prompts, completions)).logprobs
        rows = padded(prompts, completions, left=2)
        got = policy(replace(rows, pack_ids=torch.tensor([0, 0]))).logprobs
    torch.testing.assert_close(got, want, atol=1e-7, rtol=0)


def test_the_exported_policy_is_the_policy(make, word_tokenizer, tmp_path):
    module = SFT(BuiltModel(make(), tokenizer=word_tokenizer))
    module.configure_model()
    module.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert set(plain.state_dict()) == set(module.language_model.state_dict())
    ids = torch.tensor([[3, 4, 5, 12, 13, EOS]])
    with torch.no_grad():
        assert torch.equal(plain(input_ids=ids).logits, module.language_model.eval()(input_ids=ids).logits)
        reloaded = Policy(plain)(padded(PROMPTS, COMPLETIONS))
        assert torch.equal(reloaded.logprobs, module.policy(padded(PROMPTS, COMPLETIONS)).logprobs)
    # `AutoTokenizer` would take Qwen's own class for a model of Qwen's, whatever tokenizer lies beside it.
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again("w1 w2")["input_ids"] == word_tokenizer("w1 w2")["input_ids"]


@pytest.mark.parametrize(("left", "right", "pad_id"), [(0, 0, 0), (3, 0, 0), (0, 5, EOS), (16, 1, EOS), (2, 2, 7)])
def test_the_score_is_read_at_the_last_token(make, left, right, pad_id):
    """And not at one of the padding, on either side and whatever its id."""
    torch.manual_seed(0)
    network = RewardNetwork.from_causal_lm(make(), pad_id=0, vocab_size=VOCAB)
    with torch.no_grad():
        got = network(scored(left=left, right=right, pad_id=pad_id))
        for row, (prompt, completion) in enumerate(SCORED):
            hidden = network.model.base_model(input_ids=torch.tensor([prompt + completion]))[0][0, -1]
            want = hidden @ network.model.score.weight[0]
            torch.testing.assert_close(got[row], want, atol=1e-5, rtol=0)
    assert got.unique().numel() == 3


@pytest.mark.parametrize("before_eos", [False, True])
def test_transformers_gives_the_exported_reward_model_the_same_scores(make, word_tokenizer, tmp_path, before_eos):
    """With a pad token that was the EOS: the export has one of its own, and the model a row for it."""
    tokenizer = with_own_pad_token(with_pad_as_eos(word_tokenizer))
    assert tokenizer.pad_token_id == len(tokenizer) - 1 == VOCAB
    network = RewardNetwork.from_causal_lm(
        make(), pad_id=tokenizer.pad_token_id, vocab_size=len(tokenizer), score_before_eos=before_eos
    )
    network.score_mean.fill_(-1.5)
    network.score_scale.fill_(2.0)
    network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    again = AutoTokenizer.from_pretrained(tmp_path)
    sequences = [(prompt + completion)[: -1 if before_eos else None] for prompt, completion in SCORED]
    batch = again.pad({"input_ids": sequences}, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        raw = network(scored())
        torch.testing.assert_close(plain(**batch).logits.squeeze(-1), raw, atol=1e-5, rtol=0)
        reloaded = RewardNetwork.load(str(tmp_path))
        torch.testing.assert_close(reloaded(scored()), raw, atol=1e-6, rtol=0)
        torch.testing.assert_close(reloaded.normalized(raw), (raw + 1.5) / 2)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["score_mean"], config["score_scale"], plain.config.num_labels) == (-1.5, 2.0, 1)
    assert config["score_before_eos"] is before_eos


def test_greedy_equals_generate(make):
    lengths = set()
    prompts = [[3, 4, 5], [6], [7, 8, 9, 10, 11], [12, 13]]
    for seed in range(4):
        model = make(seed=seed)
        sampled = _, cut = sample(model, prompts=prompts, temperature=0.0, eos_ids=(1, 20, 30))
        for index, prompt in enumerate(prompts):
            want = model.generate(
                torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=[1, 20, 30], pad_token_id=0
            )
            got = rows(sampled)[index]
            assert got == want[0, len(prompt) :].tolist()
            assert bool(cut[index]) == (got[-1] not in (1, 20, 30))
            lengths.add(len(got))
    assert len(lengths) > 1  # some ended early, so that rows did leave the batch
