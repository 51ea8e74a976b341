"""The words of other libraries are answered with names that there are."""

import pytest
from omegaconf import OmegaConf

from lit_posttrain.app.options.words import ALWAYS, WORDS
from tests.composing import compose_train


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Every dotted name that one of the algorithms has."""
    algorithms = ("grpo", "ppo", "sft", "dpo", "rloo", "reinforce_pp", "reward_model")
    configurations = [compose_train(f"algo={algorithm}", "data=instruct") for algorithm in algorithms]
    return {
        name
        for cfg in configurations
        for name in names(OmegaConf.to_container(cfg, resolve=False, throw_on_missing=False))
    }


def names(node, prefix=""):
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from names(value, f"{prefix}{key}.")


@pytest.mark.parametrize("word", WORDS)
def test_each_is_an_option(known, word):
    assert {*known, *ALWAYS} & {*WORDS[word], word, f"algo.{word}"}
