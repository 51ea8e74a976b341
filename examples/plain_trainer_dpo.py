"""DPO in a plain Lightning Trainer, without Hydra: stock callbacks, a stock logger, a Hugging Face folder at the end.

It takes a few seconds, and leaves metrics, the best checkpoint and the exported model in `dpo_run/`.

    python examples/plain_trainer_dpo.py
"""

from functools import partial

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from transformers import AutoModelForCausalLM

from lit_posttrain import DPO, PreferenceDataModule
from lit_posttrain.tasks.gridworld import preference_rows

if __name__ == "__main__":
    torch.set_num_threads(1)  # `tiny` is too small to be shared between cores

    # Rows of your own are the same: {"prompt": ..., "chosen": ..., "rejected": ...}, or a path to a file of them.
    pairs = PreferenceDataModule(
        preference_rows(256, split="train"), val_path=preference_rows(64, split="validation"), batch_size=32
    )
    module = DPO("tiny", beta=0.5, optimizer=partial(torch.optim.AdamW, lr=1e-3))
    best = ModelCheckpoint(
        "dpo_run/checkpoints", filename="best", monitor="val/accuracy", mode="max", enable_version_counter=False
    )
    trainer = Trainer(
        accelerator="cpu",
        max_steps=16,
        val_check_interval=8,
        check_val_every_n_epoch=None,
        gradient_clip_val=1.0,
        log_every_n_steps=1,
        logger=CSVLogger("dpo_run"),
        callbacks=[best, LearningRateMonitor(), EarlyStopping("val/accuracy", mode="max", patience=3)],
    )
    trainer.fit(module, pairs)

    module = DPO.load_from_checkpoint(best.best_model_path, policy="tiny")
    module.save_pretrained("dpo_run/export")
    print(AutoModelForCausalLM.from_pretrained("dpo_run/export").num_parameters(), "parameters in dpo_run/export")
