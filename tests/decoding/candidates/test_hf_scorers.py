import pytest
import torch
from tiny_guides import score_of
from tiny_models import DECODERS, PAD_ID, VOCAB_SIZE, padding_mask, tiny_ids, tiny_model
from torch import nn
from transformers import AutoModelForCausalLM

from tokencredit.decoding.candidates.hf_packed import PackedScorer
from tokencredit.decoding.candidates.hf_scorers import FullScorer, RowsScorer, VocabScorer
from tokencredit.decoding.candidates.scores import CandidateBatch, CandidateScorer, CandidateScores
from tokencredit.errors import DataError, ModelError

LENGTHS = [6, 2, 4]
SCORERS = [FullScorer, RowsScorer, PackedScorer]
every_scorer = pytest.mark.parametrize("scorer_class", SCORERS)
cases = [
    pytest.param(architecture, implementation, id=f"{architecture}-{implementation}")
    for architecture in DECODERS
    for implementation in ("sdpa", "eager")
    if (architecture, implementation) != ("gemma2", "sdpa")
]


def texts(width=12, seed=3):
    """A batch padded on the left, wider than every sliding window of the tiny models."""
    mask = padding_mask([length + width - 6 for length in LENGTHS], side="left", width=width)
    return tiny_ids(*mask.shape, seed=seed).masked_fill(~mask, PAD_ID), mask


def candidates(number=4, seed=9):
    ids = tiny_ids(3, number, seed=seed)
    return ids, torch.ones_like(ids, dtype=torch.bool)


def plain_scores(model, text, mask, ids, counts):
    """Of each text with each candidate that counts, one forward pass after the other."""
    score = score_of(model)
    rows = [text[row][mask[row]].tolist() for row in range(len(text))]
    prefix = [score(own) if counts[row].any() else 0.0 for row, own in enumerate(rows)]
    scores = torch.zeros(ids.shape)
    for row, column in counts.nonzero().tolist():
        scores[row, column] = score([*rows[row], int(ids[row, column])])
    return CandidateScores(scores, torch.tensor(prefix))


