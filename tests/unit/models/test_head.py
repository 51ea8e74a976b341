"""The output head is tried out on any weights, whatever kernel computes the attention later."""

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lit_posttrain.models.networks.policy import Policy
from tests.unit.models.test_policy_logprobs import COMPLETIONS, PROMPTS, padded


def half_only(module, query, key, value, *arguments, **settings):
    """As flash attention in transformers: rotary positions come in float32, which autocast alone makes less of."""
    if query.dtype == torch.float32 and torch.is_autocast_enabled("cpu"):
        query, key, value = (each.to(torch.get_autocast_dtype("cpu")) for each in (query, key, value))
    if query.dtype not in (torch.bfloat16, torch.float16):
        raise RuntimeError(f"FlashAttention only support fp16 and bf16 data type, got {query.dtype}")
    return sdpa_attention_forward(module, query, key, value, *arguments, **settings)


@pytest.fixture
def half_only_attention(make_model):
    """Loads a model whose attention is computed by such a kernel."""
    AttentionInterface.register("half_only", half_only)
    AttentionMaskInterface.register("half_only", sdpa_mask)

    def load(family):
        model = make_model(family)
        model.set_attn_implementation("half_only")
        return model

    return load


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_a_kernel_for_half_precision(half_only_attention, make_model, family):
    inputs = padded(PROMPTS, COMPLETIONS)
    policy, plain = Policy(half_only_attention(family)), Policy(make_model(family))
    assert policy.has_known_head
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got, want = (each(inputs).logprobs for each in (policy, plain))
    torch.testing.assert_close(got, want, atol=0.05, rtol=0)
    with pytest.raises(RuntimeError, match="only support fp16 and bf16"):  # it is the one that the policy has
        policy(inputs)
