"""How a task may end, in blocks and in a worker without slots: continued, dead-lettered, its claim lost."""

import os
import signal
import sys
import threading
import unittest

import sqstaskmaster
from sqstaskmaster import (
    CannotContinue,
    ClaimLapsed,
    DeadLetter,
    LocalMessage,
    MessageHandler,
    ProcessMessageHandler,
    Worker,
    errors,
)
from sqstaskmaster._claim import clock, note
from sqstaskmaster._claim.attempt import Terms
from sqstaskmaster._isolation import child
from tests.support import DEADLINE_SECONDS, Script
from tests.support.endings import (
    ContinueLaws,
    ContinueLocalLaws,
    ContinueServerLaws,
    DeadLetterLaws,
    DeadLetterServerLaws,
    EndingTestCase,
    InBlock,
    InWorker,
    OnLocalQueue,
    OnServer,
    Plain,
    Stopping,
    Task,
    WorkerOnServerLaws,
    WorkerStopLaws,
)


class BlockOnLocalQueueTest(InBlock, ContinueLaws, ContinueLocalLaws, DeadLetterLaws, OnLocalQueue):
    pass


class BlockOnServerTest(InBlock, ContinueLaws, ContinueServerLaws, DeadLetterLaws, DeadLetterServerLaws, OnServer):
    pass


class WorkerOnLocalQueueTest(InWorker, ContinueLaws, ContinueLocalLaws, DeadLetterLaws, WorkerStopLaws, OnLocalQueue):
    pass


class WorkerOnServerTest(InWorker, WorkerOnServerLaws, OnServer):
    pass


class PlainHandlerTest(DeadLetterServerLaws, OnServer):
    """A task in the worker's own process may be dead-lettered, and may not go on."""

    def consume(self):
        outcomes = []
        for _, kwargs, message in self.manager.task_generator(0, 30, message_attribute_names=["All"], burst=True):
            with Plain(message, **kwargs) as handler:
                handler.run()
            outcomes.append(str(handler.outcome))
        return {outcome: outcomes.count(outcome) for outcome in outcomes}

    # A FIFO queue is for tasks that go on.
    test_on_a_fifo_queue_the_successor_has_its_group_and_the_step_as_its_deduplication_id = None

    def test_continue_is_a_failure_that_names_the_remedy(self):
        self.submit("goes_on_for_ever")
        with self.assertLogs("sqstaskmaster"):
            self.assertEqual({"failed": 1}, self.consume())
        self.failed_for(CannotContinue, "in a MessageHandler, .* make it a ProcessMessageHandler")
        self.assertEqual((0, 1), self.left())

    def test_one_in_a_group_is_that_failure_too(self):
        self.submit("goes_on_in_a_group")
        with self.assertLogs("sqstaskmaster"):
            self.assertEqual({"failed": 1}, self.consume())
        self.failed_for(CannotContinue, "make it a ProcessMessageHandler")

    def test_it_is_no_other_failure_in_a_worker(self):
        self.submit("goes_on_for_ever", task="Plain")
        with self.assertLogs("sqstaskmaster"):
            counts = Worker(self.manager, {"Plain": Plain}, wait_time=0).run(burst=True)
        self.assertEqual({"failed": 1}, dict(counts))
        self.failed_for(CannotContinue, "make it a ProcessMessageHandler")

    def test_a_type_of_exception_that_is_none_is_refused(self):
        for wrong in (["KeyError"], "KeyError", (KeyError, 4)):
            with self.subTest(wrong=wrong), self.assertRaisesRegex(ValueError, "types of exceptions"):
                Bare(LocalMessage("{}"), 30, 10, 60, dead_letter=wrong)
            with self.subTest(wrong=wrong), self.assertRaisesRegex(ValueError, "types of exceptions"):
                Isolated(LocalMessage("{}"), 30, 10, 60, dead_letter=wrong)


class Bare(MessageHandler):
    def run(self):
        pass


class Isolated(ProcessMessageHandler):
    def run(self):
        pass


class WithoutAttributesTest(OnServer):
    """A message that was received without its message attributes is not sent on: they would be lost."""

    def fail_with(self, do):
        self.use(self.create_queue(max_receive_count=3))
        self.submit(do)
        [task] = self.manager.task_generator(0, 30, burst=True)
        with self.assertLogs("sqstaskmaster") as logs, Task(task[2], **task[1]) as handler:
            handler.run()
        self.assertEqual(("failed", (0, 1)), (handler.outcome, self.left()))
        self.assertEqual([], self.receive(self.dead_letters))
        return "\n".join(logs.output)

    def test_a_continue_fails_and_names_the_remedy(self):
        self.fail_with("goes_on_twice")
        self.failed_for(CannotContinue, r'task_generator\(message_attribute_names=\["All"\]\)')

    def test_a_dead_letter_fails_as_ever_and_a_warning_names_the_remedy(self):
        self.assertIn('task_generator(message_attribute_names=["All"])', self.fail_with("is_given_up"))
        self.failed_for(DeadLetter, "customer 4711")


