"""The laws of one attempt at a task, in blocks and in a worker without slots."""

from tests.support.endings import OnLocalQueue, OnServer
from tests.support.laws import (
    ConstructorLaws,
    Laws,
    LawsInBlock,
    LawsInWorker,
    ServerLaws,
    SpawnedLawTask,
    SpawnLaws,
    WorkerLaws,
    WorkerServerLaws,
)


class BlockOnLocalQueueTest(LawsInBlock, Laws, OnLocalQueue):
    pass


class BlockOnServerTest(LawsInBlock, Laws, ServerLaws, OnServer):
    pass


class WorkerOnLocalQueueTest(LawsInWorker, WorkerLaws, ConstructorLaws, OnLocalQueue):
    pass


class WorkerOnServerTest(LawsInWorker, WorkerLaws, WorkerServerLaws, OnServer):
    pass


class SpawnedInBlockTest(LawsInBlock, SpawnLaws, OnLocalQueue):
    handlers = {"T": SpawnedLawTask}


class SpawnedInWorkerTest(LawsInWorker, SpawnLaws, OnLocalQueue):
    handlers = {**LawsInWorker.handlers, "T": SpawnedLawTask}
