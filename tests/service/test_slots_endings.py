"""How a task may end, in a worker with slots: the same laws as without."""

import logging
import sys
import threading
import time
import unittest
from unittest import mock

from sqstaskmaster import LocalMessage, LocalQueue
from tests.support import DEADLINE_SECONDS
from tests.support.endings import (
    ContinueLaws,
    ContinueLocalLaws,
    DeadLetterLaws,
    InSlots,
    InSpawnedSlots,
    InWarmSlots,
    InWarmSpawnedSlots,
    OnLocalQueue,
    OnServer,
    Stopping,
    WorkerOnServerLaws,
    WorkerStopLaws,
)


@unittest.skipUnless(sys.platform == "linux", "slots need Linux")
class SlotsOnLocalQueueTest(InSlots, ContinueLaws, ContinueLocalLaws, DeadLetterLaws, WorkerStopLaws, OnLocalQueue):
    pass


@unittest.skipUnless(sys.platform == "linux", "slots need Linux")
class SlotsOnServerTest(InSlots, WorkerOnServerLaws, OnServer, Stopping):
    pass


@unittest.skipUnless(sys.platform == "linux", "slots need Linux")
class WarmSlotsOnLocalQueueTest(
    InWarmSlots, ContinueLaws, ContinueLocalLaws, DeadLetterLaws, WorkerStopLaws, OnLocalQueue
):
    pass


@unittest.skipUnless(sys.platform == "linux", "slots need Linux")
class WarmSlotsOnServerTest(InWarmSlots, WorkerOnServerLaws, OnServer):
    pass


@unittest.skipUnless(sys.platform == "linux", "slots need Linux")
class WarmSpawnedSlotsOnLocalQueueTest(
    InWarmSpawnedSlots, ContinueLaws, ContinueLocalLaws, DeadLetterLaws, WorkerStopLaws, OnLocalQueue
):
    pass


@unittest.skipUnless(sys.platform == "linux", "slots need Linux")
class SpawnedSlotsOnLocalQueueTest(
    InSpawnedSlots, ContinueLaws, ContinueLocalLaws, DeadLetterLaws, WorkerStopLaws, OnLocalQueue
):
    pass


@unittest.skipUnless(sys.platform == "linux", "slots need Linux")
class SpawnedSlotsOnServerTest(InSpawnedSlots, WorkerOnServerLaws, OnServer):
    pass


@unittest.skipUnless(sys.platform == "linux", "slots need Linux")
class LastLineTest(InSlots, OnLocalQueue):
    def test_the_line_of_the_last_task_is_written_before_the_worker_ends(self):
        written = []

        # A filter: a handler has a lock, for which the line that the worker has stopped would wait.
        def slow(record):
            if getattr(record, "action", "") == "finished":
                time.sleep(0.5)
                written.append(record.outcome)
            return True

        logger = logging.getLogger("sqstaskmaster.worker")
        level = logger.level
        logger.addFilter(slow)
        logger.setLevel("INFO")
        self.addCleanup(logger.setLevel, level)
        self.addCleanup(logger.removeFilter, slow)
        self.submit("goes_on_when_stopped")
        Stopping(self, self.seen, "the task runs")
        self.worker(shutdown_grace=0).run()
        self.assertEqual(["continued"], written)


@unittest.skipUnless(sys.platform == "linux", "slots need Linux")
class BurstTest(InSlots, OnLocalQueue):
    def test_a_poll_that_was_sent_before_a_task_had_ended_does_not_end_a_burst(self):
        """It may have been answered before the successor was there, or while its group was blocked."""
        polls, polled, finished = [], threading.Event(), threading.Event()
        receive, delete = LocalQueue.receive_messages, LocalMessage.delete

        def receive_messages(queue, **kwargs):
            polls.append(kwargs)
            if len(polls) == 2:
                polled.set()
                self.assertTrue(finished.wait(DEADLINE_SECONDS))
                return []
            return receive(queue, **kwargs)

        def delete_once_polled(message):
            self.assertTrue(polled.wait(DEADLINE_SECONDS))
            delete(message)

        self.submit("goes_on_twice")
        with (
            mock.patch.object(LocalQueue, "receive_messages", receive_messages),
            mock.patch.object(LocalMessage, "delete", delete_once_polled),
        ):
            self.assertEqual({"continued": 2, "done": 1}, self.consume(on_finish=lambda _: finished.set()))
