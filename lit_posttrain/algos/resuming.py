"""What a checkpoint says of the place in the data: Lightning always stores it and restores it only sometimes."""

from typing import Any


def take_up_epoch(checkpoint: dict[str, Any]) -> None:
    """Make Lightning begin a new epoch where the stored one had ended; left alone it counts its batches again.

    For `on_load_checkpoint` of a module that fits.
    """
    fit_loop = checkpoint["loops"]["fit_loop"]
    epochs = fit_loop["epoch_progress"]["current"]
    if epochs["completed"] == epochs["ready"]:
        progress = fit_loop["epoch_loop.batch_progress"]
        progress["current"] = dict.fromkeys(progress["current"], 0)


def stored_loader(checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """The state of the training dataloader, None where it has none."""
    loaders = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])
    return loaders[0] if loaders else None
