import pytest
import torch
from tiny_models import DECODERS, ENCODERS, padding_mask, tiny_ids, tiny_model

from tokencredit.batch import ResponseBatch
from tokencredit.credit.gradients import gradient_times_input_credit, integrated_gradients_credit
from tokencredit.credit.perturbation import leave_one_out_credit, shapley_credit
from tokencredit.errors import DataError, ModelError
from tokencredit.reward_model.hf_perturbed import (
    response_embeddings,
    score_of_embeddings,
    scores_without_tokens,
)
from tokencredit.reward_model.hf_scores import score_responses

OTHERS = ["bloom", "gpt_oss", "modernbert", "modernbert-decoder", "albert"]


def scorer(architecture, **overrides):
    eager = architecture in {"gemma2", "bloom", "gpt_oss"}
    return tiny_model(architecture, attn_implementation="eager" if eager else None, **overrides)


def response_batch():
    """The second response has a token inside that does not count."""
    mask = padding_mask([3, 6, 5])
    mask[1, 2] = False
    return ResponseBatch(
        prompt_ids=tiny_ids(3, 4, seed=1),
        prompt_mask=padding_mask([4, 1, 3], side="left"),
        response_ids=tiny_ids(3, 6, seed=2),
        response_mask=mask,
    )


def some_subsets(batch, subsets=5):
    keep = (torch.rand(3, subsets, 6) < 0.5) & batch.response_mask[:, None]
    keep[:, 0], keep[:, 1] = batch.response_mask, False
    return keep


def score_of_text(model, ids):
    with torch.no_grad():
        return model(ids[None], attention_mask=torch.ones_like(ids)[None]).logits[0, 0]


def texts_of(batch, keep, row, subset, replacement_id=None):
    """What is left of a response behind its prompt, by hand."""
    ids = batch.prompt_ids[row, batch.prompt_mask[row]].tolist()
    last = batch.response_mask[row].nonzero().max().item()
    for token in range(last + 1):
        if keep[row, subset, token] or not batch.response_mask[row, token]:
            ids.append(batch.response_ids[row, token].item())
        elif replacement_id is not None:
            ids.append(replacement_id)
    return torch.tensor(ids)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "mistral", "bert", "roberta"])
@pytest.mark.parametrize("replacement_id", [None, 3])
def test_scores_are_those_of_what_is_left(architecture, replacement_id):
    model, batch = scorer(architecture), response_batch()
    keep = some_subsets(batch)
    found = scores_without_tokens(model, batch, replacement_id=replacement_id)(keep)
    assert found.shape == (3, 5)
    for row in range(3):
        for subset in range(5):
            alone = score_of_text(model, texts_of(batch, keep, row, subset, replacement_id))
            torch.testing.assert_close(found[row, subset], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 100])
def test_every_text_is_scored_once_and_long_ones_first(micro_batch_size):
    model, batch, sizes = scorer("llama"), response_batch(), []
    keep = some_subsets(batch).repeat(1, 3, 1)
    expected = scores_without_tokens(model, batch)(keep)
    model.model.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape))
    found = scores_without_tokens(model, batch, micro_batch_size=micro_batch_size)(keep)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    distinct = {
        (row, *keep[row, subset].tolist()) for row in range(3) for subset in range(keep.shape[1])
    }
    assert sum(size[0] for size in sizes) == len(distinct) < 45
    assert all(size[0] <= micro_batch_size for size in sizes)
    widths = [size[1] for size in sizes]
    assert widths == sorted(widths, reverse=True)


def test_garbage_under_the_mask_changes_nothing():
    model, batch = scorer("llama"), response_batch()
    keep = some_subsets(batch)
    off = torch.arange(6) >= torch.tensor([3, 6, 5])[:, None]
    dirty = ResponseBatch(
        batch.prompt_ids.masked_fill(~batch.prompt_mask, -100),
        batch.prompt_mask,
        batch.response_ids.masked_fill(off, 10**6),
        batch.response_mask,
    )
    expected = scores_without_tokens(model, batch)(keep)
    assert torch.equal(scores_without_tokens(model, dirty)(keep), expected)
    everything = torch.ones(3, 1, 6).bool()
    torch.testing.assert_close(
        scores_without_tokens(model, dirty)(everything), expected[:, :1], rtol=1e-5, atol=1e-6
    )
    embeddings = response_embeddings(model, batch)
    assert torch.equal(response_embeddings(model, dirty), embeddings)
    unknown = embeddings.masked_fill(~batch.response_mask[:, :, None], torch.nan)
    assert torch.equal(
        score_of_embeddings(model, dirty)(unknown), score_of_embeddings(model, batch)(embeddings)
    )


def test_tokens_behind_the_response_stay():
    model, batch = scorer("llama"), response_batch()
    mask = torch.cat([batch.prompt_mask, torch.ones(3, 6, dtype=torch.bool)], -1)
    whole = score_responses(model, batch, attention_mask=mask).sequence_scores
    without = scores_without_tokens(model, batch, attention_mask=mask)
    torch.testing.assert_close(without(batch.response_mask[:, None])[:, 0], whole)
    ids = torch.cat([batch.prompt_ids[0], batch.response_ids[0, 3:]])
    nothing = without(torch.zeros(3, 1, 6).bool())
    torch.testing.assert_close(nothing[0, 0], score_of_text(model, ids), rtol=1e-4, atol=1e-5)
    of_embeddings = score_of_embeddings(model, batch, attention_mask=mask)
    torch.testing.assert_close(of_embeddings(response_embeddings(model, batch)), whole)


