"""Whose turn it is, where requests of very different size share one worker.

A clock of work that each request could have been done: one that comes begins at the time that it
shows, goes on with what is done for it, and whose next piece would end first has the next turn. So
a small request passes large ones that came before it, and a large one waits for no more small ones
than make up its share (start-time fair queueing, Goyal, Vin and Cheng 1996, by the end of pieces as
in Demers, Keshav and Shenker 1989).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

Request = TypeVar("Request", bound="Share")


@dataclass(eq=False, kw_only=True)
class Share:
    """What a request has been done, as the clock shows it."""

    reached: float = 0.0


class FairClock:
    """The clock of one worker."""

    def __init__(self) -> None:
        self._now = 0.0

    def begin(self, request: Share) -> None:
        """A request comes."""
        request.reached = self._now

    def next_of(self, waiting: Iterable[Request], cost: Callable[[Request], float]) -> Request:
        """The request whose next piece would end first; among equals that which came first.

        Args:
            waiting: at least one, in the order in which they came.
            cost: of the next piece of each.
        """
        return min(waiting, key=lambda request: request.reached + cost(request))

    def done(self, request: Share, cost: float, *, waiting: int) -> None:
        """A piece was done for a request, while so many waited, this one included."""
        request.reached += cost
        self._now += cost / max(1, waiting)
