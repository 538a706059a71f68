from contextlib import nullcontext

import pytest
import torch
from tiny_models import tiny_model
from tiny_reward_training import config, loss_of
from tiny_tokenizers import byte_level

from tokencredit.recipes.reward_model.examples import JudgedRow
from tokencredit.scorers.hf_fractions import fraction_scores
from tokencredit.scorers.hf_segment_ends import reading_at_ends, segment_end_finder
from tokencredit.text.hf_token_rows import EncodedText, read_every_token


def row(length: int, first: int = 3) -> EncodedText:
    return EncodedText([2, *range(first, first + length)], [False] + [True] * length)


def test_a_segment_per_token_is_the_mean_of_all_prefixes(tmp_path):
    """The scores are averaged before they are compared, not the losses afterwards."""
    model, tokenizer = tiny_model("llama").eval(), byte_level()
    settings = config(tmp_path, tmp_path / "rm", positions="segments", segment_length=1)
    pair = JudgedRow((row(4), row(2, first=9)), 0.0)
    read_at = reading_at_ends(pair.responses, segment_end_finder(settings.segments, tokenizer))
    options = {"objective": "bradley-terry", "positions": "segments"}
    means = []
    for text in pair.responses:
        ids = torch.tensor([text.input_ids])
        scores = [model(ids[:, : end + 1]).logits[0, 0] for end in range(1, len(text))]
        means.append(torch.stack(scores).mean())
    expected = torch.nn.functional.softplus(means[1] - means[0])
    loss = loss_of(model, [pair], tokenizer, read_at, **options)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    per_prefix = loss_of(model, [pair], tokenizer, read_every_token, objective="bradley-terry")
    assert abs(loss - per_prefix) > 1e-3


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_beginning_of_segments_scores_what_a_response_cut_there_would(tmp_path, batch_size):
    model, tokenizer = tiny_model("llama"), byte_level()
    settings = config(tmp_path, tmp_path / "rm", positions="segments", segment_length=2)
    rows = [row(10), row(5, first=7)]
    options = {
        "pad_id": 0,
        "batch_size": batch_size,
        "context": nullcontext(),
        "segment_ends": segment_end_finder(settings.segments, tokenizer),
    }
    scores = fraction_scores(model, rows, **options)
    for text, found in zip(rows, scores, strict=True):
        seen = 3 * (len(text) - 1) // 5  # 60 %
        cut = EncodedText(text.input_ids[: seen + 1], text.response_mask[: seen + 1])
        ids, ends = torch.tensor([cut.input_ids]), options["segment_ends"]([cut])[0]
        at_ends = [model(ids[:, : at + 1]).logits[0, 0] for at, end in enumerate(ends) if end]
        torch.testing.assert_close(found[2], torch.stack(at_ends).mean(), rtol=1e-4, atol=1e-5)
    assert not torch.equal(
        scores, fraction_scores(model, rows, **(options | {"segment_ends": None}))
    )
