"""verl's agent loops, with a score on every token.

verl's agent loop puts the score of a response on its last token. These two, named in the YAML that
`actor_rollout_ref.rollout.agent.agent_loop_config_path` points at, put token scores where a reward
manager said they belong, and tell it first which tokens the policy chose. They generate as verl's
own do.
"""

from typing import Any

from tokencredit.engines.verl_responses import RESPONSE_MASK, ScoreWithTokens, token_scores_of
from tokencredit.engines.versions import require_version

require_version("verl", at_least="0.9.1", below="0.10", extra="verl")
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput  # noqa: E402
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop  # noqa: E402
from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop  # noqa: E402


class TokenScoredOutput(AgentLoopOutput):  # type: ignore[misc]
    """What an agent loop returns, its `rm_scores` filled at every token."""

    def as_dict(self) -> dict[str, Any]:
        """What verl makes of it, with the token scores of a `ScoreWithTokens`.

        Raises:
            ShapeError: there is not one score per token of the response.
        """
        output: dict[str, Any] = super().as_dict()
        output["extra_fields"].pop(RESPONSE_MASK, None)
        if isinstance(self.reward_score, ScoreWithTokens):
            output["rm_scores"] = token_scores_of(self.reward_score, len(self.response_ids))
        return output


def token_scored(output: AgentLoopOutput) -> TokenScoredOutput:
    """An output made ready for token scores: for the end of an agent loop of your own."""
    fields = {name: getattr(output, name) for name in type(output).model_fields}
    fields["extra_fields"] = {**output.extra_fields, RESPONSE_MASK: list(output.response_mask)}
    return TokenScoredOutput.model_construct(
        _fields_set={*output.model_fields_set, "extra_fields"}, **fields
    )


class TokenCreditSingleTurnAgentLoop(SingleTurnAgentLoop):  # type: ignore[misc]
    """One answer to one prompt."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> TokenScoredOutput:
        """Generate as verl does."""
        return token_scored(await super().run(sampling_params, **kwargs))


class TokenCreditToolAgentLoop(ToolAgentLoop):  # type: ignore[misc]
    """Several turns with tools, whose words earn nothing."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> TokenScoredOutput:
        """Generate as verl does."""
        return token_scored(await super().run(sampling_params, **kwargs))
