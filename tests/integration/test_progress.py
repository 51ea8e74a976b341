"""Tokens and seconds of a run at each validation, through a resume."""

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_posttrain import InstructDataModule, PreferenceDataModule
from lit_posttrain.callbacks import progress
from lit_posttrain.callbacks.metrics_csv import MetricsCSV
from lit_posttrain.callbacks.progress import Progress
from tests.integration.conftest import PROMPTS


class CountsTokens(Progress):
    """Counts the tokens of each rollout another way: EOS and all, by the lengths that its metrics have."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, int] = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        record = pl_module.last_rollout
        if record is not None:  # a rollout that was resumed in the middle has none
            self.seen[record.index] = sum(map(sum, record.scored.completions.tokens.completion_mask.tolist()))


@pytest.fixture
def validated(run_online, tmp_path, monkeypatch):
    """Fit with a validation every two steps; the logged rows of the two axes, by step."""
    clock = iter(range(10**6))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: float(next(clock)))

    def run(max_steps, ckpt_path=None):
        counter, logger = CountsTokens(), MetricsCSV(tmp_path / "metrics.csv")
        keep = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
        run_online(
            callbacks=[counter, keep],
            ckpt_path=ckpt_path,
            rollouts__num_minibatches=2,
            trainer={
                "max_steps": max_steps,
                "logger": logger,
                "limit_val_batches": None,
                "val_check_interval": 2,
                "check_val_every_n_epoch": None,
            },
        )
        rows = {step: row for step, row in logger._rows.items() if "throughput/tokens" in row}
        return counter, rows

    return run


def test_tokens_and_seconds_go_on_after_a_resume(validated, tmp_path, monkeypatch):
    import tests.integration.conftest as world
    from lit_posttrain import PromptDataModule

    monkeypatch.setattr(
        world,
        "PromptDataModule",
        lambda prompts, batch_size: PromptDataModule(prompts, val_path=PROMPTS[:2], batch_size=4),
    )
    whole, rows = validated(6)
    assert sorted(rows) == [0, 2, 4, 6]
    assert (rows[0]["throughput/tokens"], rows[0]["time/train_s"]) == (0, 0)
    per_rollout = [whole.seen[index] for index in sorted(whole.seen)]
    assert len(per_rollout) == 3
    tokens = [rows[step]["throughput/tokens"] for step in (2, 4, 6)]
    assert tokens == [sum(per_rollout[: n + 1]) for n in range(3)]
    seconds = [rows[step]["time/train_s"] for step in (0, 2, 4, 6)]
    assert seconds == sorted(set(seconds))
    _, resumed = validated(6, ckpt_path=tmp_path / "step=3.ckpt")
    assert [resumed[step]["throughput/tokens"] for step in (4, 6)] == tokens[1:]
    assert resumed[4]["time/train_s"] > rows[2]["time/train_s"]


PAIRS = [{"prompt": "w1", "chosen": " w2" * (i + 1), "rejected": " w3"} for i in range(3)]
DEMONSTRATIONS = [{"prompt": "w1 w1", "completion": pair["chosen"]} for pair in PAIRS]


@pytest.mark.parametrize(
    ("data", "tokens"),
    [
        (InstructDataModule(DEMONSTRATIONS, batch_size=4), 6 + 3),
        (PreferenceDataModule(PAIRS, batch_size=4), (6 + 3) + (3 + 3)),
    ],
)
def test_tokens_of_given_rows_are_those_of_completions_with_their_eos(word_tokenizer, data, tokens):
    data.setup("fit")
    data.encode(word_tokenizer)
    (part,) = data.train_dataloader()
    assert int(progress._supervised_tokens(part)) == tokens
