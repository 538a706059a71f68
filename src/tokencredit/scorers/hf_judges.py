"""A language model that judges responses, as a source of reward."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from transformers import AutoModelForCausalLM, PreTrainedModel

from tokencredit.batch import Prompt
from tokencredit.credit.methods import credit_method
from tokencredit.credit.settings import CreditSettings
from tokencredit.errors import ConfigError, DataError, VerdictError
from tokencredit.judge.evidence import QuotedCriterion, quoted_criteria
from tokencredit.judge.hf_judge import local_judge
from tokencredit.judge.kept_replies import kept_replies
from tokencredit.judge.scores import Judge, JudgedScores, judged_scores
from tokencredit.judge.setups import JudgeSetup
from tokencredit.models.fingerprint import weights_fingerprint
from tokencredit.models.hf_loading import load_model, load_tokenizer
from tokencredit.models.hf_vocabularies import tokenizer_fingerprint
from tokencredit.sampling import Sampling
from tokencredit.scorers.hf_prefix_texts import made_of_prefixes
from tokencredit.scorers.judge_settings import AskingSettings, JudgingSettings
from tokencredit.scorers.python_rewards import FunctionScorer
from tokencredit.scorers.references import prompt_key, read_references
from tokencredit.scorers.source_settings import RewardSource
from tokencredit.server.client import RewardServer
from tokencredit.server.exchange import is_address, token_in
from tokencredit.server.judge_endpoint import JudgeEndpoint, endpoint_address
from tokencredit.text.hf_known_readings import reading_of
from tokencredit.text.hf_reading import Reading
from tokencredit.text.reading_settings import ReadingSettings

_LOG = logging.getLogger("tokencredit.judge")
# Verdicts that a share is taken of at least: one of the first four is not a quarter of a run.
_COUNTED = 100


@dataclass
class JudgeReward:
    """A judge as a reward in Python: from prompts and responses to one score each.

    Responses whose verdict cannot be read are an error of theirs, which commands that may leave
    responses out meet by asking for each of them alone: what was said the last time is said again.

    Attributes:
        judge: from questions to replies.
        setup: which questions are asked.
        settings: of the source.
        name: for messages.
        references: by the prompt, for set-ups that compare with one.
        verdicts: how many were asked for so far.
        unreadable: how many of them could not be read, by the reason.
        unquoted: how many quotes were of no use, by the reason, where the judge quotes evidence.
        how: what its replies depend on besides the questions and the weights of a model here.
    """

    judge: Judge
    setup: JudgeSetup
    settings: JudgingSettings
    name: str
    references: Mapping[str, str] = field(default_factory=dict)
    verdicts: int = 0
    unreadable: Counter[str] = field(default_factory=Counter)
    unquoted: Counter[str] = field(default_factory=Counter)
    how: str = ""
    _last: dict[tuple[str, str], float] = field(default_factory=dict, repr=False)
    _why: dict[tuple[str, str], str] = field(default_factory=dict, repr=False)
    _quoted: dict[tuple[str, str], tuple[QuotedCriterion, ...]] = field(
        default_factory=dict, repr=False
    )

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Scores of responses; those to one prompt stand together where they are compared.

        Raises:
            VerdictError: a verdict cannot be read.
            DataError: a prompt has no reference.
            ConfigError: too many cannot be read, or a prompt has too few responses.
            ServerError: as the judge.
        """
        keys = list(zip(map(prompt_key, prompts), responses, strict=True))
        if not all(key in self._last for key in keys):
            self._ask(dict(zip((key for key, _ in keys), prompts, strict=True)), keys)
        self._require_few_unreadable()
        found = [self._last[key] for key in keys]
        missing = Counter(self._why[key] for key in keys if self._last[key] != self._last[key])
        if missing:
            raise VerdictError(
                f"{missing.total()} of {len(found)} responses have no verdict of {self.name} that "
                f"can be read ({_told(missing)}); expected one for each: look at its replies, or "
                "ask again with judge.ask_again and a temperature"
            )
        return found

    def tried(self) -> None:
        """Ask about one response, so that a judge that cannot be asked shows at once.

        What it says is not looked at and does not count.

        Raises:
            ConfigError, DataError, ModelError, ServerError: as the judge.
        """
        self._judged(["a"], [[" a"]], [" b"] if self.setup.asks == "reference" else [])

    @property
    def fingerprint(self) -> str:
        """Another one where scores may be others: of all but the weights of a model here.

        Where replies are kept, how many are asked for at a time and how many may be unreadable
        changes no score.
        """
        setup, settings = self.setup, self.settings
        asked = (settings.setup, setup.asks, setup.template, setup.answers, setup.both_orders)
        said = (
            settings.principle,
            settings.rubric,
            setup.criteria,
            sorted(self.references.items()),
        )
        drawn = (settings.seed, settings.ask_again)
        return hashlib.sha256(repr((self.how, asked, said, drawn)).encode()).hexdigest()

    def _judged(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Sequence[str]],
        references: Sequence[str],
    ) -> JudgedScores:
        return judged_scores(
            self.judge,
            self.setup,
            prompts,
            responses,
            references=references,
            principle=self.settings.principle,
            rubrics=[self.settings.rubric] * len(prompts) if self.settings.rubric else [],
            seed=self.settings.seed,
            most_unreadable=1.0,
            ask_again=self.settings.ask_again,
        )

    def quotes(
        self, prompts: Sequence[Prompt], responses: Sequence[str]
    ) -> list[tuple[QuotedCriterion, ...]]:
        """What was said of responses by each criterion, and where the quotes stand.

        Args:
            prompts: of the last call, all or some.
            responses: likewise; each has a score.
        """
        keys = zip(map(prompt_key, prompts), responses, strict=True)
        return [self._quoted[key] for key in keys]

    def _ask(self, prompts: Mapping[str, Prompt], keys: Sequence[tuple[str, str]]) -> None:
        groups: dict[str, list[str]] = {key: [] for key in prompts}
        for key, response in keys:
            groups[key].append(response)
        references = self._references(groups)
        found = self._judged(list(prompts.values()), list(groups.values()), references)
        self._last = {
            (key, response): score
            for (key, texts), scores in zip(groups.items(), found.scores, strict=True)
            for response, score in zip(texts, scores.tolist(), strict=True)
        }
        self._why = {
            (key, response): why
            for (key, texts), reasons in zip(groups.items(), found.reasons, strict=True)
            for response, why in zip(texts, reasons, strict=True)
        }
        if found.criteria:
            self._find_quotes(groups, found)
        self.verdicts += found.verdicts
        self.unreadable.update(found.unreadable)
        if found.unreadable or found.asked_again:
            _LOG.warning(
                "%s: %d of %d verdicts cannot be read (%s), %d questions were asked again",
                self.name, self.unreadable.total(), self.verdicts, self._reasons(),
                found.asked_again,
            )  # fmt: skip

    def _require_few_unreadable(self) -> None:
        most = self.settings.most_unreadable
        if self.unreadable.total() > most * max(self.verdicts, _COUNTED):
            raise ConfigError(
                f"{self.unreadable.total()} of {self.verdicts} verdicts of {self.name} cannot be "
                f"read: {self._reasons()}; expected at most {most:.0%}: look at its replies, ask "
                "again with judge.ask_again and a temperature, or allow more with "
                "judge.most_unreadable"
            )

    def _find_quotes(self, groups: Mapping[str, list[str]], found: JudgedScores) -> None:
        """Where the quotes of the verdicts stand in the responses; the others are counted."""
        self._quoted, lost = {}, Counter[str]()
        for (key, texts), said in zip(groups.items(), found.criteria, strict=True):
            for text, criteria in zip(texts, said, strict=True):
                if (key, text) not in self._quoted:
                    self._quoted[key, text], reasons = quoted_criteria(text, criteria)
                    lost.update(reasons)
        self.unquoted.update(lost)
        if lost:
            _LOG.warning(
                "%s: evidence that is of no use so far: %s", self.name, _told(self.unquoted)
            )

    def _references(self, groups: Mapping[str, Any]) -> list[str]:
        if self.setup.asks != "reference":
            return []
        missing = [key for key in groups if key not in self.references]
        if missing:
            raise DataError(
                f"{len(missing)} prompts have no reference in {self.settings.references}, the "
                f"first is {missing[0][:80]!r}; expected a row for every prompt, as it is asked"
            )
        return [self.references[key] for key in groups]

    def _reasons(self) -> str:
        return _told(self.unreadable)


