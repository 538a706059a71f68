"""Several sources of reward: combined before credit, or each with a credit of its own."""

import sys
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from readings import written_by
from saved_models import save_reward_model
from tiny_tokenizers import byte_level, word_level, wordpiece
from transformers import AutoModelForTokenClassification

from tokencredit.aggregation.methods import (
    CombinationSettings,
    combined_scores,
    combining_weights,
)
from tokencredit.aggregation.transforms import RunningMoments, ScoreSettings
from tokencredit.batch import RewardScorer, TokenScorer
from tokencredit.credit.prefixes import prefix_difference_credit
from tokencredit.credit.redistribution import terminal_credit, uniform_credit
from tokencredit.credit.settings import CreditSettings, ProbeSettings
from tokencredit.errors import ConfigError, DataError, ModelError
from tokencredit.scorers.rewards import CombinedScorer
from tokencredit.scorers.source_settings import RewardSource, required_sources
from tokencredit.scorers.sources import loaded_rewards
from tokencredit.scorers.text_rewards import loaded_text_rewards, other_credit, paid_texts
from tokencredit.text.hf_encoding import encode_responses
from tokencredit.text.segments import SegmentSettings

POLICY = byte_level()
PROMPTS = ["the film is", "one slow scene , then"]
RESPONSES = [" a good plot , very good", " bad"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two reward models of other sizes and tokenizers, an encoder, and a function."""
    folder = tmp_path_factory.mktemp("sources")
    torch.manual_seed(0)
    save_reward_model(folder / "first", byte_level())
    torch.manual_seed(1)
    save_reward_model(folder / "second", word_level())
    save_reward_model(folder / "encoder", wordpiece(), "bert")
    for name in ("facts", "style"):
        save_reward_model(
            folder / name,
            byte_level(),
            "llama",
            auto_class=AutoModelForTokenClassification,
            num_labels=2,
        )
    (folder / "my_rewards.py").write_text(
        "def shortness(prompts, responses):\n"
        "    return [-len(text) / 10 for text in responses]\n"
        "def broken(prompts, responses):\n"
        "    return [float('nan')] * len(responses)\n"
        "def few(prompts, responses):\n"
        "    return [1.0]\n"
        "def words(prompts, responses):\n"
        "    return ['good'] * len(responses)\n"
    )
    return folder


@pytest.fixture
def in_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    sys.modules.pop("my_rewards", None)
    yield folder
    sys.modules.pop("my_rewards", None)


def batch():
    return encode_responses(POLICY, PROMPTS, RESPONSES, append_eos=True).batch


def rewards_of(*sources, credit="prefix-difference", combine=None, **settings):
    return loaded_rewards(
        sources,
        CreditSettings(credit, **settings),
        SegmentSettings(),
        combine or CombinationSettings(),
        written_by(POLICY),
    )


def alone(model, credit="prefix-difference"):
    return rewards_of(RewardSource(str(model), name="x"), credit=credit)


def test_one_source_of_weight_one_is_that_source(folder):
    rewards = alone(folder / "second")
    assert isinstance(rewards, TokenScorer)
    assert isinstance(rewards.credited.scorer, RewardScorer)
    scores = rewards.sources[0].scorer(batch())
    expected = prefix_difference_credit(scores.prefix_scores, batch().response_mask)
    torch.testing.assert_close(rewards(batch()), expected)


@pytest.mark.parametrize("credit", ["terminal", "uniform", "prefix-difference"])
def test_a_weighted_sum_of_linear_credits_is_the_sum_of_the_credits(folder, credit):
    both = rewards_of(
        RewardSource(str(folder / "first"), weight=0.5),
        RewardSource(str(folder / "second"), weight=-2.0),
        credit=credit,
    )
    first, second = (alone(folder / name, credit)(batch()) for name in ("first", "second"))
    torch.testing.assert_close(both(batch()), 0.5 * first - 2.0 * second, atol=1e-5, rtol=1e-4)


def test_a_weight_counts_where_a_method_asks_again(folder):
    weighted = rewards_of(RewardSource(str(folder / "second"), weight=-2.0), credit="leave-one-out")
    once = alone(folder / "second", "leave-one-out")
    torch.testing.assert_close(weighted(batch()), -2.0 * once(batch()), atol=1e-5, rtol=1e-4)


def test_a_weight_takes_away_embeddings_and_leaves_attention(folder):
    weighted = rewards_of(RewardSource(str(folder / "first"), weight=2.0), credit="attention")
    once = alone(folder / "first", "attention")
    torch.testing.assert_close(weighted(batch()), 2.0 * once(batch()), atol=1e-5, rtol=1e-4)
    with pytest.raises(ModelError, match="expected a reward model in this process"):
        rewards_of(RewardSource(str(folder / "first"), weight=2.0), credit="gradient-times-input")


@pytest.mark.parametrize("credit", ["leave-one-out", "gradient-times-input"])
@pytest.mark.parametrize("score", [ScoreSettings("running"), ScoreSettings(clip=1.0)])
def test_a_transformed_score_and_a_method_that_asks_again_is_refused(folder, credit, score):
    with pytest.raises(ConfigError, match="expected no transform of the score"):
        rewards_of(RewardSource(str(folder / "first"), score=score), credit=credit)
    own = RewardSource(str(folder / "first"), score=score, credit=CreditSettings(credit))
    with pytest.raises(ConfigError, match="expected no transform of the score"):
        rewards_of(own)


def test_another_credit_of_transformed_scores_is_held_to_the_same(folder):
    source = RewardSource(str(folder / "first"), score=ScoreSettings(clip=1.0))
    rewards = rewards_of(source)
    with pytest.raises(ConfigError, match="expected no transform of the score"):
        other_credit(rewards, CreditSettings("shapley"))
    assert other_credit(rewards, CreditSettings("uniform")).credited.credit.method == "uniform"


def test_the_worst_case_is_taken_before_credit(folder):
    both = rewards_of(
        RewardSource(str(folder / "first")),
        RewardSource(str(folder / "second")),
        combine=CombinationSettings("worst-case"),
    )
    mask = batch().response_mask
    found = [one.scorer(batch()) for one in both.sources]
    least = torch.minimum(found[0].prefix_scores, found[1].prefix_scores)
    torch.testing.assert_close(both(batch()), prefix_difference_credit(least, mask))
    sums = both(batch()).sum(-1)
    end = torch.minimum(found[0].sequence_scores, found[1].sequence_scores)
    torch.testing.assert_close(sums, end - least[:, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["worst-case", "mean-less-deviation", "nominal-and-worst"])
@pytest.mark.parametrize("credit", ["attention", "uniform", "prefix-difference"])
def test_credit_of_each_source_sums_to_the_combined_score(folder, name, credit):
    """Exactly where a credit conserves the score, and less that of the prompt elsewhere."""
    combine = CombinationSettings(name, credit="each", deviation_coef=0.7)
    sources = (
        RewardSource(str(folder / "first"), weight=0.5),
        RewardSource(str(folder / "second"), credit=CreditSettings("uniform")),
    )
    both = rewards_of(*sources, credit=credit, combine=combine)
    found = [one.scorer(batch()) for one in both.sources]
    weights = torch.tensor([0.5, 1.0])
    scores = torch.stack([one.sequence_scores for one in found], dim=-1)
    expected = combined_scores(scores, weights, combine)
    if credit == "prefix-difference":
        shares = combining_weights(scores, weights, combine)
        expected = expected - shares[:, 0] * found[0].prefix_scores[:, 0]
    torch.testing.assert_close(both(batch()).sum(-1), expected, atol=1e-5, rtol=1e-4)


def test_each_source_can_have_a_credit_of_its_own(folder):
    mixed = rewards_of(
        RewardSource(str(folder / "first"), credit=CreditSettings("uniform"), weight=2.0),
        RewardSource(str(folder / "second")),
        credit="terminal",
    )
    mask = batch().response_mask
    first, second = (one.scorer(batch()).sequence_scores for one in mixed.sources)
    expected = 2.0 * uniform_credit(first, mask) + terminal_credit(second, mask)
    torch.testing.assert_close(mixed(batch()), expected, atol=1e-5, rtol=1e-4)


def judge(folder, name, share=0.0, **settings):
    """A token classifier that is a source of its own: no reward model."""
    credit = CreditSettings("fine-grained", terminal_share=share)
    segments = SegmentSettings("ngram", length=2)
    return RewardSource(str(folder / name), credit=credit, segments=segments, **settings)


def beside_a_reward_model(folder, name, share=0.0, **settings):
    """The same classifier in the place that it has beside a reward model."""
    source = judge(folder, name, share, **settings)
    own = replace(source.credit, model=source.model)
    return replace(source, model=str(folder / "first"), name=name, credit=own)


def test_judges_of_fine_grained_errors_need_no_reward_model(folder):
    alone_ = rewards_of(judge(folder, "facts", weight=0.5), judge(folder, "style", weight=-2.0))
    beside = rewards_of(
        beside_a_reward_model(folder, "facts", weight=0.5),
        beside_a_reward_model(folder, "style", weight=-2.0),
    )
    paid = alone_(batch())
    torch.testing.assert_close(paid, beside(batch()))
    assert paid.ne(0).any(-1).all()
    assert [type(model).__name__ for model in alone_.modules] == ["LlamaForTokenClassification"] * 2
    one, other = (source.scorer(batch()).sequence_scores for source in alone_.sources)
    torch.testing.assert_close(0.5 * one - 2.0 * other, paid.sum(-1))


def test_a_judge_is_added_to_a_reward_model(folder):
    both = rewards_of(RewardSource(str(folder / "second")), judge(folder, "facts", weight=3.0))
    expected = alone(folder / "second")(batch()) + 3.0 * rewards_of(judge(folder, "facts"))(batch())
    torch.testing.assert_close(both(batch()), expected)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_share_of_a_judge_at_the_end_keeps_the_sum(folder, share):
    spread, moved = (rewards_of(judge(folder, "facts", part))(batch()) for part in (0.0, share))
    torch.testing.assert_close(moved.sum(-1), spread.sum(-1))
    last = batch().response_mask.sum(-1) - 1
    at_the_end = torch.zeros_like(spread)
    at_the_end[torch.arange(2), last] = spread.sum(-1)
    torch.testing.assert_close(moved, (1 - share) * spread + share * at_the_end)


def test_texts_are_read_by_the_reward_model_and_not_by_the_judge(folder):
    listed = (judge(folder, "facts"), RewardSource(str(folder / "second")))
    credit, segments = CreditSettings("prefix-difference"), SegmentSettings()
    with pytest.raises(ModelError, match="vocabular"):  # the judge reads bytes, the other words
        loaded_text_rewards(listed, credit, segments)
    listed = (judge(folder, "facts"), RewardSource(str(folder / "first")))
    rewards = loaded_text_rewards(listed, credit, segments)
    found = paid_texts([rewards], PROMPTS, RESPONSES)
    assert list(found.source_scores) == ["facts", "first"]
    with pytest.raises(ConfigError, match="expected a reward model or a judge by Hub id or folder"):
        loaded_text_rewards(listed[:1], credit, segments)


@pytest.mark.parametrize(
    ("source", "itself"),
    [
        (RewardSource("a/b", credit=CreditSettings("fine-grained")), True),
        (RewardSource("a/b", credit=CreditSettings("log-ratio")), True),
        (RewardSource("a/b", credit=CreditSettings("likelihood")), True),
        (RewardSource("a/b", credit=CreditSettings("fine-grained", model="a/c")), False),
        (RewardSource("a/b", credit=CreditSettings("rto")), False),  # pays a score at the end
        (RewardSource("a/b", credit=CreditSettings("uniform")), False),
        (RewardSource("a/b"), False),
        (RewardSource("http://host:1", credit=CreditSettings("fine-grained")), False),
        (RewardSource("module:name", credit=CreditSettings("fine-grained")), False),
    ],
)
def test_what_pays_itself_is_no_reward_model(source, itself):
    assert source.pays_itself == itself
    assert source.is_reward_model == (not itself and source.model.startswith("a/"))


def test_segments_of_its_own_pay_at_their_own_ends(folder):
    own = RewardSource(
        str(folder / "first"),
        credit=CreditSettings("prefix-difference"),
        segments=SegmentSettings("ngram", length=2),
    )
    paid = rewards_of(own)(batch())
    assert paid[0].ne(0).nonzero()[:2, 0].tolist() == [1, 3]


@pytest.mark.parametrize(
    "score", [ScoreSettings(transform="par"), ScoreSettings(normalization="reference")]
)
def test_who_draws_no_references_compares_with_none(score):
    sources = (RewardSource("a/b", name="one", score=score), RewardSource("a/c"))
    with pytest.raises(ConfigError, match="'one' is compared with the reference's responses"):
        required_sources(None, sources)
    assert required_sources(None, sources, has_references=True) == sources


def test_scores_are_normalised_by_their_own_moments(folder):
    from tokencredit.scorers.evidence import Responses

    normal = ScoreSettings("running", clip=0.5)
    both = rewards_of(
        RewardSource(str(folder / "first"), score=normal),
        RewardSource(str(folder / "second")),
        credit="terminal",
    )
    seen = RunningMoments(10, 3.0, 40.0)
    paid = both.paid(Responses(batch()), moments_of=lambda _, scores: seen.updated(scores))
    counted = seen.updated(paid.raw["first"])
    assert paid.seen["first"] == counted
    changed = ((paid.raw["first"] - counted.mean) / counted.std).clamp(-0.5, 0.5)
    expected = terminal_credit(changed + paid.raw["second"], batch().response_mask)
    torch.testing.assert_close(paid.token_scores, expected)
    torch.testing.assert_close(paid.sequence_scores, paid.raw["first"] + paid.raw["second"])


def test_a_function_of_texts_is_a_source(in_folder):
    rewards = rewards_of(RewardSource("my_rewards:shortness"), credit="uniform")
    paid = rewards(batch())
    expected = torch.tensor([-len(text) / 10 for text in RESPONSES])
    torch.testing.assert_close(paid.sum(-1), expected)
    left_out = rewards_of(RewardSource("my_rewards:shortness"), credit="leave-one-out")(batch())
    tokens = batch().response_ids[1][batch().response_mask[1]].tolist()
    lost = [-len(POLICY.decode([token], skip_special_tokens=True)) / 10 for token in tokens]
    assert left_out[1, : len(lost)].tolist() == pytest.approx(lost)


def test_a_function_scores_the_text_up_to_each_token(in_folder):
    paid = rewards_of(RewardSource("my_rewards:shortness"), credit="prefix-difference")(batch())
    for row, text in enumerate(RESPONSES):
        tokens = batch().response_ids[row][batch().response_mask[row]].tolist()
        grown = [
            POLICY.decode(tokens[:end], skip_special_tokens=True) for end in range(len(tokens) + 1)
        ]
        assert grown[-1].endswith(text.split()[-1])
        lost = [(len(before) - len(after)) / 10 for before, after in pairwise(grown)]
        assert paid[row, : len(lost)].tolist() == pytest.approx(lost)
        assert not paid[row, len(lost) :].any()
    torch.testing.assert_close(paid.sum(-1), torch.tensor([-len(text) / 10 for text in RESPONSES]))


def test_what_a_function_says_of_a_prefix_does_not_depend_on_what_follows(in_folder):
    rewards = rewards_of(RewardSource("my_rewards:shortness"), credit="prefix-difference")
    whole, changed = batch(), batch()
    changed.response_ids[0, 3:8] = changed.response_ids[0, :5].clone()
    before, after = rewards(whole)[0], rewards(changed)[0]
    assert before[:3].ne(0).all()
    torch.testing.assert_close(before[:3], after[:3])
    assert not torch.equal(before, after)


def test_a_function_is_asked_for_each_text_once(in_folder):
    asked = []
    rewards = rewards_of(RewardSource("my_rewards:shortness"), credit="prefix-difference")
    scorer = rewards.sources[0].scorer
    said = scorer.function
    scorer = replace(scorer, function=lambda *texts: asked.extend(texts[1]) or said(*texts))
    scorer(batch())
    assert "" in asked
    assert set(RESPONSES) <= set(asked)
    tokens = int(batch().response_mask.sum())
    assert len(RESPONSES) < len(asked) <= tokens + len(RESPONSES)


@pytest.mark.parametrize(
    ("name", "message"),
    [("broken", "0 are finite"), ("few", "1 scores for 2"), ("words", "one number per response")],
)
def test_a_function_must_give_a_number_for_each(in_folder, name, message):
    with pytest.raises(DataError, match=message):
        rewards_of(RewardSource(f"my_rewards:{name}"), credit="terminal")(batch())


def test_a_function_that_is_not_there(in_folder):
    for path in ("my_rewards:nothing", "no_module_of_this_name:f"):
        with pytest.raises(ConfigError, match="there is no function"):
            rewards_of(RewardSource(path), credit="terminal")


def test_a_function_of_segments_that_is_not_there_is_found_before_a_model_is_read():
    cut = SegmentSettings("spans", function="my_rewards:no_units")
    own = RewardSource("no/model", credit=CreditSettings("terminal"), segments=cut)
    for source, of_run in ((RewardSource("no/model"), cut), (own, SegmentSettings())):
        with pytest.raises(ConfigError, match="there is no function my_rewards:no_units"):
            loaded_rewards(
                [source],
                CreditSettings("terminal"),
                of_run,
                CombinationSettings(),
                written_by(POLICY),
            )


@pytest.mark.parametrize("credit", ["leave-one-out", "shapley"])
def test_tokens_are_left_out_whatever_the_model_reads(folder, credit):
    """By ids, and through the text for another tokenizer: the score of what is left."""
    rewards = rewards_of(
        RewardSource(str(folder / "second")), credit=credit, probe=ProbeSettings(samples=2)
    )
    whole = rewards.sources[0].scorer(batch()).sequence_scores
    paid = rewards(batch())
    if credit == "shapley":
        nothing = encode_responses(POLICY, PROMPTS, ["", ""], empty="keep", append_eos=False).batch
        empty = rewards.sources[0].scorer(nothing).sequence_scores
        torch.testing.assert_close(paid.sum(-1), whole - empty, atol=1e-4, rtol=1e-4)
        return
    part = batch()
    mask = part.response_mask.clone()
    ids = part.response_ids[0]
    kept = torch.cat([ids[:1], ids[2:]])[None]
    shorter = type(part)(part.prompt_ids[:1], part.prompt_mask[:1], kept, mask[:1, 1:])
    lost = whole[0] - rewards.sources[0].scorer(shorter).sequence_scores[0]
    torch.testing.assert_close(paid[0, 1], lost, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("sources", "combine", "message"),
    [
        ([RewardSource("a/x"), RewardSource("b/x")], None, "two rewards have the name 'x'"),
        ([RewardSource("x", weight=float("nan"))], None, "nan"),
        ([RewardSource("x")], "worst-case", "two or more|at least 2"),
        (
            [RewardSource("x", credit=CreditSettings("uniform")), RewardSource("y")],
            "worst-case",
            "'x' has a credit of its own",
        ),
    ],
)
def test_lists_that_cannot_be(sources, combine, message):
    with pytest.raises(ConfigError, match=message):
        required_sources(None, sources, combine=CombinationSettings(combine or "sum"))


def test_one_form_or_the_other():
    for model, listed in ((None, ()), ("x", (RewardSource("y"),))):
        with pytest.raises(ConfigError, match="expected one reward model, or a list"):
            required_sources(model, listed)


def test_what_a_source_cannot_give_is_named_before_anything_is_scored(folder):
    first, encoder = (RewardSource(str(folder / name)) for name in ("first", "encoder"))
    with pytest.raises(ModelError, match="needs the score of every prefix"):
        rewards_of(first, encoder)
    with pytest.raises(ModelError, match="'encoder' gives"):
        rewards_of(
            first,
            RewardSource(encoder.model, credit=CreditSettings("prefix-difference")),
            credit="terminal",
        )
    with pytest.raises(ModelError, match="needs the attention"):
        rewards_of(first, RewardSource(str(folder / "second")), credit="attention")
    with pytest.raises(ModelError, match="needs gradients"):
        rewards_of(first, RewardSource(str(folder / "second")), credit="gradient-times-input")


def test_texts_are_paid_in_the_tokens_of_the_first_model(folder, in_folder):
    rewards = loaded_text_rewards(
        [
            RewardSource("my_rewards:shortness", weight=0.5),
            RewardSource(str(folder / "second")),
            RewardSource(str(folder / "first")),
        ],
        CreditSettings("terminal"),
        SegmentSettings(),
    )
    assert rewards.credited.tokenizer.get_vocab() == word_level().get_vocab()
    found = paid_texts([rewards], PROMPTS, RESPONSES)
    assert set(found.source_scores) == {"shortness", "second", "first"}
    expected = 0.5 * found.source_scores["shortness"]
    expected = expected + found.source_scores["second"] + found.source_scores["first"]
    torch.testing.assert_close(found.sequence_scores, expected)
    torch.testing.assert_close(found.token_scores[0].sum(-1), expected)
    with pytest.raises(ConfigError, match="its tokens are those that are paid"):
        loaded_text_rewards(
            [RewardSource("my_rewards:shortness")], CreditSettings("terminal"), SegmentSettings()
        )


def test_a_combination_gives_what_all_give(folder):
    first, second = (alone(folder / name).sources[0] for name in ("first", "second"))
    encoder = alone(folder / "encoder", "terminal").sources[0]
    assert CombinedScorer((first,)).gives == first.scorer.gives
    assert CombinedScorer((first, second)).gives == {
        "sequence_scores",
        "prefix_scores",
        "position_scores",
        "kept_tokens",
    }
    assert CombinedScorer((first, encoder)).gives == {"sequence_scores", "kept_tokens"}
