"""The laws of one attempt at a task: they are the same for a block, for a worker without slots, and for every kind of
slot, on whichever queue. The columns are at the end; `tests.support.endings` has the queues, and the laws of endings.
"""

import base64
import contextlib
import functools
import hashlib
import json
import logging
import os
import signal
import time


import sqstaskmaster
from sqstaskmaster import (
    CannotContinue,
    Continue,
    DeadLetter,
    HandlerStuck,
    HardTimeout,
    MessageHandler,
    NoAnswer,
    ShutdownRequested,
    TaskManager,
    current_task,
)
from tests.support import wait_until
from tests.support.endings import (
    EndingTestCase,
    InBlock,
    InSlots,
    InSpawnedSlots,
    InWarmSlots,
    InWarmSpawnedSlots,
    InWorker,
    OnServer,
    Plain,
    Stopping,
    Task,
)

#: Set by a test once this module has been imported: a process that was forked has it, one that was spawned has not.
SET_LATER = False

_MARGIN_SECONDS = 2  # between the end of a task and that of its claim's 12 hours
_TERM_GRACE_SECONDS = 20  # of Task

_12_HOURS = 43200


class LawTask(Task):
    """What the worker asks its handler is answered as the test says."""

    contexts: list = []
    delay = None
    makes_progress = True
    when_notified = staticmethod(lambda exception: None)
    when_lost = staticmethod(lambda exception: None)

    def __init__(self, message, path, do, payload="", step=0, sqs_timeout=30, alarm_timeout=10, hard_timeout=60):
        super().__init__(message, path, do, step, sqs_timeout, alarm_timeout, hard_timeout)
        self.payload = payload

    def running(self):
        return LawTask.makes_progress

    def retry_delay(self, exception, receive_count):
        return LawTask.delay

    def claim_lost(self, exception):
        super().claim_lost(exception)
        LawTask.when_lost(exception)

    def notify(self, exception, context=None):
        super().notify(exception, context)
        LawTask.contexts.append(context)
        LawTask.when_notified(exception)

    def tells(self, **facts):
        with open(facts_of(self.path), "a") as output:
            output.write(json.dumps(facts) + "\n")

    def weighs_its_payload(self):
        self.tells(payload=digest(self.payload))

    def fails_at_first(self):
        if current_task().receive_count == 1:
            raise ValueError("out of luck")

    def tells_what_is_left(self):
        LawTask.tells(self, left=current_task().seconds_left)

    def tells_whether_it_was_spawned(self):
        self.tells(spawned=not SET_LATER)

    def goes_on_with_no_number(self):
        raise Continue(payload=float("nan"), do="is_done")


class LawPlain(Plain):
    def __init__(self, message, path, do, sqs_timeout=30, alarm_timeout=10, hard_timeout=60):
        super().__init__(message, sqs_timeout, alarm_timeout, hard_timeout, do, path)

    def notify(self, exception, context=None):
        super().notify(exception, context)
        LawTask.contexts.append(context)

    def run(self):
        getattr(LawTask, self.do)(self)


class Unmade(LawTask):
    """Cannot be made: in the worker, or only in its task's process."""

    def __init__(self, message, path, do, payload="", sqs_timeout=30, alarm_timeout=10, hard_timeout=60):
        super().__init__(message, path, do, payload, 0, sqs_timeout, alarm_timeout, hard_timeout)
        if do == "cannot_be_made" or os.getpid() != int(payload):
            self.model = {}["model of 4711"]  # the user's own line


class UnmadePlain(MessageHandler):
    def __init__(self, message, path, do, payload="", sqs_timeout=30, alarm_timeout=10, hard_timeout=60):
        super().__init__(message, sqs_timeout, alarm_timeout, hard_timeout)
        self.model = {}["model of 4711"]  # the user's own line

    def run(self):
        pass


class SpawnedLawTask(LawTask):
    starts_by = "spawn"


class SpawnedUnmade(Unmade):
    starts_by = "spawn"


