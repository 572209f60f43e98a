"""One queue of a worker: where its messages come from, and the requests about them."""

from __future__ import annotations

from collections.abc import Callable

from sqstaskmaster._claim import clock
from sqstaskmaster._claim.attempt import Attempt
from sqstaskmaster._service.heartbeat import Heartbeat
from sqstaskmaster._service.world import World
from sqstaskmaster._sqs.queues import QueueCalls
from sqstaskmaster.task_manager import TaskManager


class Source:
    """One queue, with threads of its own for its requests: a queue that does not answer holds up no other.

    `requests`, `polls`: the pools of these threads. Extensions have their own pool, which nothing else can exhaust.
    `clock`: is informed of the running tasks, if it is that of a test's queue.
    """

    def __init__(
        self,
        world: World,
        manager: TaskManager,
        on_lost: Callable[[Attempt], None],
        on_failure: Callable[[Attempt, BaseException], None],
    ) -> None:
        self.manager = manager
        self.calls = QueueCalls(manager.queue, manager._connection.urgent_queue())
        self.clock = clock.of_queue(manager.queue)
        self.requests = f"requests {manager.url}"
        self.polls = f"polls {manager.url}"
        self.heartbeat = Heartbeat(world, f"extensions {manager.url}", self.calls, on_lost, on_failure)

    def due_in(self) -> float:
        """Seconds until a claim needs something: see `Attendant`."""
        return self.heartbeat.due_in()

    def __str__(self) -> str:
        return self.manager.url