class LapsedTest(EndingTestCase):
    def test_a_worker_does_not_start_a_task_whose_claim_has_lapsed(self):
        message = LocalMessage("{}")
        received = clock.now() - 100
        note.leave(message, note.Receipt(received, received, 30, "T"))
        handler = Task(message, self.path, "is_done")
        handler._accept(Terms(queue_url="memory:", stops_on_lost_claim=True))
        with self.assertLogs("sqstaskmaster"), handler:
            handler.run()
        self.assertEqual(("claim lost", [], False), (handler.outcome, message.visibility_changes, message.deleted))
        self.assertEqual([], self.seen())
        self.failed_for(ClaimLapsed, "claim")


class InterruptTest(InBlock, OnServer):
    def is_waited_for(self):
        """Python ignores what is raised in the callbacks round a fork: a Ctrl-C that comes there is lost."""
        frame = sys._current_frames()[threading.main_thread().ident]
        return self.seen() and frame.f_code is child.Child._read_events.__code__

    def test_a_task_may_go_on_when_ctrl_c_stops_it_and_the_loop_ends_all_the_same(self):
        self.addCleanup(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler))
        self.submit("goes_on_when_stopped")
        Stopping(self, self.is_waited_for, "the task runs", lambda: os.kill(os.getpid(), signal.SIGINT))
        with self.assertLogs("sqstaskmaster", "INFO") as logs, self.assertRaises(KeyboardInterrupt):
            self.consume()
        self.assertEqual((1, 0), self.left())
        self.assertIn("Task T continued", "\n".join(logs.output))

    def test_where_its_successor_cannot_be_sent_the_message_is_given_back_at_once(self):
        self.addCleanup(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler))
        self.submit("goes_on_when_stopped")
        self.sends_fail()
        Stopping(self, self.is_waited_for, "the task runs", lambda: os.kill(os.getpid(), signal.SIGINT))
        with self.assertLogs("sqstaskmaster"), self.assertRaises(KeyboardInterrupt):
            self.consume()
        self.assertEqual((1, 0), self.left())
        self.failed_for(CannotContinue, "its successor was not sent")


DIES = """
import os, signal, sys, time

from sqstaskmaster import Continue, DeadLetter, MessageHandler, ProcessMessageHandler, TaskManager, Worker


class Task(ProcessMessageHandler):
    def __init__(self, message, ending, step=0):
        super().__init__(message, 30, 10, 60)
        self.ending, self.step = ending, step

    def run(self):
        if self.step:
            time.sleep(3600)  # in the other slot, until the worker is killed
        raise Continue(step=1) if self.ending == "continue" else DeadLetter("why")


class Plain(MessageHandler):
    def run(self):
        pass


def die(**_):
    os.kill(os.getpid(), signal.SIGKILL)


url, who = sys.argv[1:]
manager = TaskManager(url)
for operation in ("DeleteMessage", "DeleteMessageBatch"):
    manager.queue.meta.client.meta.events.register(f"before-call.sqs.{operation}", die)
if who == "block":
    for _, kwargs, message in manager.task_generator(message_attribute_names=["All"]):
        with Task(message, **kwargs) as handler:
            handler.run()
elif who == "worker":
    Worker(manager, {"Task": Task, "Plain": Plain}).run()
else:
    Worker(manager, {"Task": Task}, slots=2).run()
"""


class KilledBetweenTest(OnServer):
    """A worker that is killed after the send and before the delete leaves two messages, never none."""

    def test_of_a_task_that_goes_on_both_messages_are_there(self):
        for who in ("block", "worker", "slots"):
            with self.subTest(who):
                self.use(self.create_queue())
                self.manager.submit("Task", ending="continue")
                worker = Script(self, DIES, self.url, who)
                self.assertEqual(-signal.SIGKILL, worker.process.wait(DEADLINE_SECONDS), worker.lines())
                # The other slot may have received the successor already.
                self.assertEqual(2, sum(self.left()))

    def test_of_a_dead_letter_both_messages_are_there(self):
        for who in ("block", "worker", "slots"):
            with self.subTest(who):
                self.use(self.create_queue(max_receive_count=3))
                self.manager.submit("Task", ending="dead-letter")
                worker = Script(self, DIES, self.url, who)
                self.assertEqual(-signal.SIGKILL, worker.process.wait(DEADLINE_SECONDS), worker.lines())
                self.assertEqual((0, 1), self.left())
                self.assertEqual(1, len(self.receive(self.dead_letters)))


class FrontDoorTest(unittest.TestCase):
    def test_whatever_a_user_catches_is_imported_from_the_package_itself(self):
        public = [name for name, value in vars(errors).items() if isinstance(value, type) and name[0] != "_"]
        ours = [name for name in public if getattr(errors, name).__module__ == errors.__name__]
        self.assertEqual([], [name for name in ours if getattr(sqstaskmaster, name, None) is not getattr(errors, name)])
        self.assertIn("PollRefused", ours)
        for name in ("Continue", "DeadLetter", "TaskFilter", "current_task"):
            self.assertIn(name, sqstaskmaster.__all__)