class SeenToBeSpawnedLawTask(SpawnedLawTask):
    def __init__(
        self,
        message,
        path,
        do,
        payload="",
        step=0,
        sqs_timeout=30,
        alarm_timeout=10,
        hard_timeout=60,
        start_method="spawn",
    ):
        super().__init__(message, path, do, payload, step, sqs_timeout, alarm_timeout, hard_timeout)


def facts_of(path):
    return f"{path}.facts"


def digest(text):
    return [len(text), hashlib.sha256(text.encode()).hexdigest()]


@contextlib.contextmanager
def noted_around(path, task):
    """For `Worker(around=functools.partial(noted_around, path))`."""
    note(path, entered=task.message_id, task=task.name)
    try:
        yield
    except BaseException as error:
        note(path, left=task.message_id, raised=type(error).__name__)
        raise
    note(path, left=task.message_id, raised=None)


def note(path, **facts):
    with open(path, "a") as output:
        output.write(json.dumps({"pid": os.getpid(), **facts}) + "\n")


class OwnQueue:
    """A queue of the user's own making, round another: bodies are changed on their way in, and changed back."""

    def __init__(self, queue, read, write=lambda body: body):
        self._queue, self._read, self._write = queue, read, write
        self.given_back = 0
        self.when_received = lambda: None

    def __getattr__(self, name):
        return getattr(self._queue, name)

    def send_message(self, **kwargs):
        return self._queue.send_message(**{**kwargs, "MessageBody": self._write(kwargs["MessageBody"])})

    def receive_messages(self, **kwargs):
        received = [OwnMessage(self, message, self._read) for message in self._queue.receive_messages(**kwargs)]
        self.when_received()
        return received


class OwnMessage:
    def __init__(self, queue, message, read):
        self._queue, self._message = queue, message
        self.body = read(message.body)

    def __getattr__(self, name):
        return getattr(self._message, name)

    def change_visibility(self, **kwargs):
        self._queue.given_back += kwargs["VisibilityTimeout"] == 0
        return self._message.change_visibility(**kwargs)


# -- what the laws share ----------------------------------------------------------------------------------------------


class LawTestCase(EndingTestCase):
    def setUp(self):
        super().setUp()
        LawTask.contexts = []
        for name in ("delay", "makes_progress", "when_notified", "when_lost"):
            self.addCleanup(setattr, LawTask, name, LawTask.__dict__[name])

    @property
    def kinds(self):
        """The names of the tasks that are told apart by where they run."""
        return sorted(self.handlers.keys() & {"T", "Plain"})

    def facts(self):
        return self.seen(facts_of(self.path))

    def use_own(self, read=lambda body: body, write=lambda body: body, url=None, **settings):
        """From here on the manager's queues are of a user's own making. Gives them by URL, as they are made."""
        made = {}

        def make(queue_url):
            made[queue_url] = OwnQueue(self.plain_queue(url or queue_url), read, write)
            return made[queue_url]

        self.manager = TaskManager(self.url, queue_constructor=make, **settings)
        return made


def is_late(error):
    """Whether it says that an answer has not come in time: on a busy machine that may come beside all else."""
    return isinstance(error, NoAnswer)


def records_of(logs, action):
    return [record for record in logs.records if getattr(record, "action", "") == action]


# -- the laws ---------------------------------------------------------------------------------------------------------


class BodyLaws:
    def test_a_body_of_quotes_that_sqs_accepts_runs(self):
        """900,035 bytes, and twice that where the JSON is made JSON of again."""
        kwargs = {"payload": '"' * 449_000}
        written = len(json.dumps({"task": "T", "kwargs": {"path": self.path, "do": "weighs_its_payload", **kwargs}}))
        kwargs["payload"] += "x" * (900_035 - written)
        self.submit("weighs_its_payload", kwargs=kwargs)
        with self.assertLogs("sqstaskmaster", "INFO"):
            self.assertEqual({"done": 1}, self.consume())
        self.assertEqual([{"payload": digest(kwargs["payload"])}], self.facts())

    def test_a_body_above_1_mib_that_a_wrapping_queue_delivers_runs(self):
        payload = '"' * 1_200_000

        def fetch(body):
            content = json.loads(body)
            content["kwargs"]["payload"] = payload
            return json.dumps(content)

        self.use_own(fetch)
        self.submit("weighs_its_payload", kwargs={"payload": "where it is stored"})
        with self.assertLogs("sqstaskmaster", "INFO"):
            self.assertEqual({"done": 1}, self.consume())
        self.assertEqual([{"payload": digest(payload)}], self.facts())


