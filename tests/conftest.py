"""Tiny models of several families, a word tokenizer and prompts: a world without a network."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

# A process has a core to itself: the tests run side by side, and so do the runs that they start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A thousand configurations are composed here, from twenty files each: the same loader, in C.
yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

VOCAB = 40
EOS = 1
_SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": 0,
    "head_dim": 8,
}


def _config(family: str):
    if family == "gpt2":
        return GPT2Config(
            vocab_size=VOCAB, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=EOS
        )
    if family == "llama":
        return LlamaConfig(**_SMALL)
    if family == "qwen2":
        return Qwen2Config(**{k: v for k, v in _SMALL.items() if k != "head_dim"})
    if family == "gemma2":
        return Gemma2Config(**_SMALL, final_logit_softcapping=3.0, sliding_window=8, query_pre_attn_scalar=8)
    if family == "gemma":
        return GemmaConfig(**_SMALL)
    if family == "gpt_neox":
        return GPTNeoXConfig(**{k: v for k, v in _SMALL.items() if k not in ("head_dim", "num_key_value_heads")})
    if family.startswith("opt"):  # that of 350m embeds in fewer dimensions than it thinks in, and has no last norm
        small = {k: v for k, v in _SMALL.items() if k not in ("head_dim", "num_key_value_heads", "intermediate_size")}
        own = {"word_embed_proj_dim": 8, "do_layer_norm_before": False} if family == "opt_350m" else {}
        return OPTConfig(**{"word_embed_proj_dim": 16, "ffn_dim": 32, **small, **own})
    raise ValueError(family)


FAMILIES = ("gpt2", "llama", "qwen2", "gemma2", "gemma", "gpt_neox", "opt", "opt_350m")
MakeModel = Callable[..., PreTrainedModel]


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """Build a random model of a family; weights larger than usual, so that its text is not all alike."""

    def make(family: str = "gpt2", *, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 3.0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(_config(family), dtype=dtype)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() == 2:
                        parameter.mul_(scale)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def word_tokenizer() -> PreTrainedTokenizerFast:
    """Words w0 to w37 beside <pad> and <eos>: `VOCAB` tokens."""
    words = {"<pad>": 0, "<eos>": EOS} | {f"w{i}": i + 2 for i in range(VOCAB - 2)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="w0")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data that is not part of the project."""
    folder = os.environ.get("LIT_POSTTRAIN_SHARED")
    if not folder:
        pytest.skip("LIT_POSTTRAIN_SHARED is not set")
    return Path(folder)
