import pytest
import torch
from saved_models import save_reward_model
from tiny_models import PAD_ID, tiny_ids, tiny_model
from tiny_tokenizers import byte_level
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from tokencredit import discriminator_credit
from tokencredit.batch import ResponseBatch
from tokencredit.errors import DataError, ModelError, NumericError
from tokencredit.reward_model.hf_token_classifier import (
    load_token_classifier,
    token_classifier_logits,
)

CAUSAL = ("gpt2", "llama", "qwen2", "mistral", "gemma", "gpt_neox")


def classifier(architecture: str = "llama", **overrides):
    settings = {"num_labels": 2} | overrides
    return tiny_model(architecture, auto_class=AutoModelForTokenClassification, **settings)


def padded(lengths: list[tuple[int, int]], seed: int = 0) -> ResponseBatch:
    """Prompts and responses of these lengths, random ids under the padding too."""
    width = [max(sizes) for sizes in zip(*lengths, strict=True)]
    prompts = tiny_ids(len(lengths), width[0], seed=seed)
    responses = tiny_ids(len(lengths), width[1], seed=seed + 1)
    prompt_mask = torch.stack([torch.arange(width[0]) >= width[0] - one for one, _ in lengths])
    response_mask = torch.stack([torch.arange(width[1]) < one for _, one in lengths])
    return ResponseBatch(prompts, prompt_mask, responses, response_mask)


BATCH = padded([(3, 5), (1, 2), (4, 3)])


@pytest.mark.parametrize("architecture", [*CAUSAL, "bert", "roberta"])
def test_every_response_token_has_the_logits_of_the_text_alone(architecture):
    model = classifier(architecture)
    logits = token_classifier_logits(model, BATCH)
    assert logits.shape == (3, 5, 2)
    assert logits.dtype == torch.float32
    for row in range(3):
        prompt = BATCH.prompt_ids[row][BATCH.prompt_mask[row]]
        response = BATCH.response_ids[row][BATCH.response_mask[row]]
        alone = model(torch.cat([prompt, response])[None]).logits[0, len(prompt) :]
        torch.testing.assert_close(
            logits[row, : len(response)], alone.detach(), rtol=1e-3, atol=1e-5
        )
        assert logits[row, len(response) :].eq(0).all()


@pytest.mark.parametrize("architecture", CAUSAL)
def test_a_causal_model_judges_a_token_by_what_comes_before_it(architecture):
    model = classifier(architecture)
    other = ResponseBatch(
        BATCH.prompt_ids,
        BATCH.prompt_mask,
        BATCH.response_ids.clone().index_fill_(1, torch.tensor([3]), 7),
        BATCH.response_mask,
    )
    before, after = (token_classifier_logits(model, batch)[0] for batch in (BATCH, other))
    torch.testing.assert_close(before[:3], after[:3])
    assert not torch.allclose(before[3], after[3])


def test_an_encoder_judges_it_by_the_whole_response():
    model = classifier("bert")
    ids = BATCH.response_ids.clone().index_fill_(1, torch.tensor([3]), 7)
    other = ResponseBatch(BATCH.prompt_ids, BATCH.prompt_mask, ids, BATCH.response_mask)
    before, after = (token_classifier_logits(model, batch)[0] for batch in (BATCH, other))
    assert not torch.allclose(before[:3], after[:3])


def test_micro_batches_change_nothing_and_modes_come_back():
    model = classifier("gpt2")
    model.train()
    model.dropout.p = 0.5
    whole = token_classifier_logits(model, BATCH)
    torch.testing.assert_close(token_classifier_logits(model, BATCH, micro_batch_size=1), whole)
    assert model.training
    assert model.dropout.training
    assert not whole.requires_grad


def test_tokens_behind_the_response_are_read_but_not_judged():
    """An encoder sees the end of a chat turn; a hole in the mask stays visible too."""
    model = classifier("bert")
    real = torch.cat([BATCH.prompt_mask, torch.ones_like(BATCH.response_mask)], dim=-1)
    with_tail = token_classifier_logits(model, BATCH, attention_mask=real)
    assert with_tail[~BATCH.response_mask].eq(0).all()
    assert not torch.allclose(with_tail[1, :2], token_classifier_logits(model, BATCH)[1, :2])


def test_its_credit_is_that_of_the_response_tokens():
    scores = discriminator_credit(token_classifier_logits(classifier(), BATCH), BATCH.response_mask)
    assert scores[BATCH.response_mask].ne(0).all()
    assert scores[~BATCH.response_mask].eq(0).all()


def test_a_saved_classifier_comes_back(tmp_path):
    tokenizer = byte_level(bos=True)
    model = classifier(vocab_size=len(tokenizer), num_labels=3)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, _ = load_token_classifier(tmp_path)
    torch.testing.assert_close(
        token_classifier_logits(loaded, BATCH), token_classifier_logits(model, BATCH)
    )


def test_a_model_without_a_head_is_an_error(tmp_path):
    tokenizer = byte_level(bos=True)
    language_model = tiny_model("llama", auto_class=AutoModelForCausalLM, vocab_size=len(tokenizer))
    language_model.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    save_reward_model(tmp_path / "rm", tokenizer, "opt")
    with pytest.raises(ModelError, match=r"a head that classifies tokens: .*train-token-classif"):
        load_token_classifier(tmp_path / "lm")
    with pytest.raises(ModelError, match="cannot load a model"):
        load_token_classifier(tmp_path / "rm")
    with pytest.raises(ModelError, match="there is no folder"):
        load_token_classifier("./absent")


def test_texts_that_are_too_long_or_empty_are_an_error():
    with pytest.raises(DataError, match="reads at most 64"):
        token_classifier_logits(classifier(), padded([(60, 8)]))
    with pytest.raises(DataError, match="no real token"):
        token_classifier_logits(classifier(), padded([(3, 2), (0, 0)]))


def test_weights_that_are_no_numbers_are_an_error():
    model = classifier()
    torch.nn.init.constant_(model.score.weight, torch.nan)
    with pytest.raises(NumericError, match=r"NaN or infinite logits in rows \[0, 1, 2\]"):
        token_classifier_logits(model, BATCH)


def test_padding_ids_need_not_be_known():
    model = classifier("bert")
    model.config.pad_token_id = None
    logits = token_classifier_logits(model, BATCH)
    model.config.pad_token_id = PAD_ID
    torch.testing.assert_close(logits, token_classifier_logits(model, BATCH))
