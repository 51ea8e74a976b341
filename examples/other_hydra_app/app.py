"""Somebody else's Hydra application, in which the groups of lit_posttrain stand beside its own.

`conf/config.yaml` puts the configuration of lit_posttrain on Hydra's search path and takes the groups that it needs.

    python examples/other_hydra_app/app.py
    python examples/other_hydra_app/app.py algo=rloo algo.group_size=4 steps=3
"""

import hydra
from hydra.utils import instantiate
from lightning import Trainer
from omegaconf import DictConfig
from torch.utils.data import DataLoader


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train on the application's own prompts, with a loop of its own around it."""
    module = instantiate(cfg.algo, _convert_="all")
    rows = [{"prompt": text} for text in cfg.prompts]
    trainer = Trainer(accelerator="cpu", max_steps=cfg.steps, log_every_n_steps=1, logger=False)
    trainer.fit(module, DataLoader(rows, batch_size=2, shuffle=True, collate_fn=list))
    print(f"{cfg.greeting}: {type(module).__name__}, {trainer.global_step} steps")


if __name__ == "__main__":
    main()
