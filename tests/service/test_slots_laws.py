"""The laws of one attempt at a task, in a worker with slots, forked and spawned: the same as without."""

import json
import sys
import tempfile
import unittest

from tests.support import DEADLINE_SECONDS, Script, ServerTestCase
from tests.support.endings import OnLocalQueue, OnServer
from tests.support.laws import (
    ConstructorLaws,
    LawsInSlots,
    LawsInSpawnedSlots,
    LawsInWarmSlots,
    LawsInWarmSpawnedSlots,
    LimitLaws,
    LostClaimLaws,
    OwnProcessConstructorLaws,
    SpawnLaws,
    WorkerLaws,
    WorkerServerLaws,
)


@unittest.skipUnless(sys.platform == "linux", "slots need Linux")
class SlotsOnLocalQueueTest(LawsInSlots, WorkerLaws, OwnProcessConstructorLaws, OnLocalQueue):
    pass


@unittest.skipUnless(sys.platform == "linux", "slots need Linux")
class SlotsOnServerTest(LawsInSlots, WorkerLaws, WorkerServerLaws, OnServer):
    pass


@unittest.skipUnless(sys.platform == "linux", "slots need Linux")
class WarmSlotsOnLocalQueueTest(LawsInWarmSlots, WorkerLaws, OwnProcessConstructorLaws, OnLocalQueue):
    pass


@unittest.skipUnless(sys.platform == "linux", "slots need Linux")
class WarmSlotsOnServerTest(LawsInWarmSlots, WorkerLaws, WorkerServerLaws, OnServer):
    pass


@unittest.skipUnless(sys.platform == "linux", "slots need Linux")
class SpawnedSlotsOnLocalQueueTest(LawsInSpawnedSlots, WorkerLaws, ConstructorLaws, SpawnLaws, OnLocalQueue):
    """A spawned task has the worker's handler, pickled: it makes none of its own."""


@unittest.skipUnless(sys.platform == "linux", "slots need Linux")
class SpawnedSlotsOnServerTest(LawsInSpawnedSlots, WorkerLaws, WorkerServerLaws, OnServer):
    pass


@unittest.skipUnless(sys.platform == "linux", "slots need Linux")
class WarmSpawnedSlotsOnLocalQueueTest(LawsInWarmSpawnedSlots, WorkerLaws, ConstructorLaws, SpawnLaws, OnLocalQueue):
    pass


@unittest.skipUnless(sys.platform == "linux", "slots need Linux")
class WarmSpawnedSlotsOnServerTest(LawsInWarmSpawnedSlots, LimitLaws, LostClaimLaws, OnServer):
    """Those in which its process is stopped: the others are the same code as for a forked one."""


FAILS = """
import json, os, sys, time

from sqstaskmaster import LocalQueue, ProcessMessageHandler, TaskManager, Worker

FAULTS = {"SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt}


class Task(ProcessMessageHandler):
    def __init__(self, message, folder, method, sqs_timeout, alarm_timeout, hard_timeout):
        super().__init__(message, sqs_timeout, alarm_timeout, hard_timeout, term_grace=20, start_method=method)
        self.folder = folder

    def notify(self, exception, context=None):
        notified.append(type(exception).__name__)

    def run(self):
        try:
            with open(os.path.join(self.folder, "begins"), "w") as begins:
                begins.write(str(os.getpid()))
            os.rename(os.path.join(self.folder, "begins"), os.path.join(self.folder, "runs"))
            time.sleep(3600)
        finally:
            open(os.path.join(self.folder, "cleaned"), "w").close()


class Queue(LocalQueue):
    def receive_messages(self, **kwargs):
        found = super().receive_messages(**{**kwargs, "WaitTimeSeconds": 0})
        received.extend(found)
        if not found:
            until = time.monotonic() + 60
            while not os.path.exists(runs) and time.monotonic() < until:
                time.sleep(0.01)
            raise FAULTS[fault]("out of the user's own queue")
        return found


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    folder, fault, method = sys.argv[1:]
    runs = os.path.join(folder, "runs")
    received, notified, finished = [], [], []
    manager = TaskManager("memory:fails", queue_constructor=Queue)
    manager.submit("Task", folder=folder, method=None if method == "None" else method)
    raised = None
    try:
        Worker(manager, {"Task": Task}, slots=2, on_finish=lambda each: finished.append(each.outcome)).run()
    except BaseException as error:
        raised = type(error).__name__
    with open(runs) as pid:
        still_runs = is_there(int(pid.read()))
    [message] = received
    said = {
        "raised": raised,
        "cleaned": os.path.exists(os.path.join(folder, "cleaned")),
        "still runs": still_runs,
        "given back": message.visibility_changes.count(0),
        "deleted": message.deleted,
        "notified": notified,
        "finished": finished,
    }
    print("said " + json.dumps(said), flush=True)
"""


@unittest.skipUnless(sys.platform == "linux", "slots need Linux")
class FailingLoopTest(ServerTestCase):
    """A run whose loop itself fails ends everything that it started, in order, and then raises."""

    def test_tasks_are_told_to_end_messages_given_back_outcomes_reported_and_then_it_raises(self):
        for fault in ("SystemExit", "KeyboardInterrupt"):
            for method in (None, "spawn"):
                with self.subTest(fault, method=method), tempfile.TemporaryDirectory() as folder:
                    script = Script(self, FAILS, folder, fault, method)
                    said = json.loads(script.wait_for("said ").partition(" ")[2])
                    expected = {
                        "raised": fault,
                        "cleaned": True,
                        "still runs": False,
                        "given back": 1,
                        "deleted": False,
                        "notified": ["ShutdownRequested"],
                        "finished": ["interrupted"],
                    }
                    self.assertEqual(expected, said)
                    self.assertEqual(0, script.process.wait(DEADLINE_SECONDS))
