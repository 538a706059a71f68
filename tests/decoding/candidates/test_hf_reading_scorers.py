"""Candidates scored as the reward model reads the responses that they make."""

import pytest
import torch
from tiny_guides import language_model, score_of
from tiny_models import tiny_model
from tiny_tokenizers import CHAT_TEMPLATE, byte_level

from tokencredit.batch import ResponseBatch
from tokencredit.decoding.candidates.hf_choice import candidate_scorer
from tokencredit.decoding.candidates.hf_reading_scorers import FramedScorer, ResponseCandidates
from tokencredit.decoding.candidates.hf_scorers import VocabScorer
from tokencredit.decoding.candidates.scores import CandidateBatch
from tokencredit.text.hf_reading import Reading
from tokencredit.text.hf_written_rows import written_rows

OWN_TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}"
    "{{ '<eos>' if m['role'] == 'assistant' }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
ASKED = ["the film", [{"role": "user", "content": "a very good plot"}], "hello"]
EOS, OTHER_END = 2, 3
READINGS = {
    "closed by two tokens": lambda tokenizer: Reading(tokenizer, "chat"),
    "closed by one": lambda tokenizer: Reading(tokenizer, "plain", append_eos=True),
    "not closed": lambda tokenizer: Reading(tokenizer, "plain"),
}


def tokenizer_of():
    return byte_level(chat_template=OWN_TEMPLATE)


def written(tokenizer, prompts, tokens=5):
    """Prompts in another rendering than the reward model's, and some tokens after each."""
    rows = [tokenizer(f"? {prompt} !")["input_ids"] for prompt in prompts]
    batch = ResponseBatch.of_rows(rows, [[]] * len(rows), pad_token_id=0)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(4, len(tokenizer), (len(rows), tokens), generator=generator)
    return batch.prompt_ids, batch.prompt_mask, drawn


def asked_of(name):
    return ASKED if name == "closed by two tokens" else ["the film", "a very good plot", "hello"]


def expected_score(model, reading, prompt_ids, prompt_mask, asked, response):
    """The score of one response as `written_rows` has the reward model read it."""
    ends = response[-1:] in ([EOS], [OTHER_END])
    told = ResponseBatch(
        prompt_ids[None],
        prompt_mask[None],
        torch.tensor([response or [0]]),
        torch.tensor([[True] * len(response) or [False]]),
    )
    rows = written_rows(reading, told, [asked], torch.tensor([ends]))
    return score_of(model)(rows.batch.input_ids[0][rows.attention_mask[0]].tolist())


@pytest.mark.parametrize("method", ["packed", "rows", "full"])
@pytest.mark.parametrize("name", READINGS)
def test_scores_are_those_of_the_responses_as_they_are_read(name, method):
    tokenizer = tokenizer_of()
    model = tiny_model("mistral", vocab_size=len(tokenizer), max_position_embeddings=128)
    reading, asked = READINGS[name](tokenizer), asked_of(name)
    prompt_ids, prompt_mask, drawn = written(tokenizer, [str(one) for one in asked])
    scorer = FramedScorer(
        candidate_scorer(model, method=method),
        reading,
        prompt_ids,
        prompt_mask,
        asked,
        turn_ends=(EOS, OTHER_END),
    )
    for time in (0, 1, 3, 4):  # ends among the candidates come and go
        ids = torch.cat([prompt_ids, drawn[:, :time]], dim=-1)
        mask = torch.cat([prompt_mask, torch.ones(3, time).bool()], dim=-1)
        candidates = torch.tensor([[90, EOS, 120], [OTHER_END, 91, 92], [EOS, OTHER_END, 30]])
        counts = torch.tensor([[True, time != 1, True], [time == 3, True, True], [True] * 3])
        counts[2, 2] = time != 4  # nothing but ends
        found = scorer(CandidateBatch(ids, mask, candidates, counts))
        for row in range(3):
            told = (model, reading, prompt_ids[row], prompt_mask[row], asked[row])
            own = drawn[row, :time].tolist()
            expected = expected_score(*told, own)
            assert float(found.prefix[row]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
            for column in counts[row].nonzero().flatten().tolist():
                expected = expected_score(*told, [*own, int(candidates[row, column])])
                score = float(found.candidates[row, column])
                assert score == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_rows_may_be_closed_by_different_tokens_and_be_finished():
    """An empty prompt is read as plain text by every model, and so closed in another way."""
    tokenizer = tokenizer_of()
    model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=128)
    reading = Reading(tokenizer, "chat")
    asked = ["the film", "", "hello"]
    prompt_ids, prompt_mask, drawn = written(tokenizer, asked)
    scorer = FramedScorer(
        candidate_scorer(model), reading, prompt_ids, prompt_mask, asked, turn_ends=(EOS,)
    )
    ids, mask = torch.cat([prompt_ids, drawn], -1), torch.cat([prompt_mask, drawn > 0], -1)
    candidates = torch.tensor([[EOS, 9]] * 3)
    counts = torch.tensor([[True, True], [True, True], [False, False]])
    found = scorer(CandidateBatch(ids, mask, candidates, counts))
    for row in range(2):
        told = (model, reading, prompt_ids[row], prompt_mask[row], asked[row])
        expected = expected_score(*told, [*drawn[row].tolist(), EOS])
        assert float(found.candidates[row, 0]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert found.candidates[1, 0] == found.prefix[1]  # nothing closes it


def test_prompts_that_are_ids_alone_stay_what_they_are_for_a_model_that_joins_texts():
    tokenizer = tokenizer_of()
    model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=128)
    prompt_ids, prompt_mask, drawn = written(tokenizer, ["the film", "a"])
    plain = candidate_scorer(model, method="full")
    framed = FramedScorer(plain, Reading(tokenizer), prompt_ids, prompt_mask, None)
    ids, mask = torch.cat([prompt_ids, drawn], -1), torch.cat([prompt_mask, drawn > 0], -1)
    batch = CandidateBatch(ids, mask, torch.tensor([[EOS, 9]] * 2), torch.ones(2, 2).bool())
    torch.testing.assert_close(framed(batch).candidates, plain(batch).candidates)


