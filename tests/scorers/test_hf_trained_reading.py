from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from saved_models import save_reward_model
from tiny_models import tiny_model
from tiny_tokenizers import byte_level, word_level
from transformers import AutoModelForCausalLM

from tokencredit.batch import ResponseBatch, ResponseScores
from tokencredit.errors import ConfigError, ModelError
from tokencredit.logprobs import token_entropies
from tokencredit.reward_model.hf_scores import score_responses
from tokencredit.scorers.hf_fractions import fraction_scores
from tokencredit.scorers.hf_segment_ends import (
    SegmentEndSettings,
    entropy_reference,
    reading_at_ends,
    segment_end_finder,
)
from tokencredit.scorers.hf_trained_reading import (
    remember_score_positions,
    running_segment_means,
    scores_as_trained,
    trained_segment_ends,
    trained_segments,
)
from tokencredit.text.hf_token_rows import EncodedText, response_batch

NGRAM = SegmentEndSettings("ngram", length=2)
ENTROPY = SegmentEndSettings("entropy", entropy=3.4, reference="lm")


@pytest.fixture
def model():
    return tiny_model("llama").eval()


@pytest.fixture
def language_model():
    return tiny_model("llama", auto_class=AutoModelForCausalLM).eval()


def row(length: int, first: int = 3, prompt: int = 1) -> EncodedText:
    ids = [2] * prompt + [first + at % 20 for at in range(length)]
    return EncodedText(ids, [False] * prompt + [True] * length)


def pairs_of_tokens():
    return segment_end_finder(NGRAM, byte_level())


# What the configuration remembers


@pytest.mark.parametrize(
    "segments",
    [
        SegmentEndSettings("ngram", length=3),
        SegmentEndSettings("sentence"),
        SegmentEndSettings("entropy", entropy=1.75, reference="a/lm"),
    ],
)
def test_a_configuration_remembers_how_its_model_is_read(segments):
    config = SimpleNamespace(score_segments="clause", score_segment_length=9, score_positions="x")
    remember_score_positions(config, "segments", segments)
    assert trained_segments(config) == segments
    assert config.score_positions == "segments"
    remember_score_positions(config, "every", None)
    assert vars(config) == {"score_positions": "every"}
    assert trained_segments(config) is None


def test_models_that_say_nothing_are_read_at_the_last_token(model):
    assert trained_segments(SimpleNamespace()) is None
    assert trained_segment_ends(model, byte_level()) is None
    old = SimpleNamespace(score_segments="ngram", score_segment_length=4)  # of version 0.1.0
    assert trained_segments(old) == SegmentEndSettings("ngram", length=4)


def test_segments_that_are_not_known_are_refused():
    with pytest.raises(ModelError, match="has score_segments 'chapter'; expected one of ngram"):
        trained_segments(SimpleNamespace(score_segments="chapter"))
    with pytest.raises(ConfigError, match="length is 0"):
        SegmentEndSettings(length=0)
    with pytest.raises(ConfigError, match=r"entropy is -1\.0"):
        SegmentEndSettings(entropy=-1.0)


# Entropies


def by_hand(language_model, text: EncodedText, threshold: float, eos=None) -> list[bool]:
    """A segment ends before a token of high entropy, unless that ends the sequence."""
    logits = language_model(torch.tensor([text.input_ids])).logits[0]
    ends = [False] * len(text)
    for at in range(text.start + 1, len(text)):
        unsure = token_entropies(logits[at - 1]).item() > threshold
        ends[at - 1] = unsure and text.input_ids[at] != eos
    return [*ends[:-1], True]


