"""Token scores on the way through verl's agent loops, while responses stream."""

import asyncio
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("verl", reason="verl is installed by make test-engines alone")

from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
from verl_rollouts import colocated, output_of, rollout, streamed, unpadded, worker_of

from tokencredit.engines.verl_agent_loops import (
    TokenCreditSingleTurnAgentLoop,
    TokenCreditToolAgentLoop,
    token_scored,
)


@pytest.mark.parametrize("credit", ["terminal", "prefix-difference"])
def test_streaming_writes_what_scoring_the_batch_writes(credit, verl_config, monkeypatch):
    worker = worker_of(verl_config, credit=credit)
    data = rollout(worker.input_tokenizer)
    expected = colocated(worker, data, monkeypatch).batch["rm_scores"]
    for row, (prompt, answer) in enumerate(unpadded(data)):
        raw_prompt = data.non_tensor_batch["raw_prompt"][row]
        plain, ours = output_of(prompt, answer), token_scored(output_of(prompt, answer))
        fields = asyncio.run(streamed(worker, ours, raw_prompt=raw_prompt))
        torch.testing.assert_close(fields["rm_scores"], expected[row, : len(answer)])
        assert fields["rm_scores"].dtype == torch.float32
        info = fields["extra_fields"]["reward_extra_info"]
        assert info["token_credit_sum"] == pytest.approx(expected[row].sum().item(), abs=1e-5)
        verls = asyncio.run(streamed(worker, plain, raw_prompt=raw_prompt))
        assert fields.keys() == verls.keys()
        assert fields["extra_fields"].keys() == verls["extra_fields"].keys()
        same = torch.allclose(verls["rm_scores"], fields["rm_scores"])
        assert same == (credit == "terminal" or len(answer) == 1)


def test_the_words_of_tools_earn_nothing(verl_config):
    worker = worker_of(verl_config, credit="uniform")
    prompt, answer = unpadded(rollout(worker.input_tokenizer))[1]
    mask = [1, 0, 1, 1, 0]
    output = token_scored(output_of(prompt, answer, mask))
    scores = asyncio.run(streamed(worker, output))["rm_scores"]
    assert (scores != 0).tolist() == [bool(counts) for counts in mask]
    assert scores[0] == scores[2] == scores[3]


def test_several_outputs_of_one_session_are_scored_by_the_last(verl_config):
    """verl joins before it pads there: the attention mask does not lie over the columns."""
    worker = worker_of(verl_config)
    (first, _), (prompt, answer) = unpadded(rollout(worker.input_tokenizer))[:2]
    outputs = [output_of(torch.cat([first] * 3), answer), token_scored(output_of(prompt, answer))]
    loop = object.__new__(AgentLoopWorker)
    loop.processor, loop.mm_processor_kwargs = None, {}
    handle = SimpleNamespace(compute_score=SimpleNamespace(remote=worker.compute_score))
    loop.reward_loop_worker_handles = [handle]
    asyncio.run(loop._compute_score(outputs, kwargs={}))
    alone = asyncio.run(streamed(worker, token_scored(output_of(prompt, answer))))
    torch.testing.assert_close(outputs[-1].as_dict()["rm_scores"], alone["rm_scores"])


def test_an_agent_loop_of_ours_generates_as_verls(monkeypatch):
    made = output_of(torch.tensor([1, 2]), torch.tensor([3, 4, 5]))
    made.extra_fields["turn_scores"] = []
    for loop_class in (TokenCreditSingleTurnAgentLoop, TokenCreditToolAgentLoop):

        async def run(self, sampling_params, **kwargs):
            return made

        monkeypatch.setattr(loop_class.__mro__[1], "run", run)
        output = asyncio.run(loop_class.run(object.__new__(loop_class), {}))
        assert output.extra_fields["tokencredit_response_mask"] == [1, 1, 1]
        fields, verls = output.as_dict(), made.as_dict()
        assert fields.keys() == verls.keys() | {"extra_fields"}
        assert fields["extra_fields"] == {"turn_scores": []}
        assert torch.equal(fields["responses"], verls["responses"])
