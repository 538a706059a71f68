"""What ends a response of `generate`, what it is drawn from, and which text is judged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ending_models import ASKED, PADDING, ends_of, tokenizer_of, write_models
from generate_settings import generate_config, written
from saved_models import save_reward_model
from tiny_tokenizers import wordpiece
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM

from tokencredit.decoding.rules import GUIDANCE_METHODS
from tokencredit.decoding.search.hf_methods import SEARCHES
from tokencredit.errors import ConfigError
from tokencredit.recipes.decoding import methods as recipe


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = write_models(tmp_path_factory.mktemp("ends"))
    narrow = AutoModelForCausalLM.from_pretrained(folder / "policy")
    narrow.resize_token_embeddings(len(tokenizer_of()))  # as deep as the tokenizer, no padding
    narrow.save_pretrained(folder / "dpo")
    tokenizer_of().save_pretrained(folder / "dpo")
    return folder


def found(models: Path, output: Path, method: str, **changes: Any) -> tuple[list[dict], dict]:
    own: dict[str, Any] = {"sampling.max_new_tokens": 8}
    if method == "implicit-beam":
        own["implicit_beam.top_k"] = 0  # padding too is a candidate, if nothing forbids it
    return written(models, output, method, **own | changes)


@pytest.mark.parametrize("method", [*GUIDANCE_METHODS, *SEARCHES])
def test_every_declared_end_ends_a_response_and_padding_is_never_drawn(models, tmp_path, method):
    tokenizer = tokenizer_of()
    ends, known = set(ends_of(tokenizer)), range(len(tokenizer))
    rows, metrics = found(models, tmp_path, method)
    for row in rows:
        *before, last = row["token_ids"]
        assert ends.isdisjoint(before)
        assert row["ended"] == (last in ends)
        assert all(token in known for token in row["token_ids"])
        assert "<" not in row["response"] or row["response"].count("<eot>") == 0
    assert metrics["ended"] == sum(row["ended"] for row in rows) / len(rows)


def test_all_ends_are_drawn_and_none_too_early(models, tmp_path):
    rows, _ = found(models, tmp_path / "plain", "best-of-n", n=1, batch_size=1)
    late, _ = found(models, tmp_path / "late", "unguided", **{"sampling.min_new_tokens": 5})
    ends = set(ends_of(tokenizer_of()))
    assert any(row["ended"] for row in rows)
    assert all(ends.isdisjoint(row["token_ids"][:5]) for row in late)


def test_further_ends_are_settings(models, tmp_path):
    space = tokenizer_of().convert_tokens_to_ids("Ġ")
    rows, _ = found(models, tmp_path, "unguided", **{"policy_reading.turn_ends": ("Ġ",)})
    assert all(space not in row["token_ids"][:-1] for row in rows)


def test_the_divergence_is_from_the_model_over_what_may_be_drawn(models, tmp_path):
    """Of plain sampling at another temperature, and of guidance by nothing."""
    rows, metrics = found(models, tmp_path / "cool", "unguided", **{"sampling.temperature": 0.5})
    model = AutoModelForCausalLM.from_pretrained(models / "policy").eval()
    tokenizer = tokenizer_of()
    for text, row in zip(ASKED, rows, strict=True):
        expected, ids = 0.0, _head(tokenizer, text)
        for token in row["token_ids"]:
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1, : len(tokenizer)].double()
            plain, drawn = logits.log_softmax(-1), (logits / 0.5).log_softmax(-1)
            expected += float((drawn.exp() * (drawn - plain)).sum())
            ids = [*ids, token]
        assert row["kl"] == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert metrics["kl"] == pytest.approx(sum(row["kl"] for row in rows) / len(rows))
    _, plain_ = found(models, tmp_path / "plain", "unguided")
    _, unmoved = found(
        models, tmp_path / "zero", "pargs", **{"guidance.beta": 0.0, "guidance.top_k": 0}
    )
    assert plain_["kl"] == 0.0
    assert unmoved["kl"] == pytest.approx(0.0, abs=1e-5)
    _, best = found(models, tmp_path / "best", "best-of-n")
    assert best["kl_at_most"] > 0
    _, warm = found(models, tmp_path / "warm", "best-of-n", **{"sampling.temperature": 2.0})
    assert "kl_at_most" not in warm


def _head(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
    )
    return ids


@pytest.mark.parametrize("reward_model", ["reward", "other-tokens"])
@pytest.mark.parametrize("method", ["pargs", "args-greedy"])
def test_what_guides_is_what_is_reported(models, tmp_path, method, reward_model):
    """The reward model has a template of its own, and closes an answer by two tokens."""
    settings = {"reward_model": str(models / reward_model), "sampling.max_new_tokens": 5}
    ended = []
    for seed in range(4):
        rows, _ = found(models, tmp_path / str(seed), method, seed=seed, **settings)
        for row in rows:
            assert row["steps"][-1]["score"] == pytest.approx(row["score"], abs=2e-3)
            ended.append(row["ended"])
    assert {True, False} <= set(ended)


@pytest.mark.parametrize("reward_model", ["reward", "other-tokens"])
def test_what_selects_is_what_is_reported(models, tmp_path, reward_model, monkeypatch):
    """Of all responses that were drawn, the one is kept that scores best in the report."""
    drawn: list[list[float]] = []
    scored = recipe._numbered_scores

    def spy(*given: Any) -> torch.Tensor:
        scores = scored(*given)
        drawn.extend(scores.view(-1, 6).tolist())
        return scores

    monkeypatch.setattr(recipe, "_numbered_scores", spy)
    rows, _ = found(models, tmp_path, "best-of-n", n=6, reward_model=str(models / reward_model))
    assert len(drawn) == len(rows)
    for scores, row in zip(drawn, rows, strict=True):
        assert row["score"] == pytest.approx(max(scores), abs=1e-4)
        assert min(scores) < max(scores)


def test_pairs_guide_and_are_reported_alike(models, tmp_path):
    reads = wordpiece()
    reads.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", reads.cls_token_id), ("[SEP]", reads.sep_token_id)],
    )
    save_reward_model(tmp_path / "pairs", reads, "bert", pad_token_id=0, type_vocab_size=2)
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ASKED))
    settings = {"reward_model": str(tmp_path / "pairs"), "reading.template": "pair"}
    rows, _ = found(models, tmp_path / "out", "pargs", prompts=str(texts), **settings)
    for row in rows:
        assert row["steps"][-1]["score"] == pytest.approx(row["score"], abs=2e-3)
    with pytest.raises(ConfigError, match="reads prompt and response as a pair"):
        found(
            models,
            tmp_path / "full",
            "pargs",
            prompts=str(texts),
            **settings | {"guidance.scorer": "full"},
        )


def test_a_temperature_of_zero_leaves_nothing_for_top_k_to_do():
    with pytest.raises(ConfigError, match=r"temperature is 0.*top_k 3"):
        generate_config(
            policy="p",
            reward_model="r",
            prompts="q",
            output="o",
            method="unguided",
            **{"sampling.temperature": 0.0, "sampling.top_k": 3},
        )


def test_padding_was_worth_drawing(models):
    """Left alone, the model would have drawn ids without a token: the tests above see that."""
    model = AutoModelForCausalLM.from_pretrained(models / "policy").eval()
    tokenizer = tokenizer_of()
    with torch.no_grad():
        logits = model(torch.tensor([_head(tokenizer, ASKED[0])])).logits[0, -1]
    assert len(logits) == len(tokenizer) + PADDING
    assert float(logits.softmax(-1)[len(tokenizer) :].sum()) > 0.2
