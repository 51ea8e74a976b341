"""Losses of reward models: one number for each pair, reduced by the caller."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_posttrain.functional.preference_losses import as_pair, check_not_negative, upcast


def bradley_terry_loss(
    chosen_scores: Tensor, rejected_scores: Tensor, *, margin: Tensor | float = 0.0, centering: float = 0.0
) -> Tensor:
    """Negative log-likelihood of the preference: -log sigmoid(chosen - rejected - margin).

    The model of Bradley and Terry (1952) as in InstructGPT (arXiv:2203.02155, eq. 1), with the margin of Llama 2
    (arXiv:2307.09288, eq. 2). Preferences leave a constant of the scores open; `centering` adds
    centering * (chosen + rejected)^2, which draws their mean to 0 (arXiv:2312.09244).

    Args:
        chosen_scores: shape (B,).
        rejected_scores: shape (B,), of the same prompts.
        margin: by how much the chosen one should lead, in units of score; shape (B,), or one number for all. Llama 2
            has 1, 2/3, 1/3 and 0 for "significantly better" down to "negligibly better".
        centering: weight of the second term, 0.01 in the paper; 0 for none.

    Returns:
        Shape (B,), nats; float64 for float64 scores, otherwise float32.

    Raises:
        ValueError: if the shapes are not one (B,), or `centering` or a number as `margin` is negative.

    Example:
        >>> chosen, rejected = torch.tensor([1.2, 1.2]), torch.tensor([0.4, 0.4])
        >>> bradley_terry_loss(chosen, rejected, margin=torch.tensor([0.0, 1 / 3]))
        tensor([0.3711, 0.4868])
        >>> bradley_terry_loss(chosen, rejected, centering=0.01)
        tensor([0.3967, 0.3967])
    """
    chosen, rejected = as_pair(
        chosen_scores, rejected_scores, chosen_name="chosen_scores", rejected_name="rejected_scores"
    )
    check_not_negative("centering", centering, "it is the weight of a penalty; 0.01 is common.")
    if isinstance(margin, Tensor):
        if margin.shape != chosen.shape:
            raise ValueError(
                f"`margin` must have the shape of the scores, {tuple(chosen.shape)}, got {tuple(margin.shape)}: "
                "one margin per pair, or a plain number for all."
            )
        margin = upcast(margin)
    else:
        check_not_negative("margin", margin, "it is how far the chosen completion should lead.")
    loss = -logsigmoid(chosen - rejected - margin)
    if centering:
        loss = loss + centering * torch.square(chosen + rejected)
    return loss
