"""How a language model is asked as a judge of responses, as settings say it."""

from dataclasses import dataclass

from tokencredit.errors import ConfigError
from tokencredit.judge.evidence import Criterion
from tokencredit.judge.setups import JUDGE_SETUPS, JudgeSetup, evidence_setup
from tokencredit.names import named
from tokencredit.ranges import require_at_least
from tokencredit.scorers.functions import named_function, names_function


def named_setup(name: str) -> JudgeSetup:
    """A set-up by its name, or by that of a function that returns one.

    Args:
        name: in `JUDGE_SETUPS`, or `module:function`.

    Raises:
        ConfigError: there is none of this name, or the function returns something else.
    """
    if not names_function(name):
        return named("judge.setup", name, JUDGE_SETUPS)
    found = named_function(name)()
    if not isinstance(found, JudgeSetup):
        raise ConfigError(f"{name} returns {found!r:.80}; expected a JudgeSetup")
    return found


@dataclass(frozen=True)
class QuestionSettings:
    """Which questions a judge is asked."""

    setup: str = ""
    """Name of a set-up in docs/judges.md, or `module:function`, a Python function that returns a
    `JudgeSetup` of your own."""
    principle: str = ""
    """What to judge by, for set-ups that have a principle."""
    rubric: str = ""
    """Criteria to judge by, the same for every prompt, for set-ups that have a rubric."""
    criteria: tuple[Criterion, ...] = ()
    """What `evidence` scores a response by, each with a name, a text and a weight; empty for those
    of the set-up."""

    def __post_init__(self) -> None:
        if self.setup and not names_function(self.setup):
            self.require_what_it_asks_for(named("judge.setup", self.setup, JUDGE_SETUPS))

    def row(self) -> JudgeSetup:
        """The set-up.

        Raises:
            ConfigError: there is none of this name, the function returns none, or what it asks for
                is not there.
        """
        found = named_setup(self.setup)
        if self.criteria and found.criteria:
            found = evidence_setup(self.criteria)
        self.require_what_it_asks_for(found)
        return found

    def require_what_it_asks_for(self, setup: JudgeSetup) -> None:
        """Raise ConfigError if the settings lack what a set-up asks for, or have more.

        Args:
            setup: that is meant.
        """
        if self.criteria and (not setup.criteria or names_function(self.setup)):
            raise ConfigError(
                f"judge.setup is {self.setup!r} and judge.criteria has {len(self.criteria)} "
                "criteria; expected the set-up 'evidence', or none: a set-up of your own has its "
                "own, by `evidence_setup`"
            )
        if self.criteria:
            evidence_setup(self.criteria)
        for name in ("principle", "rubric"):
            asks, there = f"{{{name}}}" in setup.template, bool(getattr(self, name).strip())
            if asks != there:
                raise ConfigError(
                    f"judge.setup is {self.setup!r}, which asks for {'a' if asks else 'no'} "
                    f"{name}, and there is {'one' if there else 'none'}; expected "
                    f"{'judge.' + name if asks else 'none, or another set-up'}"
                )


@dataclass(frozen=True)
class AskingSettings(QuestionSettings):
    """How a language model is asked as a judge about responses that it is given."""

    cache: str | None = None
    """File in which replies are kept, so that no question is asked twice; None keeps none."""
    max_new_tokens: int = 1024
    """Most tokens of a text that the judge writes."""
    temperature: float = 0.0
    """Temperature of the texts that the judge writes; 0 takes the most probable tokens."""
    seed: int = 0
    """Seed of the orders in which responses are shown, and of texts that are drawn."""
    ask_again: int = 0
    """How often a question is asked again when its reply cannot be read; only with a temperature
    above 0."""
    most_unreadable: float = 0.05
    """Share of the verdicts that may be unreadable before the run stops, once there are a
    hundred."""
    concurrency: int = 8
    """Questions that are sent to an endpoint at the same time."""
    top_logprobs: int = 20
    """How many tokens an endpoint returns log-probabilities of, where one token is the answer."""
    token_variable: str | None = None
    """Environment variable that holds the token of an endpoint; None for none."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "max_new_tokens", "concurrency", "top_logprobs")
        require_at_least(self, 0, "ask_again", "temperature", "most_unreadable")
        if self.ask_again and not self.temperature:
            raise ConfigError(
                f"ask_again is {self.ask_again} with a temperature of 0, where a judge says the "
                "same again; expected a temperature above 0, or ask_again 0"
            )
        super().__post_init__()

    def require_what_it_asks_for(self, setup: JudgeSetup) -> None:
        """Refuse a set-up that lacks what it asks for, or asks again where that cannot help.

        Args:
            setup: that is meant.
        """
        super().require_what_it_asks_for(setup)
        if self.ask_again and setup.answers:
            raise ConfigError(
                f"ask_again is {self.ask_again} with judge.setup {self.setup!r}, whose judge "
                "answers with one token, always the same; expected ask_again 0"
            )


@dataclass(frozen=True)
class JudgingSettings(AskingSettings):
    """How a language model is asked as a judge."""

    references: str | None = None
    """JSON-lines file with `prompt` and `response`, one reference for every prompt, for set-ups
    that compare with one."""

    def require_what_it_asks_for(self, setup: JudgeSetup) -> None:
        """Refuse a set-up that lacks what it asks for, a file of references among it.

        Args:
            setup: that is meant.
        """
        super().require_what_it_asks_for(setup)
        compares = setup.asks == "reference"
        if compares != (self.references is not None):
            raise ConfigError(
                f"judge.setup is {self.setup!r}, which compares "
                f"{'with a reference' if compares else 'with none'}, and judge.references is "
                f"{self.references!r}; expected "
                f"{'a JSON-lines file with prompt and response' if compares else 'none'}"
            )
