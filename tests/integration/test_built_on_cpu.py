"""In whatever device's context networks are built, they are on the CPU, with the numbers that their seeds make."""

from functools import partial

import pytest
import torch

from lit_posttrain import DPO, GRPO, PPO, SFT, BuiltModel, Lora, Pretrained, RewardModel
from lit_posttrain.models.networks.reward import RewardNetwork
from lit_posttrain.models.weights import tensors_sha256
from lit_posttrain.rewards.model import LearnedReward
from tests.conftest import VOCAB
from tests.integration.conftest import counts_even_words


@pytest.fixture(scope="module")
def folders(make_model, word_tokenizer, tmp_path_factory):
    """A model, an adapter of it and a reward model."""
    folder = tmp_path_factory.mktemp("models")
    names = {name: str(folder / name) for name in ("base", "adapter", "reward")}
    make_model().save_pretrained(names["base"])
    RewardNetwork.from_causal_lm(make_model(), pad_id=0, vocab_size=VOCAB).save_pretrained(names["reward"])
    for name in ("base", "reward"):
        word_tokenizer.save_pretrained(names[name])
    Lora(r=2, seed=3).attach(Pretrained(names["base"]).load_base()).save_pretrained(names["adapter"])
    return names


MODULES = {
    "stored": lambda f: SFT(Pretrained(f["base"])),
    "fresh": lambda f: SFT(Pretrained(f["base"], random_init=True, seed=2)),
    "function": lambda f: SFT(BuiltModel(Pretrained(f["base"]).load, tokenizer=Pretrained(f["base"]).load_tokenizer())),
    "adapter": lambda f: SFT(Pretrained(f["base"], lora=Lora(r=2, seed=5))),
    "trained adapter": lambda f: GRPO(Pretrained(f["adapter"]), counts_even_words, kl_coef=0.1, scale="none"),
    "reference": lambda f: DPO(Pretrained(f["base"])),
    "reward model": lambda f: RewardModel(Pretrained(f["base"], lora=Lora(r=2))),
    **{
        f"critic {critic}": partial(
            lambda critic, f: PPO(f["base"], counts_even_words, critic=f.get(critic, critic)), critic
        )
        for critic in ("policy", "shared", "reward")
    },
}


def built(module, device):
    torch.manual_seed(0)
    with torch.device(device):
        module.configure_model()
    reference = getattr(module, "reference", None)
    tensors = dict(module.state_dict())
    if reference is not None:
        tensors |= {f"reference.{name}": tensor for name, tensor in reference.policy.state_dict().items()}
    return tensors


@pytest.mark.parametrize("name", MODULES)
def test_networks(folders, name):
    want, got = (built(MODULES[name](folders), device) for device in ("cpu", "meta"))
    assert {tensor.device.type for tensor in got.values()} == {"cpu"}
    assert tensors_sha256(got) == tensors_sha256(want)


@pytest.mark.parametrize("name", ["fresh", "adapter", "trained adapter"])
def test_nobody_else_s_random_numbers_are_used_up(folders, name):
    module = MODULES[name](folders)
    torch.manual_seed(0)
    want = torch.rand(1)
    torch.manual_seed(0)
    module.configure_model()
    assert torch.rand(1) == want


@pytest.mark.parametrize("name", ["fresh", "adapter"])
def test_the_seed_has_its_effect(folders, name):
    def weights(seed):
        lora = {"lora": Lora(r=2, seed=seed)} if name == "adapter" else {"random_init": True, "seed": seed}
        with torch.device("meta"):
            return tensors_sha256(Pretrained(folders["base"], **lora).load().state_dict())

    assert weights(1) == weights(1) != weights(2)


def test_a_learned_reward_is_loaded_where_it_is_first_asked(folders):
    want = LearnedReward(folders["reward"], device="cpu").learned(["w1"], [" w2"])
    with torch.device("meta"):
        reward = LearnedReward(folders["reward"], device="cpu")
        reward._load()
    assert reward.learned(["w1"], [" w2"]) == want
