"""What the receiver of a message notes on it for its handler, so that neither need know the other."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqstaskmaster._claim.destinations import Origin

_NOTE = "_sqstaskmaster_receipt"


class Receipt(NamedTuple):
    """One receive of one message.

    `asked_at` and `answered_at`: when ReceiveMessage was sent and answered, seconds of the claim's clock. `seconds`:
    the visibility timeout it asked for, None once anything has changed the claim. `task`: the task's name.
    `has_attributes`: whether all message attributes were asked for; SQS sends no others. `origin`: the queue it came
    from. `lapses`: whether a claim on it can lapse.
    """

    asked_at: float
    answered_at: float
    seconds: int | None
    task: str | None = None
    has_attributes: bool = False
    origin: Origin | None = None
    lapses: bool = True


def leave(message: Any, receipt: Receipt) -> None:
    """Note it on the message. An object that takes no attributes stays as it is: its claim is unknown."""
    try:
        setattr(message, _NOTE, receipt)
    except (AttributeError, TypeError):
        pass


def read(message: Any) -> Receipt | None:
    """The receipt noted on the message, if any."""
    receipt = getattr(message, _NOTE, None)
    # A mock has every attribute.
    return receipt if isinstance(receipt, Receipt) else None


def take(message: Any) -> Receipt | None:
    """The receipt noted on the message. From now on the note omits the claim's length, since that will change."""
    receipt = read(message)
    if receipt is not None:
        leave(message, receipt._replace(seconds=None))
    return receipt
