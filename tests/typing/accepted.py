"""What users write, as type checkers must take it. Nothing here is run: `test_typing` has it checked."""

from __future__ import annotations

import collections
import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import sqstaskmaster.message_handler
from sqstaskmaster import (
    Continue,
    CurrentTask,
    DeadLetter,
    ExponentialBackoff,
    Finished,
    LocalMessage,
    LocalQueue,
    MessageHandler,
    Outcome,
    ProcessMessageHandler,
    Provisioner,
    SubmitResult,
    TaskFilter,
    TaskManager,
    TasksNotSent,
    Worker,
    current_task,
)
from sqstaskmaster.testing import SimulatedQueue


class Train(MessageHandler):
    retry_delay = ExponentialBackoff(first=30, longest=3600)

    def __init__(self, message: Any, model: str, rounds: int = 10) -> None:
        super().__init__(message, sqs_timeout=30, alarm_timeout=10.5, hard_timeout=3600)
        self.model = model
        self.rounds = rounds

    def run(self) -> int:
        return len(self.model) * self.rounds

    def running(self) -> bool:
        return bool(self.progress.get("round", 0) < self.rounds)

    def notify(self, exception: BaseException, context: Mapping[str, Any] | None = None) -> None:
        print(exception, context)


class Solve(ProcessMessageHandler):
    def __init__(self, message: Any, **kwargs: Any) -> None:
        super().__init__(message, 30, 10, 3600, term_grace=2.5, start_method="spawn", max_memory=2**30)
        self.kwargs = kwargs

    def run(self) -> list[str]:
        self.report(done=1, of=len(self.kwargs))
        if not self.kwargs:
            raise DeadLetter("there is nothing to solve")
        return sorted(self.kwargs)

    def retry_delay(self, exception: BaseException, receive_count: int) -> float | None:
        return None if receive_count > 3 else 60.0 * receive_count


def notify(exception: BaseException, context: Mapping[str, Any] | None = None) -> None:
    logging.error("%s: %s", exception, context)


def produce(url: str) -> SubmitResult:
    manager = TaskManager(url, notify, LocalQueue, "producer")
    manager.submit("Train", model="one", rounds=3)
    manager.options(delay_seconds=60, message_group_id="customer", message_attributes={"trace": "1"}).submit("Solve")
    by_customer = manager.options(message_group_id=lambda task, kwargs: str(kwargs["customer"]))
    by_customer.submit("Train", customer=4711)
    try:
        result = manager.submit_many((("Train", {"model": str(number)}) for number in range(1000)), threads=4)
    except TasksNotSent as error:
        for failure in error.failures:
            print(failure.index, failure.task, failure.kwargs, failure.code, failure.reason)
        result = manager.submit_many(error, on_progress=lambda so_far: print(so_far.sent, so_far.failed))
    first: str | None = result.message_ids[0]
    every: list[str | None] = result.message_ids[:]
    print(first, len(every))
    return result


def consume(manager: TaskManager) -> Outcome | None:
    for task, kwargs, message in manager.task_generator(wait_time=5, sqs_timeout=30, burst=True):
        with Train(message, **kwargs) as handler:
            total: int = handler.run()
            print(total)
        print(task.upper(), handler.model, str(handler.outcome))
        return handler.outcome
    return None


def make_worker(manager: TaskManager) -> Worker:
    @contextlib.contextmanager
    def around(task: CurrentTask) -> Iterator[None]:
        print(task.name, task.message_id, task.receive_count, task.attributes, task.seconds_left)
        yield

    def on_finish(finished: Finished) -> None:
        print(finished.task, finished.outcome, finished.elapsed, finished.cpu_seconds, finished.peak_memory)

    worker = Worker(
        [manager, manager],
        {"Train": Train, "Solve": Solve},
        slots=[{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}],
        shutdown_grace=110,
        on_claim_lost="continue",
        around=around,
        on_finish=on_finish,
    )

    @worker.task("Count", hard_timeout=60, dead_letter=(KeyError,), retry_delay=ExponentialBackoff())
    def count(to: int, number: int = 0) -> int:
        task = current_task()
        if task is not None and (task.stopping or task.seconds_left < 60):
            task.report(number=number)
            raise Continue(number=number)
        if number > to:
            raise Continue.after(60, number=0)
        return to

    # The decorator leaves the function what it is.
    counted: int = count(5, number=1)
    print(counted)
    return worker


def work(worker: Worker) -> int:
    counts: collections.Counter[str] = worker.run(burst=True, slots="auto", on_event=print)
    return counts["done"]


def scale() -> int:
    rule = {
        Provisioner.QUEUE_NAME: "https://sqs.eu-west-1.amazonaws.com/123456789012/train",
        Provisioner.SERVICE_NAME: "train",
        Provisioner.CLUSTER_NAME: "workers",
        Provisioner.ACTIVE_SIZE: 4,
    }
    return 1 if Provisioner([rule], notify).run() else 0


def classic_unit_test() -> None:
    message = LocalMessage("{}", {}, {})
    with mock.patch.object(sqstaskmaster.message_handler.logger, "exception"):
        with Train(message, "one") as handler:
            handler.run()
    with Train(mock.Mock(), "one"):
        pass
    assert message.deleted and message.visibility_changes == [30]
    LocalQueue.reset()


def simulate() -> str:
    queue = SimulatedQueue(max_receive_count=2, deduplication_scope="queue")
    manager = TaskManager(queue.url, queue_constructor=SimulatedQueue)
    manager.submit("Train")
    queue.send_message(
        MessageBody="x", DelaySeconds=5, MessageAttributes={"a": {"StringValue": "b", "DataType": "String"}}
    )
    for message in queue.receive_messages(MaxNumberOfMessages=10, MessageSystemAttributeNames=["All"]):
        message.change_visibility(VisibilityTimeout=0)
    queue.advance(30, suspended=True)
    with queue.clock.task():
        pass
    SimulatedQueue.reset()
    # No cast, and no assert.
    return queue.dead_letter_queue.receive_messages()[0].body


logging.getLogger().addFilter(TaskFilter())