class LimitLaws:
    def test_what_is_left_is_what_the_task_gets(self):
        """Of 12 hours less what it takes to end it before its claim's 12 hours are over."""
        for task in self.kinds:
            with self.subTest(task):
                self.submit("tells_what_is_left", task=task)
                with self.assertLogs("sqstaskmaster", "INFO"):
                    self.assertEqual({"done": 1}, self.consume(hard_timeout=_12_HOURS))
                left = self.facts()[-1]["left"]
                most = _12_HOURS - _MARGIN_SECONDS - (_TERM_GRACE_SECONDS if task == "T" else 0)
                self.assertLessEqual(left, most)
                self.assertGreater(left, most - 60)


class ReturnLaws:
    """A message is returned, or sent on and deleted, before it is reported."""

    def test_a_failed_message_is_visible_to_others_before_an_error_service_has_answered(self):
        visible = []

        def look(exception):
            # Whoever receives it next: this test, or the same worker.
            visible.append(self.becomes(lambda: self.receive(self.url) or len(self.seen()) > 1))

        LawTask.delay, LawTask.when_notified = 0, staticmethod(look)
        self.submit("fails_at_first")
        with self.assertLogs("sqstaskmaster", "INFO"):
            counts = self.consume()
        self.assertEqual(1, counts["failed"])
        self.assertEqual([True], visible)

    def test_a_dead_letter_is_sent_and_deleted_before_an_error_service_has_answered(self):
        self.use(self.create_queue(max_receive_count=3))
        gone = []

        def look(exception):
            gone.append(self.becomes(lambda: self.left() == (0, 0) and self.counts(self.dead_letters)[0] == 1))

        LawTask.when_notified = staticmethod(look)
        self.submit("is_given_up")
        with self.assertLogs("sqstaskmaster", "INFO"):
            self.assertEqual({"dead-lettered": 1}, self.consume())
        self.assertEqual([True], gone)

    def test_a_retry_delay_holds_where_the_error_service_takes_longer_than_the_claim(self):
        LawTask.delay, LawTask.when_notified = 600, staticmethod(lambda exception: time.sleep(4))
        self.submit("fails_at_first")
        with self.assertLogs("sqstaskmaster", "INFO"):
            self.assertEqual({"failed": 1}, self.consume(sqs_timeout=3, alarm_timeout=1))
        self.assertEqual(1, self.visibilities().count(600), self.visibilities())
        self.assertEqual((0, 1), self.left())

    def becomes(self, condition):
        """Whether it holds while the error service takes long, though not as long as the claim."""
        try:
            return bool(wait_until(condition, "it holds", 15))
        except AssertionError:
            return False


class WorkerReturnLaws(ReturnLaws):
    def test_an_interrupted_message_is_visible_to_others_before_an_error_service_has_answered(self):
        visible = []

        def look(exception):
            visible.append(self.becomes(lambda: self.receive(self.url)))

        LawTask.when_notified = staticmethod(look)
        self.submit("hangs")
        Stopping(self, self.seen, "the task runs")
        with self.assertLogs("sqstaskmaster", "INFO"):
            self.assertEqual({"interrupted": 1}, dict(self.worker(shutdown_grace=0).run()))
        self.assertEqual([True], visible)


class CannotContinueLaws:
    def test_a_continue_that_cannot_be_sent_and_answers_the_limit_leaves_a_task_that_timed_out(self):
        self.submit("goes_on_when_stopped")
        self.sends_fail()
        with self.assertLogs("sqstaskmaster", "INFO") as logs:
            self.assertEqual({"timed out": 1}, self.consume(hard_timeout=self.begins_within))
        self.assertEqual((0, 1), self.left())
        self.assertNotIn(0, self.visibilities())
        self.assertEqual(["timed out"], [record.outcome for record in records_of(logs, "finished")])
        self.assertEqual(1, len(Task.notified), Task.notified)


