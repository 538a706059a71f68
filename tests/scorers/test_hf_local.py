import math

import pytest
import torch
from credit_names import SCORES
from readings import local_scorer
from tiny_models import tiny_model
from tiny_tokenizers import CHAT_TEMPLATE, byte_level, unigram, word_level, wordpiece

from tokencredit.batch import ResponseBatch, ResponseScores
from tokencredit.credit.redistribution import terminal_credit
from tokencredit.credit.settings import CreditSettings
from tokencredit.errors import ConfigError, DataError, ModelError, NumericError
from tokencredit.reward_model.hf_scores import score_responses
from tokencredit.scorers import hf_local as token_scorer
from tokencredit.scorers.evidence import Responses
from tokencredit.scorers.hf_token_scores import CreditedScorer, score_for_policy
from tokencredit.text.hf_decoding import decoded_response
from tokencredit.text.hf_encoding import encode_chats, encode_responses
from tokencredit.text.hf_reading import Reading
from tokencredit.text.reading_settings import ReadingSettings

PROMPTS = ["the film is", "one slow scene , then"]
RESPONSES = [" a good café 日本 🙂 , very good plot", " bad"]
POLICIES = {
    "byte-level": byte_level(),
    "bytes": byte_level(merges=0),
    "unigram, first token": unigram(bos=True),
}
CHAT = {"role": "user", "content": "rate this film"}
SCORERS = {
    "itself or its like": byte_level(),
    "bytes": byte_level(merges=0),
    "first token": byte_level(bos=True, merges=20),
    "word level": word_level(),
    "unigram": unigram(),
    "wordpiece": wordpiece(),
    "chat": byte_level(chat_template=CHAT_TEMPLATE, merges=20),
    "chat, trimmed": word_level(
        chat_template=CHAT_TEMPLATE.replace("['content']", "['content'] | trim")
    ),
}
every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
every_scorer = pytest.mark.parametrize("scorer", SCORERS.values(), ids=SCORERS)


def generated(tokenizer, *, append_eos=True) -> ResponseBatch:
    """Ids as a policy would have made them."""
    return encode_responses(tokenizer, PROMPTS, RESPONSES, append_eos=append_eos).batch


def model_for(tokenizer, architecture="gpt2"):
    return tiny_model(architecture, vocab_size=len(tokenizer), max_position_embeddings=256)


def pays_good(tokenizer):
    """A reward model's scores: one per finished word "good", all attention on such words."""

    def scores(model, batch, *, attention_mask=None, attention_layer=None, **_):
        attention_mask = batch.attention_mask if attention_mask is None else attention_mask
        time, start = batch.response_ids.shape[1], batch.prompt_ids.shape[1]
        prefix_scores, attention = torch.zeros(len(batch), time + 1), torch.zeros(len(batch), time)
        for row in range(len(batch)):
            real = attention_mask[row].bool()
            for t in range(time + 1):
                ids = batch.input_ids[row, : start + t][real[: start + t]].tolist()
                text = tokenizer.decode(ids, skip_special_tokens=True)
                prefix_scores[row, t] = text.count("good")
            ids = batch.response_ids[row][batch.response_mask[row]].tolist()
            decoded = decoded_response(tokenizer, batch.prompt_ids[row].tolist(), ids)
            for t, (begin, end) in enumerate(decoded.spans):
                attention[row, t] = sum(
                    i in good_characters(decoded.response) for i in range(begin, end)
                )
        return ResponseScores(prefix_scores[:, -1], prefix_scores, attention)

    return scores


def good_characters(text):
    return {i + k for i in range(len(text)) for k in range(4) if text.startswith("good", i)}


@every_policy
@every_scorer
def test_a_scorer_that_pays_the_word_good_pays_exactly_those_tokens(monkeypatch, policy, scorer):
    monkeypatch.setattr(token_scorer, "score_responses", pays_good(scorer))
    model, batch = model_for(scorer), generated(policy)
    for credit in ("prefix-difference", "attention"):
        token_scores, sequence_scores = score_for_policy(
            model,
            scorer,
            policy,
            batch,
            credit=CreditSettings(credit, beta=1.0, prefixes="one-pass"),
        )
        assert sequence_scores.tolist() == [2.0, 0.0]
        assert token_scores.sum(-1).tolist() == pytest.approx([2.0, 0.0], abs=1e-5)
        for row in range(2):
            ids = batch.response_ids[row][batch.response_mask[row]].tolist()
            decoded = decoded_response(policy, batch.prompt_ids[row].tolist(), ids)
            good = good_characters(decoded.response)
            completes = {i for i in good if i + 1 not in good}
            paid = completes if credit == "prefix-difference" else good
            for t, (begin, end) in enumerate(decoded.spans):
                holds = any(i in paid for i in range(begin, end))
                assert (token_scores[row, t].item() > 1e-4) == holds, (
                    row,
                    decoded.response[begin:end],
                )


