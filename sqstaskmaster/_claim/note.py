"""What the receiver of a message notes on it for its handler: so neither knows the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from sqstaskmaster._claim.destinations import DeadLetterQueues

_NOTE = "_sqstaskmaster_receipt"


class Terms(NamedTuple):
    """What a worker wants of the handler of its message; a loop of the user's wants nothing.

    `fits` raises where kwargs do not fit the task.
    """

    fits: Callable[[Mapping[str, Any]], object] | None = None
    stops_on_lost_claim: bool = False
    dead_letter_reasons: bool = False


class Receipt(NamedTuple):
    """One receive of one message.

    `asked_at` and `answered_at`: when ReceiveMessage was sent and answered, seconds of the claim's clock. `seconds`:
    the visibility timeout it asked for, None once the claim has been changed by somebody. `task`: the task's name.
    `has_attributes`: whether all message attributes were asked for; SQS sends no others. `dead_letters`: what is known
    of the queue's dead-letter queue.
    """

    asked_at: float
    answered_at: float
    seconds: int | None
    task: str | None = None
    queue_url: str | None = None
    has_attributes: bool = False
    dead_letters: DeadLetterQueues | None = None
    terms: Terms = Terms()


def leave(message: Any, receipt: Receipt) -> None:
    """Note it on the message. An object that takes no attributes is left as it is: its claim is unknown."""
    try:
        setattr(message, _NOTE, receipt)
    except (AttributeError, TypeError):
        pass


def read(message: Any) -> Receipt | None:
    """What is noted on the message, if anything."""
    receipt = getattr(message, _NOTE, None)
    # A mock answers every name with something.
    return receipt if isinstance(receipt, Receipt) else None


def take(message: Any) -> Receipt | None:
    """What is noted on the message; from now on the note does not say how long the claim is, since it is changed."""
    receipt = read(message)
    if receipt is not None:
        leave(message, Receipt(receipt.asked_at, receipt.answered_at, None, *receipt[3:]))
    return receipt
