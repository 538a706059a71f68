"""Every kind of segments by its settings."""

import sys
from inspect import getsource
from typing import get_args

import pytest
import torch
from readings import encode_responses
from tiny_tokenizers import byte_level

from tokencredit.errors import ConfigError, DataError
from tokencredit.scorers.segmentation import response_segments
from tokencredit.text.hf_decoding import response_text_segments
from tokencredit.text.segments import SegmentKind, SegmentSettings, require_tiling

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
