"""The whole matrix of kills, as a table: `python -m tests.cut_matrix [ALGORITHM ...]`; a subset of it is in the tests.

A line is an algorithm, the micro-batches of a step, and how often checkpoints and validations come; its columns are
after how many saves each part was killed. `=` is all results equal to those of the uninterrupted run, else what
differs.
"""

import logging
import sys
import tempfile
import warnings
from pathlib import Path

import torch

from tests.cutting import ALGORITHMS, command, in_parts, results

CUTS = ((1,), (2,), (3,), (1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2))
ACCUMULATE = (1, 2, 4)
# Steps between checkpoints and between validations: apart, together, and together at the ends of epochs.
RHYTHMS = ((2, 3), (2, 2), (3, 3))


def rhythm(saves: int, validations: int, *, steps: int = 10) -> list[str]:
    every = [f"callbacks.last_checkpoint.every_n_train_steps={saves}", f"val_every_steps={validations}"]
    return [*every, f"trainer.max_steps={steps}"]


def differences(folder: Path, options: list[str], cuts: tuple[int, ...], whole: dict) -> str:
    """What a run that is killed leaves otherwise than the whole one."""
    where = folder / f"cut_{'_'.join(map(str, cuts))}"
    in_parts(command(where, *options), where, cuts, checkpoint=where / "checkpoints" / "last.ckpt")
    cut = results(where)
    return ",".join(name for name in whole if whole[name] != cut[name])


def main(algorithms: list[str]) -> int:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    wrong = 0
    print(f"{'':38}" + " ".join(f"{'+'.join(map(str, cuts)):>5}" for cuts in CUTS))
    for algorithm in algorithms or ALGORITHMS:
        for accumulate in ACCUMULATE:
            for saves, validations in RHYTHMS:
                steps = f"trainer.accumulate_grad_batches={accumulate}"
                options = [*ALGORITHMS[algorithm], *rhythm(saves, validations), steps]
                with tempfile.TemporaryDirectory() as temporary:
                    folder = Path(temporary)
                    command(folder / "whole", *options)(None)
                    whole = results(folder / "whole")
                    cells = [differences(folder, options, cuts, whole) for cuts in CUTS]
                wrong += sum(map(bool, cells))
                name = f"{algorithm} accumulate {accumulate} save {saves} val {validations}"
                print(f"{name:38}" + " ".join(f"{cell or '=':>5}" for cell in cells), flush=True)
    print(f"{wrong} cells differ")
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) > 0)
