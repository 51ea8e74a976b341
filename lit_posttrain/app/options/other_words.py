"""What users of TRL and of the Trainer of transformers type, and what it is called here."""

import re

# Each with the options that may be meant; the first that the configuration has is the answer.
OPTIONS: dict[str, tuple[str, ...]] = {
    "bf16": ("trainer.precision",),
    "beta": ("algo.beta", "algo.kl_coef"),
    "cliprange": ("algo.clip_low",),
    "cliprange_value": ("algo.value_clip",),
    "dataset_name": ("data.path",),
    "epsilon": ("algo.clip_low",),
    "epsilon_high": ("algo.clip_high",),
    "eval_steps": ("val_every_steps",),
    "fp16": ("trainer.precision",),
    "gamma": ("algo.discount",),
    "gradient_accumulation_steps": ("trainer.accumulate_grad_batches",),
    "gradient_checkpointing": ("model.gradient_checkpointing",),
    "kl_coef": ("algo.kl_coef",),
    "lam": ("algo.gae_lambda",),
    "learning_rate": ("optim.lr",),
    "logging_steps": ("trainer.log_every_n_steps",),
    "lora_alpha": ("model.lora.alpha",),
    "lora_r": ("model.lora.r",),
    "loss_type": ("algo.loss", "algo.aggregation"),
    "max_completion_length": ("algo.sampling.max_new_tokens",),
    "max_grad_norm": ("trainer.gradient_clip_val",),
    "max_length": ("data.max_length",),
    "max_steps": ("trainer.max_steps",),
    "model_name_or_path": ("model.path",),
    "num_generations": ("algo.group_size",),
    "num_iterations": ("algo.num_epochs",),
    "num_ppo_epochs": ("algo.num_epochs",),
    "num_mini_batches": ("algo.num_minibatches",),
    "num_train_epochs": ("trainer.max_epochs",),
    "output_dir": ("hydra.run.dir",),
    "packing": ("data.packing",),
    "per_device_eval_batch_size": ("data.val_batch_size",),
    "per_device_train_batch_size": ("data.batch_size",),
    "per_gpu_train_batch_size": ("data.batch_size",),
    "report_to": ("logger",),
    "response_length": ("algo.sampling.max_new_tokens",),
    "resume_from_checkpoint": ("ckpt_path",),
    "save_steps": ("callbacks.last_checkpoint.every_n_train_steps",),
    "scale_rewards": ("algo.scale",),
    "seed": ("seed",),
    "temperature": ("algo.sampling.temperature",),
    "top_k": ("algo.sampling.top_k",),
    "top_p": ("algo.sampling.top_p",),
    "use_peft": ("model/lora",),
    "vf_coef": ("algo.value_coef",),
    "weight_decay": ("optim.weight_decay",),
}
# Groups, and what stands below none of the known keys.
ALWAYS = ("hydra.run.dir", "model/lora", "model.lora.r", "model.lora.alpha", "logger")
# Where a value is not just the same number.
VALUES = {"use_peft": "default", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def translated(word: str, known: list[str]) -> str | None:
    """What an option of theirs is called here.

    Args:
        word: as they write it, without dashes.
        known: every dotted name of the configuration.

    Returns:
        The dotted name; None if the word is not one of theirs, or the configuration has nothing like it.
    """
    return next((name for name in OPTIONS.get(word, ()) if name in known or name in ALWAYS), None)


def check_flags(arguments: list[str]) -> None:
    """Refuse `--max_steps 10`: options are written otherwise here, and some are called otherwise.

    Args:
        arguments: of the command line.

    Raises:
        ValueError: that says what to write instead.
    """
    for number, argument in enumerate(arguments):
        flag = re.fullmatch(r"--([a-z0-9_-]+)(?:=(.*))?", argument)
        word = flag.group(1).replace("-", "_") if flag else ""
        if flag is None or word not in OPTIONS:
            continue
        following = arguments[number + 1] if number + 1 < len(arguments) else ""
        typed = flag.group(2) or (following if following and "=" not in following and following[0] != "-" else "...")
        option = " or ".join(f"`{name}={VALUES.get(word, typed)}`" for name in OPTIONS[word])
        raise ValueError(f"`{argument}`: options are written `name=value` here, without dashes; this one is {option}.")
