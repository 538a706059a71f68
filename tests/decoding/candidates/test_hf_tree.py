import copy

import pytest
import torch
from tiny_guides import language_model, score_of
from tiny_models import tiny_model
from tiny_tokenizers import byte_level, unigram, wordpiece

from tokencredit.decoding.candidates.hf_candidate_texts import CandidateTexts
from tokencredit.decoding.candidates.hf_choice import text_scorer
from tokencredit.decoding.candidates.hf_tree import TextScorer, TokenTree, TreeScorer, token_tree
from tokencredit.decoding.candidates.scores import CandidateBatch
from tokencredit.decoding.hf_generate import guided_generate
from tokencredit.decoding.hf_guide import RewardGuide
from tokencredit.errors import DataError, ModelError
from tokencredit.models.hf_vocabularies import shared_vocabulary
from tokencredit.text.hf_reading import Reading

PROMPTS = ["the film is good", "a café", "rate the plot 日本"]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level(merges=60)


@pytest.fixture(scope="module")
def reward_tokenizer():
    """Knows il, ilm and film: the f of fil is a token, which the m takes back."""
    parts = "il,il,il,il,ilm,ilm,ilm,film,film"
    return byte_level(merges=25, bos=True, texts=["slow café, the 日本 good bad", parts] * 3)


def reward_model_for(tokenizer, architecture="mistral", **options):
    return tiny_model(
        architecture, vocab_size=len(tokenizer), max_position_embeddings=256, **options
    )


def encoded(tokenizer, texts=PROMPTS):
    rows = [tokenizer(text)["input_ids"] for text in texts]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    for row, own in enumerate(rows):
        ids[row, width - len(own) :] = torch.tensor(own)
    return ids, ids != tokenizer.pad_token_id


def read_by(reading, tokenizer, prompts=("",) * 3, *, width=0, turn_ends=()):
    """What a reading makes of candidates; without prompts all of the text is the response."""
    if not isinstance(reading, Reading):
        reading = Reading(reading)
    return CandidateTexts(
        tokenizer, reading, prompts=prompts, prompt_width=width, turn_ends=turn_ends
    )


def drawn(tokenizer, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, len(tokenizer), shape, generator=generator)


