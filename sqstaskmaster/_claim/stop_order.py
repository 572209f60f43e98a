"""What `sqstaskmaster stop` asks for. Imports no botocore: see `_cli.worker_process.load`."""

from __future__ import annotations

from typing import NamedTuple

from sqstaskmaster.errors import HardTimeout


class StopOrder(NamedTuple):
    """An order to stop a task, from `sqstaskmaster stop`. `retry`: return its message to the queue, not delete it."""

    message_id: str
    retry: bool = False
    reason: str = ""


def stopped_by(order: StopOrder) -> Exception:
    """The exception that stops a task on such an order."""
    return HardTimeout(f"Stopped by sqstaskmaster stop{order.reason and f': {order.reason}'}")