def test_a_model_over_the_vocabulary_reads_its_own_prompt_and_scores_the_end_itself():
    tokenizer = byte_level(chat_template=CHAT_TEMPLATE)
    model = language_model(vocab_size=len(tokenizer), max_position_embeddings=128)
    reading = Reading(tokenizer, "chat")
    prompt_ids, prompt_mask, drawn = written(tokenizer, ["the film", "hello"])
    scorer = FramedScorer(
        VocabScorer(model, scores="logits"), reading, prompt_ids, prompt_mask, ["the film", "hello"]
    )
    ids, mask = torch.cat([prompt_ids, drawn], -1), torch.cat([prompt_mask, drawn > 0], -1)
    candidates = torch.tensor([[EOS, 9, 40]] * 2)
    found = scorer(CandidateBatch(ids, mask, candidates, torch.ones(2, 3).bool()))
    for row, prompt in enumerate(["the film", "hello"]):
        head = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
        )
        logits = model(input_ids=torch.tensor([[*head, *drawn[row].tolist()]])).logits[0, -1]
        torch.testing.assert_close(
            found.candidates[row], logits[candidates[row]], rtol=1e-4, atol=1e-5
        )


def test_each_candidate_as_a_response_of_its_own():
    ids = torch.tensor([[0, 5, 6], [7, 8, 9], [0, 4, 4]])
    mask = torch.tensor([[False, True, True], [True] * 3, [False, True, True]])
    candidates = torch.tensor([[10, 11], [12, 13], [14, 14]])
    counts = torch.tensor([[True, True], [False, True], [False, False]])
    asked = []

    def score(batch, prompts):
        rows = zip(batch.prompt_ids, batch.prompt_mask, strict=True)
        texts = zip(batch.response_ids, batch.response_mask, strict=True)
        asked.extend(
            (number, prompt[real].tolist(), text[there].tolist())
            for number, (prompt, real), (text, there) in zip(
                prompts.tolist(), rows, texts, strict=True
            )
        )
        return torch.tensor([float(text[there].sum()) for text, there in _rows(batch)])

    def _rows(batch):
        return zip(batch.response_ids, batch.response_mask, strict=True)

    found = ResponseCandidates(score, 2)(CandidateBatch(ids, mask, candidates, counts))
    assert asked == [
        (0, [5], [6]),
        (0, [5], [6, 10]),
        (0, [5], [6, 11]),
        (1, [7, 8], [9]),
        (1, [7, 8], [9, 13]),
    ]
    assert found.candidates.tolist() == [[16.0, 17.0], [0.0, 22.0], [0.0, 0.0]]
    assert found.prefix.tolist() == [6.0, 9.0, 0.0]