def assert_alike(scores, expected, counts):
    active = counts.any(-1)
    torch.testing.assert_close(
        scores.candidates[counts], expected.candidates[counts], rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(scores.prefix[active], expected.prefix[active], rtol=1e-4, atol=1e-5)


def assert_scores_are_those_of_the_model(model, scores, text, mask, ids, counts):
    assert_alike(scores, plain_scores(model, text, mask, ids, counts), counts)


@pytest.mark.parametrize(("architecture", "implementation"), cases)
def test_all_ways_give_the_scores_of_the_model(architecture, implementation):
    model = tiny_model(architecture, attn_implementation=implementation)
    text, mask = texts()
    scorers = [scorer_class(model) for scorer_class in SCORERS]
    for width in (8, 9, 11):  # a prompt, then one token more, then two
        ids, counts = candidates(3, seed=width)
        expected = plain_scores(model, text[:, :width], mask[:, :width], ids, counts)
        for scorer in scorers:
            scores = scorer(CandidateBatch(text[:, :width], mask[:, :width], ids, counts))
            assert scores.candidates.dtype == scores.prefix.dtype == torch.float32
            assert_alike(scores, expected, counts)


@every_scorer
def test_any_text_may_follow_any_other(scorer_class):
    model = tiny_model("mistral")
    scorer = scorer_class(model)
    text, mask = texts()
    other, _ = texts(seed=8)
    parted = torch.cat([text[:, :9], other[:, 9:]], dim=-1)
    shifted = mask.roll(-2, dims=-1) | mask
    for width, ids, real in [
        (12, text, mask),
        (12, text, mask),
        (12, parted, mask),
        (8, text, mask),
        (11, text.flip(0), mask.flip(0)),
        (10, text, shifted),
        (10, text, mask),
        (1, text[:1, -1:], mask[:1, -1:]),
        (12, text, mask),
    ]:
        choice, counts = (tensor[: len(ids)] for tensor in candidates(3, seed=width))
        ids, real = ids[:, :width], real[:, :width]
        scores = scorer(CandidateBatch(ids, real, choice, counts))
        assert_scores_are_those_of_the_model(model, scores, ids, real, choice, counts)


@every_scorer
def test_the_number_of_candidates_may_change(scorer_class):
    model = tiny_model("llama")
    scorer = scorer_class(model)
    text, mask = texts()
    for width, number in [(8, 3), (9, 1), (10, 6), (11, 2)]:
        ids, counts = candidates(number)
        scores = scorer(CandidateBatch(text[:, :width], mask[:, :width], ids, counts))
        assert scores.candidates.shape == (3, number)
        assert_scores_are_those_of_the_model(
            model, scores, text[:, :width], mask[:, :width], ids, counts
        )


@every_scorer
def test_what_does_not_count_changes_nothing(scorer_class):
    model = tiny_model("gpt2")
    text, mask = texts()
    ids, counts = candidates()
    counts = counts & torch.tensor([[True] * 4, [False] * 4, [True, False, True, False]])
    clean = scorer_class(model)(CandidateBatch(text, mask, ids, counts))
    dirty_text = text.masked_fill(~mask, VOCAB_SIZE + 5)
    dirty_text[1] = torch.where(mask[1], 3, VOCAB_SIZE + 5)
    dirty = scorer_class(model)(
        CandidateBatch(dirty_text, mask, ids.masked_fill(~counts, VOCAB_SIZE + 9), counts)
    )
    active = counts.any(-1)
    torch.testing.assert_close(dirty.candidates[counts], clean.candidates[counts])
    torch.testing.assert_close(dirty.prefix[active], clean.prefix[active])
    assert_scores_are_those_of_the_model(model, dirty, text, mask, ids, counts)


@every_scorer
def test_rows_that_finished_may_run_past_the_context(scorer_class):
    model = tiny_model("gpt2", max_position_embeddings=13)
    text = tiny_ids(2, 16)
    mask = torch.stack([torch.ones(16), torch.ones(16).index_fill(0, torch.arange(6), 0)]).bool()
    ids = tiny_ids(2, 3)
    counts = torch.tensor([[False] * 3, [True] * 3])
    scorer = scorer_class(model)
    for width in (15, 16):
        scores = scorer(CandidateBatch(text[:, :width], mask[:, :width], ids, counts))
        assert_scores_are_those_of_the_model(
            model, scores, text[:, :width], mask[:, :width], ids, counts
        )


@every_scorer
def test_more_than_the_model_can_read(scorer_class):
    model = tiny_model("gpt2", max_position_embeddings=12)
    text, mask = texts()
    ids, counts = candidates()
    scorer = scorer_class(model)
    scorer(CandidateBatch(text[:, :11], mask[:, :11], ids, counts))
    with pytest.raises(DataError, match="13 tokens and GPT2ForSequenceClassification reads at mos"):
        scorer(CandidateBatch(text, mask, ids, counts))


@every_scorer
def test_the_end_of_sequence_is_a_token_like_others(scorer_class):
    model = tiny_model("llama", pad_token_id=1, eos_token_id=1)
    text, mask = texts()
    ids = torch.tensor([[1, 5], [1, 6], [1, 7]])
    counts = torch.ones_like(ids, dtype=torch.bool)
    scores = scorer_class(model)(CandidateBatch(text, mask, ids, counts))
    assert_scores_are_those_of_the_model(model, scores, text, mask, ids, counts)
    assert (scores.candidates[:, 0] - scores.prefix).abs().min() > 1e-3
    pooled = model(torch.cat([text[:1], ids[:1, :1]], dim=-1)).logits[0, 0]
    torch.testing.assert_close(pooled, scores.prefix[0], msg="the model's own forward skips it")


@every_scorer
def test_two_classes_score_as_log_odds(scorer_class):
    model = tiny_model("llama", num_labels=2)
    text, mask = texts()
    ids, counts = candidates()
    scores = scorer_class(model)(CandidateBatch(text[:1], mask[:1], ids[:1], counts[:1]))
    with torch.no_grad():
        hidden = model.base_model(torch.cat([text[:1], ids[:1, :1]], dim=-1)).last_hidden_state
        low, high = model.score(hidden)[0, -1]
    torch.testing.assert_close(scores.candidates[0, 0], high - low, rtol=1e-4, atol=1e-5)


@every_scorer
def test_a_long_prompt_is_read_in_parts(scorer_class, monkeypatch):
    monkeypatch.setattr("tokencredit.decoding.candidates.hf_packed._CHUNK", 3)
    model = tiny_model("mistral")
    text, mask = texts()
    ids, counts = candidates()
    scores = scorer_class(model)(CandidateBatch(text, mask, ids, counts))
    assert_scores_are_those_of_the_model(model, scores, text, mask, ids, counts)


def test_rows_read_a_new_text_once():
    model = tiny_model("llama")
    text, mask = texts()
    ids, counts = candidates(number=5)
    fed = []
    model.base_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: fed.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    RowsScorer(model)(CandidateBatch(text, mask, ids, counts))
    assert fed == [(3, text.shape[1] - 1), (15, 2)]


@pytest.mark.parametrize("size", [None, 1, 4, 100])
def test_parts_of_a_full_run_do_not_matter(size):
    model = tiny_model("llama")
    text, mask = texts()
    ids, counts = candidates()
    counts = counts & torch.tensor([[True], [False], [True]])
    scores = FullScorer(model, micro_batch_size=size)(CandidateBatch(text, mask, ids, counts))
    assert_scores_are_those_of_the_model(model, scores, text, mask, ids, counts)


def test_a_tail_follows_every_text():
    model = tiny_model("llama")
    text, mask = texts()
    ids, counts = candidates()
    scores = FullScorer(model, tail_ids=[7, 8])(CandidateBatch(text, mask, ids, counts))
    score = score_of(model)
    own = text[1][mask[1]].tolist()
    assert float(scores.prefix[1]) == pytest.approx(score([*own, 7, 8]), rel=1e-4)
    expected = score([*own, int(ids[1, 2]), 7, 8])
    assert float(scores.candidates[1, 2]) == pytest.approx(expected, rel=1e-4)


def test_an_encoder_reads_the_whole_text():
    model = tiny_model("bert")
    text, mask = texts()
    ids, counts = candidates()
    scores = FullScorer(model)(CandidateBatch(text, mask, ids, counts))
    own = torch.tensor([[*text[2][mask[2]].tolist(), int(ids[2, 1])]])
    with torch.no_grad():
        expected = model(own, attention_mask=torch.ones_like(own)).logits[0, 0]
    torch.testing.assert_close(scores.candidates[2, 1], expected, rtol=1e-4, atol=1e-5)


def recurrent_model():
    return tiny_model(
        "qwen3_next",
        layer_types=["linear_attention", "full_attention"],
        num_key_value_heads=2,
        head_dim=8,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=0,
        mlp_only_layers=[0, 1],
    )


def test_recurrent_layers_take_rows():
    model = recurrent_model()
    scorer = RowsScorer(model)
    assert not scorer.text.croppable
    text, mask = texts()
    text, mask = text[:1], mask[:1]
    for width in (8, 9, 9, 12, 7):
        ids, counts = (tensor[:1] for tensor in candidates(seed=width))
        scores = scorer(CandidateBatch(text[:, :width], mask[:, :width], ids, counts))
        assert_scores_are_those_of_the_model(
            model, scores, text[:, :width], mask[:, :width], ids, counts
        )
    with pytest.raises(ModelError, match="does not take a mask of our own"):
        PackedScorer(model)


@pytest.mark.parametrize("kind", ["logits", "logprobs"])
def test_a_vocabulary_head_scores_every_token(kind):
    model = tiny_model("llama", auto_class=AutoModelForCausalLM)
    scorer = VocabScorer(model, scores=kind)
    text, mask = texts()
    ids = torch.arange(VOCAB_SIZE + 2).expand(3, -1)
    for width in (7, 8, 12):
        scores = scorer(
            CandidateBatch(text[:, :width], mask[:, :width], ids, torch.ones_like(ids).bool())
        )
        for row in range(3):
            own = text[row, :width][mask[row, :width]]
            with torch.no_grad():
                logits = model(own[None]).logits[0, -1]
            expected = logits if kind == "logits" else logits.log_softmax(-1)
            torch.testing.assert_close(
                scores.candidates[row, :VOCAB_SIZE], expected, rtol=1e-4, atol=1e-5
            )
        assert scores.candidates[:, VOCAB_SIZE:].tolist() == [[-torch.inf] * 2] * 3
        assert scores.prefix.tolist() == [0.0] * 3


def test_scorers_say_which_ids_they_know():
    model = tiny_model("llama")
    language_model = tiny_model("llama", auto_class=AutoModelForCausalLM)
    for scorer in [
        *(scorer_class(model) for scorer_class in SCORERS),
        VocabScorer(language_model, scores="logits"),
    ]:
        assert isinstance(scorer, CandidateScorer)
        assert scorer.vocab == VOCAB_SIZE


@every_scorer
def test_a_model_in_training_mode(scorer_class):
    model = tiny_model("llama").train()
    text, mask = texts()
    with pytest.raises(ModelError, match="training mode"):
        scorer_class(model)(CandidateBatch(text, mask, *candidates()))


@every_scorer
def test_a_model_without_a_head(scorer_class):
    with pytest.raises(ModelError, match="no head that scores a sequence"):
        scorer_class(tiny_model("llama", auto_class=AutoModelForCausalLM))
    with pytest.raises(ModelError, match="no head over the vocabulary"):
        VocabScorer(tiny_model("llama"), scores="logits")
    with pytest.raises(ModelError, match="holds no Hugging Face model"):
        scorer_class(nn.Linear(2, 2))
    with pytest.raises(ModelError, match="3 outputs"):
        scorer_class(tiny_model("llama", num_labels=3))


@pytest.mark.parametrize("scorer_class", [RowsScorer, PackedScorer])
def test_an_encoder_scores_no_prefixes(scorer_class):
    with pytest.raises(ModelError, match="gives prefixes no score"):
        scorer_class(tiny_model("bert"))


@every_scorer
def test_virtual_tokens_are_refused(scorer_class):
    class Wrapped(nn.Module):
        active_peft_config = type("Config", (), {"is_prompt_learning": True})()

        def __init__(self):
            super().__init__()
            self.model = tiny_model("llama")

    with pytest.raises(ModelError, match="virtual tokens"):
        scorer_class(Wrapped())
