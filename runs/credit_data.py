"""Texts with words that people marked, and labels to train reward models on, as JSON lines.

    python runs/credit_data.py output/credit

Reads `../shared/data` (or $TOKENCREDIT_DATA). Per set it writes `<set>-marked.jsonl` for
`tokencredit compare-credit`. Reward models are trained on `sentiment-train.jsonl` and
`toxic-train.jsonl` (labels), `phrases-train.jsonl` (ratings), `qa-train.jsonl` and
`mqm-train.jsonl` (pairs).

What is marked:
  sst, dynasent  words that annotators named as the reason of the sentiment; only annotators who
                 found the sentiment the sentence was chosen for, of sentences with three of them
  sst-trees      words whose own sentiment is that of the sentence, both not neutral
  cad-imdb       words that had to change for the review to say the opposite
  toxic          offensive spans
  qa             spans with an error, of the first answer to a question
  mqm            spans with a translation error by each of three raters, Chinese to English

No leaks: marked sentences have five words, and snippets and trees that share five in a row with one
of them are not trained on, nor are IMDb reviews that were edited for cad-imdb; toxic spans are of
the test split, questions and translated documents are split by hash. A toxic-spans comment is
always toxic: the reward model learns on sentences, bad where any of it was marked and good where
nothing was.
"""

import csv
import hashlib
import io
import json
import lzma
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from imdb_data import reviews
from rapidfuzz.distance import Indel

from tokencredit.preference.marked_texts import words_of

DATA = Path(os.environ.get("TOKENCREDIT_DATA", "../shared/data"))
Row = dict[str, Any]
Span = tuple[int, int]
CHARACTERS = 800  # as in imdb_data.py; no marked text is longer
SENTENCES = ("sst", "dynasent", "sst-trees")
PENALTIES = {"Major": 5.0, "Minor": 1.0}


def lines(path: str) -> Iterator[str]:
    """Lines as the file has them; texts hold characters that `str.splitlines` breaks at."""
    with lzma.open(DATA / path, "rt", encoding="utf-8", newline="\n") as file:
        yield from (line.rstrip("\n") for line in file)


def chosen_by_hash(key: str, share: float) -> bool:
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) % 1000 < 1000 * share


def shuffled(rows: list[Row], limit: int) -> list[Row]:
    def digest(row: Row) -> str:
        return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()

    return sorted(rows, key=digest)[:limit]


def fair_rationales(name: str) -> Iterator[Row]:
    by_sentence: dict[str, list[Row]] = defaultdict(list)
    for line in lines(f"fair_rationales/{name}.jsonl.xz"):
        row = json.loads(line)
        if row["label"] == row["original_label"]:
            by_sentence[row["sentence"]].append(row)
    for sentence, rows in by_sentence.items():
        words = words_of(sentence)
        masks = [row["mask"] for row in rows if "1" in row["mask"]]
        if len(masks) >= 3:
            marks = [
                [word for word, bit in zip(words, mask, strict=True) if bit == "1"]
                for mask in masks
            ]
            label = int(rows[0]["original_label"] == "positive")
            yield {"text": sentence, "annotators": marks, "label": label}


def trees(split: str) -> Iterator[tuple[str, list[tuple[int, Span, bool]]]]:
    """Texts, and of each phrase its sentiment from 0 to 4, its characters, if it is one word."""
    for line in lines(f"sst_trees/{split}.txt.xz"):
        text, begun, phrases = "", [], []
        for match in re.finditer(r"\((\d) |([^() ]+)|\)", line):
            sentiment, word = match.groups()
            if sentiment:
                begun.append((int(sentiment), len(text)))
            elif word:
                word = {"-LRB-": "(", "-RRB-": ")"}.get(word, word).replace("\\/", "/")
                text += "" if not text or word.startswith("'") or word == "n't" else " "
                text += word
            else:
                digit, start = begun.pop()
                start += text[start] == " "
                is_word = line[match.start() - 1] != ")"
                phrases.append((digit, (start, len(text)), is_word))
        yield text, phrases


def sst_trees(split: str) -> Iterator[Row]:
    for text, phrases in trees(split):
        sentiment = phrases[-1][0]
        spans = [
            span
            for digit, span, is_word in phrases
            if is_word and digit != 2 and (digit > 2) == (sentiment > 2)
        ]
        if sentiment != 2 and spans:
            yield {"text": text, "spans": spans, "label": int(sentiment > 2)}


def cad_imdb(split: str) -> Iterator[Row]:
    reader = csv.DictReader(
        lines(f"cad_imdb/{split}_paired.tsv.xz"), delimiter="\t", quoting=csv.QUOTE_NONE
    )
    pairs: dict[str, list[Row]] = defaultdict(list)
    for row in reader:
        pairs[row["batch_id"]].append(row)
    for one, other in pairs.values():
        for row, opposite in ((one, other), (other, one)):
            text = _plain(row["Text"])
            marked = _changed_words(text, _plain(opposite["Text"]))
            text = text[:CHARACTERS].rsplit(" ", 1)[0] if len(text) > CHARACTERS else text
            spans = [(start, end) for start, end in marked if end <= len(text)]
            if spans:
                label = int(row["Sentiment"] == "Positive")
                yield {"text": text, "spans": spans, "label": label}


