"""What the receiver of a message notes on it for its handler: so neither knows the other."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqstaskmaster._claim.destinations import Origin

_NOTE = "_sqstaskmaster_receipt"


class Receipt(NamedTuple):
    """One receive of one message.

    `asked_at` and `answered_at`: when ReceiveMessage was sent and answered, seconds of the claim's clock. `seconds`:
    the visibility timeout it asked for, None once the claim has been changed by somebody. `task`: the task's name.
    `has_attributes`: whether all message attributes were asked for; SQS sends no others. `origin`: the queue it came
    from. `lapses`: whether a claim on it can.
    """

    asked_at: float
    answered_at: float
    seconds: int | None
    task: str | None = None
    has_attributes: bool = False
    origin: Origin | None = None
    lapses: bool = True


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
        leave(message, receipt._replace(seconds=None))
    return receipt
