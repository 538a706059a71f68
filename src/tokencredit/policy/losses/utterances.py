"""Values of whole utterances in a dialogue: what a critic learns, and what an utterance is worth.

A dialogue is one decision per turn. A state is the dialogue so far, an action all that is said in
one turn; its tokens share what the utterance is worth. Critics come in twos, of which the lower one
counts, since the larger of two guesses is too high on average.
"""

from jaxtyping import Bool, Float
from torch import Tensor


def utterance_q_losses(
    q_values: Float[Tensor, "batch critics"],
    rewards: Float[Tensor, "batch"],
    next_values: Float[Tensor, "batch critics"],
    is_last: Bool[Tensor, "batch"],
    *,
    discount: float,
) -> Float[Tensor, "batch"]:
    """Squared temporal differences of the values of utterances.

        L = Σ_c (Q_c(s, u) − (r + γ V̄_c(s')))²,   V̄ = 0 after the last utterance

    The state after an utterance is what the other side has answered. The utterances may be those of
    any policy.

    Args:
        q_values: of the utterance u in the state s, by each critic.
        rewards: r that came after it.
        next_values: V̄ of the next state, by the slow copy of each critic; constants.
        is_last: True where no utterance follows.
        discount: γ per utterance.

    Returns:
        Losses of the utterances, in squared units of the reward.

    Source: Zhou et al. 2024, arXiv 2402.19446 (ArCHer), the critic's loss of their code.

    >>> import torch
    >>> q, v = torch.tensor([[1.0]]), torch.tensor([[2.0]])
    >>> utterance_q_losses(q, torch.tensor([0.5]), v, torch.tensor([False]), discount=0.5)
    tensor([0.2500])
    """
    follows = discount * next_values.detach().masked_fill(is_last[:, None], 0.0)
    return (q_values - (rewards[:, None] + follows)).square().sum(-1)


def utterance_v_losses(
    values: Float[Tensor, "batch critics"], fresh_q_values: Float[Tensor, "batch critics"]
) -> Float[Tensor, "batch"]:
    """Squared errors of the values of states against those of what the policy says in them.

        L = Σ_c (V_c(s) − Q̄_c(s, u))²,   u ~ π(· | s)

    Args:
        values: V of the state, by each critic.
        fresh_q_values: Q̄ of an utterance that the policy as it is has drawn in this state, by the
            slow copy of each critic; constants.

    Returns:
        Losses of the states, in squared units of the reward.

    Source: Zhou et al. 2024, arXiv 2402.19446 (ArCHer), likewise.

    >>> import torch
    >>> utterance_v_losses(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]]))
    tensor([4.])
    """
    return (values - fresh_q_values.detach()).square().sum(-1)


def utterance_advantages(
    q_values: Float[Tensor, "batch critics"], values: Float[Tensor, "batch critics"]
) -> Float[Tensor, "batch"]:
    """How much better an utterance is than what the policy says in its state on average.

        A(s, u) = min_c Q_c(s, u) − min_c V_c(s)

    Every token of the utterance has it: paid on its last token (`terminal_credit`), it is the
    reward to go of all of them.

    Args:
        q_values: of the utterance in its state, by each critic.
        values: of the state, by each critic.

    Returns:
        Constants.

    Source: Zhou et al. 2024, arXiv 2402.19446 (ArCHer), likewise.

    >>> import torch
    >>> utterance_advantages(torch.tensor([[3.0, 2.0]]), torch.tensor([[0.5, 1.0]]))
    tensor([1.5000])
    """
    return (q_values.amin(-1) - values.amin(-1)).detach()
