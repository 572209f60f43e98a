"""How a task may end, in a worker with slots: the same laws as without."""

import sys
import unittest

from tests.support.endings import (
    ContinueLaws,
    DeadLetterLaws,
    DeadLetterServerLaws,
    InSlots,
    OnLocalQueue,
    OnServer,
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
):
    pass
