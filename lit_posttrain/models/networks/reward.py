"""A causal language model with a scalar head: one score for each sequence."""

import copy
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from lit_posttrain.batching import TokenBatch
from lit_posttrain.models.folders import read_config, read_model
from lit_posttrain.models.hub import resolve_folder
from lit_posttrain.models.networks.layout import PacksRows
from lit_posttrain.models.networks.policy import disable_dropout


class RewardNetwork(PacksRows):
    """Wraps a `transformers` sequence classifier of one label so that its forward gives scores of completions.

    The score is read at the last token of a sequence, its EOS, which its length tells and no search for a pad id: a pad
    token that is the EOS, and padding on either side, change nothing. With `score_before_eos` it is read at the token
    before: that is where a policy decides to stop, so a shallow model begins with what it knows there instead of having
    to carry it over to the EOS. Head and score are in float32 at least, under autocast
    too. Dropout is switched off: two scores of one sequence are equal.

    Preferences leave a constant of the scores open. `score_mean` and `score_scale` are buffers, 0 and 1 until somebody
    has measured them; `normalized` applies them, `forward` gives raw scores.

    Args:
        model: a sequence classifier whose head is a linear layer `score` without a bias. Where the score is read, and
            mean and scale of scores, are taken from its config, if they are there.

    Raises:
        ValueError: if it has another head.
    """

    model: PreTrainedModel
    score_before_eos: bool
    score_mean: Tensor
    score_scale: Tensor

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        head = getattr(model, "score", None)
        if not isinstance(head, nn.Linear) or head.bias is not None or head.out_features != 1:
            raise ValueError(
                f"a reward model must have a linear head `score` with one label and no bias, {type(model).__name__} "
                f"has {head}: take a model made by `RewardModel`."
            )
        self.model = model
        disable_dropout(model)
        head.to(torch.promote_types(head.weight.dtype, torch.float32))
        self.score_before_eos = bool(getattr(model.config, "score_before_eos", False))
        for name, default in (("score_mean", 0.0), ("score_scale", 1.0)):
            value = float(getattr(model.config, name, default))
            self.register_buffer(name, torch.tensor(value))

    @classmethod
    def from_causal_lm(
        cls, model: PreTrainedModel, *, pad_id: int, vocab_size: int, score_before_eos: bool = False
    ) -> Self:
        """Put a new head on the trunk of a causal language model: normal with variance 1 / (width + 1).

        Args:
            model: its trunk is taken, not copied.
            pad_id: told to whoever loads the export; its scores are read at the last token that is another one.
            vocab_size: tokens of the tokenizer. Where the model has fewer embeddings they get rows of zeros.
            score_before_eos: whether scores are read at the token before the EOS.

        Raises:
            ValueError: if transformers has no sequence classifier of the architecture, or one of another build.
        """
        trunk = model.base_model
        with torch.device("meta"):  # its weights are replaced
            classifier = AutoModelForSequenceClassification.from_config(
                classifier_config(model.config), trust_remote_code=False
            )
        head = getattr(classifier, "score", None)
        same = type(classifier.base_model) is type(trunk) and classifier.base_model is not classifier
        if not (isinstance(head, nn.Linear) and head.bias is None and same):
            raise ValueError(
                f"{type(classifier).__name__} is not the trunk of {type(model).__name__} with a linear head `score`, "
                "so that its reward model could not be exported: take another model."
            )
        setattr(classifier, classifier.base_model_prefix, trunk)
        width, weight = head.in_features, model.get_input_embeddings().weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        classifier.score = nn.Linear(width, 1, bias=False, device=weight.device, dtype=dtype)
        nn.init.normal_(classifier.score.weight, std=(width + 1) ** -0.5)
        if (rows := weight.shape[0]) < vocab_size:
            classifier.resize_token_embeddings(vocab_size, mean_resizing=False)
            with torch.no_grad():
                classifier.get_input_embeddings().weight[rows:] = 0.0
        for told in (classifier.config, classifier.config.get_text_config()):
            told.pad_token_id = pad_id
        classifier.config.score_before_eos = score_before_eos
        return cls(classifier.eval())

    @classmethod
    def load(cls, path: str, *, dtype: torch.dtype = torch.float32) -> Self:
        """An exported reward model, or any sequence classifier of one label; in eval mode, on the CPU.

        Args:
            path: a folder, or the name of a repository on the Hub.
            dtype: of the weights.

        Raises:
            FileNotFoundError: if there is no such folder, or the Hub is needed and cannot be reached.
            ValueError: if it is no reward model, or weights are missing or wrong.
        """
        check_reward_model(path)
        folder, local = resolve_folder(path)
        with torch.device("cpu"):  # the network has buffers of its own
            return cls(read_model(AutoModelForSequenceClassification, folder, dtype=dtype, local=local))

    def forward(self, batch: TokenBatch) -> Tensor:
        """Compute raw scores of the sequences, the EOS included in each completion: (B,).

        Raises:
            ValueError: if rows shall be packed and the model cannot keep them apart.
        """
        last = (batch.lengths - 1 - int(self.score_before_eos)).clamp(min=0)
        inputs, sequences, offsets = self.lay_out(batch)
        hidden = self.model.base_model(**inputs)[0][sequences, offsets + last]
        weight = self.model.score.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            scores = functional.linear(hidden.to(dtype), weight.to(dtype))
        return scores.squeeze(-1).clone()  # no view: torch hooks into what a sharded module returns

    def normalized(self, scores: Tensor) -> Tensor:
        """Scores on the scale that was measured: (B,) to (B,)."""
        return (scores - self.score_mean.to(scores.dtype)) / self.score_scale.to(scores.dtype)

    def save_pretrained(
        self,
        folder: str | Path,
        model: PreTrainedModel | None = None,
        *,
        weights: dict[str, Tensor] | None = None,
    ) -> None:
        """Write a folder that `AutoModelForSequenceClassification` loads, and gives raw scores; see `normalized`.

        Its config.json has `score_mean`, `score_scale` and `score_before_eos`; with the latter it is to be given
        sequences without their EOS.

        Args:
            folder: where to.
            model: in place of the network's own, one with an adapter merged into it.
            weights: its state dict, where that is not to be had from it alone.
        """
        model = model or self.model
        model.config.score_mean = self.score_mean.item()
        model.config.score_scale = self.score_scale.item()
        model.save_pretrained(folder, state_dict=weights)


