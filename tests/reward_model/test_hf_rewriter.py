import pytest
import torch
from readings import chat, plain
from tiny_models import tiny_model
from tiny_tokenizers import byte_level
from transformers import AutoModelForCausalLM

from tokencredit.errors import ConfigError, DataError, ModelError, NumericError
from tokencredit.reward_model.hf_rewriter import (
    TEMPLATE,
    require_template,
    rewriter_logprobs,
    rewriting_prompt,
    stored_templates,
)

CHAT = "{% for m in messages %}<bos>{{ m['role'] }}\n{{ m['content'] }}<eos>{% endfor %}"
PROMPTS = ["rate film 3:", "a slow scene ,"]
RESPONSES = [" a good plot", " and then a bad café film"]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level(bos=True, chat_template=CHAT)


@pytest.fixture
def model(tokenizer):
    model = tiny_model(
        "llama",
        auto_class=AutoModelForCausalLM,
        vocab_size=len(tokenizer),
        max_position_embeddings=128,
    )
    model.config.rewriter_template = "{prompt}{response}\nBetter:"
    model.config.rewriter_instruction = "rate this film"
    return model


def test_the_response_is_read_before_it_is_written(model, tokenizer):
    said = rewriter_logprobs(model, plain(tokenizer), PROMPTS, RESPONSES)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        source = f"{prompt}{response}\nBetter:"
        ids = torch.tensor([tokenizer(source + response)["input_ids"]])
        start = len(tokenizer(source)["input_ids"])
        logprobs = model(ids).logits[0, :-1].log_softmax(-1)
        expected = logprobs.gather(-1, ids[0, 1:, None])[start - 1 :, 0]
        time = len(expected)
        torch.testing.assert_close(said.logprobs[row, :time], expected, rtol=1e-4, atol=1e-5)
        best = logprobs[start - 1 :].amax(-1)
        torch.testing.assert_close(said.likeliest_logprobs[row, :time], best, rtol=1e-4, atol=1e-5)
        spans = said.encoded.response_spans[row]
        assert (spans[0][0], spans[-1][1]) == (0, len(response))
        assert len(spans) == time
    assert not said.logprobs[~said.encoded.batch.response_mask].any()
    assert (said.likeliest_logprobs >= said.logprobs).all()


def test_conversations_are_asked_to_write_again(model, tokenizer):
    chats = [[{"role": "user", "content": "rate it"}]]
    said = rewriter_logprobs(model, chat(tokenizer), chats, ["good"])
    batch = said.encoded.batch
    assert tokenizer.decode(batch.prompt_ids[0]) == (
        "<bos>user\nrate it<eos><bos>assistant\ngood<eos><bos>user\nrate this film<eos>"
        "<bos>assistant\n"
    )
    assert tokenizer.decode(batch.response_ids[0][batch.response_mask[0]]) == "good"


def test_batches_equal_one_by_one_and_the_end_of_sequence_can_count(model, tokenizer):
    ended = {"ended": [True, False]}
    together = rewriter_logprobs(
        model, plain(tokenizer, append_eos=True), PROMPTS, RESPONSES, **ended
    )
    for size in (1, 2):
        parts = rewriter_logprobs(
            model,
            plain(tokenizer, append_eos=True),
            PROMPTS,
            RESPONSES,
            micro_batch_size=size,
            **ended,
        )
        torch.testing.assert_close(parts.logprobs, together.logprobs, rtol=1e-4, atol=1e-5)
    lengths = together.encoded.batch.lengths.tolist()
    open_ones = rewriter_logprobs(
        model, plain(tokenizer), PROMPTS, RESPONSES
    ).encoded.batch.lengths.tolist()
    assert lengths == [open_ones[0] + 1, open_ones[1]]


def test_places_inside_texts_are_left_alone():
    assert rewriting_prompt("{response}", "{prompt}", template="{prompt}-{response}.") == (
        "{response}-{prompt}."
    )
    assert rewriting_prompt("Q", "A") == TEMPLATE.format(prompt="Q", response="A")


@pytest.mark.parametrize("template", ["{prompt} better:", "{prompt}{response}{response}", ""])
def test_a_template_needs_each_place_once(template):
    with pytest.raises(ConfigError, match="once each"):
        require_template(template)
    with pytest.raises(ConfigError, match="once each"):
        rewriting_prompt("Q", "A", template=template)


def test_a_model_that_is_no_rewriter(tokenizer):
    other = tiny_model("llama", auto_class=AutoModelForCausalLM, vocab_size=len(tokenizer))
    with pytest.raises(ModelError, match="tokencredit train-rewriter"):
        stored_templates(other)
    with pytest.raises(ModelError, match="tokencredit train-rewriter"):
        rewriter_logprobs(other, plain(tokenizer), PROMPTS, RESPONSES)


@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        (["a"], ["b", "c"], "1 prompts and 2 responses"),
        (["a", [{"role": "user", "content": "a"}]], ["b", "b"], "1 prompts are conversations"),
        (["zq" * 200], ["b"], "expected at most 128"),
    ],
)
def test_prompts_and_responses_that_do_not_fit(model, tokenizer, prompts, responses, message):
    with pytest.raises(DataError, match=message):
        rewriter_logprobs(model, plain(tokenizer), prompts, responses)


def test_weights_that_are_no_numbers(model, tokenizer):
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(NumericError, match="NaN or infinite"):
        rewriter_logprobs(model, plain(tokenizer), PROMPTS, RESPONSES)
