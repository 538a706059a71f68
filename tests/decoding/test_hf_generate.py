import math

import pytest
import torch
from tiny_guides import language_model, next_logits_of, prompts, responses, score_of
from tiny_models import PAD_ID, VOCAB_SIZE, tiny_ids, tiny_model
from torch import nn

from tokencredit.decoding.candidates.hf_packed import PackedScorer
from tokencredit.decoding.candidates.hf_scorers import FullScorer, VocabScorer
from tokencredit.decoding.candidates.hf_shared_trunk import SharedTrunkScorer
from tokencredit.decoding.hf_generate import GuidedOutput, guided_generate
from tokencredit.decoding.hf_guide import RewardGuide
from tokencredit.errors import ConfigError, DataError, ModelError

LOOP = {"custom_generate": guided_generate}
EARLY = 2


def guide_of(architecture="llama", **options):
    settings = {"guidance_beta": 1.0, "top_k": 4} | options
    return RewardGuide(PackedScorer(tiny_model(architecture)), **settings)


def an_end(model, guide, ids, mask):
    """A token that ends the first response early."""
    return int(responses(model, guide, ids, mask)[0, EARLY])


@pytest.mark.parametrize("architecture", ["gpt2", "mistral"])
def test_the_loop_gives_the_tokens_of_generate(architecture):
    model = language_model(architecture)
    ids, mask = prompts()
    guide = guide_of()
    end = an_end(model, guide, ids, mask)
    for options in (
        {},
        {"eos_token_id": end},
        {"eos_token_id": [end, 7], "min_new_tokens": 4},
        {"repetition_penalty": 1.3},
        {"num_return_sequences": 2, "do_sample": True, "top_k": 0, "temperature": 0.7},
    ):
        torch.manual_seed(4)
        expected = responses(model, guide, ids, mask, **options)
        guide.attention_mask = None
        torch.manual_seed(4)
        found = responses(model, guide, ids, mask, **LOOP, **options)
        assert found.tolist() == expected.tolist()


def test_a_prompt_without_padding_needs_no_mask():
    model = language_model()
    ids = tiny_ids(1, 5)
    sequences = model.generate(ids, logits_processor=[guide_of()], max_new_tokens=4, **LOOP)
    counts = torch.ones_like(ids).bool()
    expected = responses(model, guide_of(), ids, counts, max_new_tokens=4)
    assert sequences[:, 5:].tolist() == expected.tolist()


def test_rows_that_finished_are_not_scored_and_change_nothing():
    model = language_model()
    ids, mask = prompts()
    guide = guide_of()
    endless = responses(model, guide, ids, mask, max_new_tokens=6, **LOOP)
    end = an_end(model, guide, ids, mask)
    seen = []
    scorer = guide.scorer

    def watched(batch):
        seen.append(batch.active.tolist())
        scores = scorer(batch)
        return scores._replace(
            candidates=scores.candidates.masked_fill(~batch.candidate_mask, math.nan),
            prefix=scores.prefix.masked_fill(~batch.active, math.nan),
        )

    watched.vocab = VOCAB_SIZE
    guide.scorer = watched
    output = responses_with_record(model, guide, ids, mask, eos_token_id=end)
    found = output.sequences[:, ids.shape[1] :]
    for row in range(len(ids)):
        tokens = endless[row].tolist()
        stop = tokens.index(end) + 1 if end in tokens else len(tokens)
        assert found[row, :stop].tolist() == tokens[:stop]
        assert found[row, stop:].tolist() == [PAD_ID] * (found.shape[1] - stop)
        assert [step[row] for step in seen] == [t < stop for t in range(found.shape[1])]
    for name, value in output.items():
        assert bool(value.isfinite().all()), name
        if name != "sequences":
            assert not value[~output.response_mask].any(), name


def responses_with_record(model, guide, ids, mask, **options):
    settings = {"max_new_tokens": 6, "do_sample": False} | options
    output = model.generate(
        ids,
        attention_mask=mask.long(),
        logits_processor=[guide],
        return_dict_in_generate=True,
        **LOOP,
        **settings,
    )
    assert isinstance(output, GuidedOutput)
    return output


def test_the_record_tells_what_was_known_at_each_token():
    model, reward_model = language_model(), tiny_model("gpt2")
    ids, mask = prompts()
    guide = RewardGuide(PackedScorer(reward_model), guidance_beta=1.5, top_k=4)
    output = responses_with_record(
        model, guide, ids, mask, do_sample=True, temperature=0.5, top_k=0
    )
    score, next_logits = score_of(reward_model), next_logits_of(model)
    row = 1
    text = ids[row][mask[row]].tolist()
    for t, token in enumerate(output.sequences[row, ids.shape[1] :].tolist()):
        logprobs = torch.tensor(next_logits(text)).log_softmax(-1)
        candidates = logprobs.topk(4).indices.tolist()
        scores = [score([*text, candidate]) for candidate in candidates]
        law = ((logprobs[candidates] + 1.5 * torch.tensor(scores)) / 0.5).log_softmax(-1)
        chosen = candidates.index(token)
        assert output.candidate_ids[row, t].tolist() == candidates
        expected = {
            "candidate_scores": scores,
            "candidate_logprobs": logprobs[candidates].tolist(),
            "chosen_scores": scores[chosen],
            "prefix_scores": score(text),
            "lm_logprobs": float(logprobs[token]),
            "guided_logprobs": float(law[chosen]),
            "guidance_kl": float((law.exp() * (law - logprobs[candidates])).sum()),
        }
        for name, value in expected.items():
            found = output[name][row, t].tolist()
            assert found == pytest.approx(value, rel=1e-3, abs=1e-4), name
        text.append(token)
    assert output.response_mask.all()


