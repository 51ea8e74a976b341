"""GRPO against TRL's trainer on one stored rollout; prompts of one length, so that none is padded."""

import pytest
import torch

from lit_posttrain import GRPO, BuiltModel, Sampling
from lit_posttrain.batching import MicroBatch, Rollout
from lit_posttrain.batching.ranks import StepStatistics
from lit_posttrain.functional import normalizer
from lit_posttrain.models.networks.policy import Policy

trl = pytest.importorskip("trl", reason='TRL is an extra: pip install -e ".[bench]"')
from datasets import Dataset  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

LENGTHS = [6, 1, 3, 5, 2, 4]
ADVANTAGES = [1.5, -0.7, 0.4, -1.2, 0.8, -0.3]
LONGEST = 8


def stored_rollout(model, *, old: bool, reference: bool) -> Rollout:
    """Six completions of unequal lengths; ratios to the old policy, if there is one, on both sides of the bounds."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(LENGTHS), max(LENGTHS))
    mask = torch.arange(shape[1]) < torch.tensor(LENGTHS)[:, None]
    rollout = Rollout(
        prompt_ids=torch.randint(2, 40, (len(LENGTHS), 3), generator=generator),
        prompt_mask=torch.ones(len(LENGTHS), 3, dtype=torch.bool),
        completion_ids=torch.randint(2, 40, shape, generator=generator).masked_fill(~mask, 0),
        completion_mask=mask,
        loss_mask=mask,
        rewards=torch.zeros(len(LENGTHS)),
        token_rewards=torch.zeros(shape),
        truncated=torch.zeros(len(LENGTHS), dtype=torch.bool),
        advantages=torch.tensor(ADVANTAGES)[:, None].expand(shape).clone(),
        old_logprobs=None,
        ref_logprobs=None,
    )
    with torch.no_grad():
        logprobs = Policy(model)(rollout).logprobs
    rollout.old_logprobs = logprobs + 0.5 * torch.randn(shape, generator=generator) if old else None
    rollout.ref_logprobs = logprobs + torch.randn(shape, generator=generator) if reference else None
    return rollout


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    ("theirs", "ours", "old"),
    [
        ({"loss_type": "dapo"}, {"aggregation": "token"}, True),
        ({"loss_type": "dapo", "beta": 0.04, "use_bias_correction_kl": True}, {"kl_coef": 0.04}, False),
        ({"loss_type": "grpo"}, {"aggregation": "seq-mean-token-mean"}, True),
        (
            {"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False},
            {"aggregation": "seq-mean-token-mean", "kl_coef": 0.04, "kl_gradient": "k3"},
            True,
        ),
        ({"loss_type": "dr_grpo"}, {"aggregation": "constant"}, True),
        (
            {"loss_type": "grpo", "importance_sampling_level": "sequence"},
            {"aggregation": "seq-mean-token-mean", "ratio": "sequence"},
            True,
        ),
        (
            {"loss_type": "cispo", "epsilon_high": 1.5},  # TRL's is the cap, ours its distance from 1
            {"clipping": "weight", "clip_low": 1.0, "clip_high": 0.5},
            True,
        ),
    ],
)
def test_grpo(make_model, word_tokenizer, tmp_path, family, theirs, ours, old):
    rollout = stored_rollout(make_model(family), old=old, reference="beta" in theirs)
    theirs = {"epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.0, **theirs}
    beta = theirs.pop("beta")
    args = trl.GRPOConfig(
        output_dir=str(tmp_path),
        num_generations=2,
        per_device_train_batch_size=len(rollout),
        max_completion_length=LONGEST,
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        **theirs,
    )
    trainer = trl.GRPOTrainer(
        make_model(family),
        reward_funcs=lambda completions, **columns: [0.0] * len(completions),
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "w1"}] * 4),
        processing_class=word_tokenizer,
    )
    trainer.beta = beta  # afterwards: with one it would load the reference by the model's name
    trainer.model.eval()
    shared = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "old_logprobs", "ref_logprobs")
    batch = {name: tensor for name in shared if (tensor := getattr(rollout, name)) is not None}
    inputs = {name: t.long() if name.endswith("_mask") else t for name, t in batch.items()}
    for mine, name in (("old_logprobs", "old_per_token_logps"), ("ref_logprobs", "ref_per_token_logps")):
        if mine in inputs:
            inputs[name] = inputs.pop(mine)
    inputs["advantages"] = rollout.advantages[:, 0]
    want = trainer.compute_loss(trainer.model, {**inputs, "num_items_in_batch": rollout.loss_mask.sum()})
    want.backward()

    sampling = Sampling(max_new_tokens=LONGEST)
    model = BuiltModel(make_model(family), tokenizer=word_tokenizer)
    module = GRPO(model, lambda completions: [0.0], sampling=sampling, **ours)
    module.configure_model()
    module.statistics = StepStatistics()
    denominator = normalizer(rollout.loss_mask, module.aggregation, max_length=LONGEST)
    got = module.loss(MicroBatch(rollout, denominator))
    got.backward()
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    gradients = {name: p.grad for name, p in trainer.model.named_parameters()}
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients.values())
    for name, parameter in module.language_model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4)