def whole_text(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd")


def test_a_tree_by_hand():
    tree = token_tree([[1, 2, 3], [1, 2, 4, 5], [1, 2, 4, 6]])
    assert tree == TokenTree([1, 2], [3, 4, 5, 6], [-1, -1, 1, 1], [0, 2, 3])


def test_the_trunk_is_never_the_whole_of_a_path():
    assert token_tree([[1, 2], [1, 2], [1, 2, 3]]) == TokenTree([1], [2, 3], [-1, 0], [0, 0, 1])
    assert token_tree([[7]]) == TokenTree([], [7], [-1], [0])


def test_every_path_can_be_read_from_the_tree():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        lengths = torch.randint(1, 6, (4,), generator=generator).tolist()
        paths = [torch.randint(0, 2, (n,), generator=generator).tolist() for n in lengths]
        tree = token_tree(paths)
        for path, end in zip(paths, tree.ends, strict=True):
            behind = []
            while end >= 0:
                behind.append(tree.tokens[end])
                end = tree.parents[end]
            assert tree.trunk + behind[::-1] == path
        assert len({*zip(tree.parents, tree.tokens, strict=True)}) == len(tree.tokens)


@pytest.mark.parametrize("architecture", ["mistral", "gpt2", "gemma3_text"])
def test_scores_are_those_of_the_text_read_by_the_other_model(
    architecture, tokenizer, reward_tokenizer
):
    model = reward_model_for(reward_tokenizer, architecture)
    texts = read_by(reward_tokenizer, tokenizer)
    tree, full, score = TreeScorer(model, texts), TextScorer(model, texts), score_of(model)
    ids, mask = encoded(tokenizer)
    rolled_back, held = 0, []
    # Letter by letter, so that what they make up becomes other tokens again and again.
    words = [tokenizer.convert_tokens_to_ids([*word]) for word in ("!film.", "Ġslow,", ",filmĠ")]
    spelt = torch.tensor(words)
    for step in range(6):
        candidates = drawn(tokenizer, 3, 4, seed=step)
        candidates[:, 0] = spelt[:, step]
        counts = torch.ones_like(candidates).bool()
        found, slow = (
            scorer(CandidateBatch(ids, mask, candidates, counts)) for scorer in (tree, full)
        )
        torch.testing.assert_close(found.candidates, slow.candidates, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.prefix, slow.prefix, rtol=1e-4, atol=1e-5)
        row = step % 3
        own = ids[row][mask[row]].tolist()
        read = reward_tokenizer(whole_text(tokenizer, [*own, int(candidates[row, 1])]))
        expected = score(read["input_ids"])
        assert float(found.candidates[row, 1]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
        rolled_back += sum(
            [token for token, _ in now[: len(old)]] != [token for token, _ in old]
            for now, old in zip(tree._held, held, strict=False)
        )
        held = [list(row) for row in tree._held]
        ids = torch.cat([ids, candidates[:, :1]], dim=-1)
        mask = torch.cat([mask, torch.ones(3, 1).bool()], dim=-1)
    assert rolled_back, "no step changed tokens before it: the test is too easy"


def test_any_text_may_follow_any_other(tokenizer, reward_tokenizer):
    model = reward_model_for(reward_tokenizer)
    texts = read_by(reward_tokenizer, tokenizer)
    tree, full = TreeScorer(model, texts), TextScorer(model, texts)
    ids, mask = encoded(tokenizer)
    candidates = drawn(tokenizer, 3, 3)
    for rows, width, active in [
        ([0, 1, 2], ids.shape[1], [True, True, True]),
        ([0, 1, 2], ids.shape[1] - 3, [True, False, True]),
        ([2, 1, 0], ids.shape[1], [True, True, True]),
        ([1], ids.shape[1], [True]),
        ([1, 1], ids.shape[1], [False, False]),
        ([0, 1, 2], ids.shape[1], [False, True, True]),
    ]:
        counts = torch.tensor(active)[:, None].expand(-1, 3)
        told = CandidateBatch(
            ids[rows, :width], mask[rows, :width], candidates[: len(rows)], counts
        )
        texts.prompts = [""] * len(rows)
        found, slow = tree(told), full(told)
        torch.testing.assert_close(found.candidates, slow.candidates, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.prefix, slow.prefix, rtol=1e-4, atol=1e-5)


def test_holes_in_the_cache_do_not_pile_up(tokenizer, reward_tokenizer):
    model = reward_model_for(reward_tokenizer)
    tree = TreeScorer(model, read_by(reward_tokenizer, tokenizer, [""]))
    ids, mask = encoded(tokenizer, PROMPTS[:1])
    candidates = drawn(tokenizer, 1, 3)
    widths = []
    for step in range(40):
        told = torch.cat([ids[:, :1], drawn(tokenizer, 1, 8, seed=step)], dim=-1)
        tree(
            CandidateBatch(
                told, torch.ones_like(told).bool(), candidates, torch.ones_like(candidates).bool()
            )
        )
        widths.append(tree.packed.width)
    assert max(widths) < 150
    assert mask.all()


def test_a_candidate_inside_a_character_has_the_score_of_the_text_before(
    tokenizer, reward_tokenizer
):
    model = reward_model_for(reward_tokenizer)
    texts = read_by(reward_tokenizer, tokenizer, [""])
    pieces = byte_level(merges=0)("good 🙂")["input_ids"]
    first, last = pieces[-4], pieces[-1]
    assert tokenizer.convert_ids_to_tokens([first, last]) == (
        byte_level(merges=0).convert_ids_to_tokens([first, last])
    )
    text = pieces[:-4]
    score = score_of(model)
    plain = score(reward_tokenizer("good ")["input_ids"])
    tree = TreeScorer(model, texts)
    for known in range(4):  # none, one, two and three bytes of the character are there
        ids = torch.tensor([[*text, *pieces[len(text) : len(text) + known]]])
        following = torch.tensor([[pieces[len(text) + known], pieces[0]]])
        counts = torch.ones_like(following).bool()
        scores = tree(CandidateBatch(ids, torch.ones_like(ids).bool(), following, counts))
        assert float(scores.prefix) == pytest.approx(plain, rel=1e-4)
        if known < 3:
            assert float(scores.candidates[0, 0]) == pytest.approx(plain, rel=1e-4)
        else:
            whole = score(reward_tokenizer("good 🙂")["input_ids"])
            assert float(scores.candidates[0, 0]) == pytest.approx(whole, rel=1e-4)
            assert abs(whole - plain) > 1e-3


@pytest.mark.parametrize("append_eos", [True, False])
def test_a_candidate_that_ends_the_response_closes_it(append_eos, tokenizer, reward_tokenizer):
    """By the other model's own end of sequence, where it reads one."""
    model = reward_model_for(reward_tokenizer)
    ids, mask = encoded(tokenizer, PROMPTS[:1])
    ends = torch.tensor([[tokenizer.eos_token_id, 90, tokenizer.pad_token_id]])
    counts = torch.ones_like(ends).bool()
    texts = read_by(
        Reading(reward_tokenizer, append_eos=append_eos),
        tokenizer,
        [""],
        turn_ends=(tokenizer.eos_token_id, tokenizer.pad_token_id),
    )
    scores = TreeScorer(model, texts)(CandidateBatch(ids, mask, ends, counts))
    own = reward_tokenizer(PROMPTS[0])["input_ids"]
    closed = [*own, reward_tokenizer.eos_token_id] if append_eos else own
    for column in (0, 2):
        assert float(scores.candidates[0, column]) == pytest.approx(
            score_of(model)(closed), rel=1e-4
        )
    assert float(scores.prefix[0]) == pytest.approx(score_of(model)(own), rel=1e-4)


TURNS = (
    "{% for m in messages %}<bos>{{ m['role'] }}\n{{ m['content'] | trim }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
)


@pytest.mark.parametrize("scorer_class", [TreeScorer, TextScorer])
def test_candidates_are_read_as_the_responses_that_they_make(
    scorer_class, tokenizer, reward_tokenizer
):
    """In the reward model's template, which trims an answer, open or closed."""
    reward_tokenizer = copy.deepcopy(reward_tokenizer)
    reward_tokenizer.chat_template = TURNS
    model = reward_model_for(reward_tokenizer, "gpt2")
    ids, mask = encoded(tokenizer)
    width = ids.shape[1]
    ids = torch.cat([ids, drawn(tokenizer, 3, 5)], dim=-1)
    mask = torch.cat([mask, torch.ones(3, 5).bool()], dim=-1)
    reading = Reading(reward_tokenizer, "chat")
    texts = read_by(reading, tokenizer, PROMPTS, width=width, turn_ends=(tokenizer.eos_token_id,))
    scorer, score = scorer_class(model, texts), score_of(model)
    space = tokenizer.convert_tokens_to_ids("Ġ")
    for time in (width, width + 2, width + 5):
        candidates = torch.tensor([[tokenizer.eos_token_id, 90, space, 200]] * 3)
        counts = torch.ones_like(candidates).bool()
        scores = scorer(CandidateBatch(ids[:, :time], mask[:, :time], candidates, counts))
        for row in range(3):
            own = ids[row, :time][mask[row, :time]].tolist()
            for column, token in enumerate([None, *candidates[row].tolist()]):
                told = own if token is None else [*own, token]
                response = whole_text(tokenizer, told)[len(PROMPTS[row]) :]
                read = reading.encoded([PROMPTS[row]], [response], ended=column == 1, empty="keep")
                whole = read.batch.input_ids[0][read.attention_mask[0].bool()].tolist()
                found = scores.prefix[row] if column == 0 else scores.candidates[row, column - 1]
                assert float(found) == pytest.approx(score(whole), rel=1e-4, abs=1e-5)


def test_an_encoder_with_a_tokenizer_of_its_own(tokenizer):
    reads = wordpiece()
    model = reward_model_for(reads, "bert", type_vocab_size=2)
    ids, mask = encoded(tokenizer)
    candidates = drawn(tokenizer, 3, 3)
    counts = torch.ones_like(candidates).bool()
    texts = read_by(reads, tokenizer)
    scores = TextScorer(model, texts, micro_batch_size=2)(
        CandidateBatch(ids, mask, candidates, counts)
    )
    own = [*ids[1][mask[1]].tolist(), int(candidates[1, 2])]
    told = reads(whole_text(tokenizer, own), return_tensors="pt")
    with torch.no_grad():
        expected = model(told["input_ids"], attention_mask=told["attention_mask"]).logits[0, 0]
    torch.testing.assert_close(scores.candidates[1, 2], expected, rtol=1e-4, atol=1e-5)
    assert type(text_scorer(model, texts)) is TextScorer
    with pytest.raises(ModelError, match="gives prefixes no score"):
        TreeScorer(model, texts)


def test_generation_is_that_of_the_full_re_run(tokenizer, reward_tokenizer):
    model = language_model(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    reward_model = reward_model_for(reward_tokenizer)
    texts = read_by(reward_tokenizer, tokenizer)
    ids, mask = encoded(tokenizer)
    chosen = text_scorer(reward_model, texts)
    found = [
        model.generate(
            ids,
            attention_mask=mask.long(),
            logits_processor=[RewardGuide(scorer, guidance_beta=1.0, top_k=5)],
            custom_generate=guided_generate,
            max_new_tokens=8,
            do_sample=False,
            pad_token_id=0,
        ).tolist()
        for scorer in (chosen, TextScorer(reward_model, texts))
    ]
    assert found[0] == found[1]
    assert type(chosen.scorer) is TreeScorer


@pytest.mark.parametrize("scorer_class", [TreeScorer, TextScorer])
def test_a_text_that_outgrows_the_model(scorer_class, tokenizer, reward_tokenizer):
    model = tiny_model("gpt2", vocab_size=len(reward_tokenizer), max_position_embeddings=4)
    ids, mask = encoded(tokenizer)
    candidates = drawn(tokenizer, 3, 2)
    scorer = scorer_class(model, read_by(reward_tokenizer, tokenizer))
    with pytest.raises(DataError, match="reads at most 4"):
        scorer(CandidateBatch(ids, mask, candidates, torch.ones_like(candidates).bool()))


def test_prompts_that_do_not_fit(tokenizer, reward_tokenizer):
    texts = read_by(reward_tokenizer, tokenizer, PROMPTS[:2], width=4)
    ids, mask = encoded(tokenizer)
    candidates = drawn(tokenizer, 3, 2)
    with pytest.raises(DataError, match="2 prompts for 3 rows"):
        texts.reward_ids(CandidateBatch(ids, mask, candidates, torch.ones_like(candidates).bool()))


def test_vocabularies_that_agree(tokenizer):
    assert shared_vocabulary(tokenizer, byte_level(merges=60)) == len(tokenizer)
    larger = byte_level(merges=60)
    larger.add_tokens(["<more>"])
    assert shared_vocabulary(tokenizer, larger) == len(tokenizer)
    assert shared_vocabulary(larger, tokenizer) == len(tokenizer)


@pytest.mark.parametrize("other", [unigram, wordpiece])
def test_vocabularies_that_only_look_alike(tokenizer, other):
    with pytest.raises(ModelError, match="ids mean different tokens"):
        shared_vocabulary(tokenizer, other())
