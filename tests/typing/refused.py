"""What users get wrong, and type checkers must tell them. Nothing here is run: `test_typing` has it checked.

Behind each such line stand the errors: `# E:`, mypy's code, and pyright's rule.
"""

from __future__ import annotations

from typing import Any

from sqstaskmaster import TaskMaster  # E: attr-defined reportAttributeAccessIssue
from sqstaskmaster import (
    Continue,
    ExponentialBackoff,
    LocalMessage,
    LocalQueue,
    MessageHandler,
    Outcome,
    ProcessMessageHandler,
    Provisioner,
    SubmitResult,
    TaskManager,
    Worker,
    current_task,
)
from sqstaskmaster.testing import SimulatedQueue


class Misspelt(MessageHandler):
    def __init__(self, message: Any) -> None:
        super().__init__(message, sqs_timeout=30, alarm_timeout=10, hard_timout=60)  # E: call-arg reportCallIssue

    def run(self) -> None:
        self.seconds_left()  # E: attr-defined reportAttributeAccessIssue


class Mistyped(ProcessMessageHandler):
    def __init__(self, message: Any) -> None:
        super().__init__(message, "30", 10, 60)  # E: arg-type reportArgumentType
        super().__init__(message, 30, 10, 60, max_memory=1.5)  # E: arg-type reportArgumentType
        super().__init__(message, 30, 10, 60, 5.0)  # E: call-arg reportCallIssue

    def run(self) -> None:
        self.report(5)  # E: call-arg reportCallIssue

    def retry_delay(self, exception: Any, receive_count: int) -> str:  # E: override reportIncompatibleMethodOverride
        return "soon"

    def running(self) -> str:  # E: override reportIncompatibleMethodOverride
        return "yes"


class WithoutRun(MessageHandler):
    pass


def produce(manager: TaskManager) -> SubmitResult:
    TaskManager("url", queue_constructor=LocalQueue("url"))  # E: arg-type reportArgumentType
    TaskManager("url", sender="me")  # E: call-arg reportCallIssue
    manager.submit()  # E: call-arg reportCallIssue
    manager.submit(5)  # E: arg-type reportArgumentType
    manager.options(delay=60)  # E: call-arg reportCallIssue
    manager.submit_many(["Train"])  # E: list-item reportArgumentType
    result = manager.submit_many([("Train", {})])
    result.message_ids[0].upper()  # E: union-attr reportOptionalMemberAccess
    return manager.submit_many([("Train", {})], thread=4)  # E: call-arg reportCallIssue


def consume(manager: TaskManager) -> None:
    WithoutRun(LocalMessage("{}"), 30, 10, 60)  # E: abstract reportAbstractUsage
    for task, message in manager.task_generator():  # E: misc reportAssignmentType
        print(task, message)
    manager.task_generator(wait_time="20")  # E: arg-type reportArgumentType
    print(Outcome.FINISHED)  # E: attr-defined reportAttributeAccessIssue


def work(manager: TaskManager) -> None:
    Worker("https://queue")  # E: arg-type reportArgumentType
    Worker(manager, {"Train": "Train"})  # E: dict-item reportArgumentType
    Worker(manager, hard_timout=60)  # E: call-arg reportCallIssue
    Worker(manager, slots="many")  # E: arg-type reportArgumentType
    Worker(manager, on_claim_lost="ignore")  # E: arg-type reportArgumentType
    worker = Worker(manager)

    @worker.task("Count", hard_timout=60)  # E: call-arg reportCallIssue
    def count(to: int) -> int:
        current_task().report(to=to)  # E: union-attr reportOptionalMemberAccess
        raise Continue.after("60", to=to)  # E: arg-type reportArgumentType

    count("5")  # E: arg-type reportArgumentType
    worker.run(bursts=True)  # E: call-arg reportCallIssue


def simulate() -> None:
    queue = SimulatedQueue(visiblity_timeout=5)  # E: call-arg reportCallIssue
    queue.send_message(MessageBody="x", Delay=5)  # E: call-arg reportCallIssue
    queue.send_message(DelaySeconds=5)  # E: call-arg reportCallIssue
    queue.receive_messages(MaxMessages=10)  # E: call-arg reportCallIssue
    queue.receive_messages(MaxNumberOfMessages="10")  # E: arg-type reportArgumentType
    queue.advance("5")  # E: arg-type reportArgumentType


def rest() -> None:
    ExponentialBackoff(fist=1)  # E: call-arg reportCallIssue
    LocalMessage()  # E: call-arg reportCallIssue
    LocalMessage("{}").deleted = "yes"  # E: assignment reportAttributeAccessIssue
    Provisioner(55)  # E: arg-type reportArgumentType
    print(TaskMaster)
