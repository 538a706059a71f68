"""Candidates in the tokens of another tokenizer, scored as a tree of tokens in one pass.

After the text each candidate is a path of one or more tokens, and paths share what they have in
common. Adding a character may also change the tokens before it: the cache then rolls back to the
last token that all paths share.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokencredit.decoding.candidates.hf_candidate_texts import CandidateTexts
from tokencredit.decoding.candidates.hf_packed import PackedCache
from tokencredit.decoding.candidates.hf_scorers import sequence_scores
from tokencredit.decoding.candidates.scores import CandidateBatch, CandidateScores
from tokencredit.models.heads import float32_outputs, scalar_scores
from tokencredit.models.hf_architecture import (
    require_prefix_scores,
    require_room,
    sequence_classifier,
)


class TokenTree(NamedTuple):
    """Paths of tokens, put together where they begin alike.

    Attributes:
        trunk: tokens that all paths begin with, but never the whole of one.
        tokens: of the nodes after the trunk; a node stands after its parent.
        parents: node before each node; -1 where that is the end of the trunk.
        ends: last node of each path.
    """

    trunk: list[int]
    tokens: list[int]
    parents: list[int]
    ends: list[int]


def token_tree(paths: list[list[int]]) -> TokenTree:
    """The tree of some paths, none of which is empty.

    >>> token_tree([[5, 6], [5, 7, 8], [5, 7]])
    TokenTree(trunk=[5], tokens=[6, 7, 8], parents=[-1, -1, 1], ends=[0, 2, 1])
    """
    shortest = min(len(path) for path in paths) - 1
    alike = (len({path[depth] for path in paths}) == 1 for depth in range(shortest))
    common = next((depth for depth, same in enumerate(alike) if not same), shortest)
    tree = TokenTree(paths[0][:common], [], [], [])
    found: dict[tuple[int, int], int] = {}
    for path in paths:
        node = -1
        for token in path[common:]:
            if (node, token) not in found:
                found[node, token] = len(tree.tokens)
                tree.tokens.append(token)
                tree.parents.append(node)
            node = found[node, token]
        tree.ends.append(node)
    return tree


class TextScorer:
    """Re-runs every text with every candidate, in the reward model's own tokens.

    Args:
        model: a sequence-classification model, an encoder too.
        texts: what it reads.
        micro_batch_size: texts of one pass; all by default.
    """

    vocab: int | None = None

    def __init__(
        self, model: nn.Module, texts: CandidateTexts, *, micro_batch_size: int | None = None
    ) -> None:
        self.model = sequence_classifier(model)
        self.texts = texts
        self.micro_batch_size = micro_batch_size

    def __call__(self, batch: CandidateBatch) -> CandidateScores:
        """Scores by a pass over every text from its start.

        Raises:
            DataError: a text is longer than the model reads, or there is not one prompt per row.
            ModelError: the model is in training mode.
        """
        batch = batch.to(self.model.device)
        rows = self.texts.reward_ids(batch)
        paths = [path for row in rows for path in row]
        require_room(self.model, max(map(len, paths), default=0))
        device = batch.text_ids.device
        scores = torch.zeros(len(rows), 1 + batch.candidate_ids.shape[1], device=device)
        if paths:
            lengths = torch.tensor([len(path) for path in paths], device=device)
            ids = torch.zeros(len(paths), int(lengths.max()), dtype=torch.long)
            for row, path in enumerate(paths):
                ids[row, : len(path)] = torch.tensor(path)
            values = sequence_scores(
                self.model,
                ids.to(device),
                lengths,
                micro_batch_size=self.micro_batch_size,
            )
            scores[batch.active] = values.view(-1, scores.shape[1])
        return CandidateScores(scores[:, 1:], scores[:, 0])


class TreeScorer:
    """Scores the tree of a step in one pass, with the keys of the text before it kept.

    Args:
        model: a causal sequence-classification model.
        texts: what it reads; a tail becomes part of the tree.

    Raises:
        ModelError: the model has no score at every prefix, or takes no mask of our own.
    """

    vocab: int | None = None

    def __init__(self, model: nn.Module, texts: CandidateTexts) -> None:
        self.model = sequence_classifier(model)
        require_prefix_scores(self.model, instead="`TextScorer`")
        self.texts = texts
        self.packed = PackedCache(self.model.base_model)
        self._held: list[list[tuple[int, int]]] = []  # of each row: token and column

    def __call__(self, batch: CandidateBatch) -> CandidateScores:
        """Scores by one pass over the tree of all candidates.

        Raises:
            DataError: a text is longer than the model reads, or there is not one prompt per row.
            ModelError: the model is in training mode.
        """
        batch = batch.to(self.model.device)
        rows = self.texts.reward_ids(batch)
        require_room(self.model, max((len(path) for row in rows for path in row), default=0))
        trees = [token_tree(row) if row else TokenTree([], [], [], []) for row in rows]
        device = batch.text_ids.device
        scores = torch.zeros(len(rows), 1 + batch.candidate_ids.shape[1], device=device)
        if any(rows):
            values = self._node_scores(trees, device)
            for row, tree in enumerate(trees):
                if tree.ends:
                    scores[row] = values[row, tree.ends]
        return CandidateScores(scores[:, 1:], scores[:, 0])

    def _node_scores(
        self, trees: list[TokenTree], device: torch.device
    ) -> Float[Tensor, "batch nodes"]:
        """Feed what is new of the trunks and all nodes; keep the trunks."""
        self._begin_anew_if(trees)
        new = [self._roll_back(row, tree) for row, tree in enumerate(trees)]
        ahead, nodes = max(map(len, new)), max(len(tree.tokens) for tree in trees)
        size = ahead + nodes
        ids, positions = torch.zeros(2, len(trees), size, dtype=torch.long)
        counts = torch.zeros(len(trees), size, dtype=torch.bool)
        sees = torch.zeros(len(trees), size, size, dtype=torch.bool)
        sees[:, :, :ahead] = torch.ones(size, ahead, dtype=torch.bool).tril()
        for row, (tokens, tree) in enumerate(zip(new, trees, strict=True)):
            depth = len(tree.trunk)
            ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
            positions[row, : len(tokens)] = torch.arange(depth - len(tokens), depth)
            counts[row, : len(tokens)] = True
            for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
                here, before = ahead + node, ahead + parent
                ids[row, here], counts[row, here] = token, True
                positions[row, here] = depth if parent < 0 else positions[row, before] + 1
                if parent >= 0:
                    sees[row, here, ahead:] = sees[row, before, ahead:]
                sees[row, here, here] = True
        start = self.packed.width
        tensors = [tensor.to(device) for tensor in (ids, positions, counts, sees)]
        held, self._held = self._held, []  # in case the pass fails
        output = self.packed.feed(*tensors, last=nodes)
        self.packed.drop(nodes)
        for row, tokens in enumerate(new):
            held[row] += [(token, start + column) for column, token in enumerate(tokens)]
        self._held = held
        with torch.no_grad():
            return scalar_scores(
                float32_outputs(self.model.score, output.last_hidden_state[:, -nodes:])
            )

    def _begin_anew_if(self, trees: list[TokenTree]) -> None:
        """Clear the cache for other rows, or when it is mostly holes."""
        longest = max(len(tree.trunk) for tree in trees)
        if len(self._held) != len(trees) or self.packed.width > 2 * longest + 64:
            self.packed.clear()
            self._held = [[] for _ in trees]

    def _roll_back(self, row: int, tree: TokenTree) -> list[int]:
        """Drop what the cache holds beyond the row's trunk; the tokens of the trunk it lacks."""
        held = self._held[row]
        pairs = zip(held, tree.trunk, strict=False)
        known = next((at for at, (a, b) in enumerate(pairs) if a[0] != b), None)
        known = min(len(held), len(tree.trunk)) if known is None else known
        for _, column in held[known:] if tree.ends else []:
            assert self.packed.counts is not None
            self.packed.counts[row, column] = False
        if tree.ends:
            del held[known:]
        return tree.trunk[known:]