def _told(reasons: Counter[str]) -> str:
    return ", ".join(f"{why} ({n})" for why, n in reasons.most_common(5)) or "none"


def judge_scorer(
    source: RewardSource,
    credit: CreditSettings,
    writer: Reading,
    *,
    server: Callable[[str], RewardServer] = RewardServer,
    reading: ReadingSettings | None = None,
    loading: Mapping[str, Any] | None = None,
    micro_batch_size: int | None = None,
) -> FunctionScorer:
    """The scorer of a source of reward that is asked as a judge.

    Args:
        source: with a `judge`.
        credit: that is made from its scores.
        writer: how the model reads that writes the responses.
        server: makes a client of an address; the token is that of the judge alone.
        reading: how a local judge reads, where the source does not say.
        loading: of a local judge, as `load_model` takes it; also `pad_token`.
        micro_batch_size: questions per forward pass of a local judge.

    Raises:
        ConfigError: what the set-up asks for is not there, or it compares responses with each other
            and the credit needs scores of parts of one.
        DataError: the file of references cannot be read.
        ModelError: there is no such model.
    """
    settings = source.judge or JudgingSettings()
    setup, prefixes = settings.row(), made_of_prefixes(credit)
    if setup.asks in ("group", "list") and (
        prefixes or "kept_tokens" in credit_method(credit.method).needs
    ):
        raise ConfigError(
            f"judge.setup is {settings.setup!r}, which compares the responses to a prompt with "
            f"each other, and credit method {credit.method!r} asks for parts of each; expected "
            "'terminal' or another method of whole responses, or a set-up that asks about one"
        )
    references = (
        {}
        if settings.references is None
        else read_references(settings.references, setting="judge.references")
    )
    name = f"the judge {source.label}"
    judge, model, how = loaded_judge(
        source.model,
        settings,
        server=server,
        reading=source.reading or reading,
        loading=loading,
        micro_batch_size=micro_batch_size,
    )
    reward = JudgeReward(judge, setup, settings, name, references, how=how)
    at_ends = "segments" in credit_method(credit.method).needs
    return FunctionScorer(
        reward,
        writer,
        name,
        prefixes,
        at_ends=at_ends,
        model=model,
        quotes=reward.quotes if setup.criteria else None,
        criteria=tuple(one.name for one in setup.criteria),
    )


