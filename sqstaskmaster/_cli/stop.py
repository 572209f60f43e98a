"""Stops a task that a worker of this machine runs, and reports how it ended."""

from __future__ import annotations

import argparse

from sqstaskmaster._claim.report import printable
from sqstaskmaster._claim.stop_order import StopOrder
from sqstaskmaster._cli.exits import CommandError
from sqstaskmaster._service import places, status
from sqstaskmaster._service.exit_codes import Exit


def stop(arguments: argparse.Namespace) -> Exit:
    """Stop the task, and wait until its message is settled."""
    order = StopOrder(arguments.message_id, arguments.retry, arguments.reason)
    if len(order.reason) > status.MOST_REASON:
        raise CommandError(
            Exit.USAGE, f"--reason has {len(order.reason)} characters: give at most {status.MOST_REASON}"
        )
    answers = status.ask()
    ended = [end for answer in answers if _runs(answer, order) and (end := _ended(answer, order)) is not None]
    if not ended:
        raise CommandError(Exit.FAILED, _not_here(order, answers))
    for end in ended:
        print(printable(str(end.get("line"))), flush=True)
    return Exit.OK if all(end.get("outcome") == "stopped" for end in ended) else Exit.FAILED


def _runs(answer: status.Answer, order: StopOrder) -> bool:
    return answer.said is not None and any(task.get("message_id") == order.message_id for task in answer.said["tasks"])


def _ended(answer: status.Answer, order: StopOrder) -> dict[str, object] | None:
    """How the task ended; None if it no longer runs there."""
    who = f"Worker {answer.pid}, which runs message {order.message_id},"
    try:
        said = status.stop(answer, order)
    except status.NotKnown:
        raise CommandError(
            Exit.FAILED, f"{who} is of a version that cannot stop a task: delete the message, or restart the worker"
        ) from None
    if said.runs is None:
        raise CommandError(Exit.FAILED, f"{who} does not answer: look at it with 'sqstaskmaster ps'")
    if said.runs and said.end is None:
        raise CommandError(
            Exit.FAILED,
            f"{who} ended before it reported how the task ended: the message may come back; see its log",
        )
    return said.end


def _not_here(order: StopOrder, answers: list[status.Answer]) -> str:
    why = [places.where()]
    if silent := [str(answer.pid) for answer in answers if answer.said is None]:
        why.append(f"of the workers here, {', '.join(silent[:10])} did not answer")
    why += places.look().troubles
    why.append("'sqstaskmaster ps' shows what runs here; to stop a task from elsewhere, delete its message")
    return printable(f"No worker here runs message {order.message_id}: {'. '.join(why)}")
