"""Baselines for marked words, letter by letter and word by word."""

from math import log


def plain(word: str) -> str:
    while word and not (word[0].isalpha() or word[0].isdigit()):
        word = word[1:]
    while word and not (word[-1].isalpha() or word[-1].isdigit()):
        word = word[:-1]
    return word.lower()


def length(word: str) -> float:
    return float(len([letter for letter in word if letter.isalpha() or letter.isdigit()]))


def naive_bayes_weight(
    word: str, good_texts: list[str], bad_texts: list[str], pseudocount: float
) -> float:
    """Of one word, by counting everything anew."""
    good = [plain(w) for text in good_texts for w in text.split() if plain(w)]
    bad = [plain(w) for text in bad_texts for w in text.split() if plain(w)]
    vocabulary = len(set(good + bad))
    in_good = (good.count(word) + pseudocount) / (len(good) + pseudocount * vocabulary)
    in_bad = (bad.count(word) + pseudocount) / (len(bad) + pseudocount * vocabulary)
    return log(in_good / in_bad)
