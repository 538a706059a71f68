"""GRPO with a reward on every token, by TRL, on prompts of your own.

    python examples/trl_grpo.py --policy FOLDER_OR_ID --reward-model FOLDER_OR_ID prompts.jsonl

Each line of the file is a JSON object with a `prompt`: a text or messages. Runs on the CPU where
there is no GPU; for several processes put `accelerate launch` in place of `python`. What comes out
is a policy in the form of `save_pretrained`, and a table of the rewards.
"""

import argparse

from datasets import load_dataset
from transformers import AutoTokenizer
from trl import GRPOConfig

from tokencredit.credit.methods import CREDIT_METHODS
from tokencredit.engines.hf_token_rewards import reward_model_token_rewards
from tokencredit.engines.trl_grpo import TokenCreditGRPOTrainer
from tokencredit.policy.methods import ESTIMATOR_NAMES

# What needs the reward model alone; the others take a `CreditSettings` with their options.
CREDIT = [
    name
    for name, method in CREDIT_METHODS.items()
    if not method.model_kind and not {"segments", "length_means"} & set(method.needs)
]

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("prompts", help="file of JSON lines with a `prompt` each")
parser.add_argument("--policy", required=True, help="causal language model, folder or Hub id")
parser.add_argument("--reward-model", required=True, help="sequence classifier, folder or Hub id")
parser.add_argument("--output", default="output/trl-grpo")
parser.add_argument("--credit", choices=CREDIT, default="prefix-difference")
parser.add_argument("--estimator", choices=ESTIMATOR_NAMES, default="leave-one-out-to-go")
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--batch-size", type=int, default=16, help="completions per step and process")
parser.add_argument("--num-generations", type=int, default=4, help="completions per prompt")
parser.add_argument("--max-completion-length", type=int, default=24)
parser.add_argument("--learning-rate", type=float, default=1e-5)
parser.add_argument("--kl-coef", type=float, default=0.05, help="TRL calls it beta")
parser.add_argument("--lora-rank", type=int, default=0, help="0 trains all weights")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--use-cpu", action="store_true", help="even where there is a GPU")
options = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(options.policy, padding_side="left")
adapter = None
if options.lora_rank:
    from peft import LoraConfig

    adapter = LoraConfig(r=options.lora_rank, task_type="CAUSAL_LM", target_modules="all-linear")

trainer = TokenCreditGRPOTrainer(
    options.policy,
    token_rewards=reward_model_token_rewards(
        options.reward_model, tokenizer, credit=options.credit, policy=options.policy
    ),
    estimator=options.estimator,
    train_dataset=load_dataset("json", data_files=options.prompts, split="train"),
    processing_class=tokenizer,
    peft_config=adapter,
    args=GRPOConfig(
        output_dir=options.output,
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        num_generations=options.num_generations,
        max_completion_length=options.max_completion_length,
        learning_rate=options.learning_rate,
        beta=options.kl_coef,
        lr_scheduler_type="constant",
        logging_steps=max(options.steps // 10, 1),
        save_strategy="no",
        report_to="none",
        seed=options.seed,
        use_cpu=options.use_cpu,
        bf16=False if options.use_cpu else None,
    ),
)
trainer.train()
trainer.save_model()

if trainer.accelerator.is_main_process:
    print("| step | reward | last-token share | credit entropy | KL |\n|---:|---:|---:|---:|---:|")
    for row in trainer.state.log_history:
        if "reward" in row:
            cells = [row[f"token_credit/{name}"] for name in ("last_token_share", "entropy")]
            values = [row["reward"], *cells, row.get("kl", 0.0)]
            print(f"| {row['step']} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    print(f"policy: {options.output}")