def threshold_of(language_model, text: EncodedText) -> float:
    """An entropy that about half of the tokens exceed, and no token is near."""
    entropies = token_entropies(language_model(torch.tensor([text.input_ids])).logits[0])
    low, high = entropies.sort().values[len(text) // 2 - 1 :][:2].tolist()
    return (low + high) / 2


@pytest.mark.parametrize("batch_size", [1, 16])
def test_entropies_of_the_reference_end_segments(language_model, batch_size):
    tokenizer = byte_level()
    rows = [row(12), row(5, first=9, prompt=3), row(1)]
    threshold = threshold_of(language_model, rows[0])
    settings = SegmentEndSettings("entropy", entropy=threshold, reference="lm")
    finder = segment_end_finder(
        settings, tokenizer, reference=language_model, batch_size=batch_size
    )
    eos = tokenizer.eos_token_id
    expected = [by_hand(language_model, text, threshold, eos) for text in rows]
    assert finder(rows) == expected
    assert 1 < sum(expected[0]) < 12
    read_at = reading_at_ends(rows, finder)
    assert [read_at(text) for text in rows] == expected


def test_an_end_of_sequence_begins_no_segment(language_model):
    tokenizer = byte_level()
    ids = [2, 5, 6, tokenizer.eos_token_id]
    finder = segment_end_finder(
        SegmentEndSettings("entropy", entropy=0.0), tokenizer, reference=language_model
    )
    assert finder([EncodedText(ids, [False, True, True, True])]) == [[False, True, False, True]]
    # What a template puts after the response belongs to its last segment.
    behind = EncodedText([*ids[:3], 7, 8], [False, True, True, False, False])
    assert finder([behind]) == [[False, True, False, False, True]]


def test_no_threshold_is_every_token_and_an_infinite_one_the_response(language_model):
    for entropy, count in ((0.0, 6), (float("inf"), 1)):
        settings = SegmentEndSettings("entropy", entropy=entropy)
        finder = segment_end_finder(settings, byte_level(), reference=language_model)
        assert sum(finder([row(6)])[0]) == count


def test_entropies_need_a_language_model_in_the_same_tokens(tmp_path, language_model):
    tokenizer = byte_level(bos=True)
    with pytest.raises(ConfigError, match="'entropy' without a reference"):
        segment_end_finder(ENTROPY, tokenizer)
    save_reward_model(tmp_path / "rm", tokenizer)
    with pytest.raises(ModelError, match=r"score\.weight; expected a causal l"):
        entropy_reference(str(tmp_path / "rm"), tokenizer)
    language_model.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    with pytest.raises(ModelError, match="has another vocabulary"):
        entropy_reference(str(tmp_path / "lm"), word_level(bos=True))
    padded = byte_level(bos=True, pad_token=None)
    padded.add_special_tokens({"pad_token": "<filler>"})
    own = {t for t in padded.get_vocab() if t != "<filler>"}
    assert own <= set(tokenizer.get_vocab())
    assert entropy_reference(str(tmp_path / "lm"), padded).config.vocab_size


def test_the_reference_is_found_by_what_the_configuration_says(tmp_path, model, language_model):
    tokenizer = byte_level(bos=True)
    language_model.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    settings = SegmentEndSettings("entropy", entropy=3.0, reference=str(tmp_path / "lm"))
    remember_score_positions(model.config, "segments", settings)
    finder = trained_segment_ends(model, tokenizer)
    own = segment_end_finder(settings, tokenizer, reference=language_model)
    assert finder([row(9)]) == own([row(9)])
    assert trained_segment_ends(model, tokenizer) is finder


# Scores


def scores_of(sequence: list[float], prefixes: list[list[float]]) -> ResponseScores:
    return ResponseScores(torch.tensor(sequence), torch.tensor(prefixes), None)


def batch_of(masks: list[list[bool]]) -> ResponseBatch:
    mask = torch.tensor(masks)
    prompts = torch.full((len(masks), 1), 2)
    return ResponseBatch(prompts, prompts.bool(), torch.full_like(mask, 5, dtype=torch.long), mask)


def test_literal():
    batch = batch_of([[True] * 5, [True, True, True, False, False], [False] * 5])
    scores = scores_of(
        [9.0, 7.0, 4.0],
        [[0.5, 1.0, 2.0, 3.0, 4.0, 5.0], [0.5, 1.0, 2.0, 3.0, 0.0, 0.0], [0.5] + [0.0] * 5],
    )
    read = scores_as_trained(scores, batch, pairs_of_tokens())
    assert read.sequence_scores.tolist() == [(2 + 4 + 9) / 3, (2 + 7) / 2, 4.0]
    assert read.prefix_scores.tolist() == [
        [0.5, 1.0, 2.0, (2 + 3) / 2, (2 + 4) / 2, (2 + 4 + 9) / 3],
        [0.5, 1.0, 2.0, (2 + 7) / 2, 0.0, 0.0],
        [0.5, 0.0, 0.0, 0.0, 0.0, 0.0],
    ]
    assert scores_as_trained(scores, batch, None) is scores


def test_running_means_literal():
    scores = torch.tensor([[1.0, 3.0, 8.0, 5.0], [2.0, 4.0, float("nan"), float("nan")]])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    ends = torch.tensor([[False, True, False, True], [True, True, False, False]])
    means = running_segment_means(scores, ends, mask)
    assert means[0].tolist() == [1.0, 3.0, (3 + 8) / 2, (3 + 5) / 2]
    assert means[1, :2].tolist() == [2.0, 3.0]


def test_an_end_of_sequence_that_was_not_read_is_no_token_of_a_segment():
    batch = batch_of([[True] * 5])
    scores = scores_of([9.0], [[0.5, 1.0, 2.0, 3.0, 9.0, 0.0]])
    attention_mask = torch.tensor([[1, 1, 1, 1, 1, 0]])
    read = scores_as_trained(scores, batch, pairs_of_tokens(), attention_mask=attention_mask)
    assert read.sequence_scores.tolist() == [(2 + 9) / 2]
    assert read.prefix_scores.tolist() == [[0.5, 1.0, 2.0, (2 + 3) / 2, (2 + 9) / 2, 0.0]]


def test_what_does_not_count_inside_a_response_is_no_token_of_a_segment():
    batch = batch_of([[True, False, False, True, True]])
    scores = scores_of([9.0], [[0.5, 1.0, 6.0, 6.0, 4.0, 5.0]])
    read = scores_as_trained(scores, batch, pairs_of_tokens())
    assert read.sequence_scores.tolist() == [(4 + 9) / 2]
    assert read.prefix_scores.tolist() == [[0.5, 1.0, 0.0, 0.0, 4.0, (4 + 9) / 2]]


def test_a_model_without_prefix_scores_was_not_trained_on_segments():
    scores = ResponseScores(torch.zeros(1), None, None)
    with pytest.raises(ModelError, match="has no prefix scores; expected a causal model"):
        scores_as_trained(scores, batch_of([[True]]), pairs_of_tokens())


def test_scores_are_those_that_training_and_evaluation_read(model, language_model):
    """The same rows in a batch of responses, and cut at fractions; alone, and together."""
    tokenizer, rows = byte_level(), [row(10), row(5, first=7, prompt=2), row(1, first=4)]
    threshold = threshold_of(language_model, rows[0])
    entropy = SegmentEndSettings("entropy", entropy=threshold, reference="lm")
    for ends in (
        pairs_of_tokens(),
        segment_end_finder(entropy, tokenizer, reference=language_model),
    ):
        seen = fraction_scores(
            model, rows, pad_id=0, batch_size=2, context=nullcontext(), segment_ends=ends
        )
        batch = response_batch(rows, pad_id=0)
        read = scores_as_trained(score_responses(model, batch), batch, ends)
        torch.testing.assert_close(read.sequence_scores, seen[:, -1])
        last = batch.response_mask.sum(-1, keepdim=True)
        found = read.prefix_scores.gather(-1, last)[:, 0]
        torch.testing.assert_close(found, read.sequence_scores)
        for index, text in enumerate(rows):
            alone = response_batch([text], pad_id=0)
            one = scores_as_trained(score_responses(model, alone), alone, ends)
            torch.testing.assert_close(one.sequence_scores[0], read.sequence_scores[index])
            width = one.prefix_scores.shape[-1]
            torch.testing.assert_close(one.prefix_scores[0], read.prefix_scores[index, :width])


def test_gradients_reach_the_ends_alone():
    prefixes = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]], requires_grad=True)
    whole = torch.tensor([4.0], requires_grad=True)
    scores = ResponseScores(whole, prefixes, None)
    read = scores_as_trained(scores, batch_of([[True] * 4]), pairs_of_tokens())
    read.sequence_scores.sum().backward()
    assert prefixes.grad.tolist() == [[0.0, 0.0, 0.5, 0.0, 0.0]]
    assert whole.grad.tolist() == [0.5]