class WorkerCannotContinueLaws:
    def test_a_continue_that_cannot_be_sent_and_answers_the_workers_stop_is_an_interruption(self):
        self.submit("goes_on_when_stopped")
        self.sends_fail()
        Stopping(self, self.seen, "the task runs")
        with self.assertLogs("sqstaskmaster", "INFO") as logs:
            self.assertEqual({"interrupted": 1}, dict(self.worker(shutdown_grace=0).run()))
        self.assertEqual(1, self.visibilities().count(0), self.visibilities())
        self.assertEqual(["interrupted"], [record.outcome for record in records_of(logs, "finished")])
        self.assertEqual([0], [record.comes_back_in for record in records_of(logs, "finished")])
        self.assertEqual(1, len(Task.notified), Task.notified)


class HookLaws:
    def test_every_hook_is_called_for_every_task_and_on_start_before_the_first(self):
        trace, finished = f"{self.path}.trace", []
        submitted = {
            self.submit(do, task=task): (task, raised)
            for task in self.kinds
            for do, raised in (("is_done", None), ("fails", "ValueError"))
        }
        worker = self.worker(
            around=functools.partial(noted_around, trace),
            on_start=lambda: note(trace, started=True),
            on_finish=finished.append,
        )
        with self.assertLogs("sqstaskmaster", "INFO"):
            worker.run(burst=True)
        noted = self.seen(trace)
        self.assertEqual({"pid": os.getpid(), "started": True}, noted[0] if noted else None)
        self.assertEqual([], [each for each in noted[1:] if "started" in each])
        entered = {each["entered"]: each for each in noted if "entered" in each}
        self.assertEqual({m: task for m, (task, _) in submitted.items()}, {m: entered[m]["task"] for m in entered})
        left = {each["left"]: each for each in noted if "left" in each}
        self.assertEqual({m: raised for m, (_, raised) in submitted.items()}, {m: left[m]["raised"] for m in left})
        ran_in = {each["id"]: each["pid"] for each in self.seen()}
        for message_id, (task, raised) in submitted.items():
            pid = os.getpid() if task == "Plain" else ran_in[message_id]
            self.assertEqual((pid, pid), (entered[message_id]["pid"], left[message_id]["pid"]))
            self.assertEqual(task == "Plain", pid == os.getpid())
        self.assertEqual(
            {m: (task, "failed" if raised else "done") for m, (task, raised) in submitted.items()},
            {each.message_id: (each.task, each.outcome) for each in finished},
        )
        self.assertEqual(len(submitted), len(finished))


class ConstructorLaws:
    def test_a_constructor_that_raises_shows_the_users_own_line(self):
        for task in self.handlers.keys() & {"Unmade", "UnmadePlain"}:
            with self.subTest(task):
                self.shows_the_line("cannot_be_made", task)

    def shows_the_line(self, do, task="Unmade"):
        self.submit(do, task=task, kwargs={"payload": str(os.getpid())})
        with self.assertLogs("sqstaskmaster", "WARNING") as logs:
            self.consume()
        text = "\n".join(map(logging.Formatter().format, logs.records))
        self.assertIn('self.model = {}["model of 4711"]', text)


class OwnProcessConstructorLaws(ConstructorLaws):
    """Where the task's process makes a handler of its own."""

    def test_a_constructor_that_raises_in_the_tasks_process_shows_the_users_own_line(self):
        self.shows_the_line("cannot_be_made_there")


class SpawnLaws:
    """`start_method="spawn"` of a handler class."""

    def test_a_task_that_is_to_be_spawned_has_nothing_of_what_the_worker_did_after_importing_it(self):
        self.addCleanup(globals().__setitem__, "SET_LATER", SET_LATER)
        globals()["SET_LATER"] = True
        self.submit("tells_whether_it_was_spawned")
        with self.assertLogs("sqstaskmaster", "INFO"):
            self.assertEqual({"done": 1}, self.consume())
        self.assertEqual([{"spawned": True}], self.facts())


