"""Do groups of raters who want help and groups who want no harm come apart by themselves? On HH.

python runs/raters_hh.py ../shared/data/hh_rlhf OUTPUT.json

Forty users, half of whom judged pairs of helpful-base and half pairs of harmless-base. The features
of an answer are frozen: counts of its words, hashed, and its length. Linear heads learn by
Bradley-Terry, users are sorted by `memberships`. Three seeds draw users and the split, at three
prices of large weights.
"""

import gzip
import json
import sys
import zlib
from pathlib import Path

import torch
from torch.nn.functional import logsigmoid

from tokencredit.preference.pairs import without_common_prompt
from tokencredit.recipes.run.run_folder import write_atomically
from tokencredit.reward_model.losses.mixtures import memberships

USERS, WIDTH, ROUNDS, STEPS = 40, 1024, 6, 40
RIDGES = (1e-3, 1e-2, 1e-1)
SOURCES = ("helpful", "harmless")


def main() -> None:
    folder, output = map(Path, sys.argv[1:])
    features, sources = [], []
    for number, name in enumerate(SOURCES):
        rows = differences(folder / f"{name}-base.test.jsonl.gz")
        features.append(rows)
        sources += [number] * len(rows)
    found = [
        one_seed(torch.cat(features), torch.tensor(sources), seed=seed, ridge=ridge)
        for ridge in RIDGES
        for seed in range(3)
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, json.dumps({"pairs": len(sources), "seeds": found}, indent=2) + "\n")
    for row in found:
        print(json.dumps(row))


def differences(path: Path) -> torch.Tensor:
    """Features of each preferred answer less those of the other one."""
    found = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            _, chosen, rejected = without_common_prompt(row["chosen"], row["rejected"])
            if chosen.strip() and rejected.strip() and chosen != rejected:
                found.append(counts(chosen) - counts(rejected))
    return torch.stack(found)


def counts(text: str) -> torch.Tensor:
    words = text.lower().split()
    at = torch.tensor([zlib.crc32(word.encode()) % (WIDTH - 1) + 1 for word in words])
    found = torch.bincount(at, minlength=WIDTH).float().log1p()
    found[0] = len(words) / 100
    return found


def one_seed(
    features: torch.Tensor, sources: torch.Tensor, *, seed: int, ridge: float
) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    half = USERS // 2
    numbers = torch.randperm(USERS, generator=generator)  # groups begin by the numbers of users
    drawn = torch.randint(half, (len(sources),), generator=generator)
    users = numbers[sources * half + drawn]
    held_out = torch.rand(len(sources), generator=generator) < 0.2
    train, test = ~held_out, held_out
    begin = torch.nn.functional.one_hot(torch.arange(USERS) % 2, 2).float()
    belongs, heads = begin, fitted(features[train], begin[users[train]], ridge)
    for _ in range(ROUNDS):
        losses = -logsigmoid(features[train] @ heads)
        belongs = memberships(losses, users[train], belongs.mean(0) + 1e-3, hard=True)
        heads = fitted(features[train], belongs[users[train]], ridge)
    truth = torch.zeros(USERS).scatter(0, users, sources.float())
    agree = (belongs[:, 1] == truth).float().mean().item()
    one = fitted(features[train], torch.ones(int(train.sum()), 1), ridge)
    known = torch.nn.functional.one_hot(sources, 2).float()
    of_source = fitted(features[train], known[train], ridge)
    return {
        "ridge": ridge,
        "seed": seed,
        "users_with_their_like": max(agree, 1 - agree),
        "one_head": accuracy(features[test] @ one[:, 0]),
        "groups": accuracy((features[test] @ heads * belongs[users[test]]).sum(-1)),
        "known_sources": accuracy((features[test] @ of_source * known[test]).sum(-1)),
        "helpful_head_on_harmless": accuracy(features[test & (sources == 1)] @ of_source[:, 0]),
        "harmless_head_on_helpful": accuracy(features[test & (sources == 0)] @ of_source[:, 1]),
        "held_out_pairs": int(test.sum()),
    }


def fitted(features: torch.Tensor, weights: torch.Tensor, ridge: float) -> torch.Tensor:
    """Ridge-penalised Bradley-Terry heads, a column for each column of weights."""
    heads = torch.zeros(WIDTH, weights.shape[1], requires_grad=True)
    optimiser = torch.optim.Adam([heads], lr=0.02)
    for _ in range(STEPS):
        losses = -(weights * logsigmoid(features @ heads)).sum(-1).mean()
        loss = losses + ridge * heads.square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return heads.detach()


def accuracy(leads: torch.Tensor) -> float:
    return float(((leads > 0).float() + 0.5 * (leads == 0).float()).mean())


if __name__ == "__main__":
    main()
