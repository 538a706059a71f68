"""A tiny reward model behind the pooling endpoint of vLLM, as vLLM 0.32 was seen to answer.

tests/engines/test_vllm_scoring.py runs the same against vLLM itself.
"""

from pathlib import Path
from typing import Any

import torch
from tiny_vllm import Reply, failure
from transformers import AutoModelForSequenceClassification


class TinyPooling:
    """Says what its head says at every token.

    Attributes:
        model: whose head.
        asked: bodies of the requests that came.
        replies: what is answered next in the place of the truth; None for the truth.
        change: what is done to the data of an answer, given the body.
        length: tokens that it reads.
        keys: that came with requests.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.asked: list[dict[str, Any]] = []
        self.replies: list[Reply | None] = []
        self.change: Any = None
        self.length = 256
        self.keys: set[str | None] = set()

    def reply(self, path: str, body: Any) -> Reply:
        """Status and JSON."""
        if path == "/v1/models":
            model = {"id": "tiny", "root": str(self.folder), "max_model_len": self.length}
            return 200, {"data": [model]}
        if path != "/pooling":
            return 404, {"detail": "Not Found"}
        self.asked.append(body)
        if self.replies and (made := self.replies.pop(0)) is not None:
            return made
        assert body["model"] == "tiny"
        assert body["task"] == "token_classify"
        beyond = [i for row in body["input"] for i in row if i >= self.model.config.vocab_size]
        if beyond:
            message = f"Token id {beyond[0]} is out of vocabulary"
            return failure(400, message, "BadRequestError")
        data = [self.outputs(row, shaped=body["use_activation"]) for row in body["input"]]
        if self.change is not None:
            data = self.change(data, body)
        return 200, {"data": [{"index": i, "data": row} for i, row in enumerate(data)]}

    @torch.no_grad()
    def outputs(self, ids: list[int], *, shaped: bool) -> list[list[float]]:
        """Of one text."""
        hidden = self.model.base_model(input_ids=torch.tensor([ids])).last_hidden_state
        logits = self.model.score(hidden)[0]
        if shaped:
            logits = logits.sigmoid() if logits.shape[-1] == 1 else logits.softmax(-1)
        return logits.tolist()
