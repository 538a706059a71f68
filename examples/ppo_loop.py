"""The whole algorithm on one page: PPO with a reward on every token, on the built-in task.

    python examples/ppo_loop.py

A language model learns film reviews of the grammar of `tokencredit.toy`, a reward model learns
pairs of them at every prefix, and PPO trains the language model with the differences of prefix
scores as token rewards. The grammar knows the true reward of any text; nothing here learns from it.

Every step prints the mean score of the reward model, the KL from the first policy, the length and
the true reward of its responses, all in nats but the length; at the end stands one review with what
each word was paid. With seed 0 the true reward rises from 0.0 to 6.1 in 40 steps. About a minute
and a half of one CPU core, two thirds of it for the two models that PPO begins with;
`--steps 2 --supervised_steps 20` shows the form in seconds.

The algorithm is Schulman et al. 2017 (arXiv 1707.06347) with the KL-penalised reward of Ziegler et
al. 2019 (arXiv 1909.08593). Departures from these papers:
1. every response token is paid, by prefix differences (Li et al. 2024, arXiv 2411.08302);
2. the critic is a linear head on the policy's trunk, and its values are clipped as the policy is;
3. advantages are whitened over the batch, and each epoch is one step on the whole batch;
4. the price of KL is fixed.

`tokencredit train-policy` is this loop with files, checkpoints, micro-batches, several processes
and the other credits. A test compares the two, weight by weight.

Shapes in comments: B responses of up to T tokens, after prompts of up to P tokens, V words.
"""

import copy
import random
from typing import Any

import torch
from jsonargparse import auto_cli
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from tokencredit import (
    ResponseBatch,
    clipped_policy_losses,
    clipped_value_losses,
    gae_advantages,
    kl_estimates,
    kl_penalised_rewards,
    predicting_positions,
    prefix_bradley_terry_loss,
    prefix_difference_credit,
    token_logprobs,
)
from tokencredit.batch import padded_rows
from tokencredit.masking import masked_mean, masked_sum, masked_whiten
from tokencredit.models.hf_architecture import text_positions
from tokencredit.policy.hf_models import ActorCritic
from tokencredit.policy.hf_rollout import sampled_responses
from tokencredit.reward_model.hf_scores import reward_model_output, score_responses
from tokencredit.sampling import Sampling
from tokencredit.text.hf_reading import Reading
from tokencredit.toy.hf_tokenizer import toy_tokenizer
from tokencredit.toy.reviews import sample_pairs, sample_prompt, sample_review
from tokencredit.toy.truth import split_words, true_reward