class ReportLaws:
    """What is said of an end: on the finished line, to `notify`, to `on_finish`, and whether with a traceback."""

    def test_of_a_task_that_is_done(self):
        for task in self.kinds:
            self.says("done", "is_done", task=task)

    def test_of_a_task_that_failed(self):
        for task in self.kinds:
            self.says("failed", "fails", task=task, comes_back_in=30, notified=ValueError, traceback="failed")

    def test_of_a_task_that_failed_with_a_retry_delay(self):
        LawTask.delay = 700
        self.says("failed", "fails", comes_back_in=700, notified=ValueError, traceback="failed")

    def test_of_a_task_that_timed_out(self):
        said = {"comes_back_in": 30, "notified": HardTimeout, "traceback": "failed"}
        for task in self.kinds:
            self.says("timed out", "hangs", task=task, hard_timeout=self.begins_within, **said)

    def test_of_a_task_that_is_stuck(self):
        LawTask.makes_progress = False
        self.says("stuck", "hangs", comes_back_in=30, notified=HandlerStuck, traceback="failed", alarm_timeout=1)

    def test_of_a_task_that_is_dead_lettered(self):
        self.use(self.create_queue(max_receive_count=3))
        for task in self.kinds:
            self.says("dead-lettered", "is_given_up", task=task, notified=DeadLetter, traceback="failed")

    def test_of_a_task_that_continued(self):
        self.says("continued", "goes_on_later")

    def says(self, outcome, do, *, task="T", **expected):
        with self.subTest(task):
            Task.notified, LawTask.contexts = [], []
            self._says(outcome, do, task, **expected)

    def _says(
        self,
        outcome,
        do,
        task,
        *,
        comes_back_in=None,
        notified=None,
        traceback=None,
        consume=None,
        over=True,
        **settings,
    ):
        """`comes_back_in`: at most so many seconds, and not much less; None: not at all. `over`: whether the task has
        ended when it is notified.
        """
        settings.setdefault("hard_timeout", 60)
        finished, is_worker = [], hasattr(self, "worker")
        message_id = self.submit(do, task=task)
        if is_worker:
            settings["on_finish"] = finished.append
        with self.assertLogs("sqstaskmaster", "INFO") as logs:
            self.assertEqual({outcome: 1}, dict((consume or self.consume)(**settings)))
        if is_worker:
            lines = "\n".join(map(logging.Formatter().format, logs.records))
            for private in ("receipt_handle", "sqs.Message(", "_isolation.carried", "process_block"):
                with self.subTest("no line says", private=private):
                    self.assertNotIn(private, lines)
            for record in records_of(logs, "failed"):
                with self.subTest("the line of the failure says it all, and has no frame of ours"):
                    words = logging.Formatter().format(record)
                    self.assertRegex(words, f"^Task {task} {outcome}: ")
                    self.assertEqual(
                        outcome != "dead-lettered", f"message {message_id} (receive 1) comes back" in words
                    )
                    self.assertNotIn(os.path.dirname(sqstaskmaster.__file__), words)
        [line] = records_of(logs, "finished")
        facts = {"task": task, "message_id": message_id, "receive_count": 1, "outcome": outcome}
        self.assertEqual(facts, {name: getattr(line, name) for name in facts})
        with self.subTest("its limit"):
            self.assertEqual(settings["hard_timeout"], line.limit)
        with self.subTest("when it comes back"):
            if not comes_back_in:
                self.assertEqual(comes_back_in, line.comes_back_in)
            else:
                self.assertIsNotNone(line.comes_back_in)
                self.assertLessEqual(line.comes_back_in, comes_back_in)
                self.assertGreater(line.comes_back_in, comes_back_in - 20)
        with self.subTest("a traceback or none"):
            said = [record for record in logs.records if record.exc_info and not is_late(record.exc_info[1])]
            self.assertEqual([traceback] if traceback else [], [record.action for record in said])
        told_of = [pair for pair in zip(Task.notified, LawTask.contexts) if not is_late(pair[0])]
        with self.subTest("what was notified"):
            self.assertEqual(1 if notified else 0, len(told_of), Task.notified)
            for error, _ in told_of:
                self.assertIsInstance(error, notified)
        if is_worker:
            facts["queue"] = self.url
            with self.subTest("what on_finish is told"):
                told = {**facts, "continuation": 0}
                self.assertEqual([told], [{name: getattr(each, name) for name in told} for each in finished])
            with self.subTest("what notify is told"):
                if not over:
                    del facts["outcome"]
                for _, context in told_of:
                    self.assertEqual(facts, {name: context.get(name) for name in facts})
                    if over and task == "T":
                        self.assertLessEqual({"cpu_seconds", "peak_memory"}, context.keys())


