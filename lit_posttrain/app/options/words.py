"""What users of TRL and of the Trainer of transformers type, and what it was called here before: today's names."""

# A word with the options that may be meant: the first that a configuration has is the answer.
WORDS: dict[str, tuple[str, ...]] = {
    "beta": ("algo.beta", "algo.kl_coef"),
    "bf16": ("trainer.precision",),
    "cliprange": ("algo.clip_low",),
    "cliprange_value": ("algo.critic.clip", "algo.value_clip"),
    "critic_warmup_steps": ("algo.critic.warmup_steps",),
    "dataset_name": ("data.path",),
    "epsilon": ("algo.clip_low",),
    "epsilon_high": ("algo.clip_high",),
    "eval_steps": ("val_every_steps",),
    "fp16": ("trainer.precision",),
    "gamma": ("algo.discount",),
    "generation_batch_size": ("algo.rollouts.batch_size", "algo.validation.batch_size"),
    "gradient_accumulation_steps": ("trainer.accumulate_grad_batches",),
    "gradient_checkpointing": ("model.gradient_checkpointing",),
    "kl_coef": ("algo.kl_coef",),
    "lam": ("algo.gae_lambda",),
    "learning_rate": ("optim.lr",),
    "length_normalised": ("algo.length_normalized",),
    "logging_steps": ("trainer.log_every_n_steps",),
    "logits_chunk_size": ("model.logits_chunk_size",),
    "lora_alpha": ("model.lora.alpha",),
    "lora_r": ("model.lora.r",),
    "loss_type": ("algo.loss", "algo.aggregation"),
    "max_completion_length": ("algo.sampling.max_new_tokens",),
    "max_grad_norm": ("trainer.gradient_clip_val",),
    "max_length": ("data.max_length",),
    "max_refills": ("algo.max_resample_batches",),
    "max_steps": ("trainer.max_steps",),
    "model_name_or_path": ("model.path",),
    "num_epochs": ("algo.rollouts.num_epochs",),
    "num_generations": ("algo.group_size",),
    "num_iterations": ("algo.rollouts.num_epochs", "algo.num_epochs"),
    "num_mini_batches": ("algo.rollouts.num_minibatches", "algo.num_minibatches"),
    "num_minibatches": ("algo.rollouts.num_minibatches",),
    "num_ppo_epochs": ("algo.rollouts.num_epochs", "algo.num_epochs"),
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
    "tuned": ("recipe",),
    "use_peft": ("model/lora",),
    "val_samples": ("algo.validation.num_samples",),
    "value_clip": ("algo.critic.clip",),
    "value_coef": ("algo.critic.coef",),
    "value_gae_lambda": ("algo.critic.gae_lambda",),
    "value_lr": ("algo.critic.lr",),
    "vf_coef": ("algo.critic.coef", "algo.value_coef"),
    "watch": ("monitor",),
    "weight_decay": ("optim.weight_decay",),
}
# Groups and what stands below them in other choices: no configuration has to have these for the answer to be right.
ALWAYS = ("hydra.run.dir", "model/lora", "model.lora.r", "model.lora.alpha", "logger", "recipe")
# Where a value is not just the same number.
VALUES = {"use_peft": "default", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def translated(name: str, known: list[str]) -> str | None:
    """Return what an option of other libraries, or of former versions, is called here.

    Args:
        name: as they write it, without dashes; of a dotted name the last word counts.
        known: every dotted name of the configuration.

    Returns:
        The dotted name; None if there is no such word, or the configuration has nothing like it.

    >>> translated("algo.beta", ["algo.kl_coef"])
    'algo.kl_coef'
    """
    meant = WORDS.get(name.rpartition(".")[2], ())
    return next((option for option in meant if option != name and option in {*known, *ALWAYS}), None)