def test_the_record_is_as_wide_as_the_widest_step():
    model = language_model()
    ids, mask = prompts()
    guide = guide_of(top_k=0, min_p=0.3)
    output = responses_with_record(model, guide, ids, mask)
    widths = output.candidate_mask.sum(-1)
    assert int(widths.max()) == output.candidate_ids.shape[-1]
    assert len(widths.unique()) > 1
    assert not output.candidate_scores[~output.candidate_mask].any()


def test_the_whole_vocabulary_is_not_written_down(monkeypatch):
    monkeypatch.setattr("tokencredit.decoding.hf_generate._RECORDED", VOCAB_SIZE - 1)
    model = language_model()
    ids, mask = prompts()
    guide = RewardGuide(VocabScorer(model, scores="logprobs"), guidance_beta=1.0, top_k=0)
    output = responses_with_record(model, guide, ids, mask)
    assert output.candidate_ids is None
    assert output.chosen_scores is not None
    torch.testing.assert_close(output.chosen_scores, output.lm_logprobs, rtol=1e-4, atol=1e-5)


class Head(nn.Module):
    """A value on the hidden states of a language model."""

    def __init__(self, width=32, outputs=1):
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        with torch.no_grad():
            self.linear.weight.normal_(generator=torch.Generator().manual_seed(1))

    def forward(self, hidden):
        return self.linear(hidden)


def classifier_on(model, architecture, head):
    """The same trunk and head as a sequence classifier."""
    classifier = tiny_model(architecture)
    classifier.base_model.load_state_dict(model.base_model.state_dict())
    classifier.score = head
    return classifier


@pytest.mark.parametrize("architecture", ["gpt2", "mistral", "gemma3_text"])
def test_a_head_on_the_trunk_scores_in_the_pass_that_predicts(architecture):
    model, head = language_model(architecture), Head()
    ids, mask = prompts()
    passes = []
    model.base_model.register_forward_hook(lambda *_: passes.append(1))
    scorer = SharedTrunkScorer(model, head)
    guide = RewardGuide(scorer, guidance_beta=2.0, top_k=4)
    found = responses(model, guide, ids, mask, **LOOP)
    assert len(passes) == 1 + 8, "one for the prompt, one for each token"
    full = FullScorer(classifier_on(model, architecture, head))
    expected = responses(model, RewardGuide(full, guidance_beta=2.0, top_k=4), ids, mask)
    assert found.tolist() == expected.tolist()
    assert responses(model, guide, ids, mask).tolist() == expected.tolist(), "in plain generate"
    end = int(expected[0, EARLY])
    passes.clear()
    ended = responses(model, guide, ids, mask, eos_token_id=end, **LOOP)
    assert len(passes) == 1 + ended.shape[1]
    again = responses(
        model, RewardGuide(full, guidance_beta=2.0, top_k=4), ids, mask, eos_token_id=end
    )
    assert ended.tolist() == again.tolist()


def test_the_trunk_of_another_model_only_scores():
    model, other = language_model(), language_model("gpt2")
    ids, mask = prompts()
    guide = RewardGuide(SharedTrunkScorer(other, Head()), guidance_beta=1.0, top_k=4)
    found = responses(model, guide, ids, mask, **LOOP)
    full = FullScorer(classifier_on(other, "gpt2", Head()))
    expected = responses(model, RewardGuide(full, guidance_beta=1.0, top_k=4), ids, mask)
    assert found.tolist() == expected.tolist()


def test_a_trunk_that_takes_no_mask_of_ours():
    with pytest.raises(ModelError, match="does not take a mask of our own"):
        SharedTrunkScorer(language_model("bloom", attn_implementation="eager"), Head())


def test_the_generator_of_random_numbers():
    model = language_model()
    ids, mask = prompts()
    draws = [
        responses(
            model,
            guide_of(),
            ids,
            mask,
            do_sample=True,
            generator=torch.Generator().manual_seed(seed),
            **LOOP,
        ).tolist()
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


@pytest.mark.parametrize("processors", [[], [guide_of(), guide_of()]], ids=["none", "two"])
def test_the_loop_needs_one_guide(processors):
    with pytest.raises(ConfigError, match=f"there are {len(processors)} guides"):
        language_model().generate(
            tiny_ids(1, 4), logits_processor=processors, max_new_tokens=2, **LOOP
        )


def test_the_loop_has_no_beams():
    with pytest.raises(ConfigError, match="num_beams is 2"):
        responses(language_model(), guide_of(), *prompts(), num_beams=2, **LOOP)


def test_a_response_that_does_not_fit_the_language_model():
    model = language_model("gpt2", max_position_embeddings=12)
    ids, mask = prompts()
    assert responses(model, guide_of(), ids, mask, max_new_tokens=6, **LOOP).shape == (3, 6)
    with pytest.raises(DataError, match="has 13 tokens and GPT2LMHeadModel reads at most 12"):
        responses(model, guide_of(), ids, mask, max_new_tokens=7, **LOOP)
