import pytest
import torch
from transformers import (
    AutoModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
)

from tokencredit.errors import ModelError
from tokencredit.policy.hf_models import ActorCritic, load_value_head, save_actor_critic

SHAPE = {
    "vocab_size": 11,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 32,
}
LLAMA = LlamaConfig(**SHAPE, intermediate_size=24, initializer_range=0.3)
POLICIES = {
    "llama": lambda: LlamaForCausalLM(LLAMA),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=11, n_embd=16, n_head=2, n_layer=2)),
    "opt": lambda: OPTForCausalLM(OPTConfig(**SHAPE, ffn_dim=24, word_embed_proj_dim=16)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SHAPE, intermediate_size=24, head_dim=8, num_key_value_heads=1)
    ),
}
IDS = torch.tensor([[0, 0, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])


@pytest.mark.parametrize("family", POLICIES)
def test_logits_are_the_models_own_where_responses_are_predicted(family):
    policy = POLICIES[family]().eval()
    output = ActorCritic(policy)(IDS[1:], MASK[1:], 3)
    torch.testing.assert_close(output.logits, policy(input_ids=IDS[1:]).logits[:, 2:])


@pytest.mark.parametrize("family", POLICIES)
def test_values_read_the_hidden_state_that_enters_the_output_embeddings(family):
    policy = POLICIES[family]().eval()
    actor_critic = ActorCritic(policy)
    torch.nn.init.normal_(actor_critic.value_head.weight)
    hidden = policy(input_ids=IDS[1:], output_hidden_states=True).hidden_states[-1]
    expected = actor_critic.value_head(hidden).squeeze(-1)[:, 2:]
    torch.testing.assert_close(actor_critic(IDS[1:], MASK[1:], 3).values, expected)


@pytest.mark.parametrize("family", POLICIES)
def test_left_padding_changes_nothing(family):
    policy = POLICIES[family]().eval()
    actor_critic = ActorCritic(policy)
    torch.nn.init.normal_(actor_critic.value_head.weight)
    padded = actor_critic(IDS, MASK, 2)
    alone = actor_critic(IDS[:1, 2:], MASK[:1, 2:], 2)
    torch.testing.assert_close(padded.logits[:1], alone.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(padded.values[:1], alone.values, rtol=1e-4, atol=1e-5)


def test_values_start_at_zero():
    assert ActorCritic(POLICIES["llama"]())(IDS, MASK, 3).values.abs().max() == 0


@pytest.mark.parametrize("labels", [1, 2])
def test_a_reward_model_as_critic_gives_its_prefix_scores(labels):
    config = LlamaConfig(**LLAMA.to_dict() | {"num_labels": labels, "pad_token_id": 0})
    critic = LlamaForSequenceClassification(config).eval()
    values = ActorCritic(POLICIES["llama"]().eval(), critic)(IDS[1:], MASK[1:], 3).values
    for column, length in enumerate((3, 4, 5, 6)):
        logits = critic(input_ids=IDS[1:, :length]).logits[0]
        expected = logits[0] if labels == 1 else logits[1] - logits[0]
        torch.testing.assert_close(values[0, column], expected, rtol=1e-4, atol=1e-5)


def test_value_head_survives_saving(tmp_path):
    first, second = ActorCritic(POLICIES["llama"]()), ActorCritic(POLICIES["llama"]())
    torch.nn.init.normal_(first.value_head.weight)
    save_actor_critic(first, first.state_dict(), tmp_path)
    load_value_head(second, tmp_path)
    assert torch.equal(first.value_head.weight, second.value_head.weight)


def test_a_model_without_output_embeddings_is_refused():
    with pytest.raises(ModelError, match="AutoModelForCausalLM"):
        ActorCritic(AutoModel.from_config(LLAMA))
