"""How a task may end, in a worker with slots: the same laws as without."""

import logging
import sys
import time
import unittest

from tests.support.endings import (
    ContinueLaws,
    DeadLetterLaws,
    DeadLetterServerLaws,
    InSlots,
    OnLocalQueue,
    OnServer,
    Stopping,
    WorkerDeadLetterLaws,
    WorkerServerLaws,
    WorkerStopLaws,
)


@unittest.skipUnless(sys.platform == "linux", "slots need Linux")
class SlotsOnLocalQueueTest(InSlots, ContinueLaws, DeadLetterLaws, WorkerStopLaws, OnLocalQueue):
    pass


@unittest.skipUnless(sys.platform == "linux", "slots need Linux")
class SlotsOnServerTest(
    InSlots,
    ContinueLaws,
    DeadLetterLaws,
    WorkerStopLaws,
    WorkerDeadLetterLaws,
    WorkerServerLaws,
    DeadLetterServerLaws,
    OnServer,
    Stopping,
):
    pass


@unittest.skipUnless(sys.platform == "linux", "slots need Linux")
class LastLineTest(InSlots, OnLocalQueue):
    def test_the_line_of_the_last_task_is_written_before_the_worker_ends(self):
        written = []

        class Slow(logging.Handler):
            def emit(self, record):
                if getattr(record, "action", "") == "finished":
                    time.sleep(0.5)
                    written.append(record.outcome)

        handler, logger = Slow(), logging.getLogger("sqstaskmaster.worker")
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel("INFO")
        self.addCleanup(logger.setLevel, level)
        self.addCleanup(logger.removeHandler, handler)
        self.submit("goes_on_when_stopped")
        Stopping(self, self.seen, "the task runs")
        self.worker(shutdown_grace=0).run()
        self.assertEqual(["continued"], written)
