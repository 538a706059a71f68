import warnings

import pytest
import torch
from tiny_guides import language_model, prompts, responses
from tiny_models import tiny_ids, tiny_model
from transformers import AutoModelForCausalLM

from tokencredit.decoding.candidates.hf_choice import CheckedScorer, candidate_scorer
from tokencredit.decoding.candidates.hf_packed import PackedScorer
from tokencredit.decoding.candidates.hf_scorers import FullScorer, RowsScorer, VocabScorer
from tokencredit.decoding.candidates.scores import CandidateBatch
from tokencredit.decoding.hf_guide import RewardGuide
from tokencredit.errors import ConfigError, DataError, ModelError, NumericError, TokenCreditWarning

ROPE = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}


def choice(model, **options):
    """The scorer that `auto` settles on, after a batch of texts."""
    scorer = candidate_scorer(model, **options)
    ids, mask = prompts()
    candidates = tiny_ids(3, 5, seed=2)
    scorer(CandidateBatch(ids, mask, candidates, torch.ones_like(candidates).bool()))
    return scorer.scorer if isinstance(scorer, CheckedScorer) else scorer


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "mistral", "gemma3_text", "gpt_oss"])
def test_packed_queries_where_masks_are_ours(architecture):
    implementation = "eager" if architecture == "gpt_oss" else "sdpa"
    model = tiny_model(architecture, attn_implementation=implementation)
    assert type(choice(model)) is PackedScorer


def test_the_full_run_for_encoders_tails_and_keys_that_are_rescaled():
    assert type(choice(tiny_model("bert"))) is FullScorer
    assert type(choice(tiny_model("llama"), tail_ids=[3])) is FullScorer
    assert type(choice(tiny_model("llama", rope_parameters=ROPE))) is FullScorer


def test_a_language_model_scores_its_vocabulary():
    model = tiny_model("llama", auto_class=AutoModelForCausalLM)
    scorer = choice(model, vocab_scores="logprobs")
    assert type(scorer) is VocabScorer
    assert scorer.scores == "logprobs"


def test_rows_where_distances_are_in_the_attention():
    model = tiny_model("bloom", attn_implementation="eager")
    assert type(choice(model)) is RowsScorer


def test_rows_for_local_attention_of_its_own():
    model = tiny_model_with_local_attention()
    assert type(choice(model)) is RowsScorer
    with pytest.raises(ModelError, match="does not take a mask of our own"):
        candidate_scorer(model, method="packed")


def tiny_model_with_local_attention():
    kinds = [[["global", "local"], 1]]
    return tiny_model("gpt_neo", attn_implementation="eager", window_size=4, attention_types=kinds)


@pytest.mark.parametrize(
    ("method", "expected"), [("packed", PackedScorer), ("rows", RowsScorer), ("full", FullScorer)]
)
def test_a_method_by_name(method, expected):
    assert type(choice(tiny_model("llama"), method=method)) is expected


def test_flash_attention_takes_rows():
    model = tiny_model("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ModelError, match="flash_attention_2"):
        PackedScorer(model)
    scorer = candidate_scorer(model)
    assert [type(maker()) for maker in scorer._makers] == [RowsScorer]


class Wrong(PackedScorer):
    """Misses the prefix by a little."""

    def __call__(self, batch):
        scores = super().__call__(batch)
        return scores._replace(candidates=scores.candidates + 0.01)


class Failing(PackedScorer):
    def __call__(self, batch):
        raise IndexError("no such layer")


class Refusing(PackedScorer):
    def __call__(self, batch):
        raise ModelError("as it is")


@pytest.mark.parametrize("faulty", [Wrong, Failing])
def test_one_warning_and_the_next_way_where_scores_differ(faulty):
    model = tiny_model("llama")
    ids, mask = prompts()
    expected = responses(
        language_model(), RewardGuide(FullScorer(model), guidance_beta=1.0), ids, mask
    )
    for rest, settled in [([lambda: RowsScorer(model)], RowsScorer), ([], FullScorer)]:
        scorer = CheckedScorer([lambda: faulty(model), *rest], FullScorer(model))
        guide = RewardGuide(scorer, guidance_beta=1.0)
        with pytest.warns(TokenCreditWarning, match=f"by {settled.__name__}") as caught:
            found = responses(language_model(), guide, ids, mask)
        assert len([w for w in caught if w.category is TokenCreditWarning]) == 1
        assert type(scorer.scorer) is settled
        assert found.tolist() == expected.tolist()


def test_half_precision_may_differ_by_rounding():
    model = tiny_model("llama").bfloat16()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scorer = choice(model)
    assert type(scorer) is PackedScorer
    ids, mask = prompts()
    candidates = tiny_ids(3, 4)
    scores = scorer(CandidateBatch(ids, mask, candidates, torch.ones_like(candidates).bool()))
    assert scores.candidates.dtype == torch.float32


def test_a_batch_that_is_finished_settles_nothing():
    scorer = candidate_scorer(tiny_model("llama"))
    ids, mask = prompts()
    candidates = tiny_ids(3, 4)
    scorer(CandidateBatch(ids, mask, candidates, torch.zeros_like(candidates).bool()))
    assert scorer.scorer is None
    scorer(CandidateBatch(ids, mask, candidates, torch.ones_like(candidates).bool()))
    assert type(scorer.scorer) is PackedScorer


def test_errors_of_our_own_are_not_taken_for_a_failure():
    model = tiny_model("gpt2", max_position_embeddings=6)
    with pytest.raises(DataError, match="7 tokens"):
        choice(model)
    with pytest.raises(ModelError, match="training mode"):
        choice(tiny_model("llama").train())
    model = tiny_model("llama")
    scorer = CheckedScorer([lambda: Refusing(model)], FullScorer(model))
    with pytest.raises(ModelError, match="as it is"):
        responses(language_model(), RewardGuide(scorer, guidance_beta=1.0), *prompts())


def test_weights_that_are_no_numbers_are_told_as_such():
    model = tiny_model("llama")
    with torch.no_grad():
        model.score.weight[0, 0] = torch.nan
    guide = RewardGuide(candidate_scorer(model), guidance_beta=1.0)
    with pytest.raises(NumericError, match="NaN or infinite scores"):
        responses(language_model(), guide, *prompts())


def test_settings_that_contradict_each_other(unchecked):
    model = tiny_model("llama")
    with pytest.raises(ConfigError, match="method is 'fast'"):
        candidate_scorer(model, method="fast")
    with pytest.raises(ConfigError, match="tail_ids; expected method 'full'"):
        candidate_scorer(model, method="packed", tail_ids=[1])
