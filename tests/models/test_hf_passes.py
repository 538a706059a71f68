"""Rows that would change each other's scores go through a model apart, or not at all."""

import pytest
import torch
from passes_of_two import PHI3, model_of, run, texts_of
from tiny_models import ARCHITECTURES, padding_mask, tiny_ids, tiny_model
from transformers import AutoModelForTokenClassification

from tokencredit.batch import ResponseBatch
from tokencredit.decoding.candidates.hf_scorers import sequence_scores
from tokencredit.errors import DataError, ModelError, TokenCreditWarning
from tokencredit.models.hf_passes import hides_padding, rescaling_length, separate_passes
from tokencredit.reward_model.hf_perturbed import response_embeddings, score_of_embeddings
from tokencredit.reward_model.hf_scores import reward_model_output
from tokencredit.reward_model.hf_token_classifier import token_classifier_logits

ARCHITECTURES |= {
    "mobilebert": {
        "embedding_size": 32,
        "true_hidden_size": 32,
        "intra_bottleneck_size": 32,
        "use_bottleneck": False,
    },
    "bart": {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
    },
    "phi3": PHI3,
}
LENGTHS = [4, 11, 7]
END = 1


@torch.no_grad()
def mobilebert(**settings):
    """MobileBERT, whose tokens read their neighbours whether or not they are padding."""
    model = tiny_model("mobilebert", **settings)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(0.3)
    return model


def texts(*, ended=False):
    ids, mask = tiny_ids(3, 11), padding_mask(LENGTHS)
    if ended:
        ids[range(3), [length - 1 for length in LENGTHS]] = END
        ids[1, 3] = END  # one row has an end inside the text too
    return ids, mask


@torch.no_grad()
def alone(model, ids):
    return torch.stack(
        [
            model(input_ids=row[None, :length]).logits[0, 0]
            for row, length in zip(ids, LENGTHS, strict=True)
        ]
    )


def test_an_architecture_that_reads_padding_is_given_none():
    model = mobilebert()
    ids, mask = texts()
    with pytest.warns(TokenCreditWarning, match="does not hide padding"):
        scores = reward_model_output(model, ids, mask).sequence_scores
    torch.testing.assert_close(scores, alone(model, ids), atol=1e-5, rtol=0)
    decoded = sequence_scores(model, ids, torch.tensor(LENGTHS))
    torch.testing.assert_close(decoded, scores, atol=1e-5, rtol=0)


def test_its_tokens_are_classified_alone_too():
    model = mobilebert(auto_class=AutoModelForTokenClassification, num_labels=2)
    ids, mask = texts()
    batch = ResponseBatch(ids[:, :1], mask[:, :1], ids[:, 1:], mask[:, 1:])
    with pytest.warns(TokenCreditWarning, match="does not hide padding"):
        logits = token_classifier_logits(model, batch)
    with torch.no_grad():
        one = model(input_ids=ids[:1, :4]).logits[0, 1:]
    torch.testing.assert_close(logits[0, :3], one, atol=1e-5, rtol=0)


def test_its_scores_by_embeddings_and_their_gradients():
    model = mobilebert()
    ids, mask = texts()
    batch = ResponseBatch(ids[:, :1], mask[:, :1], ids[:, 1:], mask[:, 1:])
    embeddings = response_embeddings(model, batch).requires_grad_()
    with pytest.warns(TokenCreditWarning, match="does not hide padding"):
        scores = score_of_embeddings(model, batch)(embeddings)
    torch.testing.assert_close(scores, alone(model, ids), atol=1e-5, rtol=0)
    (gradient,) = torch.autograd.grad(scores[0], embeddings)
    assert gradient[0, :3].abs().sum() > 0
    assert gradient[1:].abs().sum() == 0


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "albert"])
def test_what_hides_padding_goes_together(architecture):
    model = tiny_model(architecture)
    ids, _ = texts()
    assert hides_padding(model)
    assert len(separate_passes(model, ids, torch.tensor(LENGTHS), causal=False)) == 1


def test_the_trial_leaves_mode_and_random_numbers_as_they_were():
    model = tiny_model("bert").train()
    state = torch.random.get_rng_state()
    hides_padding(model)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("architecture", ["bart", "t5"])
