"""Settings by the names that TRL, transformers and OpenRLHF give them.

One table: the command line answers a name of theirs with the one here, and
docs/coming-from.md shows it.
"""

from collections.abc import Iterable

ELSEWHERE: dict[str, tuple[str, ...]] = {
    # TRL: ModelConfig, ScriptArguments, TrainingArguments and the configurations of its trainers
    "model_name_or_path": ("model", "policy", "reward_model"),
    "model_revision": (),
    "sft_model_path": ("policy",),
    "reward_model_path": ("reward_model",),
    "reward_model_name_or_path": ("reward_model",),
    "reward_funcs": ("reward_model", "rewards"),
    "ref_model": ("reference",),
    "torch_dtype": ("loading.dtype",),
    "dtype": ("loading.dtype",),
    "attn_implementation": ("loading.attn_implementation",),
    "trust_remote_code": ("loading.trust_remote_code",),
    "use_peft": ("lora.rank",),
    "lora_r": ("lora.rank",),
    "lora_alpha": ("lora.alpha",),
    "lora_dropout": ("lora.dropout",),
    "lora_target_modules": ("lora.target_modules",),
    "dataset_name": ("data", "prompts"),
    "dataset_config": ("dataset.config",),
    "dataset_config_name": ("dataset.config",),
    "dataset_train_split": ("split", "data.split"),
    "dataset_test_split": ("evaluation.split",),
    "dataset_streaming": ("dataset.streaming",),
    "dataset_text_field": ("columns.text",),
    "max_train_samples": ("limit", "data.limit"),
    "output_dir": ("output",),
    "num_train_epochs": ("training.epochs", "algorithm.epochs"),
    "max_steps": ("training.max_steps", "steps"),
    "per_device_train_batch_size": (
        "training.batch_size",
        "algorithm.micro_batch_size",
        "batch_size",
    ),
    "per_device_eval_batch_size": ("training.batch_size", "batch_size"),
    "gradient_accumulation_steps": (
        "training.gradient_accumulation",
        "algorithm.minibatch_size",
    ),
    "gradient_checkpointing": ("training.gradient_checkpointing",),
    "learning_rate": ("training.learning_rate", "optimizer.learning_rate"),
    "lr_scheduler_type": ("optimizer.lr_schedule",),
    "warmup_ratio": ("training.warmup",),
    "weight_decay": ("training.weight_decay", "optimizer.weight_decay"),
    "max_grad_norm": ("training.max_grad_norm", "optimizer.max_grad_norm"),
    "bf16": ("training.mixed_precision", "machine.mixed_precision", "loading.dtype"),
    "fp16": ("loading.dtype",),
    "save_steps": ("training.checkpoint_every", "record.checkpoint_every"),
    "save_total_limit": ("training.keep", "record.keep_checkpoints"),
    "eval_steps": ("training.evaluate_every",),
    "logging_steps": ("training.log_every",),
    "report_to": ("training.report_to", "record.trackers"),
    "disable_tqdm": ("progress", "record.progress"),
    "max_seq_length": ("max_length",),
    "max_prompt_length": ("data.tokens", "max_length"),
    "max_completion_length": ("sampling.max_new_tokens",),
    "response_length": ("sampling.max_new_tokens",),
    "num_generations": ("algorithm.samples_per_prompt", "n"),
    "mixture_coef": ("opponent.reference_share",),
    "beta": ("dpo_beta", "options.dpo_beta", "kl.coef"),
    "loss_type": ("loss",),
    "label_smoothing": ("options.label_smoothing",),
    "simpo_gamma": ("options.margin",),
    "kl_coef": ("kl.coef",),
    "init_kl_coef": ("kl.coef",),
    "epsilon": ("algorithm.clip_eps",),
    "cliprange": ("algorithm.clip_eps",),
    "cliprange_value": ("algorithm.value_clip_eps",),
    "vf_coef": ("algorithm.value_coef",),
    "lam": ("algorithm.gae_lambda",),
    "gamma": ("algorithm.gamma",),
    "num_ppo_epochs": ("algorithm.epochs",),
    "total_episodes": ("steps",),
    "missing_eos_penalty": ("sampling.truncation_penalty",),
    "whiten_rewards": ("score.normalization",),
    "center_rewards_coefficient": ("loss.centering",),
    "use_vllm": ("machine.vllm_server", "vllm_server"),
    "vllm_server_base_url": ("machine.vllm_server", "vllm_server"),
    # OpenRLHF
    "pretrain": ("model", "policy"),
    "reward_pretrain": ("reward_model",),
    "critic_pretrain": ("algorithm.critic",),
    "ref_pretrain": ("reference",),
    "remote_rm_url": ("reward_model",),
    "prompt_data": ("prompts",),
    "prompt_split": ("data.split",),
    "dataset": ("data", "prompts"),
    "input_key": ("columns.prompt", "data.column"),
    "prompt_key": ("columns.prompt", "data.column"),
    "output_key": ("columns.completion", "columns.response"),
    "chosen_key": ("columns.chosen",),
    "rejected_key": ("columns.rejected",),
    "max_samples": ("limit", "data.limit"),
    "max_len": ("max_length",),
    "prompt_max_len": ("data.tokens", "max_length"),
    "generate_max_len": ("sampling.max_new_tokens",),
    "save_path": ("output",),
    "ckpt_path": ("output",),
    "max_epochs": ("training.epochs", "algorithm.epochs"),
    "num_episodes": ("steps",),
    "train_batch_size": ("training.batch_size", "algorithm.minibatch_size"),
    "micro_train_batch_size": ("training.batch_size", "algorithm.micro_batch_size"),
    "rollout_batch_size": ("batch_size",),
    "n_samples_per_prompt": ("algorithm.samples_per_prompt", "n"),
    "actor_learning_rate": ("optimizer.learning_rate",),
    "critic_learning_rate": ("optimizer.learning_rate",),
    "eps_clip": ("algorithm.clip_eps",),
    "value_clip": ("algorithm.value_clip_eps",),
    "lambd": ("algorithm.gae_lambda",),
    "advantage_estimator": ("algorithm.name",),
    "normalize_reward": ("score.normalization",),
    "pretrain_data": ("pretraining.data",),
    "ptx_coef": ("pretraining.coef",),
    "entropy_loss_coef": ("kl.entropy_coef",),
    "lora_rank": ("lora.rank",),
    "load_in_4bit": ("lora.quantization",),
    "apply_chat_template": ("template",),
    "use_wandb": ("record.trackers",),
}
"""Each name with those here that can be meant; a command has the first of them that it knows."""


def known_elsewhere(name: str, settings: Iterable[str]) -> str | None:
    """What a setting of another project is called here.

    Args:
        name: as the other project writes it, with `-` or `_`.
        settings: those that the command has.

    Returns:
        The name here; an empty text if this command has nothing like it; None for a name that is
        not in the table.

    >>> known_elsewhere("lora-r", ["lora.rank", "lora.alpha"])
    'lora.rank'
    """
    meant = ELSEWHERE.get(name.replace("-", "_"))
    if meant is None:
        return None
    there = set(settings)
    return next((one for one in meant if one in there), "")
