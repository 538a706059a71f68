import pytest
import torch

from tokencredit.models.users import PairSetEncoder, UserDecoder, description_on_sphere
from tokencredit.reward_model.losses.pairs import bradley_terry_loss


def drawn(users=3, pairs=4, features=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(users, pairs, 2, features, generator=generator)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return PairSetEncoder(6, width=8, size=3)


def test_the_encoder_is_the_loop_over_pairs(encoder):
    pairs = drawn()[0]
    described = [encoder.pair(pair.flatten()) for pair in pairs]
    queries, keys, values = zip(*(encoder.attention(c).chunk(3) for c in described), strict=True)
    mixed = torch.zeros(8)
    for query in queries:
        shares = torch.stack([query @ key / 8**0.5 for key in keys]).softmax(0)
        mixed += sum(share * value for share, value in zip(shares, values, strict=True)) / 4
    there = torch.ones(1, 4, dtype=torch.bool)
    mean, log_var = encoder(pairs[None], there)
    torch.testing.assert_close(mean[0], encoder.mean(mixed).tanh(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(log_var[0], encoder.log_var(mixed).tanh(), rtol=1e-4, atol=1e-5)


def test_order_padding_and_what_lies_under_it_change_nothing(encoder):
    pairs, there = drawn(), torch.ones(3, 4, dtype=torch.bool)
    there[1, 2:] = False
    mean, log_var = encoder(pairs, there)
    order = torch.tensor([2, 0, 3, 1])
    for other in (
        encoder(pairs[:, order], there[:, order]),
        encoder(pairs.masked_fill(~there[..., None, None], torch.nan), there),
        tuple(
            torch.cat(
                [encoder(pairs[[u]][:, there[u]], there[[u]][:, there[u]])[at] for u in range(3)]
            )
            for at in (0, 1)
        ),
    ):
        torch.testing.assert_close(other, (mean, log_var), rtol=1e-4, atol=1e-5)


def test_which_answer_won_matters(encoder):
    there = torch.ones(3, 4, dtype=torch.bool)
    mean, swapped = encoder(drawn(), there)[0], encoder(drawn().flip(2), there)[0]
    assert (mean - swapped).abs().max() > 1e-2


def test_a_user_without_pairs_is_the_prior_and_has_a_gradient(encoder):
    pairs = drawn().requires_grad_()
    there = torch.zeros(3, 4, dtype=torch.bool)
    there[0] = True
    mean, log_var = encoder(pairs, there)
    assert torch.equal(mean[1:], torch.zeros(2, 3))
    assert torch.equal(log_var[1:], torch.zeros(2, 3))
    (mean.sum() + log_var.sum()).backward()
    assert pairs.grad.isfinite().all()
    assert pairs.grad[0].abs().max() > 0


def test_descriptions_have_one_length():
    found = description_on_sphere(torch.randn(5, 4))
    torch.testing.assert_close(found.norm(dim=-1), torch.full((5,), 2.0))
    assert torch.equal(description_on_sphere(torch.zeros(4)), torch.zeros(4))


def test_the_layers_of_a_user_give_the_score_of_that_user():
    torch.manual_seed(1)
    decoder, text, user = UserDecoder(6, width=5, size=3), torch.randn(4, 7, 6), torch.randn(3)
    torch.testing.assert_close(decoder.of_user(user)(text)[..., 0], decoder(text, user))
    assert (decoder(text, user) - decoder(text, -user)).abs().max() > 1e-2


def test_features_are_seen_as_usual_or_unusual(encoder):
    pairs, there = drawn(), torch.ones(3, 4, dtype=torch.bool)
    encoder.standardise(pairs)
    before = encoder(pairs, there)
    encoder.standardise(40 * pairs + 7)
    torch.testing.assert_close(encoder(40 * pairs + 7, there), before, rtol=1e-4, atol=1e-5)


def test_two_tastes_are_learnt_where_one_score_cannot():
    """Users who want much and users who want little of one feature, on pairs of their own."""
    torch.manual_seed(0)
    texts, users = torch.randn(400, 2, 6), torch.arange(400) % 8
    taste = torch.where(users < 4, 1.0, -1.0)
    other_way = taste * (texts[:, 0, 0] - texts[:, 1, 0]) < 0
    texts[other_way] = texts[other_way].flip(1)
    own = torch.stack([(users[:320] == user).nonzero()[:, 0] for user in range(8)])
    encoder, decoder = PairSetEncoder(6, width=16, size=3), UserDecoder(6, width=16, size=3)
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
    for _ in range(150):
        rows = torch.randint(320, (32,))
        shown = texts[own[users[rows]][:, torch.randperm(40)[:6]]]
        mean, log_var = encoder(shown, torch.ones(32, 6, dtype=torch.bool))
        drawn = description_on_sphere(mean + (log_var / 2).exp() * torch.randn_like(mean))
        chosen, rejected = decoder(texts[rows], drawn[:, None]).unbind(-1)
        optimiser.zero_grad()
        bradley_terry_loss(chosen, rejected).backward()
        optimiser.step()
    with torch.no_grad():
        mean, _ = encoder(texts[own], torch.ones(8, 40, dtype=torch.bool))
        described = description_on_sphere(mean)[users[320:]]
        chosen, rejected = decoder(texts[320:], described[:, None]).unbind(-1)
        leads = (texts[320:, 0] - texts[320:, 1])[:, 0]
    assert (chosen > rejected).float().mean() > 0.9
    assert abs((leads > 0).float().mean() - 0.5) < 0.15  # no one order serves all