@every_policy
@every_scorer
@pytest.mark.parametrize("credit", SCORES)
def test_rows_sum_to_their_sequence_scores(policy, scorer, credit):
    """Nothing is lost on the way; and the score is that of the text, whatever the batch."""
    model, batch = model_for(scorer), generated(policy)
    token_scores, sequence_scores = score_for_policy(model, scorer, policy, batch, credit=credit)
    assert token_scores.shape == batch.response_mask.shape
    assert not bool(token_scores[~batch.response_mask].any())
    prompt_scores = torch.zeros(2)
    if credit == "prefix-difference":
        texts = [policy.decode(ids, skip_special_tokens=True) for ids in batch.prompt_ids]
        prompt_scores = torch.stack([prompt_score(model, scorer, text) for text in texts])
        if len(scorer) == len(policy) and scorer.get_vocab() == policy.get_vocab():
            prompt_scores = score_responses(model, batch).prefix_scores[:, 0]
    torch.testing.assert_close(
        token_scores.sum(-1), sequence_scores - prompt_scores, atol=1e-4, rtol=1e-4
    )


def prompt_score(model, tokenizer, prompt):
    """The score of a prompt alone, by the model's own forward."""
    if tokenizer.chat_template is None:
        # Some tokenizers close their texts; the prompt is scored before its closing token.
        ids = encode_responses(tokenizer, [prompt], ["!"]).batch.prompt_ids
    else:
        messages = [{"role": "user", "content": prompt}]
        ids = encode_chats(tokenizer, [messages], ["!"]).batch.prompt_ids
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0]


