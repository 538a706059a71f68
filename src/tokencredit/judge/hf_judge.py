"""A local causal language model as judge: its next token after a question, or a text of its own."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from tokencredit.batch import Message, Prompt, padded_rows, rows_of_like_length
from tokencredit.errors import ConfigError, ModelError
from tokencredit.judge.questions import Question
from tokencredit.judge.verdicts import Reply, pooled_answers
from tokencredit.models.hf_loading import pad_token_id
from tokencredit.models.hf_next_tokens import next_logprobs
from tokencredit.models.hf_sampling import drawn_sequences, response_extent, undrawable_ids
from tokencredit.sampling import Sampling
from tokencredit.text.hf_reading import Reading


def local_judge(
    model: nn.Module,
    reading: Reading,
    *,
    sampling: Sampling | None = None,
    seed: int = 0,
    micro_batch_size: int | None = None,
) -> Callable[[Sequence[Question]], list[Reply]]:
    """A judge that answers with one token, in one forward pass per question, or with a text.

    Questions of one call that begin with the same tokens are read from there on alone, after one
    pass over their beginning: several questions about one response, where the template shows what
    differs last, or several responses to one prompt.

    Special tokens of the vocabulary that stand in a question are broken, so that no response ends
    the turn in which it is shown. Neither padding nor the questions beside it change what is said
    of one token, nor a text of the most probable tokens. Texts that are drawn depend on the seed
    and on the questions of one pass; the generators of the process stay as they are.

    Args:
        model: a causal language model, in the mode that it is in.
        reading: how it reads: by its chat template, or plain texts as they stand.
        sampling: how texts are written; a temperature of 0 takes the most probable tokens. None
            writes none.
        seed: of texts that are drawn.
        micro_batch_size: questions per forward pass; None for all.

    Returns:
        A function from questions to replies: the log-probabilities of the answers asked for, or a
        text and whether the model ended it. It raises ConfigError for a question that wants a text
        where none is written, ModelError for an answer that is no token, DataError for a question
        that does not fit the context with its reply.
    """
    spellings: dict[tuple[str, ...], dict[int, str]] = {}

    def judge(questions: Sequence[Question]) -> list[Reply]:
        replies: dict[int, Reply] = {}
        for answers in dict.fromkeys(question.answers for question in questions):
            rows = [row for row, one in enumerate(questions) if one.answers == answers]
            asked = [questions[row] for row in rows]
            if not answers:
                texts = _texts(model, reading, asked, sampling, seed, micro_batch_size)
                replies |= dict(zip(rows, texts, strict=True))
                continue
            if answers not in spellings:
                spellings[answers] = answer_tokens(reading.tokenizer, answers)
            tokens = spellings[answers]
            logprobs = next_logprobs(
                model,
                question_rows(reading, asked),
                list(tokens),
                pad_id=pad_token_id(reading.tokenizer),
                micro_batch_size=micro_batch_size,
            )
            for row, values in zip(rows, logprobs.tolist(), strict=True):
                pooled = pooled_answers(zip(tokens.values(), values, strict=True), answers)
                replies[row] = Reply(logprobs=pooled, bound=-math.inf)
        return [replies[row] for row in range(len(questions))]

    return judge


def answer_tokens(tokenizer: PreTrainedTokenizerBase, answers: Sequence[str]) -> dict[int, str]:
    """The tokens that spell an answer, whatever their case and the space around them.

    Args:
        tokenizer: whose vocabulary.
        answers: in lower case.

    Returns:
        Texts by token id.

    Raises:
        ModelError: an answer is no single token.
    """
    special = set(tokenizer.all_special_ids)
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    found = {
        token: text
        for token, text in enumerate(texts)
        if token not in special and text.strip().lower() in answers
    }
    missing = sorted(set(answers) - {text.strip().lower() for text in found.values()})
    if missing:
        raise ModelError(
            f"the vocabulary of {tokenizer.name_or_path!r} has no single token for the answers "
            f"{missing}; expected one for each of {list(answers)}: ask for other answers"
        )
    return found


def without_special_tokens(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
) -> list[Message]:
    """Messages in which no special token of a vocabulary is written out.

    Args:
        tokenizer: whose vocabulary.
        messages: of a question; each special token in them is broken by a space.
    """
    added = tokenizer.added_tokens_decoder.values()
    names = {str(token) for token in added if token.special} | set(tokenizer.all_special_tokens)
    broken: list[Message] = []
    for message in messages:
        text = str(message["content"])
        for name in sorted(names, key=len, reverse=True):
            text = text.replace(name, f"{name[0]} {name[1:]}" if len(name) > 1 else " ")
        broken.append({**message, "content": text})
    return broken


def question_rows(reading: Reading, questions: Sequence[Question]) -> list[list[int]]:
    """Questions as the ids that a judge goes on from, special tokens in them broken.

    Args:
        reading: how it reads.
        questions: any number.

    Raises:
        DataError, ModelError: as `Reading.prompt_rows`.
    """
    asked = [without_special_tokens(reading.tokenizer, one.messages) for one in questions]
    prompts: list[Prompt] = [*asked]
    if reading.template != "chat":
        prompts = ["\n\n".join(str(turn["content"]) for turn in turns) for turns in asked]
    return reading.prompt_rows(prompts, where="the questions")


def _texts(
    model: nn.Module,
    reading: Reading,
    questions: Sequence[Question],
    sampling: Sampling | None,
    seed: int,
    micro_batch_size: int | None,
) -> list[Reply]:
    """A text for each question, and whether the model came to its end."""
    if sampling is None:
        raise ConfigError(
            "the question wants a text and the local judge answers with one token; expected "
            "`sampling` of the judge, which says how texts are written, or answers of one token"
        )
    tokenizer, device = reading.tokenizer, next(model.parameters()).device
    never = (*sampling.suppress_tokens, *undrawable_ids(tokenizer, model))
    rows = question_rows(reading, questions)
    pad, found = pad_token_id(tokenizer), {}
    lengths = torch.tensor([len(row) for row in rows])
    for part in rows_of_like_length(lengths, micro_batch_size or len(rows)):
        some = part.tolist()
        prompt_ids, prompt_mask = padded_rows([rows[row] for row in some], fill=pad, side="left")
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(_seed(seed, [(rows[row], questions[row].draw) for row in some]))
            sequences = drawn_sequences(
                model,
                prompt_ids.to(device),
                prompt_mask.to(device),
                sampling=replace(sampling, suppress_tokens=never),
                pad_token_id=pad,
                eos_token_id=reading.turn_ends,
            )
        written = sequences[:, prompt_ids.shape[1] :]
        mask, ended = response_extent(written, reading.turn_ends)
        for row, ids, real, end in zip(some, written, mask, ended.tolist(), strict=True):
            text = tokenizer.decode(
                ids[real].tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            found[row] = Reply(text, ended=end)
    return [found[row] for row in range(len(rows))]


def _seed(seed: int, asked: Sequence[tuple[Sequence[int], int]]) -> int:
    """A seed of these questions alone, so that a judge draws the same whenever it is asked."""
    return int.from_bytes(hashlib.sha256(repr((seed, asked)).encode()).digest()[:7], "big")
