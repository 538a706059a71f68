"""Losses of preferences for one prompt, over Python floats.

A response is a list of (log pi, log ref, log start, weight, KL) of its tokens; `scores` are rewards
of the responses of the prompt.
"""

import math

Token = tuple[float, float, float, float, float]
Response = list[Token]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def logistic(z: float) -> float:
    return -math.log(sigmoid(z))


def log_prob(y: Response) -> float:
    return sum(w * pi for pi, _, _, w, _ in y)


def log_ratio(y: Response) -> float:
    return sum(w * (pi - ref) for pi, ref, _, w, _ in y)


def mean(total: float, y: Response) -> float:
    return total / len(y)


def divergence(y: Response) -> float:
    return sum(kl for *_, kl in y)


def delta(w: Response, v: Response) -> float:
    return log_ratio(w) - log_ratio(v)


def dpo(w, v, beta):
    return logistic(beta * delta(w, v))


def cdpo(w, v, beta, flipped):
    return (1 - flipped) * logistic(beta * delta(w, v)) + flipped * logistic(-beta * delta(w, v))


def robust(w, v, beta, flipped):
    right, wrong = logistic(beta * delta(w, v)), logistic(-beta * delta(w, v))
    return ((1 - flipped) * right - flipped * wrong) / (1 - 2 * flipped)


def ipo(w, v, beta):
    return (delta(w, v) - 1 / (2 * beta)) ** 2


def ipo_mean(w, v, beta):
    return (mean(log_ratio(w), w) - mean(log_ratio(v), v) - 1 / (2 * beta)) ** 2


def dpo_mean(w, v, beta):
    return logistic(beta * (mean(log_ratio(w), w) - mean(log_ratio(v), v)))


def copg(w, v, beta, scores):
    regularised = [r - beta * log_ratio(y) for r, y in zip(scores, (w, v), strict=True)]
    return (regularised[0] - regularised[1]) ** 2 / (2 * beta)


def inpo(w, v, eta, share):
    def h(y):
        return sum(
            weight * (pi - share * ref - (1 - share) * start) for pi, ref, start, weight, _ in y
        )

    return (h(w) - h(v) - 1 / (2 * eta)) ** 2


def cpl(w, v, alpha, bias, score):
    a, b = math.exp(alpha * score(w)), math.exp(bias * alpha * score(v))
    return -math.log(a / (a + b))


def simpo(w, v, beta, gamma):
    return logistic(beta * (mean(log_prob(w), w) - mean(log_prob(v), v)) - gamma)


def slic(w, v, beta, margin):
    return max(0.0, margin - beta * delta(w, v))


def modpo(w, v, beta, own, scores):
    return logistic((beta * delta(w, v) - (1 - own) * (scores[0] - scores[1])) / own)


def discopop(w, v, beta, tau):
    z = beta * delta(w, v)
    share = sigmoid(z / tau)
    return (1 - share) * logistic(z) + share * math.exp(-z)


def tdpo(w, v, beta, alpha):
    return logistic(beta * (delta(w, v) - alpha * (divergence(v) - divergence(w))))


def vpo(w, v, beta, alpha, sign, calibration):
    likelihood = sum(pi for y in calibration for pi, *_ in y) / len(calibration)
    return dpo(w, v, beta) + sign * alpha * beta * likelihood


def pro(responses: list[Response], scores: list[float], sft: float) -> float:
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    p = [mean(log_prob(responses[i]), responses[i]) for i in order]
    r = [scores[i] for i in order]
    loss = 0.0
    for k in range(len(p) - 1):
        gaps = [r[k] - r[j] for j in range(k + 1, len(p))]
        top = math.exp(p[k] * max(gaps))
        rest = sum(math.exp(p[k + 1 + j] * gap) for j, gap in enumerate(gaps))
        loss += -math.log(top / (top + rest))
    best = sum(pi for pi, *_ in responses[order[0]])
    return loss - sft * (len(p) - 1) ** 2 * best


def rrhf(responses: list[Response], scores: list[float], sft: float) -> float:
    p = [mean(log_prob(y), y) for y in responses]
    loss = 0.0
    for i in range(len(p)):
        for j in range(len(p)):
            if scores[i] > scores[j]:
                loss += max(0.0, p[j] - p[i])
    best = max(range(len(p)), key=lambda i: scores[i])
    return loss - sft * sum(pi for pi, *_ in responses[best])


def brain(responses: list[Response], scores: list[float], gamma: float) -> float:
    def softmax(values):
        total = sum(math.exp(v) for v in values)
        return [math.exp(v) / total for v in values]

    alpha = softmax([r / gamma for r in scores])
    beta = softmax([log_ratio(y) for y in responses])
    return sum(a * math.log(a / b) for a, b in zip(alpha, beta, strict=True))


def dft_weights(responses, tau, rate, log_average, by_length):
    """Weights of all but the first response, and the new average."""
    terms = []
    for y in responses[1:]:
        s = mean(log_prob(y), y) if by_length else log_prob(y)
        start = 0.0 if by_length else sum(ref for _, ref, *_ in y)
        terms.append(math.exp(s / tau - start))
    here = sum(terms) / len(terms)
    u = here if log_average is None else (1 - rate) * math.exp(log_average) + rate * here
    return [term / u / len(terms) for term in terms], math.log(u)


def dft(responses, weights, by_length):
    s = [mean(log_prob(y), y) if by_length else log_prob(y) for y in responses]
    return -s[0] + sum(w * one for w, one in zip(weights, s[1:], strict=True))


def a_lol(y: Response, advantage: float, eps: float, ratio: str) -> float:
    def clip(rho):
        return min(max(rho, 1 - eps), 1 + eps)

    whole = clip(math.exp(sum(pi - ref for pi, ref, *_ in y)))
    total = 0.0
    for pi, ref, _, w, _ in y:
        rho = {"sequence": whole, "token": clip(math.exp(pi - ref)), "none": 1.0}[ratio]
        total += w * rho * pi
    return -advantage * total


def likelihood(y: Response, score: float = 1.0) -> float:
    return -score * log_prob(y)


def taught(y):
    return sum(weight * said for _, _, _, weight, said in y) / len(y)


def dckd(w, v, sft, strength):
    return sft * likelihood(w) / len(w) + strength * (taught(w) + taught(v))


def adpa(w, v, sft, strength):
    return sft * likelihood(w) / len(w) - strength * taught(v)


def superhf(y: Response, price: float) -> float:
    return likelihood(y) + price * divergence(y)
