"""Preferences seen as something else: their preferred completions as demonstrations, their prompts alone."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lit_posttrain.data.chat import Prompt, encode_prompt
from lit_posttrain.data.examples import Comparison, Demonstration, Example, Judgement
from lit_posttrain.data.preferences import PreferenceDataModule

if TYPE_CHECKING:
    from lit_posttrain.models.loading import Pretrained

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChosenRows:
    """Demonstrations out of preferences: the chosen completion of a pair, a completion judged desirable.

    A function that makes the rows of a split, as `InstructDataModule` takes it: each has `prompt` and `completion`.

    Args:
        preferences: where the preferences come from and how they are read.
    """

    preferences: PreferenceDataModule

    def __call__(self, split: str) -> list[dict[str, Any]]:
        """The rows of "train" or "validation", in the order of the preferences."""
        found = (_demonstration(example) for example in _examples(self.preferences, split))
        return [{"prompt": row.prompt, "completion": row.completion} for row in found if row is not None]


@dataclass(frozen=True)
class PromptRows:
    """The prompts of preferences, each once; those of validation are left out of training.

    A function that makes the rows of a split, as `PromptDataModule` takes it.

    Args:
        preferences: where the preferences come from and how they are read.
        model: whose tokenizer counts the tokens of a prompt; needed with `max_length` only.
        max_length: tokens that a prompt may have; longer ones are left out and counted. None = any number.

    Raises:
        ValueError: if the length is none, or there is nobody to count.
    """

    preferences: PreferenceDataModule
    model: Pretrained | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"`max_length` must be >= 1 or None, got {self.max_length}: it counts tokens of a prompt.")
        if self.max_length is not None and self.model is None:
            raise ValueError("`max_length` needs a `model`, whose tokenizer counts: give both or neither.")

    def __call__(self, split: str) -> list[dict[str, Any]]:
        """The rows of "train" or "validation", in the order of their first pair."""
        prompts = self._distinct(split)
        if split == "train":
            held_out = self._distinct("validation")
            prompts = {key: prompt for key, prompt in prompts.items() if key not in held_out}
        if self.max_length is None or self.model is None:
            return [{"prompt": prompt} for prompt in prompts.values()]
        tokenizer = self.model.load_tokenizer()
        short = [p for p in prompts.values() if len(encode_prompt(p, tokenizer)) <= self.max_length]
        if len(short) < len(prompts):
            log.info(
                "%s of %s prompts (%s) have more than %s tokens and are left out",
                len(prompts) - len(short),
                len(prompts),
                split,
                self.max_length,
            )
        return [{"prompt": prompt} for prompt in short]

    def _distinct(self, split: str) -> dict[str, Prompt]:
        return {json.dumps(example.prompt): example.prompt for example in _examples(self.preferences, split)}


def _examples(preferences: PreferenceDataModule, split: str) -> list[Example]:
    preferences.setup("fit")  # it reads its rows once
    return preferences.examples(split)


def _demonstration(example: Example) -> Demonstration | None:
    """What there is to imitate in a preference, None where it shows what not to do."""
    if isinstance(example, Comparison):
        return Demonstration(example.prompt, example.chosen)
    if isinstance(example, Judgement) and not example.label:
        return None
    assert isinstance(example, Judgement)
    return Demonstration(example.prompt, example.completion)
