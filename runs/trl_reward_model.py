"""The peer of `train-reward-model`: TRL's RewardTrainer on the same pairs, with the same settings.

    python runs/trl_reward_model.py --data pairs.jsonl --model lm --output rm

LoRA of rank 16 on all linear layers under bf16 autocast, 8 pairs a step, one epoch, a cosine to 0
after a warm-up of 5 %. All else is TRL's default, but gradient checkpointing is off: it would trade
processor time for memory that is not short here. A run that was killed goes on at its last
checkpoint. Adapters are added to the weights at the end.
"""

import argparse
import shutil
from pathlib import Path

from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed
from transformers.trainer_utils import get_last_checkpoint
from trl import RewardConfig, RewardTrainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--data", "--model", "--output"):
        parser.add_argument(name, required=True)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", choices=("bf16", "no"), default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    output = Path(arguments.output)
    if (output / "config.json").exists():
        print(f"{output} is there")
        return
    set_seed(arguments.seed)
    model = AutoModelForSequenceClassification.from_pretrained(arguments.model, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    data = load_dataset("json", data_files=arguments.data, split="train")
    steps = -(-len(data) // arguments.batch_size)
    checkpoints = output / "checkpoints"
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            output_dir=str(checkpoints),
            per_device_train_batch_size=arguments.batch_size,
            num_train_epochs=1,
            learning_rate=arguments.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=-(-steps // 20),
            bf16=arguments.precision == "bf16",
            gradient_checkpointing=False,
            use_cpu=True,
            dataloader_pin_memory=False,
            save_steps=50,
            save_total_limit=1,
            report_to="none",
            seed=arguments.seed,
        ),
        train_dataset=data.select_columns(["prompt", "chosen", "rejected"]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type="SEQ_CLS",
            r=16,
            lora_alpha=32,
            target_modules="all-linear",
            modules_to_save=["score"],
        ),
    )
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.exists() else None
    trainer.train(resume_from_checkpoint=last)
    merged = trainer.model.merge_and_unload()
    tokenizer.save_pretrained(output)
    merged.save_pretrained(output)
    shutil.rmtree(checkpoints)
    print(output)


if __name__ == "__main__":
    main()
