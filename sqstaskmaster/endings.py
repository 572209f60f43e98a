"""How a task ends: the outcomes, and what a task raises to go on later, or to the dead-letter queue at once."""

from __future__ import annotations

import enum
from typing import Any

from sqstaskmaster._sqs.limits import MAX_DELAY_SECONDS, check_whole_seconds
from sqstaskmaster.errors import SQSTaskMasterError


class Outcome(str, enum.Enum):
    """How a task ended. Each is also the plain string of its value: `handler.outcome == "done"`."""

    #: It ended normally. The message is deleted, with retries while the claim lives.
    DONE = "done"
    #: It raised an Exception, or its process died. The message is kept: it is visible again when its claim ends, or
    #: after `retry_delay`.
    FAILED = "failed"
    #: It reached its hard timeout, even if it swallowed the HardTimeout. The message is kept, as above.
    TIMED_OUT = "timed out"
    #: Its `running()` returned False. The message is kept, as above.
    STUCK = "stuck"
    #: Ctrl-C, SystemExit, or a stopping worker. The message is given back at once.
    INTERRUPTED = "interrupted"
    #: The claim was lost, so a Worker stopped the task. The message is left alone.
    CLAIM_LOST = "claim lost"
    #: It raised Continue: its successor has been sent, then the message was deleted.
    CONTINUED = "continued"
    #: `sqstaskmaster stop` has stopped it. The message is deleted, or, with --retry, given back at once.
    STOPPED = "stopped"
    #: No retry would help: the message has been sent to the dead-letter queue, then deleted.
    DEAD_LETTERED = "dead-lettered"

    def __str__(self) -> str:
        return self.value


class Continue(BaseException):
    """Raised by an isolated task to go on later, perhaps elsewhere, with its kwargs updated by these.

    ::

        @worker.task("Train")
        def train(model, step=0):
            for step in range(step, 1000):
                one_step(model, step)
                if current_task().stopping or current_task().seconds_left < 60:
                    raise Continue(step=step + 1)

    A successor (same task, message attributes and message group) is sent to the queue the message came from, then
    the message is deleted. That costs no receive, and begins 12 new hours. The outcome is `continued`.

    It may be raised at any time, even after SIGTERM has raised SystemExit in the task (the worker stops, or the hard
    timeout is over), within `term_grace`: in an `except SystemExit` round a call. (One round a loop may miss it, since
    CPython 3.11 to 3.13 may leave a loop's jump back out of the `try` round it.) It is a BaseException, so that the
    task's own `except Exception` does not swallow it.

    If the successor cannot be sent, the task fails, and the message stays: if arguments do not fit the task, the
    message is over 1 MiB, SQS returns an error, or the task has continued `max_continuations` times. It also fails in a
    plain `MessageHandler`, and for a message that was received without its message attributes.

    At least once: a worker that dies between the two requests leaves both messages, and with them a second chain. On a
    FIFO queue the successor goes behind its message group, and a repetition of the same step is dropped for five
    minutes.

    Needs sqs:SendMessage on the queue.
    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html
    """

    #: Carried from the task's process to the worker, though it is no Exception.
    crosses_processes = True

    def __init__(self, /, **kwargs: Any) -> None:
        super().__init__()
        self.kwargs = kwargs
        self.delay_seconds = 0

    @classmethod
    def after(cls, seconds: int, /, **kwargs: Any) -> Continue:
        """The same, received no sooner than in `seconds`: 0 to 900. Standard queues only.

        :raises ValueError: for a delay out of range.
        """
        later = cls(**kwargs)
        later.delay_seconds = check_whole_seconds("seconds", seconds, MAX_DELAY_SECONDS)
        return later

    def __str__(self) -> str:
        return f"goes on with {', '.join(self.kwargs) or 'the same arguments'}"


class DeadLetter(SQSTaskMasterError):
    """Raised by a task if no retry helps: its message goes to the dead-letter queue at once, with the reason.

    ::

        raise DeadLetter("customer 4711 does not exist")

    It is sent to the dead-letter queue of the queue's redrive policy (same body and message attributes; the reason in
    the message attribute `sqstaskmaster`), then deleted. The outcome is `dead-lettered`. Without a dead-letter queue,
    or without the permission, the task fails like any other, and one warning says what is missing.

    Needs sqs:SendMessage on the dead-letter queue, and sqs:GetQueueAttributes on the queue.
    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-dead-letter-queues.html
    """
