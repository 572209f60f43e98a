"""Sentry: one event for each failure, also of tasks that were killed or have crashed, told by the worker.

worker = Worker(TaskManager(url, notify=sentry.notify), on_start=lambda: sentry.start(dsn))
"""

import sentry_sdk
from sentry_sdk.integrations.logging import ignore_logger


def start(dsn, **options):
    """For `Worker(on_start=...)`: in the worker's own process, after whatever forks tasks has been forked."""
    sentry_sdk.init(dsn, **options)
    # Each failure is logged too, and Sentry makes events of error lines: that would be a second one.
    for name in ("sqstaskmaster.worker", "sqstaskmaster.message_handler", "sqstaskmaster.process_handler"):
        ignore_logger(name)


def notify(exception, context=None):
    """For `TaskManager(notify=...)`. The message's body stays here: it is nobody else's business."""
    context = dict(context or {})
    context.pop("body", None)
    stack = context.pop("stack", None)
    with sentry_sdk.new_scope() as scope:
        scope.set_tag("task", context.get("task"))
        scope.set_tag("outcome", context.get("outcome"))
        scope.set_context("message", context)
        if stack:
            scope.set_context("where the task was", {"stack": stack})
        scope.fingerprint = ["{{ default }}", str(context.get("task"))]
        sentry_sdk.capture_exception(exception)
