"""How rows are laid out for a model: without left padding, or several in one sequence."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_posttrain.batching import TokenBatch
from lit_posttrain.models.sharding import unsharded

ISOLATING = ("sdpa", "eager")
TOLERANCE = 0.05  # of the norm of the hidden states: above what bfloat16 rounds off, below a leak from another row
PROBE = ([3, 1, 2], [1, 4, 2, 3, 5])


class PacksRows(nn.Module):
    """A network around a transformers model that may be given packed rows."""

    model: PreTrainedModel
    _isolates = False  # whether that has been seen

    def check_packing(self) -> None:
        """Find out whether rows can be packed; once, and at the latest when some are.

        Where weights are sharded all processes call this together beforehand, since not each of them may have rows that
        are packed.

        Raises:
            ValueError: if the model cannot keep them apart.
        """
        if not self._isolates:
            with unsharded(self):
                check_isolation(self.model)
            self._isolates = True

    def lay_out(self, batch: TokenBatch) -> "ModelInputs":
        """Lay rows out for the model, without their padding: packed as `pack_ids` says, or each by itself.

        Raises:
            ValueError: if rows shall be packed and the model cannot keep them apart.
        """
        if batch.pack_ids is None:
            sequences = torch.arange(len(batch), device=batch.prompt_ids.device)
            return ModelInputs(without_left_padding(batch), sequences, torch.zeros_like(sequences))
        self.check_packing()
        return pack_rows(self.model, batch, batch.pack_ids)


class ModelInputs(NamedTuple):
    """What a model is called with, and where the rows are in it.

    Attributes:
        inputs: arguments of a transformers model; S sequences of W tokens.
        sequences: the sequence that each row is in, (B,).
        offsets: where each row begins in it, (B,).
    """

    inputs: dict[str, Any]
    sequences: Tensor
    offsets: Tensor


def without_left_padding(batch: TokenBatch) -> dict[str, Any]:
    """Move every row to the left, so that all padding is on its right.

        O O I I I R R O          I I I R R O
        O I I I I R R R    ->    I I I I R R R

    There a causal model never looks at it: no mask is needed, which lets attention take its fast path, positions count
    from 0, and no query is without a key. Returned as the arguments of a transformers model.
    """
    ids = torch.cat([batch.prompt_ids, batch.completion_ids], dim=1)
    lengths = batch.lengths[:, None]
    positions = torch.arange(max(1, int(lengths.max())), device=ids.device).expand(len(ids), -1)
    left_padding = batch.prompt_ids.shape[1] - batch.prompt_mask.sum(1, keepdim=True)
    # the last token stands in for the padding: transformers warns of pad ids that come without a mask
    source = left_padding + torch.minimum(positions, lengths - 1).clamp(min=0)
    return {"input_ids": ids.gather(1, source), "attention_mask": None, "position_ids": positions, "use_cache": False}


def pack_rows(model: PreTrainedModel, batch: TokenBatch, pack_ids: Tensor) -> ModelInputs:
    """Put rows one behind the other, without their padding.

        O O I I I R R O          I I I R R J J R R R
        O O O J J R R R    ->    0 1 2 3 4 0 1 2 3 4   positions

    The attention mask is given as the model uses it, (S, 1, W, W): a token sees the tokens of its own row up to itself.
    Whatever else `transformers` takes for a sign of packed rows (positions that begin anew, no mask, no cache) depends
    on the model. What is behind the last row of a sequence sees itself alone.

    Args:
        model: whose attention decides in which form the mask is given.
        batch: the rows.
        pack_ids: (B,), rows with the same number share a sequence, in their order.

    Raises:
        ValueError: if a row is longer than the model's attention window.
    """
    real = torch.cat([batch.prompt_mask, batch.completion_mask], dim=1)
    lengths = real.sum(1)
    window = attention_window(model)
    if window is not None and int(lengths.max()) > window:
        raise ValueError(
            f"`packing` gives {type(model).__name__} one mask for all its layers, and some look back {window} tokens "
            f"only, fewer than the {int(lengths.max())} of the longest row: set `packing=False`, or leave out "
            f"longer rows with `max_length={window}`."
        )
    _, sequences = pack_ids.unique(return_inverse=True)
    together = sequences[:, None] == sequences
    offsets = (together.tril(-1) * lengths).sum(1)
    width = int((together * lengths).sum(1).max())

    rows, columns = real.nonzero(as_tuple=True)
    within = (real.cumsum(1) - 1)[rows, columns]
    places = sequences[rows], offsets[rows] + within
    shape = (int(sequences.max()) + 1, width)
    input_ids, position_ids = batch.completion_ids.new_zeros(shape), batch.completion_ids.new_zeros(shape)
    input_ids[places] = torch.cat([batch.prompt_ids, batch.completion_ids], dim=1)[real]
    position_ids[places] = within
    owner = torch.full(shape, -1, device=real.device)
    owner[places] = rows
    causal = torch.ones(width, width, dtype=torch.bool, device=real.device).tril()
    visible = causal & (owner[:, :, None] == owner[:, None, :]) & (owner >= 0)[:, :, None]
    visible |= torch.eye(width, dtype=torch.bool, device=real.device)  # no query is without a key
    inputs = {
        "input_ids": input_ids,
        "attention_mask": _as_used(model, visible[:, None]),
        "position_ids": position_ids,
        "use_cache": False,
    }
    return ModelInputs(inputs, sequences, offsets)


def attention_window(model: PreTrainedModel) -> int | None:
    """How far back the layers look that do not look at everything: tokens; None where all layers do."""
    config = model.config.get_text_config()
    layers = getattr(config, "layer_types", None)
    if layers is not None and set(layers) == {"full_attention"}:
        return None
    sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")]
    return min((size for size in sizes if isinstance(size, int)), default=None)


@torch.no_grad()
def check_isolation(model: PreTrainedModel) -> None:
    """Find out whether rows of one sequence are kept apart: two of them together against each by itself.

    Raises:
        ValueError: if the attention cannot do it, or the model does not.
    """
    kind = model.config._attn_implementation
    if kind not in ISOLATING:
        raise ValueError(
            f"`packing` keeps rows apart by a mask that the attention `{kind}` does not take: load the model with "
            f'`attention="{ISOLATING[0]}"`, or set `packing=False`.'
        )
    refusal = (
        f"`packing` does not work with {type(model).__name__}: of two rows in one sequence the second is not computed "
        "as it is by itself. Set `packing=False`."
    )
    vocab_size = model.config.get_text_config().vocab_size
    rows = [torch.tensor([row], device=model.device) % vocab_size for row in PROBE]
    ids = torch.zeros(2, max(map(len, PROBE)), dtype=torch.long, device=model.device)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : row.shape[1]], mask[index, : row.shape[1]] = row, True
    batch = TokenBatch(
        prompt_ids=ids[:, :1], prompt_mask=mask[:, :1], completion_ids=ids[:, 1:], completion_mask=mask[:, 1:]
    )
    packed = pack_rows(model, batch, ids.new_zeros(2))
    want = torch.cat([_hidden(model, {"input_ids": row, "use_cache": False}) for row in rows], dim=1)
    try:
        got = _hidden(model, packed.inputs)
    except Exception as error:  # whatever a model says to a mask of a form that it does not know
        raise ValueError(refusal) from error
    second = slice(rows[0].shape[1], None)
    if not (got - want)[:, second].norm() <= TOLERANCE * want[:, second].norm():
        raise ValueError(refusal)


def _hidden(model: PreTrainedModel, inputs: dict[str, Any]) -> Tensor:
    return model.base_model(**inputs)[0].float()


def _as_used(model: PreTrainedModel, visible: Tensor) -> Tensor:
    """Where attention adds its mask to the scores, numbers; SDPA takes it as it is."""
    if model.config._attn_implementation == "sdpa":
        return visible
    added = torch.zeros(visible.shape, dtype=model.dtype, device=visible.device)
    return added.masked_fill(~visible, torch.finfo(model.dtype).min)