def _plain(text: str) -> str:
    if text.startswith('"') and text.endswith('"'):
        text = text[1:-1].replace('""', '"')
    return " ".join(text.replace("<br />", " ").split())


def _changed_words(text: str, other: str) -> list[Span]:
    """Words of a text that the shortest edit to another text takes away."""
    words, others = words_of(text), words_of(other)
    edits = Indel.opcodes([text[a:b] for a, b in words], [other[a:b] for a, b in others])
    return [
        word
        for edit in edits
        if edit.tag in ("delete", "replace")
        for word in words[edit.src_start : edit.src_end]
    ]


def toxic_comments(split: str) -> Iterator[tuple[str, list[Span]]]:
    file = io.StringIO("\n".join(lines(f"toxic_spans/tsd_{split}.csv.xz")))
    for row in csv.DictReader(file):
        offsets = json.loads(row["spans"])
        spans: list[Span] = []
        for at in offsets:
            if spans and spans[-1][1] == at:
                spans[-1] = (spans[-1][0], at + 1)
            else:
                spans.append((at, at + 1))
        yield row["text"], spans


def toxic_sentences() -> Iterator[Row]:
    for text, spans in toxic_comments("train"):
        for match in re.finditer(r"\S.*?(?:[.!?]+(?=\s)|$|\n)", text, flags=re.S | re.M):
            start, end = match.span()
            marked = any(a < end and b > start for a, b in spans)
            if spans and len(match[0].split()) >= 3:
                yield {"text": match[0].strip()[:400], "label": int(not marked)}


def questions() -> Iterator[tuple[bool, Row]]:
    """Whether a question is marked data, and the question."""
    with lzma.open(DATA / "qa_feedback/dev_feedback.json.xz", "rt", encoding="utf-8") as file:
        for row in json.load(file):
            yield chosen_by_hash(row["question"], 0.4), row


def qa_marked(row: Row) -> Row | None:
    answer = row["prediction 1"]
    errors = row["feedback"]["errors"]
    spans = [(e["start"], min(e["end"], len(answer))) for e in errors if e["start"] < len(answer)]
    spans = [(start, end) for start, end in spans if end > start]
    if not spans:
        return None
    return {"prompt": f"{row['question']}\n", "response": answer, "spans": spans}


def qa_pairs(row: Row) -> Iterator[Row]:
    answers = [row[f"prediction {number}"] for number in (1, 2, 3, 4)]
    pairs = zip(combinations(answers, 2), row["preference"], strict=True)
    for (first, second), verdict in pairs:  # 0: as good, 1: the first is better, 2: the second
        chosen, rejected = (first, second) if verdict == 1 else (second, first)
        if verdict and chosen.strip() and rejected.strip() and chosen != rejected:
            yield {"prompt": f"{row['question']}\n", "chosen": chosen, "rejected": rejected}


