"""The score of the text up to each token of a policy, whatever comes later."""

from dataclasses import replace

import pytest
import torch
from readings import local_scorer
from tiny_models import tiny_model
from tiny_tokenizers import CHAT_TEMPLATE, byte_level, unigram, word_level

from tokencredit.batch import ResponseBatch
from tokencredit.credit.methods import CREDIT_METHODS
from tokencredit.credit.settings import CreditSettings
from tokencredit.errors import DataError, TokenCreditWarning
from tokencredit.scorers import hf_prefix_texts
from tokencredit.scorers.hf_prefix_texts import prefix_reading
from tokencredit.scorers.hf_token_scores import score_for_policy
from tokencredit.text.hf_decoding import decoded_response
from tokencredit.text.hf_encoding import encode_responses
from tokencredit.text.hf_known_readings import reading_of
from tokencredit.text.reading_settings import ReadingSettings

POLICIES = {
    "byte-level": byte_level(),
    "bytes": byte_level(merges=0),
    "unigram": unigram(bos=True),
}
READERS = {
    "bytes": byte_level(merges=0),
    "merges": byte_level(merges=60),
    "first token": byte_level(bos=True, merges=20),
    "word level": word_level(),
    "unigram": unigram(),
    "chat": byte_level(chat_template=CHAT_TEMPLATE, merges=20),
    "chat, trimmed": word_level(
        chat_template=CHAT_TEMPLATE.replace("['content']", "['content'] | trim")
    ),
}
PAIRS = [
    pytest.param(policy, reader, id=f"{name}, {other}")
    for name, policy in POLICIES.items()
    for other, reader in READERS.items()
    if policy.get_vocab() != reader.get_vocab()
]
PROMPTS = ["the film is", "rate : a g"]
RESPONSES = [" a good café  日本 🙂 , very", "ood plot"]


def model_for(reader, architecture="llama", **options):
    sizes = {"vocab_size": len(reader), "max_position_embeddings": 128}
    return tiny_model(architecture, pad_token_id=reader.pad_token_id, **sizes, **options)


def generated(policy, responses=RESPONSES) -> ResponseBatch:
    return encode_responses(policy, PROMPTS, responses, append_eos=True).batch


def scorer_of(model, reader, policy, **options):
    return local_scorer(model, reader, policy, prefixes="own-text", **options)


def score_of_text(model, reader, prompt, text):
    """By the model's own forward, of what the reader makes of these texts."""
    reading = reading_of(model, reader, ReadingSettings())
    encoded = reading.encoded([prompt], [text], ended=False, empty="keep")
    batch = encoded.batch
    if not any(end > start for start, end in encoded.response_spans[0]):
        ids = batch.prompt_ids
    else:
        ids = torch.cat([batch.prompt_ids, batch.response_ids[batch.response_mask][None]], dim=-1)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0].item()


def expected_scores(model, reader, policy, batch, row):
    """One pass for the text up to each token, ended tokens apart."""
    prompt = batch.prompt_ids[row][batch.prompt_mask[row]].tolist()
    ids = batch.response_ids[row][batch.response_mask[row]].tolist()
    decoded = decoded_response(policy, prompt, ids)
    for end in (0, *decoded.ends):
        yield score_of_text(model, reader, decoded.prompt, decoded.response[:end])


@pytest.mark.parametrize(("policy", "reader"), PAIRS)
def test_each_prefix_has_the_score_of_its_own_text(policy, reader):
    model, batch = model_for(reader), generated(policy)
    found = scorer_of(model, reader, policy)(batch).prefix_scores
    for row in range(2):
        expected = list(expected_scores(model, reader, policy, batch, row))[:-1]
        actual = found[row, : len(expected)].tolist()  # the last one is that of the ended response
        assert actual == pytest.approx(expected, abs=1e-4, rel=1e-4)


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3", "mistral", "gemma3_text"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_kind_of_attention(architecture, attention):
    """Windows of four tokens among them."""
    policy, reader = POLICIES["bytes"], READERS["merges"]
    model = model_for(reader, architecture, attn_implementation=attention)
    batch = generated(policy)
    found = scorer_of(model, reader, policy)(batch).prefix_scores
    for row in range(2):
        expected = list(expected_scores(model, reader, policy, batch, row))[:-1]
        assert found[row, : len(expected)].tolist() == pytest.approx(expected, abs=1e-4, rel=1e-4)


