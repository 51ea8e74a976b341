"""Runs of two processes that are killed and gone on with: `python -m tests.integration.cut_ranks FOLDER` is one."""

import json
import logging
import sys
import warnings
from pathlib import Path

import torch

from tests.cut_matrix import rhythm
from tests.cutting import ALGORITHMS, command, in_parts, rank, results, wait_for_one_another

# Strategy, algorithm, micro-batches of a step, steps between checkpoints and between validations, kills.
# One of each strategy is among the jobs of `ranks` and `shards`.
DDP = ("ddp", "grpo", 2, (2, 3), (2, 1))
FSDP = ("fsdp", "grpo", 2, (2, 3), (2, 1))
CASES = (
    ("ddp", "grpo", 4, (3, 3), (1, 1)),
    ("ddp", "ppo", 2, (2, 2), (1, 1)),
    ("ddp", "reinforce_pp", 2, (3, 3), (2, 1)),
    ("ddp", "sft", 2, (2, 2), (1, 2)),
    ("ddp", "dpo", 2, (3, 3), (2, 1)),
    ("fsdp", "reward_model", 2, (2, 2), (1, 1)),
    ("fsdp", "ppo", 2, (2, 3), (2, 1)),
    ("fsdp", "rloo", 2, (2, 2), (1, 1)),
    ("fsdp", "sft", 2, (3, 3), (2, 1)),
)


def name_of(case: tuple) -> str:
    strategy, algorithm, accumulate, every, cuts = case
    return "-".join(map(str, (strategy, algorithm, accumulate, *every, *cuts)))


def differences(case: tuple, folder: Path) -> str:
    """What a run that is killed leaves otherwise than the whole one, on the first process."""
    strategy, algorithm, accumulate, every, cuts = case
    options = [*ALGORITHMS[algorithm], *rhythm(*every), f"trainer={strategy}", "trainer.accelerator=cpu"]
    options.append(f"trainer.accumulate_grad_batches={accumulate}")
    whole, cut = folder / "whole", folder / "cut"
    command(whole, *options)(None)
    in_parts(command(cut, *options), cut, cuts, checkpoint=cut / "checkpoints" / "last.ckpt")
    wait_for_one_another()
    if rank() > 0:
        return ""
    want, got = results(whole), results(cut)
    return ",".join(name for name in want if want[name] != got[name])


def main(folder: Path) -> None:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = {name_of(case): differences(case, folder / name_of(case)) for case in CASES}
    if rank() == 0:
        (folder / "differences.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
