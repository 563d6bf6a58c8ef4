"""Asking an endpoint again when it failed in a way that passes, with growing pauses and within a limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from kvquant.evals.endpoint import EndpointFailed, EndpointUnreachable

if TYPE_CHECKING:
    from tenacity import RetryCallState

T = TypeVar("T")

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
RETRY_AFTER_SECONDS = 60.0
"""The longest pause an endpoint can ask for."""

LOADING_PAUSE_SECONDS = 1.0
LOADING_SECONDS = 900.0
"""How long a model may take to load, where that is more than the limit."""


class Patience:
    """How long an endpoint that fails is waited for.

    limit_seconds: of pauses, in all, for one request; 0 asks only once. on_wait: is told each pause (seconds)
    and its reason. Once the limit was used up in vain, each request is made once, until one is answered.
    """

    def __init__(
        self, limit_seconds: float, on_wait: Callable[[float, str], None] = lambda _seconds, _why: None
    ) -> None:
        self.limit_seconds = limit_seconds
        self._on_wait = on_wait
        self._is_spent = False
        self._was_reached = False

    def ask(self, call: Callable[[], T]) -> T:
        """Return what ``call`` returns, called again after each failure of the endpoint that passes.

        An endpoint where nobody listens is waited for only if it has answered before. Raises what the last
        call has raised.
        """
        from tenacity import Retrying, retry_if_exception

        asking = Retrying(
            retry=retry_if_exception(self._passes),
            wait=_pause,
            stop=self._is_over,
            before_sleep=self._tell,
            reraise=True,
        )
        found = asking(call)
        self._is_spent, self._was_reached = False, True
        return found

    def _passes(self, error: BaseException) -> bool:
        if isinstance(error, EndpointUnreachable):
            return self._was_reached
        return isinstance(error, EndpointFailed)

    def _is_over(self, state: RetryCallState) -> bool:
        limit = 0.0 if self._is_spent else self.limit_seconds
        error = _error(state)
        if limit and isinstance(error, EndpointFailed) and error.is_loading:
            limit = max(limit, LOADING_SECONDS)
        over = state.idle_for + state.upcoming_sleep > limit
        self._is_spent |= over
        return over

    def _tell(self, state: RetryCallState) -> None:
        self._on_wait(state.upcoming_sleep, str(_error(state)))


def _error(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _pause(state: RetryCallState) -> float:
    from tenacity import wait_exponential, wait_random

    error = _error(state)
    if isinstance(error, EndpointFailed) and error.is_loading:
        pause = LOADING_PAUSE_SECONDS
    else:
        growing = wait_exponential(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS) + wait_random(0, 0.25)
        pause = growing(state)
    asked = error.retry_after if isinstance(error, EndpointFailed) else None
    return max(pause, min(asked or 0.0, RETRY_AFTER_SECONDS))
