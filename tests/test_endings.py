"""How a task may end, in blocks and in a worker without slots: continued, dead-lettered, its claim lost."""

from tests.support.endings import (
    ContinueLaws,
    DeadLetterLaws,
    DeadLetterServerLaws,
    InBlock,
    InWorker,
    OnLocalQueue,
    OnServer,
    WorkerDeadLetterLaws,
    WorkerServerLaws,
    WorkerStopLaws,
)


class BlockOnLocalQueueTest(InBlock, ContinueLaws, DeadLetterLaws, OnLocalQueue):
    pass


class BlockOnServerTest(InBlock, ContinueLaws, DeadLetterLaws, DeadLetterServerLaws, OnServer):
    pass


class WorkerOnLocalQueueTest(InWorker, ContinueLaws, DeadLetterLaws, WorkerStopLaws, OnLocalQueue):
    pass


class WorkerOnServerTest(
    InWorker,
    ContinueLaws,
    DeadLetterLaws,
    WorkerStopLaws,
    WorkerDeadLetterLaws,
    WorkerServerLaws,
    DeadLetterServerLaws,
    OnServer,
):
    pass