def test_ends_of_sequence_need_not_be_equally_many(architecture):
    model = tiny_model(architecture, eos_token_id=END)
    ids, mask = texts(ended=True)
    scores = reward_model_output(model, ids, mask).sequence_scores
    torch.testing.assert_close(scores, alone(model, ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ["bart", "t5"])
def test_without_an_end_of_sequence_there_is_no_place_to_read(architecture):
    ids, mask = texts()
    with pytest.raises(DataError, match=r"rows \[0, 1, 2\] do not hold the token 1"):
        reward_model_output(tiny_model(architecture, eos_token_id=END), ids, mask)


def test_padding_that_is_an_end_of_sequence_is_kept_away():
    model = tiny_model("bart", eos_token_id=END, pad_token_id=END)
    ids, mask = texts(ended=True)
    scores = reward_model_output(model, ids, mask).sequence_scores
    torch.testing.assert_close(scores, alone(model, ids), atol=1e-5, rtol=0)


def test_a_pad_id_that_the_architecture_needs():
    model = tiny_model("t5", eos_token_id=END)
    model.config.pad_token_id = None
    ids, mask = texts(ended=True)
    with pytest.raises(ModelError, match="pad_token_id"):
        reward_model_output(model, ids, mask)


def test_no_pad_id_and_rows_of_other_lengths():
    model = tiny_model("bert")
    model.config.pad_token_id = None
    ids, mask = texts()
    assert len(separate_passes(model, ids, torch.tensor(LENGTHS), causal=False)) == 3
    scores = reward_model_output(model, ids, mask).sequence_scores
    torch.testing.assert_close(scores, alone(model, ids), atol=1e-5, rtol=0)


def test_positions_of_another_scale_are_those_of_the_text_itself():
    model = tiny_model("phi3")
    assert rescaling_length(model) == 8
    ids, mask = texts()
    output = reward_model_output(model, ids, mask, attention_layer=-1)
    torch.testing.assert_close(output.sequence_scores, alone(model, ids), atol=1e-5, rtol=0)
    with torch.no_grad():
        prefixes = [model(input_ids=ids[1:2, :end]).logits[0, 0] for end in range(1, 12)]
        whole = model(input_ids=ids[1:2])
        assert whole.logits.shape == (1, 1)
    torch.testing.assert_close(output.position_scores[1], torch.stack(prefixes), atol=1e-5, rtol=0)
    for row, length in enumerate(LENGTHS):
        single = reward_model_output(
            model, ids[row : row + 1, :length], mask[row : row + 1, :length], attention_layer=-1
        )
        torch.testing.assert_close(
            output.attention[row, :length], single.attention[0], atol=1e-5, rtol=0
        )
    decoded = sequence_scores(model, ids, torch.tensor(LENGTHS))
    torch.testing.assert_close(decoded, output.sequence_scores, atol=1e-5, rtol=0)


def test_a_model_that_only_says_that_it_is_causal():
    model = tiny_model("llama")
    trunk = model.model
    original = trunk.forward

    def forward(*args, **kwargs):
        output = original(*args, **kwargs)
        states = output.last_hidden_state
        output.last_hidden_state = states + states.mean(1, keepdim=True)
        return output

    trunk.forward = forward
    ids, mask = texts()
    with pytest.raises(ModelError, match="later tokens change"):
        reward_model_output(model, ids, mask)


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    run(folder, ["t5", "phi3"])
    return folder


@pytest.mark.parametrize("architecture", ["t5", "phi3"])
def test_processes_that_share_weights_make_as_many_passes(architecture, of_two_processes):
    """One needs a single pass, the other several: without as many, both would wait for ever."""
    model = model_of(architecture).eval()
    sides = [reward_model_output(model, *texts_of(rank)).sequence_scores for rank in (0, 1)]
    (sides[0].sum() + sides[1].sum()).div(2).backward()
    first, second = (torch.load(of_two_processes / f"{architecture}-{at}.pt") for at in (0, 1))
    assert first["passes"] == second["passes"] > 1
    for told, scores in zip((first, second), sides, strict=True):
        torch.testing.assert_close(told["scores"], scores.detach(), rtol=1e-4, atol=1e-5)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and name in told["gradients"]:
                torch.testing.assert_close(
                    told["gradients"][name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name
                )
    assert len(first["gradients"]) == sum(p.grad is not None for p in model.parameters())
