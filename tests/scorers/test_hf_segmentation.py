"""Every kind of segments by its settings."""

import sys
from dataclasses import replace
from inspect import getsource
from typing import get_args

import pytest
import torch
from tiny_tokenizers import byte_level

from tokencredit.errors import ConfigError, DataError
from tokencredit.scorers.hf_segmentation import response_segments
from tokencredit.text.hf_decoding import response_text_segments
from tokencredit.text.hf_encoding import encode_responses
from tokencredit.text.segments import (
    SHOWN_LATER,
    SegmentKind,
    SegmentSettings,
    require_tiling,
    segment_ends,
)

TOKENIZER = byte_level()
BATCH = encode_responses(TOKENIZER, ["a", "a"], [" a film of the past, so slow. bad", " bad"]).batch


def thirds(text):
    return [(at, min(at + 3, len(text))) for at in range(0, len(text), 3)]


@pytest.fixture(autouse=True)
def functions(tmp_path, monkeypatch):
    (tmp_path / "units_in_a_folder.py").write_text(
        f"{getsource(thirds)}def astray(text):\n    return [(0, 99)]\n"
    )
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("units_in_a_folder", None)


def settings_of(kind: str, **options) -> SegmentSettings:
    if kind == "spans":
        options.setdefault("function", "units_in_a_folder:thirds")
    return SegmentSettings(kind, **options)


@pytest.mark.parametrize("kind", get_args(SegmentKind))
def test_every_kind_cuts(kind):
    unsure = torch.rand(BATCH.response_ids.shape) * 4
    ids = response_segments(
        settings_of(kind),
        TOKENIZER,
        BATCH,
        ref_logprobs=lambda: -unsure,
        ref_entropies=lambda: unsure,
    )
    assert (ids is None) == (kind == "none")
    if ids is not None:
        require_tiling(ids, BATCH.response_mask)
        assert ids.max() > 0


def test_options_of_kinds_arrive():
    short = response_segments(settings_of("phrase", length=1), TOKENIZER, BATCH)
    expected = response_text_segments(TOKENIZER, BATCH, kind="phrase", length=1)
    assert torch.equal(short, expected)
    assert not torch.equal(short, response_segments(settings_of("phrase"), TOKENIZER, BATCH))
    found = response_segments(settings_of("spans"), TOKENIZER, BATCH)
    expected = response_text_segments(TOKENIZER, BATCH, kind="spans", function=thirds)
    assert torch.equal(found, expected)


def test_a_function_that_is_not_there_or_finds_no_spans():
    with pytest.raises(ConfigError, match="there is no function units_in_a_folder:nothing"):
        response_segments(
            settings_of("spans", function="units_in_a_folder:nothing"), TOKENIZER, BATCH
        )
    with pytest.raises(DataError, match=r"the span \(0, 99\) of a unit"):
        response_segments(
            settings_of("spans", function="units_in_a_folder:astray"), TOKENIZER, BATCH
        )


@pytest.mark.parametrize("kind", ["entropy", "perplexity"])
def test_a_kind_that_needs_a_reference(kind):
    with pytest.raises(ConfigError, match=rf"segments\.kind is '{kind}'.*'phrase', 'spans' here"):
        response_segments(settings_of(kind), TOKENIZER, BATCH)


def cut_by(kind: str, batch, **options):
    """Segments by a reference that is arbitrary, but knows of each token only what came before."""
    generator = torch.Generator().manual_seed(1)
    table = torch.rand(len(TOKENIZER), 2, generator=generator) * 4
    own, following = table[batch.response_ids].unbind(-1)
    before = torch.cat([torch.ones_like(following[:, :1]), following[:, :-1]], dim=-1)
    return response_segments(
        settings_of(kind, **options),
        TOKENIZER,
        batch,
        ref_logprobs=lambda: -own,
        ref_entropies=lambda: before,
    )


KINDS = [kind for kind in get_args(SegmentKind) if kind not in ("none", "random-ngram")]
TEXT = " a film of the past, so slow. Bad plot: 日本。 good café 🙂 yes"


def changes_of_earlier_segments(kind: str, **options) -> int:
    """How often ending a text after a token, or going on otherwise, moves the ends before it.

    A segment ends at the last of its tokens; the token that was last in the shorter text may end
    one there for this reason alone.
    """
    whole = encode_responses(TOKENIZER, ["a"], [TEXT], append_eos=True).batch
    moved = 0
    for time in range(1, whole.response_ids.shape[1]):
        for last in (TOKENIZER.eos_token_id, *TOKENIZER(", the.s")["input_ids"]):
            ids = whole.response_ids[:, : time + 1].clone()
            ids[:, -1] = last
            other = replace(
                whole, response_ids=ids, response_mask=whole.response_mask[:, : time + 1]
            )
            ends, changed = (segment_ends(cut_by(kind, some, **options)) for some in (whole, other))
            moved += not torch.equal(ends[:, :time], changed[:, :time])
    return moved


@pytest.mark.parametrize("kind", KINDS)
def test_segments_closed_when_shown_do_not_depend_on_later_tokens(kind):
    two = encode_responses(TOKENIZER, ["a"], [TEXT]).batch
    assert cut_by(kind, two, close="when-shown").max() > 0
    assert changes_of_earlier_segments(kind, close="when-shown") == 0


@pytest.mark.parametrize("kind", SHOWN_LATER)
def test_segments_that_end_with_their_text_depend_on_later_tokens(kind):
    assert changes_of_earlier_segments(kind) > 0
