"""TRL's GRPO with `TokenCreditGRPOTrainer` and vLLM in the same process, on the CPU.

    python tests/vllm_colocated.py FOLDER PORT

FOLDER holds the models of `write_models`; writes what was logged as JSON. A process of its own,
since vLLM reads its environment once and opens a process group.

TRL hands weights to the model of vLLM itself, which has none to overwrite on the CPU: they are
packed for its kernels. Here they go through vLLM's own reload, as in `train-policy`.
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_CI_ENV": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": sys.argv[2],
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
}

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from tokencredit.engines.hf_token_rewards import reward_model_token_rewards
from tokencredit.engines.trl_grpo import TokenCreditGRPOTrainer


def trained(models: Path) -> list[dict[str, float]]:
    """What three steps log, and at last how far vLLM is from the policy."""
    tokenizer = AutoTokenizer.from_pretrained(models / "policy", padding_side="left")
    trainer = TokenCreditGRPOTrainer(
        AutoModelForCausalLM.from_pretrained(models / "policy", dtype="float32"),
        token_rewards=reward_model_token_rewards(str(models / "reward"), tokenizer),
        train_dataset=Dataset.from_dict({"prompt": ["the plot is", "this film", "the music", "a"]}),
        processing_class=tokenizer,
        args=GRPOConfig(
            output_dir=str(models / "out"),
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=6,
            max_steps=3,
            learning_rate=1e-2,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            use_vllm=True,
            vllm_mode="colocate",
            vllm_gpu_memory_utilization=0.1,
            vllm_max_model_length=64,
        ),
    )
    inside, sent = trainer.vllm_generation, []

    def sync_weights() -> None:
        model = trainer.accelerator.unwrap_model(trainer.model)
        weights = [(name, weight.detach()) for name, weight in model.named_parameters()]
        inside.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        inside.llm.reset_prefix_cache()
        sent.append(weights[0][1].clone())

    inside.sync_weights = sync_weights
    trainer.train()
    logged = [row for row in trainer.state.log_history if "loss" in row]
    return [
        {**row, "sent": len(sent), "moved": not torch.equal(sent[0], sent[-1])} for row in logged
    ]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(trained(Path(sys.argv[1]))) + "\n")
