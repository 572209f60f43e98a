"""FunctionHandler: runs a plain function with the message's kwargs as a task in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sqstaskmaster._sqs.protocols import Message
from sqstaskmaster.process_handler import ProcessMessageHandler

Self = TypeVar("Self", bound="FunctionHandler")


class FunctionHandler(ProcessMessageHandler):
    """What `Worker.task` makes of a function.

    :param function: called with `kwargs` in the task's process.
    :param notify: called in the worker as `notify(exception, context=...)`.
    :param retry_delay: `retry_delay(exception, receive_count)`, see MessageHandler.retry_delay; None: no delay.
    :param settings: those of ProcessMessageHandler.
    """

    def __init__(
        self,
        message: Message,
        function: Callable[..., Any],
        kwargs: Mapping[str, Any],
        *,
        notify: Callable[..., Any] | None = None,
        retry_delay: Callable[[BaseException, int], float | None] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(message, **settings)
        self._function = function
        self._kwargs = kwargs
        self._notify_with = notify
        self._retry_policy = retry_delay

    def run(self) -> Any:
        return self._function(**self._kwargs)

    def notify(self, exception: BaseException, context: Mapping[str, Any] | None = None) -> None:
        if self._notify_with is not None:
            self._notify_with(exception, context=context)

    def retry_delay(self, exception: BaseException, receive_count: int) -> float | None:
        return None if self._retry_policy is None else self._retry_policy(exception, receive_count)

    def _task_side(self: Self) -> Self:
        task_side = super()._task_side()
        # These belong to the worker, and cannot be pickled: the manager behind `notify` holds a boto3 client.
        task_side._notify_with = task_side._retry_policy = None
        return task_side