def largest_change(policy, reader, reading) -> float:
    """Of the credit of a token when the text goes on in another way."""
    model, settings = model_for(reader), CreditSettings("prefix-difference", prefixes=reading)
    whole = generated(policy)
    credit, _ = score_for_policy(model, reader, policy, whole, credit=settings)
    changes = []
    for time in range(1, int(whole.response_mask.sum(-1).min()), 2):
        for going_on in (" plot", "e"):
            ids = policy(going_on, add_special_tokens=False)["input_ids"]
            rest = torch.tensor(ids).expand(2, -1)
            other = replace(
                whole,
                response_ids=torch.cat([whole.response_ids[:, :time], rest], dim=-1),
                response_mask=torch.ones(2, time + len(ids), dtype=torch.bool),
            )
            changed, _ = score_for_policy(model, reader, policy, other, credit=settings)
            changes.append((credit[:, :time] - changed[:, :time]).abs().max().item())
    return max(changes)


@pytest.mark.parametrize(("policy", "reader"), PAIRS)
def test_later_text_moves_no_earlier_credit(policy, reader):
    assert largest_change(policy, reader, "own-text") < 1e-4


def test_in_one_pass_later_text_moves_earlier_credit():
    assert largest_change(POLICIES["bytes"], READERS["merges"], "one-pass") > 0.1


def test_rows_sum_to_the_score_above_that_of_the_prompt():
    policy, reader = POLICIES["bytes"], READERS["merges"]
    model, batch = model_for(reader), generated(policy)
    credit, scores = score_for_policy(model, reader, policy, batch)
    of_prompts = [score_of_text(model, reader, prompt, "") for prompt in PROMPTS]
    expected = scores - torch.tensor(of_prompts)
    torch.testing.assert_close(credit.sum(-1), expected, rtol=1e-4, atol=1e-4)


def test_micro_batches_and_the_size_of_masks_change_nothing(monkeypatch):
    policy, reader = POLICIES["bytes"], READERS["merges"]
    model, batch = model_for(reader), generated(policy)
    together = scorer_of(model, reader, policy)(batch).prefix_scores
    single = scorer_of(model, reader, policy, micro_batch_size=1)(batch).prefix_scores
    monkeypatch.setattr(hf_prefix_texts, "_MASK_ENTRIES", 1)
    smallest = scorer_of(model, reader, policy)(batch).prefix_scores
    torch.testing.assert_close(single, together, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(smallest, together, rtol=1e-4, atol=1e-5)


def test_only_the_tokens_that_differ_are_fed_again(monkeypatch):
    """Words whose ends both share need none, and what the whole response shows is read off it."""
    fed = []
    own = hf_prefix_texts._pass
    monkeypatch.setattr(
        hf_prefix_texts, "_pass", lambda model, rows: fed.extend(rows) or own(model, rows)
    )
    policy = READERS["word level"]
    reader = word_level(chat_template=CHAT_TEMPLATE)
    model = model_for(reader)
    batch = encode_responses(policy, ["the film is"], [" a good plot"]).batch
    scorer_of(model, reader, policy)(batch)
    assert fed == []
    policy, reader = POLICIES["bytes"], READERS["merges"]
    scorer_of(model_for(reader), reader, policy)(generated(policy))
    assert 0 < sum(len(tail.ids) for _, tails in fed for tail in tails) < 60


def test_a_model_that_takes_no_mask_warns_and_scores_in_one_pass():
    policy, reader = POLICIES["bytes"], READERS["merges"]
    model, batch = model_for(reader, "bloom", attn_implementation="eager"), generated(policy)
    with pytest.warns(TokenCreditWarning, match="later text may move the credit of earlier"):
        found = scorer_of(model, reader, policy)(batch)
    expected = local_scorer(model, reader, policy)(batch)
    assert torch.equal(found.prefix_scores, expected.prefix_scores)


def test_the_policys_own_tokens_are_read_as_they_are():
    policy = POLICIES["byte-level"]
    model, batch = model_for(policy), generated(policy)
    found = scorer_of(model, policy, policy)(batch)
    expected = local_scorer(model, policy, policy)(batch)
    assert torch.equal(found.prefix_scores, expected.prefix_scores)


def test_a_prefix_longer_than_the_model_reads():
    """Alone it has more tokens than the whole text, where its letters are one word."""
    reader = READERS["merges"]
    model = model_for(reader)
    long = [hf_prefix_texts._Tail(100, tuple(range(40)))]
    with pytest.raises(DataError, match="has 140 tokens"):
        hf_prefix_texts._pass(model, [(list(range(100)), long)])


@pytest.mark.parametrize("method", CREDIT_METHODS)
def test_credit_that_is_not_made_of_prefixes_pays_for_none(method):
    of_prefixes = {"prefix_scores", "position_scores"} & set(CREDIT_METHODS[method].needs)
    expected = "own-text" if of_prefixes else "one-pass"
    assert prefix_reading(CreditSettings(method)) == expected
    assert prefix_reading(CreditSettings(method, prefixes="one-pass")) == "one-pass"
