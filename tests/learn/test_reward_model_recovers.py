"""A reward model against the teacher that made its preferences: pytest -m learn."""

from functools import partial

import pytest
import torch
from lightning import Trainer
from torch.optim.lr_scheduler import LinearLR

from lit_posttrain import BuiltModel, PreferenceDataModule, RewardModel

pytestmark = [pytest.mark.learn, pytest.mark.filterwarnings("ignore::UserWarning")]

STEPS = 300


@pytest.mark.parametrize("seed", [0, 1])
def test_the_teacher_of_the_preferences_is_recovered(make_model, word_tokenizer, tmp_path, seed):
    """Each word has a worth, a text the sum; labels are drawn. No one can be right more often than max(p, 1 - p)."""
    generator = torch.Generator().manual_seed(seed)
    worth = torch.randn(8, generator=generator)

    def texts():
        while True:
            length = int(torch.randint(1, 6, (), generator=generator))
            yield torch.randint(0, 8, (length,), generator=generator)

    def pairs(count):
        found, source = [], texts()
        while len(found) < count:
            first, second = next(source), next(source)
            if first.tolist() != second.tolist():
                found.append((first, second))
        return found

    def rows(ordered):
        written = ([" " + " ".join(f"w{word}" for word in text.tolist()) for text in pair] for pair in ordered)
        return [{"prompt": "w9", "chosen": chosen, "rejected": rejected} for chosen, rejected in written]

    def values(some):
        return torch.stack([torch.stack([worth[text].sum() for text in side]) for side in zip(*some, strict=True)])

    train, held_out = pairs(8000), pairs(2000)
    ahead = values(train)
    first_wins = torch.rand(len(train), generator=generator) < torch.sigmoid(ahead[0] - ahead[1])
    drawn = [pair if wins else pair[::-1] for pair, wins in zip(train, first_wins.tolist(), strict=True)]

    torch.manual_seed(seed)
    module = RewardModel(
        BuiltModel(make_model("llama", scale=1.0, seed=seed), tokenizer=word_tokenizer),
        optimizer=partial(torch.optim.AdamW, lr=3e-3),
        scheduler=partial(LinearLR, start_factor=1.0, end_factor=0.02, total_iters=STEPS),
    )
    trainer = Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, datamodule=PreferenceDataModule(rows(drawn), batch_size=64))

    data = PreferenceDataModule(rows(held_out), batch_size=len(held_out), shuffle=False)
    data.setup("fit")
    data.encode(word_tokenizer)
    (part,) = data.train_dataloader()
    with torch.no_grad():
        scores = torch.stack(part.batch.halves(module._scores(part.batch)))
    truth = values(held_out)[:, part.numbers]
    p = torch.sigmoid(truth[0] - truth[1])
    accuracy = torch.where(scores[0] > scores[1], p, 1 - p).mean()
    assert torch.maximum(p, 1 - p).mean() - accuracy < 0.01
    ranks = [side.flatten().argsort().argsort().double() for side in (scores, truth)]
    assert torch.corrcoef(torch.stack(ranks))[0, 1] > 0.98