class WorkerReportLaws(ReportLaws):
    def test_of_a_task_that_was_interrupted(self):
        def consume(**settings):
            Stopping(self, self.seen, "the task runs")
            return self.worker(shutdown_grace=0, **settings).run()

        self.says("interrupted", "hangs", comes_back_in=0, notified=ShutdownRequested, consume=consume)

    def test_of_a_task_whose_claim_is_lost(self):
        Stopping(self, self.seen, "the task runs", lambda: self.sqs.purge_queue(QueueUrl=self.url))
        # `claim_lost` is overridden, and calls the default, which takes a message that was deleted for an expected end.
        lost = {"over": False}
        self.says("claim lost", "hangs", alarm_timeout=1, **lost)


class LostClaimLaws:
    """A `claim_lost` that raises stops the task; nothing is done about a message that may be somebody else's."""

    stopped_for_lost_claim = "claim lost"

    def test_a_claim_lost_that_raises_stops_the_task(self):
        self.stops(RuntimeError)

    def test_a_claim_lost_that_raises_what_is_dead_lettered_stops_the_task_and_nothing_is_sent(self):
        self.stops(KeyError)

    def stops(self, kind):
        self.use(self.create_queue(max_receive_count=3))

        def refuse(exception):
            raise kind("its claim is lost")

        LawTask.delay, LawTask.when_lost = 700, staticmethod(refuse)
        self.submit("hangs")
        asked = [self.record(name) for name in ("SendMessage", "DeleteMessage", "DeleteMessageBatch")]
        Stopping(self, self.seen, "the task runs", lambda: self.sqs.purge_queue(QueueUrl=self.url))
        settings = {"on_claim_lost": "continue"} if hasattr(self, "worker") else {}
        with self.assertLogs("sqstaskmaster", "INFO") as logs:
            counts = self.consume(alarm_timeout=1, **settings)
        self.assertEqual([[], [], []], asked)
        self.assertEqual(set(), {0, 700} & set(self.visibilities()))
        self.assertEqual({self.stopped_for_lost_claim: 1}, counts)
        [line] = records_of(logs, "finished")
        self.assertEqual((self.stopped_for_lost_claim, None), (line.outcome, line.comes_back_in))


SEALED = "sealed:"


def seal(body):
    return SEALED + base64.b64encode(body.encode()).decode()


def unseal(body):
    if not body.startswith(SEALED):
        raise ValueError(f"not sealed: {body}")
    return base64.b64decode(body[len(SEALED) :]).decode()


class OwnQueueLaws:
    """Whatever is sent goes through the user's own queue object, here one that seals bodies and refuses open ones."""

    def test_a_successor_goes_through_the_users_own_queue(self):
        self.use_own(unseal, seal)
        self.submit("goes_on_twice")
        with self.assertLogs("sqstaskmaster", "INFO"):
            self.assertEqual({"continued": 2, "done": 1}, self.consume())
        self.assertEqual([0, 1, 2], [each["step"] for each in self.seen()])
        self.assertEqual((0, 0), self.left())

    def test_a_continue_respects_a_strict_manager(self):
        for manager in ("strict", "strict and the user's own"):
            with self.subTest(manager):
                Task.notified = []
                if manager == "strict":
                    queue = {} if isinstance(self, OnServer) else {"queue_constructor": self.plain_queue}
                    self.manager = TaskManager(self.url, strict=True, **queue)
                else:
                    self.use_own(strict=True)
                self.submit("goes_on_with_no_number")
                with self.assertLogs("sqstaskmaster", "INFO"):
                    self.assertEqual({"failed": 1}, self.consume())
                self.failed_for(CannotContinue, "payload is nan")
                self.assertEqual(0, self.left()[0])


