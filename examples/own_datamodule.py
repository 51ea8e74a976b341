"""Prompts for GRPO from a LightningDataModule of your own, here out of an SQLite database.

A batch is a list of dictionaries that have a `prompt`, which is what `collate_fn=list` makes of rows. All other
columns reach the reward by name, and `scores` judge greedy completions in validation, too.

    python examples/own_datamodule.py
"""

import sqlite3
from functools import partial

import torch
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from lit_posttrain import GRPO, Sampling


def arrival(prompts, completions, goal, **columns):
    """Reward what ends at the goal, less a little for every move; `goal` is a column of the table."""
    paths = [text.split() for text in completions]
    return [(path[-1:] == [cell]) - len(path) / 20 for path, cell in zip(paths, goal, strict=True)]


class DatabasePrompts(LightningDataModule):
    """Rows of the table `prompts`, of which the last four are for validation."""

    def __init__(self, path: str, batch_size: int) -> None:
        super().__init__()
        self.path, self.batch_size = path, batch_size
        self.scores = {"arrival": arrival}

    def prepare_data(self) -> None:
        """Write the table, on one process only; yours may be there already, or has to be downloaded."""
        cells = [column + row for column in "abcde" for row in "345"]
        rows = [(f"grid 5 5 walls b2 c3 start b1 goal {cell} path", cell) for cell in cells if cell != "c3"]
        with sqlite3.connect(self.path) as database:
            database.execute("CREATE TABLE IF NOT EXISTS prompts (prompt TEXT PRIMARY KEY, goal TEXT)")
            database.executemany("INSERT OR IGNORE INTO prompts VALUES (?, ?)", rows)

    def setup(self, stage: str) -> None:
        """Read it, on every process."""
        with sqlite3.connect(self.path) as database:
            rows = database.execute("SELECT prompt, goal FROM prompts ORDER BY prompt").fetchall()
        self.rows = [{"prompt": prompt, "goal": goal} for prompt, goal in rows]

    def train_dataloader(self) -> DataLoader:
        """A stock loader: a run that is resumed goes on with its order."""
        return DataLoader(self.rows[:-4], batch_size=self.batch_size, shuffle=True, collate_fn=list)

    def val_dataloader(self) -> DataLoader:
        """The other rows."""
        return DataLoader(self.rows[-4:], batch_size=self.batch_size, collate_fn=list)


if __name__ == "__main__":
    optimizer = partial(torch.optim.AdamW, lr=3e-4)
    module = GRPO("tiny", arrival, sampling=Sampling(max_new_tokens=24), optimizer=optimizer)
    trainer = Trainer(accelerator="cpu", max_steps=8, log_every_n_steps=1)
    trainer.fit(module, DatabasePrompts("prompts.sqlite", batch_size=5))