@every_scorer
def test_sequence_scores_are_the_models_own(scorer):
    model, policy = model_for(scorer), POLICIES["bytes"]
    batch = generated(policy, append_eos=False)
    _, sequence_scores = score_for_policy(model, scorer, policy, batch)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        if scorer.chat_template is None:
            ids = scorer(prompt + response, return_tensors="pt")["input_ids"]
        else:
            messages = [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": response},
            ]
            text = scorer.apply_chat_template(messages, tokenize=False).removesuffix("<eos>\n")
            ids = scorer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0]
        torch.testing.assert_close(sequence_scores[row], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("credit", SCORES)
def test_prompts_as_texts_and_as_ids_are_read_alike_where_the_tokens_are_the_same(credit):
    tokenizer = byte_level()
    model, batch = model_for(tokenizer), generated(tokenizer, append_eos=False)
    by_ids = score_for_policy(model, tokenizer, tokenizer, batch, credit=credit)
    through_text = score_for_policy(
        model, tokenizer, tokenizer, batch, credit=credit, conversations=PROMPTS
    )
    for one, other in zip(by_ids, through_text, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("credit", SCORES)
@pytest.mark.parametrize("scorer", [byte_level(), word_level()], ids=["by ids", "through text"])
def test_a_batch_equals_its_rows(credit, scorer):
    policy = POLICIES["byte-level"]
    model, batch = model_for(scorer), generated(policy)
    together, _ = score_for_policy(
        model, scorer, policy, batch, credit=CreditSettings(credit, beta=0.7), micro_batch_size=1
    )
    for row in range(len(batch)):
        alone, _ = score_for_policy(
            model, scorer, policy, batch[row : row + 1], credit=CreditSettings(credit, beta=0.7)
        )
        torch.testing.assert_close(alone, together[row : row + 1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scorer", [byte_level(), word_level()], ids=["by ids", "through text"])
def test_ids_under_the_mask_change_nothing(scorer):
    policy = POLICIES["byte-level"]
    model, batch = model_for(scorer), generated(policy)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randint(4, 200, batch.input_ids.shape, generator=generator)
    start = batch.prompt_ids.shape[1]
    noisy = ResponseBatch(
        torch.where(batch.prompt_mask, batch.prompt_ids, noise[:, :start]),
        batch.prompt_mask,
        torch.where(batch.response_mask, batch.response_ids, noise[:, start:]),
        batch.response_mask,
    )
    for credit in SCORES:
        clean, _ = score_for_policy(model, scorer, policy, batch, credit=credit)
        dirty, _ = score_for_policy(model, scorer, policy, noisy, credit=credit)
        torch.testing.assert_close(clean, dirty)


def test_the_end_of_sequence_is_the_last_token_that_counts():
    """The reward model's text has no such token; terminal credit falls on it all the same."""
    policy, scorer = POLICIES["byte-level"], word_level()
    batch = generated(policy)
    token_scores, sequence_scores = score_for_policy(
        model_for(scorer), scorer, policy, batch, credit="terminal"
    )
    assert bool((batch.response_ids == policy.eos_token_id).any(-1).all())
    torch.testing.assert_close(
        token_scores[batch.response_ids == policy.eos_token_id], sequence_scores
    )


@pytest.mark.parametrize("credit", SCORES)
@pytest.mark.parametrize("scorer", [byte_level(), word_level()], ids=["by ids", "through text"])
def test_the_end_of_sequence_is_read_where_the_reward_model_learnt_with_it(scorer, credit):
    """One response ended, the other was cut off: only the first is read with its end."""
    policy, model = POLICIES["byte-level"], model_for(scorer)
    whole, cut = (generated(policy, append_eos=ends) for ends in (True, False))
    batch = encode_responses(policy, PROMPTS, RESPONSES, append_eos=[True, False]).batch
    texts = [prompt + response for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    for reads, end in ((True, [scorer.eos_token_id]), (False, [])):
        model.config.eos_appended = reads
        paid, scores = score_for_policy(model, scorer, policy, batch, credit=credit)
        rows = (scorer(texts[0])["input_ids"] + end, scorer(texts[1])["input_ids"])
        for score, row in zip(scores, rows, strict=True):
            expected = model(input_ids=torch.tensor([row])).logits[0, 0]
            torch.testing.assert_close(score, expected, atol=1e-4, rtol=1e-4)
        if credit == "prefix-difference":
            last = batch.response_ids == policy.eos_token_id
            assert (paid[last].abs() > 1e-3).tolist() == [reads]
        else:
            torch.testing.assert_close(paid.sum(-1), scores, atol=1e-4, rtol=1e-4)
        for other in (whole, cut):
            score_for_policy(model, scorer, policy, other, credit=credit)


def test_the_end_of_a_turn_pays_the_end_of_sequence():
    """What closes the chat belongs to the token by which the policy closed it."""
    policy, scorer = POLICIES["byte-level"], SCORERS["chat"]
    model = model_for(scorer)
    ended, scores = score_for_policy(
        model, scorer, policy, generated(policy), credit="prefix-difference"
    )
    cut, open_scores = score_for_policy(
        model, scorer, policy, generated(policy, append_eos=False), credit="prefix-difference"
    )
    last = generated(policy, append_eos=False).lengths[1] - 1
    torch.testing.assert_close(ended[1, : last + 1], cut[1, : last + 1], atol=1e-5, rtol=1e-4)
    closing = scores[1] - open_scores[1]
    assert closing.abs() > 1e-3
    torch.testing.assert_close(ended[1, last + 1], closing, atol=1e-5, rtol=1e-4)
    text = scorer.apply_chat_template(
        [{"role": "user", "content": PROMPTS[1]}], add_generation_prompt=True, tokenize=False
    )
    ids = scorer(text + RESPONSES[1], add_special_tokens=False, return_tensors="pt")["input_ids"]
    torch.testing.assert_close(
        open_scores[1], model(input_ids=ids).logits[0, 0], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("credit", SCORES)
@pytest.mark.parametrize("scorer", [word_level(bos=True), SCORERS["chat"]], ids=["plain", "chat"])
def test_an_empty_response_is_scored_by_its_prompt(scorer, credit):
    """The policy ended at once: a response of one token without text."""
    policy = POLICIES["byte-level"]
    batch = generated(policy)
    ids = torch.full((2, 1), policy.eos_token_id)
    batch = ResponseBatch(batch.prompt_ids, batch.prompt_mask, ids, torch.ones_like(ids).bool())
    token_scores, scores = score_for_policy(model_for(scorer), scorer, policy, batch, credit=credit)
    if credit != "prefix-difference":
        torch.testing.assert_close(token_scores, scores[:, None])
    elif scorer.chat_template is None:
        assert token_scores.tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("credit", SCORES)
def test_tokens_that_the_policy_did_not_choose_are_read_but_not_paid(credit):
    policy, scorer = POLICIES["byte-level"], word_level()
    model, batch = model_for(scorer), generated(policy)
    mask = batch.response_mask.clone()
    mask[0, 2:4] = False
    partly = ResponseBatch(batch.prompt_ids, batch.prompt_mask, batch.response_ids, mask)
    token_scores, scores = score_for_policy(model, scorer, policy, partly, credit=credit)
    whole, whole_scores = score_for_policy(model, scorer, policy, batch, credit=credit)
    torch.testing.assert_close(scores, whole_scores)
    torch.testing.assert_close(token_scores.sum(-1), whole.sum(-1), atol=1e-4, rtol=1e-4)
    assert token_scores[0, 2:4].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("credit", SCORES)
@pytest.mark.parametrize("scorer", [byte_level(), word_level()], ids=["by ids", "through text"])
def test_scores_that_were_changed_before_are_spread(scorer, credit):
    policy = POLICIES["byte-level"]
    batch = generated(policy)
    local = local_scorer(model_for(scorer), scorer, policy)
    raw = local(batch, attention=True)
    sequences, prefixes = (
        (10 * numbers + 3).clamp(-1.0, 1.0) for numbers in (raw.sequence_scores, raw.prefix_scores)
    )
    changed = ResponseScores(sequences, prefixes, raw.attention)
    credited = CreditedScorer(local, local.writer, CreditSettings(credit))
    paid = credited.paid(Responses(batch), scores=changed)
    before = prefixes[:, 0] if credit == "prefix-difference" else torch.zeros(2)
    torch.testing.assert_close(paid.sum(-1), sequences - before, atol=1e-4, rtol=1e-4)


def test_conversations_are_rendered_by_the_reward_model():
    """The policy's prompt ids hold its own template; the reward model gets the messages."""
    policy, scorer = byte_level(chat_template=CHAT_TEMPLATE), SCORERS["chat"]
    template = CHAT_TEMPLATE.replace("role'] }}", "role'] | upper }}")
    scorer = byte_level(chat_template=template)
    batch = encode_chats(policy, [[CHAT]], [" good"]).batch
    model = model_for(scorer)
    _, scores = score_for_policy(model, scorer, policy, batch, conversations=[[CHAT]])
    messages = [CHAT, {"role": "assistant", "content": " good"}]
    text = scorer.apply_chat_template(messages, tokenize=False).removesuffix("<eos>\n")
    ids = scorer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    torch.testing.assert_close(scores, model(input_ids=ids).logits[:, 0], atol=1e-4, rtol=1e-4)


def test_encoders_spread_by_attention_but_score_no_prefixes():
    policy, scorer = POLICIES["byte-level"], wordpiece()
    model, batch = model_for(scorer, "bert"), generated(policy)
    token_scores, scores = score_for_policy(model, scorer, policy, batch, credit="attention")
    torch.testing.assert_close(token_scores.sum(-1), scores)
    with pytest.raises(ModelError, match="or 'terminal', which needs the score alone"):
        score_for_policy(model, scorer, policy, batch, credit="prefix-difference")


def test_an_unknown_credit():
    policy = POLICIES["byte-level"]
    with pytest.raises(ConfigError, match=r"'atention'.*did you mean 'attention'"):
        score_for_policy(model_for(policy), policy, policy, generated(policy), credit="atention")


def test_conversations_for_a_tokenizer_without_a_template():
    with pytest.raises(DataError, match=r"1 prompts are conversations.*no chat template"):
        Reading(byte_level()).encoded(["a", [CHAT]], [" good", " good"])
    with pytest.raises(DataError, match=r"reads texts as 'plain'.*has a chat template"):
        Reading(SCORERS["chat"]).encoded([[CHAT]], [" good"])
    with pytest.raises(ConfigError, match="has no chat template"):
        local_scorer(
            model_for(byte_level()), byte_level(), byte_level(), reading=ReadingSettings("chat")
        )


@pytest.mark.parametrize("scorer", [byte_level(), word_level()], ids=["by ids", "through text"])
def test_a_text_longer_than_the_reward_model_can_read(scorer):
    policy = POLICIES["byte-level"]
    model = tiny_model("gpt2", vocab_size=len(scorer), max_position_embeddings=8)
    with pytest.raises(DataError, match="at most 8"):
        score_for_policy(model, scorer, policy, generated(policy))


def test_a_text_longer_than_the_reward_models_tokenizer_allows():
    policy, scorer = POLICIES["byte-level"], word_level()
    scorer.model_max_length = 8
    with pytest.raises(DataError, match="at most 8"):
        score_for_policy(model_for(scorer), scorer, policy, generated(policy))


def test_a_score_that_is_not_a_number():
    policy = POLICIES["byte-level"]
    model = model_for(policy)
    model.score.weight.data.fill_(math.nan)
    with pytest.raises(NumericError, match="NaN"):
        score_for_policy(model, policy, policy, generated(policy))


def test_terminal_credit_is_what_it_always_was():
    policy = POLICIES["byte-level"]
    batch = generated(policy)
    token_scores, scores = score_for_policy(
        model_for(policy), policy, policy, batch, credit="terminal"
    )
    torch.testing.assert_close(token_scores, terminal_credit(scores, batch.response_mask))