class LoadedJudge(NamedTuple):
    """A judge that can be asked.

    Attributes:
        judge: from questions to replies.
        model: of this process that it asks; None for one behind an endpoint.
        how: what its replies depend on besides the questions and the weights of this model.
    """

    judge: Judge
    model: PreTrainedModel | None
    how: str


def loaded_judge(
    name: str,
    settings: AskingSettings,
    *,
    server: Callable[[str], RewardServer] = RewardServer,
    reading: ReadingSettings | None = None,
    loading: Mapping[str, Any] | None = None,
    micro_batch_size: int | None = None,
) -> LoadedJudge:
    """A judge by its name: a causal language model, or an endpoint, whose model is not here.

    Args:
        name: Hub id, folder, or `http(s)://.../v1#model`.
        settings: how it is asked.
        server: makes a client of an address; the token is that of the judge alone.
        reading: how a local judge reads.
        loading: of a local judge, as `load_model` takes it; also `pad_token`.
        micro_batch_size: questions per forward pass of a local judge.

    Raises:
        ConfigError: an address names no model.
        ModelError: there is no such model.
    """
    model: PreTrainedModel | None = None
    judge: Judge
    if is_address(name):
        judge, identity = _endpoint(name, settings, server)
        how = json.dumps([name, identity])
    else:
        given = dict(loading or {})
        pad, trust = given.pop("pad_token", None), given.get("trust_remote_code", False)
        model = load_model(AutoModelForCausalLM, name, **given)
        model.eval().requires_grad_(False)
        tokenizer = load_tokenizer(name, trust_remote_code=trust, pad_token=pad)
        reads = reading_of(model, tokenizer, reading)
        sampling = Sampling(settings.max_new_tokens, temperature=settings.temperature)
        judge = local_judge(
            model, reads, sampling=sampling, seed=settings.seed, micro_batch_size=micro_batch_size
        )
        said = [reads.template, str(tokenizer.chat_template), str(sampling), str(settings.seed)]
        how = json.dumps([tokenizer_fingerprint(tokenizer), *said])
        identity = ""
        if settings.cache is not None:
            said = [name, weights_fingerprint(model), str(model.dtype), *said]
            identity = json.dumps(said)
    if settings.cache is not None:
        judge = kept_replies(judge, settings.cache, identity=identity)
    return LoadedJudge(judge, model, how)


def _endpoint(
    address: str, settings: AskingSettings, server: Callable[[str], RewardServer]
) -> tuple[Judge, str]:
    address, model = endpoint_address(address)
    token = settings.token_variable
    if token is not None:
        token = token_in(token, setting="judge.token_variable")
    # The token of a reward server is not for whoever judges.
    asked = JudgeEndpoint(
        replace(server(address), token=token),
        model,
        settings.max_new_tokens,
        settings.temperature,
        settings.seed,
        settings.top_logprobs,
        settings.concurrency,
    )
    return asked, asked.identity
