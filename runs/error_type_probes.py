"""What a head needs to be told: linear heads on frozen states, by three kinds of labels.

    python runs/error_type_probes.py output/error-types docs/results/error-types

The states are those of the model that `runs/error_types.sh` begins with, at every token. Heads are
ridge regressions from them to minus the number of errors of each type:

  end       of the whole text, at its end
  every     of the whole text, at every prefix
  so far    of the prefix, at every prefix: these labels know where errors are, the others do not

What is kept for each says how well its prefix differences find the marked words. Of translations
alone: there are few answers.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from error_types import OTHERS, OWN, Row, marks_of, measured
from error_types_data import MQM, ratings
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from tokencredit.models.hf_loading import load_tokenizer
from tokencredit.preference.marked_texts import MarkedText
from tokencredit.recipes.credit.words import EncodedWords, encoded_words, scores_of_words
from tokencredit.recipes.run.run_folder import read_jsonl, write_atomically
from tokencredit.text.hf_reading import Reading

RIDGE = 0.1  # times the number of rows, of standardised states
LABELS = ("end", "every", "so far")


@torch.no_grad()
def states_of(
    model: PreTrainedModel, batch: EncodedWords
) -> Iterator[Float[Tensor, "time_plus_1 width"]]:
    """The states of each text, from the end of its prompt to its last token."""
    inputs, real = batch.encoded.batch, batch.encoded.attention_mask.bool()
    rows = [ids[there] for ids, there in zip(inputs.input_ids, real, strict=True)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(input_ids=padded).last_hidden_state.float()  # causal: padding is not seen
    lengths = inputs.response_mask.sum(-1)
    for states, row, length in zip(hidden, rows, lengths.tolist(), strict=True):
        yield states[len(row) - length - 1 : len(row)]


def encoded(
    folder: Path, rows: Sequence[Row]
) -> Iterator[tuple[list[int], EncodedWords, list[Tensor]]]:
    """The texts in batches, with their states."""
    model = AutoModel.from_pretrained(folder / "half").eval()
    reading = Reading(load_tokenizer(folder / "half"), "plain")
    texts = [MarkedText(row.get("prompt", ""), row["text"], ((),)) for row in rows]
    for places, batch in encoded_words(reading, texts, batch_size=16):
        yield places, batch, list(states_of(model, batch))


def labels_of(row: Row, ends: Sequence[int], names: Sequence[str]) -> dict[str, Tensor]:
    """What each kind of labels says at every token of a text."""

    def said(end: int) -> list[float]:
        found = ratings(row["raters"], end)
        return [found[name] for name in names]

    whole = torch.tensor([said(len(row["text"]))])
    so_far = torch.tensor([said(end) for end in ends])
    return {"end": whole, "every": whole.expand(len(ends), -1), "so far": so_far}


def ridge(
    states: Float[Tensor, "rows width"], labels: Float[Tensor, "rows types"]
) -> Float[Tensor, "width types"]:
    """Heads by least squares with a price of large weights, for states as they are."""
    center, scale = states.mean(0), states.std(0).clamp(min=1e-6)
    standard = ((states - center) / scale).double()
    price = RIDGE * len(states) * torch.eye(states.shape[1], dtype=torch.float64)
    centred = (labels - labels.mean(0)).double()
    weights = torch.linalg.solve(standard.T @ standard + price, standard.T @ centred)
    return (weights / scale[:, None]).float()


def heads(folder: Path, rows: Sequence[Row], names: Sequence[str]) -> dict[str, Tensor]:
    """The heads of each kind of labels, with a column for each type."""
    states: list[Tensor] = []
    labels: dict[str, list[Tensor]] = {kind: [] for kind in LABELS}
    for places, batch, of_texts in encoded(folder, rows):
        spans = batch.encoded.response_spans
        for at, place in enumerate(places):
            states.append(of_texts[at][1:])
            ends = [end for _, end in spans[at]][: len(states[-1])]
            for kind, said in labels_of(rows[place], ends, names).items():
                labels[kind].append(said)
    every, last = torch.cat(states), torch.stack([one[-1] for one in states])
    return {
        kind: ridge(last if kind == "end" else every, torch.cat(said))
        for kind, said in labels.items()
    }


def findings(folder: Path, kind: str, names: Sequence[str]) -> Row:
    """The numbers of one set."""
    train, marked = (
        list(read_jsonl(folder / f"{kind}-{part}.jsonl")) for part in ("train", "marked")
    )
    weights = heads(folder, train, names)
    credit = {said: {name: [[]] * len(marked) for name in names} for said in LABELS}
    for places, batch, of_texts in encoded(folder, marked):
        time = batch.encoded.batch.response_mask.shape[1]
        for said, head in weights.items():
            changes = torch.zeros(len(places), time, len(names))
            for at, states in enumerate(of_texts):
                scores = states @ head
                changes[at, : len(scores) - 1] = scores[:-1] - scores[1:]  # high is an error
            for column, name in enumerate(names):
                words = scores_of_words(changes[..., column], batch, name=name)
                for place, of_text in zip(places, words, strict=True):
                    credit[said][name][place] = of_text
    marks = marks_of(marked, names)
    return {
        said: {
            name: kept(
                measured(
                    {OWN: own[name], **{f"head {one}": own[one] for one in names if one != name}},
                    marks[name],
                    None,
                    [one for one in names if one != name],
                )
            )
            for name in names
        }
        for said, own in credit.items()
    }


def kept(found: Row) -> Row:
    """What the page shows of one head."""
    return {
        "texts": found["texts"],
        "auroc": found["rows"][OWN]["auroc"],
        "average_precision": found["rows"][OWN]["average_precision"],
        "lead": found["lead"][OTHERS],
    }


def main() -> None:
    folder, results = map(Path, sys.argv[1:])
    results.mkdir(parents=True, exist_ok=True)
    found = findings(folder, "mqm", list(MQM))
    write_atomically(results / "mqm-probes.json", json.dumps(found, indent=1) + "\n")
    print(results / "mqm-probes.json")


if __name__ == "__main__":
    main()
