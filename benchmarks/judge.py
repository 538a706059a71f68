"""What several questions about one text cost a local judge: against one pass over the text.

    python benchmarks/judge.py --clock cpu --threads 1

A judge that answers with one token is asked K questions about the same prompt and response, which
stand first in each, so that only the principle at its end differs. One process, in turn: a forward
pass of what the questions begin with; all questions in one call; each in a call of its own; all of
them with the principle first, so that they begin with nothing in common; and all again from a file
of kept replies. Random weights, or a model by `--model`.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from scoring import SIZES, report, seconds_in_turn, variants_parser
from transformers import AutoModelForCausalLM, LlamaConfig

from tokencredit.judge.hf_judge import local_judge, question_rows
from tokencredit.judge.kept_replies import kept_replies
from tokencredit.judge.questions import Question, judge_question
from tokencredit.judge.verdicts import Reply
from tokencredit.models.hf_loading import load_model, load_tokenizer
from tokencredit.text.hf_known_readings import written_by
from tokencredit.text.hf_reading import Reading
from tokencredit.toy.hf_tokenizer import toy_tokenizer

SENTENCE = " the plot is dull, but the lead works."
ASPECTS = ("plot", "cast", "music", "lead", "ending", "dialogue", "script", "director")
LAST = "{prompt}\n{responses}\nIs it true of this that {principle}? Yes or no?"
FIRST = "Is it true that {principle}? Yes or no?\n{prompt}\n{responses}"
BASE = "one pass over what they begin with"


def judge_of(arguments: argparse.Namespace) -> tuple[Any, Reading, tuple[str, str]]:
    """A language model, how it reads, and two words of its vocabulary to answer with."""
    if arguments.model is not None:
        tokenizer = load_tokenizer(arguments.model)
        model = load_model(
            AutoModelForCausalLM, arguments.model, dtype=arguments.dtype, device=arguments.device
        )
        return model.eval(), written_by(tokenizer), ("yes", "no")
    config = LlamaConfig(
        **SIZES[arguments.size], max_position_embeddings=2 * max(arguments.lengths), pad_token_id=0
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    model = model.to(arguments.device, getattr(torch, arguments.dtype))
    return model, written_by(toy_tokenizer()), ("good", "bad")


def asked(template: str, reading: Reading, answers: Sequence[str], tokens: int, count: int) -> Any:
    """So many questions about a response of about so many tokens."""
    each = len(reading.tokenizer(SENTENCE, add_special_tokens=False)["input_ids"])
    response = SENTENCE * max(1, tokens // each)
    return [
        judge_question(
            template,
            "the film is",
            [response],
            principle=f"the {aspect} is good, but the ending is slow and the music is bad",
            answers=answers,
        )
        for aspect in ASPECTS[:count]
    ]


def shared(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with."""
    columns = zip(*rows, strict=False)
    return len(list(takewhile(lambda column: len(set(column)) == 1, columns)))


def measured(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each length, number of questions and way to ask."""
    model, reading, answers = judge_of(arguments)
    judge, found = local_judge(model, reading), []
    for tokens in arguments.lengths:
        for count in arguments.questions:
            last = asked(LAST, reading, answers, tokens, count)
            first = asked(FIRST, reading, answers, tokens, count)
            found += of_questions(arguments, model, reading, judge, last, first)
    return found


@torch.inference_mode()
def of_questions(
    arguments: argparse.Namespace,
    model: Any,
    reading: Reading,
    judge: Callable[[Sequence[Question]], list[Reply]],
    last: list[Question],
    first: list[Question],
) -> list[dict[str, Any]]:
    """The rows of one set of questions."""
    rows = question_rows(reading, last)
    length = shared(rows)
    differing = sum(len(row) - length for row in rows)
    ids = torch.tensor([rows[0][:length]], device=arguments.device)
    reached: list[int] = []

    def counted(questions: Sequence[Question]) -> list[Reply]:
        reached.append(len(questions))
        return judge(questions)

    with tempfile.TemporaryDirectory() as folder:
        kept = kept_replies(counted, Path(folder) / "replies.db", identity="benchmark")
        together, whole = kept(last), [judge([one])[0] for one in last]
        reached.clear()
        moved = max(
            abs(one.logprobs[name] - other.logprobs[name])
            for one, other in zip(together, whole, strict=True)
            for name in one.logprobs
        )
        ways: dict[str, Callable[[torch.Tensor], Any]] = {
            BASE: lambda ids: model(input_ids=ids, use_cache=False, logits_to_keep=1),
            "all in one call": lambda _: judge(last),
            "each in a call of its own": lambda _: [judge([one]) for one in last],
            "all in one call, what differs first": lambda _: judge(first),
            "all again, kept replies": lambda _: kept(last),
        }
        times = seconds_in_turn(ways, ids, repeats=arguments.repeats, clock=arguments.clock)
    base = statistics.median(times[BASE])
    about = {"begins": length, "differs": differing, "questions": len(last), "moved": moved,
             "bound": 1 + differing / length, "asked_again": sum(reached)}  # fmt: skip
    return [
        {
            **about,
            "variant": name,
            "seconds": statistics.median(taken),
            "ratio": statistics.median(taken) / base,
            "ratio_quartiles": statistics.quantiles(
                [one / other for one, other in zip(taken, times[BASE], strict=True)], n=4
            ),
        }
        for name, taken in times.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as markdown; the pass that all are divided by is left out."""
    lines = [
        "| questions | shared tokens | other tokens, of all | asked | time / one pass "
        "| quartiles | wanted |",
        "|---:|---:|---:|---|---:|---:|---:|",
    ]
    for row in rows:
        if row["variant"] != BASE:
            low, _, high = row["ratio_quartiles"]
            lines.append(
                f"| {row['questions']} | {row['begins']} | {row['differs']} | {row['variant']} "
                f"| {row['ratio']:.2f} | {low:.2f} to {high:.2f} | {row['bound']:.2f} |"
            )
    moved, again = max(row["moved"] for row in rows), max(row["asked_again"] for row in rows)
    return "\n".join([
        *lines,
        "",
        f"Log-probabilities move by at most {moved:.1e} nats; with kept replies {again} questions "
        "reach the model.",
    ])  # fmt: skip


def main() -> None:
    parser = variants_parser(__doc__.split("\n")[0], lengths=[256, 512], batch_size=1)
    parser.add_argument("--questions", type=int, nargs="+", default=[2, 8], help="at most 8")
    parser.add_argument("--model", default=None, help="folder or Hub id; None for random weights")
    report(parser.parse_args(), measured, table)


if __name__ == "__main__":
    main()