@pytest.mark.parametrize("architecture", [*DECODERS, *ENCODERS, *OTHERS])
def test_a_response_scores_the_same_by_its_embeddings(architecture):
    model, batch = scorer(architecture, num_labels=2), response_batch()
    embeddings = response_embeddings(model, batch)
    assert embeddings[~batch.response_mask].eq(0).all()
    expected = score_responses(model, batch).sequence_scores
    found = score_of_embeddings(model, batch)(embeddings)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_the_gradient_is_that_of_the_embedding_of_each_token(architecture):
    """Against differences, in every direction at once; tokens that do not count have none."""
    model, batch = scorer(architecture).double(), response_batch()
    score = score_of_embeddings(model, batch)
    embeddings = response_embeddings(model, batch).requires_grad_()
    (gradient,) = torch.autograd.grad(score(embeddings).sum(), embeddings)
    assert gradient[~batch.response_mask].eq(0).all()
    assert gradient[batch.response_mask].ne(0).any(-1).all()
    with torch.no_grad():
        for token in range(6):
            way = torch.zeros_like(embeddings)
            way[:, token] = torch.randn(3, embeddings.shape[-1])
            difference = (score(embeddings + 1e-3 * way) - score(embeddings - 1e-3 * way)) / 2e-3
            expected = (gradient * way).sum((1, 2)).float()
            torch.testing.assert_close(difference, expected, rtol=1e-3, atol=5e-3)


def test_shapley_credit_of_a_model_sums_to_what_the_response_adds_to_the_prompt():
    model, batch = scorer("llama"), response_batch()
    token_scores = shapley_credit(
        scores_without_tokens(model, batch),
        batch.response_mask,
        samples=2,
        generator=torch.Generator().manual_seed(0),
    )
    texts = score_responses(model, batch).sequence_scores
    stays = some_subsets(batch) & False
    prompts = [score_of_text(model, texts_of(batch, stays, row, 0)) for row in range(3)]
    gain = texts - torch.stack(prompts)
    torch.testing.assert_close(token_scores.sum(-1), gain, rtol=1e-3, atol=1e-4)


def test_integrated_gradients_of_a_model_sum_to_what_it_gains_over_the_baseline():
    model, batch = scorer("llama"), response_batch()
    embeddings, score = response_embeddings(model, batch), score_of_embeddings(model, batch)
    filler = model.get_input_embeddings().weight.mean(0).detach().expand_as(embeddings)
    token_scores = integrated_gradients_credit(
        score, embeddings, filler, batch.response_mask, steps=128
    )
    gain = score(embeddings) - score(filler)
    torch.testing.assert_close(token_scores.sum(-1), gain.detach(), rtol=1e-3, atol=1e-3)


def test_a_model_in_bfloat16():
    model, batch = scorer("llama").to(torch.bfloat16), response_batch()
    without = leave_one_out_credit(scores_without_tokens(model, batch), batch.response_mask)
    assert without[batch.response_mask].ne(0).all()
    embeddings, score = response_embeddings(model, batch), score_of_embeddings(model, batch)
    torch.testing.assert_close(
        score(embeddings.float()), score_responses(model, batch).sequence_scores
    )
    token_scores = gradient_times_input_credit(score, embeddings, batch.response_mask)
    assert token_scores.dtype == torch.float32
    assert token_scores[batch.response_mask].ne(0).all()


def test_neither_dropout_nor_gradients_of_the_weights():
    model, batch = scorer("gpt2"), response_batch()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    keep = some_subsets(batch)
    expected = scores_without_tokens(model, batch)(keep)
    score = score_of_embeddings(model, batch)
    embeddings = response_embeddings(model, batch)
    by_embeddings = score(embeddings)
    model.train()
    found = scores_without_tokens(model, batch)(keep)
    assert torch.equal(found, expected)
    assert not found.requires_grad
    assert not embeddings.requires_grad
    assert torch.equal(score(embeddings), by_embeddings)
    assert model.training
    assert model.transformer.h[0].training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_lora_counts():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, init_lora_weights=False)
    model, batch = scorer("llama"), response_batch()
    before = score_responses(model, batch).sequence_scores
    model = peft.get_peft_model(model, config).eval()
    expected = score_responses(model, batch).sequence_scores
    assert (expected - before).abs().max() > 0.1
    found = score_of_embeddings(model, batch)(response_embeddings(model, batch))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_encoder_decoder_has_no_score_of_embeddings():
    with pytest.raises(ModelError, match="encoder and a decoder"):
        score_of_embeddings(scorer("t5"), response_batch())


def test_texts_that_cannot_be_read():
    batch = response_batch()
    empty = ResponseBatch(
        batch.prompt_ids, batch.prompt_mask & False, batch.response_ids, batch.response_mask & False
    )
    with pytest.raises(DataError, match=r"rows \[0, 1, 2\] have no real token"):
        score_of_embeddings(scorer("llama"), empty)
    short = scorer("llama", max_position_embeddings=6)
    with pytest.raises(DataError, match="reads at most 6"):
        score_of_embeddings(short, batch)
    with pytest.raises(DataError, match="reads at most 6"):
        scores_without_tokens(short, batch)(batch.response_mask[:, None])
    with pytest.raises(DataError, match="a prompt is empty"):
        scores_without_tokens(scorer("llama"), empty)(batch.response_mask[:, None])