def classifier_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """That of the sequence classifier of one label which has the trunk of a causal language model.

    Raises:
        ValueError: if transformers has none of the architecture.
    """
    name = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(config.model_type)
    if name is None:
        raise ValueError(
            f"transformers has no sequence classifier of the architecture `{config.model_type}`, so that its reward "
            "model could not be exported: take another model."
        )
    config = copy.deepcopy(config)
    config.num_labels = 1
    config.architectures = [name]
    return config


def check_reward_model(path: str, *, option: str = "path") -> None:
    """Find out without loading weights whether a folder holds a reward model.

    Args:
        path: a folder, or the name of a repository on the Hub.
        option: the argument that has named it, for errors.

    Raises:
        FileNotFoundError: if there is no such folder, or the Hub is needed and cannot be reached.
        ValueError: if it is none.
    """
    folder, local = resolve_folder(path, option=option)
    config = read_config(folder, local=local)
    built = ", ".join(config.architectures or ["an unknown model"])
    if "ForSequenceClassification" not in built or config.num_labels != 1:
        labels = f" of {config.num_labels} labels" if "ForSequenceClassification" in built else ""
        raise ValueError(
            f"`{path}` holds {built}{labels}, which is no reward model: that is a sequence classifier of one label. "
            "Give the folder that `RewardModel` exports."
        )
