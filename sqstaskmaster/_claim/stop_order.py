"""What `sqstaskmaster stop` asks for. Imports no botocore: see `_cli.worker_process.load`."""

from __future__ import annotations

from typing import NamedTuple

from sqstaskmaster.errors import HardTimeout


class StopOrder(NamedTuple):
    """Somebody wants a task stopped: `sqstaskmaster stop`. `retry`: its message is given back, and not deleted."""

    message_id: str
    retry: bool = False
    reason: str = ""


def stopped_by(order: StopOrder) -> Exception:
    """What a task is stopped with that somebody wants stopped."""
    return HardTimeout(f"Stopped by sqstaskmaster stop{order.reason and f': {order.reason}'}")