class WorkerOwnQueueLaws(OwnQueueLaws):
    def test_a_message_is_given_back_through_the_users_own_queue(self):
        own = self.use_own(unseal, seal)
        self.submit("hangs")
        Stopping(self, self.seen, "the task runs")
        with self.assertLogs("sqstaskmaster", "INFO"):
            self.assertEqual({"interrupted": 1}, dict(self.worker(shutdown_grace=0).run()))
        self.assertEqual(1, own[self.url].given_back)

    def test_a_message_that_is_not_started_is_given_back_through_the_users_own_queue(self):
        own = self.use_own(unseal, seal)

        def stop():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)  # where this is no main thread, so that the signal comes first

        own[self.url].when_received = stop
        self.submit("is_done")
        with self.assertLogs("sqstaskmaster", "INFO"):
            self.assertEqual({"given back": 1}, dict(self.worker().run()))
        self.assertEqual(1, own[self.url].given_back)
        self.assertEqual([], self.seen())


class OwnDeadLetterLaws:
    """The manager's `queue_constructor` makes the dead-letter queue, too."""

    def test_a_dead_letter_goes_through_the_users_own_queue(self):
        self.use(self.create_queue(max_receive_count=3))
        own = self.use_own(unseal, seal)
        self.submit("is_given_up")
        with self.assertLogs("sqstaskmaster", "INFO"):
            self.assertEqual({"dead-lettered": 1}, self.consume())
        self.assertEqual({self.url, self.dead_letters}, set(own))
        [message] = self.receive(self.dead_letters)
        self.assertEqual("is_given_up", json.loads(unseal(message["Body"]))["kwargs"]["do"])
        self.assertEqual((0, 0), self.left())

    def test_a_queue_that_is_another_than_was_asked_for_is_refused(self):
        self.use(self.create_queue(max_receive_count=3))
        other = self.url
        self.use_own(unseal, seal, url=other)
        for _ in range(2):
            self.submit("is_given_up")
        with self.assertLogs("sqstaskmaster", "INFO") as logs:
            self.assertEqual({"failed": 2}, self.consume())
        [warning] = records_of(logs, "dead_letter_failed")
        self.assertEqual(logging.WARNING, warning.levelno)
        self.assertIn(self.dead_letters, warning.getMessage())
        self.assertEqual([], self.receive(self.dead_letters))
        self.assertEqual((0, 2), self.left())


class Laws(BodyLaws, CannotContinueLaws, OwnQueueLaws):
    """All that hold for every column, on every queue."""


class WorkerLaws(Laws, WorkerCannotContinueLaws, WorkerOwnQueueLaws, HookLaws):
    """And for every worker."""


class ServerLaws(LimitLaws, ReturnLaws, ReportLaws, LostClaimLaws, OwnDeadLetterLaws):
    """Those that need a claim that ends, or a dead-letter queue."""


class WorkerServerLaws(ServerLaws, WorkerReportLaws, WorkerReturnLaws):
    """And for every worker."""


# -- who runs it ------------------------------------------------------------------------------------------------------


class LawsInBlock(InBlock, LawTestCase):
    stopped_for_lost_claim = "failed"
    handlers = {"T": LawTask, "Plain": LawPlain}


class LawsInWorker(InWorker, LawTestCase):
    """The plain handlers make it one without slots."""

    handlers = {"T": LawTask, "Plain": LawPlain, "Unmade": Unmade, "UnmadePlain": UnmadePlain}


class LawsInSlots(InSlots, LawTestCase):
    handlers = {"T": LawTask, "Unmade": Unmade}


class LawsInWarmSlots(InWarmSlots, LawTestCase):
    handlers = {"T": LawTask, "Unmade": Unmade}


class LawsInWarmSpawnedSlots(InWarmSpawnedSlots, LawTestCase):
    handlers = {"T": SeenToBeSpawnedLawTask, "Unmade": SpawnedUnmade}


class LawsInSpawnedSlots(InSpawnedSlots, LawTestCase):
    handlers = {"T": SpawnedLawTask, "Unmade": SpawnedUnmade}