def translations(file: str) -> dict[tuple[str, str], dict[str, dict[str, Row]]]:
    """By document and segment, system and rater: text, spans of errors, their penalty."""
    reader = csv.DictReader(lines(f"mqm/{file}.tsv.xz"), delimiter="\t", quoting=csv.QUOTE_NONE)
    found: dict[Any, dict[str, dict[str, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in reader:
        if row["severity"] == "HOTW-test":
            continue
        target, segment = row["target"], row.get("globalSegId") or row["seg_id"]
        text = target.replace("<v>", "").replace("</v>", "")
        rating = found[row["doc"], segment][row["system"]].setdefault(
            row["rater"], {"text": text, "spans": [], "penalty": 0.0}
        )
        if rating["text"] != text:
            continue
        punctuation = row["severity"] == "Minor" and row["category"] == "Fluency/Punctuation"
        rating["penalty"] += 0.1 if punctuation else PENALTIES.get(row["severity"], 0.0)
        start, end = target.find("<v>"), target.find("</v>") - len("<v>")
        if row["severity"] in PENALTIES and 0 <= start < end:
            rating["spans"].append((start, end))
    return found


def mqm_marked() -> Iterator[Row]:
    for (doc, _), systems in translations(_MQM_2023).items():
        for ratings in systems.values() if chosen_by_hash(doc, 0.3) else ():
            marks = [rating["spans"] for rating in ratings.values()]
            (text, *others) = {rating["text"] for rating in ratings.values()}
            if len(marks) == 3 and all(marks) and not others and 5 <= len(text.split()) <= 60:
                yield {"text": text, "annotators": marks}


def mqm_pairs() -> Iterator[Row]:
    for file in (_MQM_2023, "mqm_ted_zhen"):
        for (doc, _), systems in translations(file).items():
            if file == _MQM_2023 and chosen_by_hash(doc, 0.3):
                continue
            scored = []
            for ratings in systems.values():
                penalty = sum(r["penalty"] for r in ratings.values()) / len(ratings)
                scored.append((penalty, next(iter(ratings.values()))["text"]))
            scored.sort()
            # The best against the worst, the next against the last but one, and so on.
            for (low, better), (high, worse) in zip(scored, scored[::-1], strict=True):
                if high - low >= 2 and better != worse and better.strip() and worse.strip():
                    yield {"chosen": better, "rejected": worse}


_MQM_2023 = "mqm_generalMT2023_zhen.sxs.3ratings.nometa"


def words_in(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def fives(text: str) -> set[tuple[str, ...]]:
    words = words_in(text)
    return {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}


def sentiment_labels(marked: Iterable[str]) -> Iterator[Row]:
    known = set().union(*map(fives, marked))
    dropped = 0
    for name, label in (("neg", 0), ("pos", 1)):
        for line in lines(f"nltk_sentence_polarity/rt-polarity.{name}.xz"):
            if fives(line) & known:
                dropped += 1
            elif line.strip():
                yield {"text": line.strip(), "label": label}
    print(f"{dropped} snippets share five words in a row with a marked sentence: not trained on")
    for text, label in list(reviews("train"))[::15]:
        yield {"text": text[:400].rsplit(" ", 1)[0], "label": label}


def sentiment_ratings(marked: Iterable[str]) -> Iterator[Row]:
    """Phrases of other sentences with their mean sentiment; of neutral ones every third."""
    known = set().union(*map(fives, marked))
    found: dict[str, list[int]] = defaultdict(list)
    for text, phrases in trees("train"):
        for digit, (start, end), _ in () if fives(text) & known else phrases:
            found[text[start:end]].append(digit)
    for phrase, digits in found.items():
        rating = sum(digits) / len(digits)
        if words_in(phrase) and (abs(rating - 2) >= 0.5 or chosen_by_hash(phrase, 1 / 3)):
            yield {"text": phrase, "rating": rating}


def lexicons(folder: Path) -> None:
    with (folder / "opinion-lexicon.tsv").open("w", encoding="utf-8") as file:
        for name, weight in (("positive", 1), ("negative", -1)):
            path = DATA / f"nltk_opinion_lexicon/{name}-words.txt"
            for word in path.read_text(encoding="latin-1").split("\n"):
                if word.strip() and not word.startswith(";"):
                    file.write(f"{word.strip()}\t{weight}\n")
    with (folder / "vader.tsv").open("w", encoding="utf-8") as file:
        for line in lines("vader/vader_lexicon.txt.xz"):
            word, weight, *_ = line.split("\t")
            file.write(f"{word}\t{weight}\n")


def lexicon_of_phrases(folder: Path, phrases: Iterable[Row]) -> None:
    """What the ratings of single words say, for a baseline with the same labels as the model."""
    with (folder / "phrases.tsv").open("w", encoding="utf-8") as file:
        for row in phrases:
            if not re.search(r"\s", row["text"]):
                file.write(f"{row['text'].lower()}\t{row['rating'] - 2}\n")


def write(path: Path, rows: Iterable[Row]) -> list[Row]:
    rows = list(rows)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    print(f"{path}: {len(rows)} rows")
    return rows


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    sets = {
        "sst": list(fair_rationales("sst")),
        "dynasent": list(fair_rationales("dynasent")),
        "sst-trees": shuffled(list(sst_trees("dev")), 400),
        "cad-imdb": list(cad_imdb("dev")),
        "toxic": shuffled(
            [
                {"text": text, "spans": spans, "label": 0}
                for text, spans in toxic_comments("test")
                if spans and len(text) <= 300
            ],
            400,
        ),
        "qa": [marked for held, row in questions() if held and (marked := qa_marked(row))],
        "mqm": shuffled(list(mqm_marked()), 400),
    }
    sentences = [row["text"] for name in SENTENCES for row in sets[name]]
    write(folder / "sentiment-train.jsonl", sentiment_labels(sentences))
    phrases = write(folder / "phrases-train.jsonl", sentiment_ratings(sentences))
    lexicon_of_phrases(folder, phrases)
    for name, rows in sets.items():
        kept = [row for row in rows if name not in SENTENCES or len(words_in(row["text"])) >= 5]
        write(folder / f"{name}-marked.jsonl", kept)
    write(folder / "toxic-train.jsonl", toxic_sentences())
    pairs = (pair for held, row in questions() if not held for pair in qa_pairs(row))
    write(folder / "qa-train.jsonl", pairs)
    write(folder / "mqm-train.jsonl", mqm_pairs())
    lexicons(folder)


if __name__ == "__main__":
    main()
