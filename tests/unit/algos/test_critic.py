"""The critic of PPO by itself: what it is made of, where it starts, its loss; and how far a policy may go."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from lit_posttrain import Critic
from lit_posttrain.algos.kl_control import KLControl, RolloutBound
from lit_posttrain.batching import Ranks
from lit_posttrain.functional import adapted_kl_coef, explained_variance
from lit_posttrain.models import Pretrained
from lit_posttrain.models.networks.policy import Policy
from lit_posttrain.models.networks.reward import RewardNetwork
from lit_posttrain.models.networks.value import ValueHead, ValueNetwork
from tests.conftest import VOCAB


@pytest.fixture
def reward_folder(make_model, word_tokenizer, tmp_path):
    RewardNetwork.from_causal_lm(make_model(), pad_id=0, vocab_size=VOCAB).save_pretrained(tmp_path / "rm")
    word_tokenizer.save_pretrained(tmp_path / "rm")
    return tmp_path / "rm"


class Never:
    """A source of which nothing is to be asked."""

    @property
    def tokenizer(self):
        pytest.fail("asked for without need")

    def merged(self, model):
        pytest.fail("asked for without need")


def source_of(tokenizer):
    return SimpleNamespace(tokenizer=tokenizer)


def measure(control, kl, num_sequences):
    """A rollout of so many sequences of two tokens, one of which has that KL; of another one nothing counts."""
    mask = torch.ones(num_sequences + 1, 3, dtype=torch.bool)
    mask[-1], mask[:, 2] = False, False
    kls = torch.tensor([[0.0, kl, 70.0]]).expand(num_sequences + 1, 3)
    control.measure(kls, mask, Ranks(SimpleNamespace(_trainer=None, device=torch.device("cpu"))))


def test_it_is_made_of_options_of_a_mapping_or_of_where_it_starts(make_model, tmp_path):
    critic, network = Critic(lr=0.1), ValueNetwork.from_causal_lm(make_model())
    assert Critic.of(critic) is critic
    assert Critic.of({"start": "shared", "coef": 0.5}) == Critic(start="shared", coef=0.5)
    assert Critic.of({}) == Critic.of("policy") == Critic()
    assert Critic.of("shared") == Critic(start="shared")
    assert Critic.of(tmp_path).folder == Critic.of(str(tmp_path)).folder == str(tmp_path)
    assert Critic.of(network).start is network
    assert [Critic.of(start).folder for start in ("policy", "shared", network)] == [None] * 3


@pytest.mark.parametrize(("given", "shown"), [(None, "null"), (3, "int"), (torch.nn.Linear(1, 1), "Linear")])
def test_what_is_no_start_is_named(given, shown):
    for wrong in (given, {"start": given}):
        with pytest.raises(TypeError, match=rf"`critic` must start from .* got {shown}\."):
            Critic.of(wrong)
    with pytest.raises(TypeError, match="`critic` has no option `value_lr`: it has start, lr, coef, clip"):
        Critic.of({"value_lr": 0.1})


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("lr", -1.0, "`critic.lr` must be finite and >= 0"),
        ("lr", math.inf, "`critic.lr` must be finite and >= 0"),
        ("coef", -0.1, "`critic.coef` must be finite and >= 0"),
        ("clip", 0.0, "`critic.clip` must be > 0 or None"),
        ("gae_lambda", 1.1, r"`critic.gae_lambda` must be in \[0, 1\]"),
        ("warmup_steps", -1, "`critic.warmup_steps` must be >= 0"),
    ],
)
def test_numbers_out_of_range(option, value, message):
    with pytest.raises(ValueError, match=message):
        Critic(**{option: value})


def test_it_is_checked_before_weights_are_loaded(reward_folder, word_tokenizer, make_model, tmp_path):
    for start in ("policy", "shared", ValueNetwork.from_causal_lm(make_model())):
        Critic(start).check(Never())
    Critic(reward_folder).check(source_of(word_tokenizer))
    with pytest.raises(ValueError, match="has another tokenizer than the policy"):
        Critic(reward_folder).check(source_of(Pretrained("tiny").load_tokenizer()))
    with pytest.raises(FileNotFoundError, match=r"`critic` must be policy, shared or a reward model, got `\./polcy`: "):
        Critic("./polcy").check(Never())
    make_model().save_pretrained(tmp_path / "lm")
    with pytest.raises(ValueError, match="which is no reward model"):
        Critic(tmp_path / "lm").check(Never())


def test_where_it_starts(reward_folder, make_model, word_tokenizer):
    model = make_model()
    policy, network = Policy(model), ValueNetwork.from_causal_lm(model)
    assert Critic(network).build(policy, Never()) is network
    head = Critic("shared").build(policy, Never())
    assert isinstance(head, ValueHead)
    assert [p.abs().sum().item() for p in head.parameters()] == [0, 0]
    merged = make_model(seed=4)
    copy = Critic("policy").build(policy, SimpleNamespace(merged={model: merged}.__getitem__))
    for name, tensor in copy.trunk.state_dict().items():
        assert torch.equal(tensor, merged.base_model.state_dict()[name])
    assert not {p.data_ptr() for p in merged.parameters()} & {p.data_ptr() for p in copy.parameters()}
    learnt = Critic(reward_folder).build(policy, source_of(word_tokenizer))
    want = ValueNetwork.from_reward_model(str(reward_folder))
    assert all(torch.equal(tensor, want.state_dict()[name]) for name, tensor in learnt.state_dict().items())


def test_that_of_a_reward_model_is_as_wide_and_as_thrifty_as_the_policy(reward_folder, make_model, word_tokenizer):
    model = make_model("llama", dtype=torch.float64)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    source = source_of(word_tokenizer)
    network = Critic(reward_folder).build(Policy(model), source)
    assert network.trunk.dtype == torch.float64
    assert network.trunk.is_gradient_checkpointing
    assert not Critic(reward_folder).build(Policy(make_model()), source).trunk.is_gradient_checkpointing


def test_sharing_a_trunk_that_is_not_known_is_refused(make_model):
    policy = Policy(make_model())
    policy._head = None
    with pytest.raises(ValueError, match="start the `critic` from the policy"):
        Critic("shared").build(policy, Never())


def test_its_loss_by_hand():
    values, returns, old = (torch.tensor([row]) for row in ([0.5, 1.0, -1.0], [1.0, 1.0, 1.0], [0.4, 0.2, -0.9]))
    rollout = SimpleNamespace(returns=returns, values=old)
    losses, clipped = Critic(clip=0.3).loss(values, rollout)
    # inside the bounds; at 0.5 after clipping, which is farther from 1; unclipped is as far as it is
    assert losses[0].tolist() == pytest.approx([0.125, 0.125, 2.0])
    assert clipped.tolist() == [[False, True, False]]
    losses, clipped = Critic(clip=None).loss(values, rollout)
    assert losses[0].tolist() == pytest.approx([0.125, 0.0, 2.0])
    assert not clipped.any()


def test_what_it_had_foreseen():
    generator = torch.Generator().manual_seed(0)
    returns, values = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 4, generator=generator) < 0.7
    rollout = SimpleNamespace(returns=returns, values=values, loss_mask=mask)
    ranks = Ranks(SimpleNamespace(_trainer=None, device=torch.device("cpu")))
    got = Critic().explained_variance(rollout, ranks)
    assert got.item() == pytest.approx(explained_variance(values, returns, mask).item(), abs=1e-6)
    assert got.dtype == torch.float32
    rollout.values = returns
    assert Critic().explained_variance(rollout, ranks) == 1


# ----------------------------------------------------------------------- how far a policy may go


def stored(state):
    """As a checkpoint has it."""
    return json.loads(json.dumps(state.state_dict()))


def test_a_fixed_coefficient_stays_whatever_is_measured():
    control = KLControl(0.3, target=None, horizon=10)
    for index in range(3):
        control.begin(index)
        measure(control, 50.0, 10)
    assert control.kl_coef == 0.3


def test_a_coefficient_that_adapts_does_so_when_the_next_rollout_begins():
    control = KLControl(0.3, target=1.0, horizon=100)
    control.begin(0)
    measure(control, 3.0, 10)
    control.begin(0)  # made again, since it was interrupted
    assert control.kl_coef == 0.3
    control.begin(1)
    want = adapted_kl_coef(0.3, kl=3.0, target=1.0, horizon=100, num_sequences=10)
    assert control.kl_coef == want > 0.3
    control.begin(2)  # of rollout 1 nothing was measured
    assert control.kl_coef == want
    measure(control, 0.0, 10)
    control.begin(3)
    assert control.kl_coef < want


def test_a_rollout_without_sequences_says_nothing():
    control = KLControl(0.3, target=1.0, horizon=100)
    control.begin(0)
    measure(control, 0.0, 0)
    control.begin(1)
    assert control.kl_coef == 0.3


@pytest.mark.parametrize("measured", [False, True])
def test_the_coefficient_goes_on_from_a_checkpoint(measured):
    first, second = KLControl(0.3, target=1.0, horizon=100), KLControl(9.0, target=1.0, horizon=100)
    first.begin(4)
    if measured:
        measure(first, 3.0, 10)
    second.load_state_dict(stored(first))
    assert second.state_dict() == first.state_dict()
    for control in (first, second):
        control.begin(4)
        control.begin(5)
    assert first.kl_coef == second.kl_coef
    assert (first.kl_coef != 0.3) == measured


def test_a_rollout_is_over_behind_its_bound_until_the_next_one():
    bound = RolloutBound(0.1)
    assert bound.bounds
    for kl, over in ((0.0, False), (0.1, False), (0.11, True), (0.0, True)):  # what is over stays so
        bound.measure(torch.tensor(kl, dtype=torch.float64))
        assert bound.is_over == over
    again = RolloutBound(5.0)
    again.load_state_dict(stored(bound))
    assert again.is_over
    bound.begin()
    assert not bound.is_over


def test_without_a_bound_nothing_is_over():
    bound = RolloutBound(None)
    assert not bound.bounds
    bound.measure(torch.tensor(1e9))
    assert stored(bound) == {"is_over": False}