def ppo_step(
    actor_critic: ActorCritic,
    reference: Any,
    reward_model: Any,
    optimizer: torch.optim.Optimizer,
    prompts: list[list[int]],
    tokenizer: Any,
    *,
    max_new_tokens: int,
    ppo_epochs: int = 4,
    kl_coef: float = 0.05,
    value_coef: float = 0.1,
    gae_lambda: float = 0.95,
    clip_eps: float = 0.2,
) -> tuple[ResponseBatch, Tensor, dict[str, float]]:
    """One step of PPO; returns the responses, their token scores (B, T) and what to print."""
    # 1. Draw one response to each prompt.
    prompt_ids, prompt_mask = padded_rows(
        prompts, fill=tokenizer.pad_token_id, side="left"
    )  # (B, P), (B, P)
    batch, _ = sampled_responses(
        actor_critic.policy,
        prompt_ids,
        prompt_mask,
        sampling=Sampling(max_new_tokens=max_new_tokens),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    mask = batch.response_mask  # (B, T): column t of everything below is about response token t

    with torch.no_grad():
        # 2. What the policy that drew the tokens, its critic and the reference say about them.
        old_logprobs, old_values = logprobs_and_values(actor_critic, batch)  # (B, T), (B, T)
        ref_logprobs = reference_logprobs(reference, batch)  # (B, T)

        # 3. Credit: the score of every prefix in one forward pass, and its differences.
        scores = score_responses(reward_model, batch)  # prefix_scores (B, T + 1), prompt first
        token_scores = prefix_difference_credit(scores.prefix_scores, mask)  # (B, T), nats

        # 4. Shaping: each token also pays for the nats by which it left the reference.
        kl = kl_estimates(old_logprobs, ref_logprobs)  # (B, T)
        token_rewards = kl_penalised_rewards(token_scores, kl, mask, kl_coef=kl_coef)  # (B, T)

        # 5. Advantages for the policy, returns for the critic: (B, T) both.
        advantages, returns = gae_advantages(
            token_rewards, old_values, mask, gamma=1.0, gae_lambda=gae_lambda
        )
        advantages = masked_whiten(advantages, mask)

    # 6. Some epochs on this batch; the clip keeps the policy near the one that drew the tokens.
    for _ in range(ppo_epochs):
        logprobs, values = logprobs_and_values(actor_critic, batch)  # (B, T), (B, T)
        policy_losses = clipped_policy_losses(
            logprobs, old_logprobs, advantages, mask, clip_eps=clip_eps
        )  # (B, T)
        value_losses = clipped_value_losses(values, old_values, returns, mask)  # (B, T)
        loss = masked_mean(policy_losses + value_coef * value_losses, mask)  # () per token
        loss.backward()
        torch.nn.utils.clip_grad_norm_(actor_critic.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    row = {"score": scores.sequence_scores, "kl": masked_sum(kl, mask), "length": batch.lengths}
    return batch, token_scores, {name: float(each.float().mean()) for name, each in row.items()}


def logprobs_and_values(actor_critic: ActorCritic, batch: ResponseBatch) -> tuple[Tensor, Tensor]:
    """Log-probabilities (B, T) of the response tokens, and values (B, T) before each of them."""
    time = batch.response_ids.shape[1]
    output = actor_critic(batch.input_ids, batch.attention_mask, time)
    logits = predicting_positions(output.logits, time)  # (B, T + 1, V) -> (B, T, V)
    off = ~batch.response_mask
    logprobs = token_logprobs(logits, batch.response_ids).masked_fill(off, 0.0)
    return logprobs, output.values[:, :-1].masked_fill(off, 0.0)


def reference_logprobs(reference: Any, batch: ResponseBatch) -> Tensor:
    """Log-probabilities (B, T) of the response tokens under the policy as it was at first."""
    logits = reference(
        input_ids=batch.input_ids,  # (B, P + T)
        attention_mask=batch.attention_mask,
        position_ids=text_positions(batch.attention_mask),
    ).logits  # (B, P + T, V)
    logits = predicting_positions(logits, batch.response_ids.shape[1])  # (B, T, V)
    return token_logprobs(logits, batch.response_ids).masked_fill(~batch.response_mask, 0.0)


def train_language_model(model: Any, tokenizer: Any, rng: random.Random, steps: int) -> None:
    """Next-token prediction on reviews of the grammar, new ones in every step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        texts = [sample_review(rng) + tokenizer.eos_token for _ in range(32)]
        rows = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        labels = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)
        model(input_ids=rows["input_ids"], labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def train_reward_model(model: Any, tokenizer: Any, rng: random.Random, steps: int) -> None:
    """Bradley-Terry at every prefix of pairs that a noisy judge of the grammar ordered."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    reading = Reading(tokenizer, append_eos=True)
    for _ in range(steps):
        pairs = sample_pairs(rng, 32)
        prompts = [pair["prompt"] for pair in pairs]
        scores, masks = [], []
        for side in ("chosen", "rejected"):
            responses = [pair[side] for pair in pairs]
            batch = reading.encoded(prompts, responses).batch
            output = reward_model_output(model, batch.input_ids, batch.attention_mask)
            scores.append(output.position_scores[:, batch.prompt_ids.shape[1] :])  # (B, T)
            masks.append(batch.response_mask)
        prefix_bradley_terry_loss(*scores, *masks).backward()
        optimizer.step()
        optimizer.zero_grad()


def main(
    steps: int = 40,
    batch_size: int = 32,
    max_new_tokens: int = 32,
    learning_rate: float = 3e-4,
    kl_coef: float = 0.01,
    supervised_steps: int = 300,
    seed: int = 0,
) -> list[dict[str, float]]:
    """PPO with a reward on every token, on the built-in task.

    Args:
        steps: of PPO.
        batch_size: responses per step.
        max_new_tokens: responses are cut here, in words.
        learning_rate: of PPO.
        kl_coef: price of a nat of KL in the reward.
        supervised_steps: of the language model, and then of the reward model, 32 texts each.
        seed: of everything random.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    tokenizer = toy_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
    )
    policy = LlamaForCausalLM(config)
    train_language_model(policy, tokenizer, rng, supervised_steps)
    reward_model = LlamaForSequenceClassification(config)
    reward_model.model.load_state_dict(policy.model.state_dict())
    train_reward_model(reward_model, tokenizer, rng, supervised_steps)

    reference = copy.deepcopy(policy).requires_grad_(False)
    actor_critic = ActorCritic(policy)
    optimizer = torch.optim.AdamW(
        actor_critic.parameters(), lr=learning_rate, eps=1e-5, weight_decay=0.0
    )
    rows = []
    for step in range(steps):
        prompts = [tokenizer.encode(sample_prompt(rng)) for _ in range(batch_size)]
        batch, token_scores, row = ppo_step(
            actor_critic, reference, reward_model, optimizer, prompts, tokenizer,
            max_new_tokens=max_new_tokens, kl_coef=kl_coef,
        )  # fmt: skip
        texts = tokenizer.batch_decode(batch.response_ids, skip_special_tokens=True)
        row["truth"] = sum(true_reward(split_words(text)) for text in texts) / batch_size
        rows.append(row)
        print(f"step {step:3d}  " + "  ".join(f"{k} {v:6.2f}" for k, v in row.items()), flush=True)

    words = tokenizer.convert_ids_to_tokens(batch.response_ids[0][batch.response_mask[0]])
    paid = token_scores[0][batch.response_mask[0]].tolist()
    print(tokenizer.decode(batch.prompt_ids[0], skip_special_tokens=True), "...")
    print(" ".join(f"{word}({score:+.1f})" for word, score in zip(words, paid, strict=True)))
    return rows


if __name__ == "__main__":
    auto_cli(main)
