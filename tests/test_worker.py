"""The worker's loop: which handler, which verdict, and what a poll may meet."""

import contextlib
import functools
import logging
import os
import signal
import sys
import threading
import time
import unittest
from unittest import mock

from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError
from botocore.parsers import ResponseParserError

from sqstaskmaster import (
    ExponentialBackoff,
    LocalQueue,
    MessageHandler,
    ProcessMessageHandler,
    TaskManager,
    Worker,
    current_task,
)
from sqstaskmaster._claim import clock
from sqstaskmaster.errors import ArgumentsDoNotFit, ClaimLapsed, PollRefused, TaskQuit, UnknownTask, UnsupportedContext
from tests.guard import awake_seconds
from tests.support import DEADLINE_SECONDS, ServerTestCase


class Recording(MessageHandler):
    """A handler that calls `action` with its own kwargs."""

    seen: list = []

    def __init__(self, message, sqs_timeout, alarm_timeout, hard_timeout, colour="red", size=1):
        super().__init__(message, sqs_timeout, alarm_timeout, hard_timeout)
        self.kwargs = {"colour": colour, "size": size}

    def run(self):
        self.seen.append(self.kwargs)


class LoopTestCase(unittest.TestCase):
    """A worker over a queue in memory; `messages` are all that were received."""

    def setUp(self):
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        self.notified = []
        self.messages = []
        case = self

        class Queue(LocalQueue):
            def receive_messages(self, **kwargs):
                case.before_poll()
                received = super().receive_messages(**kwargs)
                case.messages += received
                for message in received:
                    message.claim_lapses = case.claims_lapse
                case.after_poll()
                return received

        def notify(exception, context):
            self.notified.append((exception, context))

        self.manager = TaskManager(f"memory:{self.id()}", notify=notify, queue_constructor=Queue)
        Recording.seen = []

    claims_lapse = False

    def before_poll(self):
        pass

    def after_poll(self):
        pass

    def worker(self, handlers=None, **settings):
        return Worker(self.manager, handlers or {"T": Recording}, **{"wait_time": 0, **settings})

    def run_tasks(self, *kwargs, worker=None):
        for each in kwargs:
            self.manager.submit("T", **each)
        return (worker or self.worker()).run(burst=True)


class ForkTest(LoopTestCase):
    """A child forked from the worker's process never becomes a second worker."""

    def run_forking(self, where, leave=lambda: None):
        """The exit code of a child that is forked at `where` (a constructor, run, or an event) and then leaves."""
        codes, parent = [], os.getpid()
        self.addCleanup(lambda: os.getpid() == parent or os._exit(99))

        def fork(at):
            if at != where or codes:
                return
            child = os.fork()
            if child == 0:
                codes.append(None)
                leave()
            else:
                codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

        class Handler(Recording):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                fork("constructor")

            def run(self):
                fork("run")
                super().run()

        self.manager.submit("T")
        self.manager.submit("T")
        counts = self.worker({"T": Handler}).run(burst=True, on_event=fork)
        if os.getpid() != parent:
            os._exit(98)
        self.assertEqual(({"done": 2}, 2), (counts, len(Recording.seen)))
        return codes[0]

    def test_wherever_it_is_forked_it_ends_and_the_worker_goes_on(self):
        for where in ("constructor", "run", "polled", "busy", "idle"):
            with self.subTest(where):
                Recording.seen = []
                self.assertEqual(0, self.run_forking(where))

    def test_what_it_exits_with_is_its_exit_code(self):
        self.assertEqual(5, self.run_forking("run", lambda: sys.exit(5)))


class CurrentTaskTest(LoopTestCase):
    """current_task() in plain handlers, whose tasks run in the worker's own process."""

    def test_a_plain_handlers_task_knows_itself_and_only_while_it_runs(self):
        seen = []

        class Handler(Recording):
            def run(self):
                task = current_task()
                seen.append((task.name, task.message_id, task.receive_count, task.stopping))
                seen.append(self.hard_timeout - 10 < task.seconds_left <= self.hard_timeout)
                task.report(done=1)
                seen.append(self.progress)

        self.run_tasks({}, worker=self.worker({"T": Handler}))
        self.assertEqual([("T", self.messages[0].message_id, 1, False), True, {"done": 1}], seen)
        self.assertIsNone(current_task())

    def test_a_task_that_fails_is_over_too(self):
        class Handler(Recording):
            def run(self):
                raise ValueError(current_task().name)

            def notify(self, exception, context=None):
                told.append((str(exception), current_task()))

        told = []
        self.run_tasks({}, worker=self.worker({"T": Handler}))
        self.assertEqual([("T", None)], told)

    def test_it_says_that_the_worker_is_stopping_from_the_first_signal_on(self):
        seen = []

        class Handler(Recording):
            def run(self):
                seen.append(current_task().stopping)
                os.kill(os.getpid(), signal.SIGTERM)
                deadline = time.monotonic() + DEADLINE_SECONDS
                while not current_task().stopping and time.monotonic() < deadline:
                    pass
                seen.append(current_task().stopping)

        self.run_tasks({}, worker=self.worker({"T": Handler}, shutdown_grace=DEADLINE_SECONDS * 2))
        self.assertEqual([False, True], seen)

    def test_a_handler_in_the_block_of_another_hides_it_only_meanwhile(self):
        seen = []

        class Inner(MessageHandler):
            def run(self):
                seen.append(current_task().name)

        class Handler(Recording):
            def run(self):
                with Inner(mock.Mock(), 30, 10, 60) as inner:
                    inner.run()
                seen.append(current_task().name)

        self.run_tasks({}, worker=self.worker({"T": Handler}))
        self.assertEqual(["Inner", "T"], seen)


class TasksTest(LoopTestCase):
    def test_a_handler_is_made_of_the_message_the_workers_timeouts_and_the_kwargs(self):
        made = []

        class Handler(Recording):
            def run(self):
                made.append((self._message, self.sqs_timeout, self.alarm_timeout, self.hard_timeout, self.kwargs))

        worker = self.worker({"T": Handler}, sqs_timeout=60, alarm_timeout=5, hard_timeout=100)
        self.assertEqual({"done": 1}, self.run_tasks({"colour": "blue"}, worker=worker))
        self.assertEqual([(self.messages[0], 60, 5, 100, {"colour": "blue", "size": 1})], made)
        self.assertTrue(self.messages[0].deleted)

    def test_a_burst_ends_with_the_first_poll_that_brings_nothing(self):
        self.assertEqual({"done": 3}, self.run_tasks({}, {}, {}))
        self.assertEqual({}, self.worker().run(burst=True))

    def test_a_malformed_body_is_no_end_of_a_burst(self):
        self.manager.queue.send_message(MessageBody="[1]")
        self.assertEqual({"done": 1}, self.run_tasks({}))
        self.assertFalse(self.messages[0].deleted)

    def test_notify_is_told_task_queue_receives_and_outcome_of_whatever_failed(self):
        told = self.notified

        class Handler(Recording):
            def run(self):
                raise ValueError("failed")

            def notify(self, exception, context=None):
                told.append((exception, context))

        self.manager.queue.send_message(MessageBody="[1]")
        self.manager.submit("Unheard")
        self.assertEqual({"failed": 1, "refused": 1}, self.run_tasks({}, worker=self.worker({"T": Handler})))
        self.assertEqual(
            [(None, "refused"), ("Unheard", "refused"), ("T", "failed")],
            [(context["task"], context["outcome"]) for _, context in told],
        )
        for _, context in told:
            self.assertEqual(self.manager.url, context["queue"])
            self.assertLessEqual({"message_id", "receive_count"}, set(context))

    def test_a_task_whose_claim_has_lapsed_before_it_begins_is_not_started_in_either_process(self):
        self.claims_lapse = True
        ran, now = self.notified, clock.now
        later = contextlib.ExitStack()

        def slow(kind, message, sqs_timeout, alarm_timeout, hard_timeout):
            later.enter_context(mock.patch.object(clock, "now", lambda: now() + 1000))  # the machine slept, say
            return kind(message, sqs_timeout, alarm_timeout, hard_timeout)

        class InOwnProcess(ProcessMessageHandler):
            def run(self):
                ran.append("run")

            claim_lost = run

        for kind in (Recording, InOwnProcess):
            for on_claim_lost in ("stop", "continue"):
                with self.subTest(kind.__name__, on_claim_lost=on_claim_lost), later:
                    self.notified.clear()
                    worker = self.worker({"T": functools.partial(slow, kind)}, on_claim_lost=on_claim_lost)
                    self.assertEqual({"claim lost": 1}, self.run_tasks({}, worker=worker))
                    ((error, context),) = self.notified
                    self.assertIsInstance(error, ClaimLapsed)
                    self.assertEqual("claim lost", context["outcome"])
                    self.assertEqual(([], False), (self.messages[-1].visibility_changes, self.messages[-1].deleted))
        self.assertEqual([], Recording.seen)

    def test_what_on_start_raises_is_logged_with_what_was_called_and_from_where(self):
        def open_metrics_port():
            raise OSError(98, "Address already in use")

        logging.disable(logging.NOTSET)
        for handler in (MessageHandler, ProcessMessageHandler):
            worker = self.worker({"T": type("T", (handler,), {"run": print})}, on_start=open_metrics_port)
            with self.subTest(handler), self.assertLogs("sqstaskmaster.worker", "ERROR") as logs:
                with self.assertRaises(OSError):
                    worker.run(burst=True)
            self.assertRegex(logs.output[0], r"on_start=\S*open_metrics_port of the worker has failed.*Address already")
            self.assertIn("test_worker.py", logs.output[0])

    def test_an_alarm_that_comes_when_its_task_has_just_ended_does_no_harm(self):
        def send_alarm(_):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)

        self.assertEqual({"done": 1}, self.run_tasks({}, worker=self.worker({"T": Recording}, on_finish=send_alarm)))
        self.assertEqual(signal.SIG_DFL, signal.getsignal(signal.SIGALRM))

    def test_a_task_that_fails_is_counted_and_the_next_one_runs(self):
        class Handler(Recording):
            def run(self):
                if self.kwargs["size"] == 0:
                    raise ValueError("failed")

        self.assertEqual({"failed": 1, "done": 1}, self.run_tasks({"size": 0}, {}, worker=self.worker({"T": Handler})))
        self.assertEqual([False, True], [message.deleted for message in self.messages])

    def test_an_unknown_task_is_notified_and_left_with_the_names_there_are(self):
        self.manager.submit("Unheard")
        self.assertEqual({"refused": 1, "done": 1}, self.run_tasks({}))
        ((error, context),) = self.notified
        self.assertIsInstance(error, UnknownTask)
        self.assertIn("'Unheard'", str(error))
        self.assertIn("'T'", str(error))
        self.assertEqual(self.messages[0].body, context["body"])
        self.assertFalse(self.messages[0].deleted)
        self.assertEqual([], self.messages[0].visibility_changes)

    def test_a_message_cannot_set_what_the_worker_limits(self):
        class Plain(ProcessMessageHandler):
            def run(self):
                pass

        class Lenient(Plain):
            def __init__(self, message, sqs_timeout, alarm_timeout, hard_timeout, **options):
                super().__init__(message, sqs_timeout, alarm_timeout, hard_timeout, **options)

        class Named(Plain):
            def __init__(self, message, sqs_timeout, alarm_timeout, hard_timeout, *, clock=None):
                super().__init__(message, sqs_timeout, alarm_timeout, hard_timeout)

        class InProcess(Recording):
            __init__ = MessageHandler.__init__

        @functools.wraps(Plain)
        def made(*arguments, **named):
            return Plain(*arguments, **named)

        set_by_the_worker = functools.partial(Plain, term_grace=1)
        named_and_set = functools.partial(Named, clock="noon")
        for name, value in {"term_grace": 3600, "max_memory": 1 << 50, "start_method": "spawn", "clock": 1}.items():
            for kind in (Plain, Lenient, InProcess, made, set_by_the_worker, functools.partial(Plain), named_and_set):
                with self.subTest(name, kind=kind), self.assertRaisesRegex(ArgumentsDoNotFit, name):
                    self.worker({"T": kind}).handler_for("T", {name: value}, mock.Mock(attributes={}))
        for kind in (Named, functools.partial(Named)):
            self.worker({"T": kind}).handler_for("T", {"clock": "noon"}, mock.Mock(attributes={}))

    def test_a_timeout_that_a_partial_sets_is_the_task_s(self):
        worker = self.worker({"T": functools.partial(Recording, hard_timeout=5)}, alarm_timeout=2)
        handler = worker.handler_for("T", {}, mock.Mock(attributes={}))
        self.assertEqual((5, 2), (handler.hard_timeout, handler.alarm_timeout))
        with self.assertRaisesRegex(ArgumentsDoNotFit, "hard_timeout"):
            worker.handler_for("T", {"hard_timeout": 1}, mock.Mock(attributes={}))

    def test_kwargs_that_do_not_fit_are_notified_and_left_with_the_signature_that_was_expected(self):
        class Picky(Recording):
            def __init__(self, message, sqs_timeout, alarm_timeout, hard_timeout, *, colour):
                if colour == "mauve":
                    raise ValueError("no such colour")
                super().__init__(message, sqs_timeout, alarm_timeout, hard_timeout)

        wrong = ({}, {"colour": "red", "x": 1}, {"colour": "mauve"}, {"colour": "red", "hard_timeout": 1})
        self.assertEqual({"refused": len(wrong)}, self.run_tasks(*wrong, worker=self.worker({"T": Picky})))
        for error, _ in self.notified:
            self.assertIsInstance(error, ArgumentsDoNotFit)
            self.assertIn("Picky(message, sqs_timeout, alarm_timeout, hard_timeout, *, colour)", str(error))
        self.assertFalse(any(message.deleted for message in self.messages))

    def test_a_refusal_is_logged_with_the_signature_and_without_the_body(self):
        logging.disable(logging.NOTSET)
        with self.assertLogs("sqstaskmaster.worker", logging.ERROR) as logs:
            self.run_tasks({"secret": "hush"})
        self.assertIn("colour='red'", logs.output[0])
        self.assertNotIn("hush", logs.output[0])

    def test_a_notify_that_raises_does_not_end_the_loop(self):
        self.manager._notify = mock.Mock(side_effect=ZeroDivisionError)
        self.assertEqual({"refused": 1, "done": 1}, self.run_tasks({"x": 1}, {}))

    def test_sys_exit_in_a_task_of_this_process_is_a_failure_and_the_loop_goes_on(self):
        class Leaving(Recording):
            told = []

            def run(self):
                raise {0: SystemExit, 1: KeyboardInterrupt, 2: GeneratorExit}[self.kwargs["size"]](3)

            def notify(self, exception, context=None):
                self.told.append(exception)

        tasks = ({"size": 0}, {"size": 1}, {"size": 2})
        self.assertEqual({"failed": 3}, self.run_tasks(*tasks, worker=self.worker({"T": Leaving})))
        self.assertTrue(all(isinstance(error, TaskQuit) for error in Leaving.told))
        self.assertEqual([[], [], []], [message.visibility_changes for message in self.messages])

    def test_a_handler_that_cannot_be_entered_or_left_does_not_end_the_loop(self):
        class Entered(Recording):
            def __enter__(self):
                raise OSError("no database")

        class Left(Recording):
            def __exit__(self, *exception):
                super().__exit__(*exception)
                raise OSError("no database")

        self.assertEqual({"failed": 2}, self.run_tasks({}, {}, worker=self.worker({"T": Entered})))
        self.assertEqual({"done": 1}, self.run_tasks({}, worker=self.worker({"T": Left})))
        self.assertEqual(3, len(self.notified))

    def test_each_finished_task_is_one_line_with_its_facts_as_fields(self):
        logging.disable(logging.NOTSET)
        with self.assertLogs("sqstaskmaster", logging.INFO) as logs:
            self.run_tasks({})
        (record,) = [record for record in logs.records if getattr(record, "action", "") == "finished"]
        self.assertEqual(("T", "done", 1), (record.task, record.outcome, record.receive_count))
        self.assertEqual(self.messages[0].message_id, record.message_id)
        self.assertTrue(0 <= record.queued < 60 and 0 <= record.elapsed < 60)
        self.assertRegex(
            record.getMessage(), r"^Task T done: message local-\d+, receive 1, queued \d+\.\d+ s, ran \d+\.\d+ s$"
        )

    def test_the_events_tell_when_a_poll_was_answered_and_when_a_task_runs(self):
        events = []
        self.manager.submit("T")
        self.worker().run(burst=True, on_event=events.append)
        self.assertEqual(["polled", "busy", "idle", "polled"], events)

    def test_an_event_hook_that_raises_hurts_nobody(self):
        self.manager.submit("T")
        counts = self.worker().run(burst=True, on_event=mock.Mock(side_effect=OSError("disk full")))
        self.assertEqual({"done": 1}, counts)


class FunctionsTest(LoopTestCase):
    """`@worker.task`: what runs here runs in a process of its own, and tells what it did by failing or not."""

    def test_a_function_is_a_task_of_its_kwargs_in_a_process_of_its_own(self):
        worker = Worker(self.manager, wait_time=0)
        mine = os.getpid()

        @worker.task("T")
        def check(a, b=2):
            assert (a, b) == (1, 2) and os.getpid() != mine

        self.assertEqual({"done": 1}, self.run_tasks({"a": 1}, worker=worker))
        self.assertTrue(self.messages[0].deleted)
        self.assertIsNone(check(1, 2) if os.getpid() != mine else None)  # the function itself is as it was

    def test_names_that_a_handler_uses_itself_are_free_for_a_functions_kwargs(self):
        worker = Worker(self.manager, wait_time=0)

        @worker.task("T")
        def check(message, sqs_timeout, self, function, kwargs):
            assert [message, sqs_timeout, self, function, kwargs] == [1, 2, 3, 4, 5]

        kwargs = dict(zip(("message", "sqs_timeout", "function", "kwargs"), (1, 2, 4, 5)))
        self.manager.queue.send_message(
            MessageBody='{"task": "T", "kwargs": {"self": 3, %s}}'
            % ", ".join(f'"{name}": {value}' for name, value in kwargs.items())
        )
        self.assertEqual({"done": 1}, worker.run(burst=True))

    def test_what_a_function_raises_goes_to_the_managers_notify_and_to_its_retry_policy(self):
        worker = Worker(self.manager, wait_time=0)

        @worker.task("T", retry_delay=ExponentialBackoff(first=7, uniform=lambda a, b: b))
        def fail():
            raise LookupError("not there")

        self.assertEqual({"failed": 1}, self.run_tasks({}, worker=worker))
        self.assertIsInstance(self.notified[0][0], LookupError)
        self.assertEqual([7], self.messages[0].visibility_changes)

    def test_a_function_has_the_timeouts_it_was_given_and_the_workers_otherwise(self):
        worker = self.worker({}, sqs_timeout=60, alarm_timeout=20)
        worker.task("F", hard_timeout=5, alarm_timeout=2, term_grace=1)(lambda: None)
        handler = worker.handler_for("F", {}, mock.Mock())
        self.assertIsInstance(handler, ProcessMessageHandler)
        self.assertEqual((60, 2, 5, 1), (handler.sqs_timeout, handler.alarm_timeout, handler.hard_timeout, 1))

    def test_a_hung_c_call_is_stopped_at_the_functions_hard_timeout(self):
        worker = Worker(self.manager, wait_time=0)

        @worker.task("T", hard_timeout=1, term_grace=1)
        def hang():
            sum(range(10**12))

        self.assertEqual({"timed out": 1}, self.run_tasks({}, worker=worker))
        self.assertIn("hang", self.notified[0][1]["stack"])

    def test_kwargs_that_do_not_fit_a_function_are_told_with_its_signature(self):
        worker = Worker(self.manager, wait_time=0)

        @worker.task("T")
        def train(model, epochs=3):
            raise AssertionError("called")

        self.assertEqual({"refused": 2}, self.run_tasks({}, {"model": 1, "x": 2}, worker=worker))
        for error, _ in self.notified:
            self.assertIn("train(model, epochs=3)", str(error))

    def test_what_is_no_such_function_is_refused_when_it_is_decorated(self):
        worker = self.worker()

        async def coroutine():
            pass

        def positional(a, /):
            pass

        for wrong in (coroutine, positional, 5, int):
            with self.subTest(wrong), self.assertRaises(TypeError):
                worker.task("F")(wrong)
        with self.assertRaisesRegex(ValueError, "'T' already"):
            worker.task("T")(lambda: None)
        with self.assertRaisesRegex(ValueError, "Hard timeout"):
            worker.task("F", hard_timeout=0)
        with self.assertRaisesRegex(ValueError, "term_grace"):
            worker.task("F", term_grace=-1)
        with self.assertRaisesRegex(TypeError, "colour"):
            worker.task("F", colour="red")
        with self.assertRaisesRegex(ValueError, "name"):
            worker.task("")(lambda: None)


class ArgumentsTest(LoopTestCase):
    def test_a_setting_out_of_its_range_is_refused_with_its_name(self):
        for name, wrong in (
            ("wait_time", 21),
            ("wait_time", -1),
            ("shutdown_grace", -1),
            ("shutdown_grace", "20"),
            ("hard_timeout", 0),
            ("hard_timeout", 50_000),
            ("alarm_timeout", 119),
            ("sqs_timeout", 0),
            ("on_claim_lost", "ignore"),
        ):
            with self.subTest(name, wrong=wrong), self.assertRaisesRegex(ValueError, f"(?i){name.replace('_', '.')}"):
                self.worker(**{name: wrong})

    def test_a_hook_that_cannot_be_called_is_refused_with_its_name(self):
        for name in ("around", "on_start", "on_finish"):
            with self.subTest(name), self.assertRaisesRegex(TypeError, f"{name} must be callable, not 'x'"):
                self.worker(**{name: "x"})

    def test_the_hook_of_the_start_is_called_before_the_first_task(self):
        order = []

        class Handler(Recording):
            def run(self):
                order.append("task")

        self.run_tasks({}, worker=self.worker({"T": Handler}, on_start=lambda: order.append("start")))
        self.assertEqual(["start", "task"], order)

    def test_a_handler_that_sets_its_own_timeouts_need_not_take_the_workers(self):
        class Classic(MessageHandler):
            def __init__(self, message, model):
                super().__init__(message, 30, 10, 60)

            def run(self):
                pass

        self.assertEqual({"done": 1}, self.run_tasks({"model": "x"}, worker=self.worker({"T": Classic})))

    def test_what_is_no_handler_and_no_worker_is_refused_where_it_is_written(self):
        for handler in (5, int):
            with self.subTest(handler), self.assertRaisesRegex(TypeError, "'T'"):
                self.worker({"T": handler})
        for handlers in (["T"], "T"):
            with self.subTest(handlers), self.assertRaisesRegex(TypeError, "mapping"):
                Worker(self.manager, handlers)
        for manager in ("http://127.0.0.1/1/q", None, [], [self.manager, "x"]):
            with self.subTest(manager), self.assertRaisesRegex(TypeError, "TaskManager"):
                Worker(manager, {"T": Recording})
        with self.assertRaisesRegex(ValueError, "the same"):
            Worker([self.manager, self.manager], {"T": Recording})

    def test_a_worker_without_tasks_is_refused_when_it_is_run(self):
        with self.assertRaisesRegex(ValueError, "no tasks"):
            Worker(self.manager).run(burst=True)

    def test_what_would_only_give_something_to_be_run_is_refused_where_it_is_registered(self):
        async def coroutine():
            pass

        def generator():
            yield

        async def both():
            yield

        for function in (coroutine, generator, both):
            called = type("Called", (), {"__call__": function})()
            for given in (function, functools.partial(function), called):
                with self.subTest(given=given), self.assertRaisesRegex(TypeError, "asyncio.run|generator"):
                    Worker(self.manager).task("T")(given)
        with self.assertRaisesRegex(TypeError, r"The function coroutine\(\), of task 'T', is async: write a plain"):
            Worker(self.manager).task("T")(coroutine)

            class Handler(Recording):
                run = function

            with self.subTest(f"a handler of {function.__name__}"), self.assertRaisesRegex(TypeError, "Handler.run"):
                self.worker({"T": Handler})

    def test_the_decorator_without_its_parentheses_is_refused(self):
        with self.assertRaisesRegex(TypeError, r'@worker\.task\("report"\)'):

            @Worker(self.manager).task
            def report():
                pass

    def test_a_misspelt_option_of_the_decorator_is_refused(self):
        with self.assertRaisesRegex(TypeError, "hard_timout"):
            Worker(self.manager).task("T", hard_timout=5)

    def test_outside_the_main_thread_is_a_clear_error_and_nothing_is_polled(self):
        errors = []

        def run():
            try:
                self.worker().run(burst=True)
            except UnsupportedContext as error:
                errors.append(error)

        self.before_poll = mock.Mock(side_effect=AssertionError("polled"))
        thread = threading.Thread(target=run)
        thread.start()
        thread.join(60)
        self.assertIn("main thread", str(errors[0]))


def refusal(code, status=400):
    return ClientError({"Error": {"Code": code, "Message": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "R")


class PollErrorsTest(LoopTestCase):
    """Each error in `failing` is what one poll meets."""

    def setUp(self):
        super().setUp()
        self.failing = []
        self.waits = []
        backoff = ExponentialBackoff(first=1, longest=60, uniform=lambda a, b: self.waits.append(b) or 0.0)
        patch = mock.patch("sqstaskmaster._service.polling._BACKOFF", backoff)
        patch.start()
        self.addCleanup(patch.stop)

    def before_poll(self):
        error = self.failing.pop(0) if self.failing else None
        if error is not None:
            raise error

    def test_what_may_pass_is_waited_for_longer_each_time_up_to_a_minute(self):
        self.failing = [
            EndpointConnectionError(endpoint_url="http://x"),
            ReadTimeoutError(endpoint_url="http://x"),
            ResponseParserError("cut off"),
            UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "a proxy's page in latin-1"),
            ConnectionResetError("reset"),
            refusal("ServiceUnavailable", 503),
            refusal("RequestThrottled"),
            refusal("AWS.SimpleQueueService.OverLimit", 403),
            refusal("ExpiredToken", 403),
            refusal("RequestExpired"),
        ]
        self.assertEqual({"done": 1}, self.run_tasks({}))
        self.assertEqual([1, 2, 4, 8, 16, 32, 60, 60, 60, 60], self.waits)

    def test_the_waits_begin_anew_after_a_poll_that_was_answered(self):
        self.failing = [refusal("Throttling"), refusal("Throttling"), None, refusal("Throttling")]
        self.run_tasks({})
        self.assertEqual([1, 2, 1], self.waits)

    def test_failing_polls_are_logged_on_change_only_and_so_is_their_end(self):
        logging.disable(logging.NOTSET)
        self.failing = [refusal("Throttling")] * 3 + [refusal("InternalError", 500)] * 3
        with self.assertLogs("sqstaskmaster.worker", logging.INFO) as logs:
            self.worker().run(burst=True)
        actions = [record.action for record in logs.records]
        self.assertEqual(["ready", "poll_failed", "poll_failed", "poll_recovered", "stopped"], actions)

    def test_what_does_not_pass_ends_the_worker_with_its_remedy(self):
        for error, code, remedy in (
            (refusal("AWS.SimpleQueueService.NonExistentQueue"), "NonExistentQueue", "URL"),
            (refusal("QueueDoesNotExist"), "QueueDoesNotExist", "URL"),
            (refusal("AccessDenied", 403), "AccessDenied", "sqs:ReceiveMessage"),
            (refusal("AccessDeniedException"), "AccessDeniedException", "sqs:ReceiveMessage"),
            (refusal("InvalidClientTokenId", 403), "InvalidClientTokenId", "AWS_ACCESS_KEY_ID"),
            (refusal("SignatureDoesNotMatch", 403), "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
            (NoCredentialsError(), "NoCredentialsError", "role"),
        ):
            self.failing = [error]
            with self.subTest(code), self.assertRaises(PollRefused) as raised:
                self.worker().run(burst=True)
            self.assertEqual(code, raised.exception.code)
            self.assertIn(remedy, str(raised.exception))
            self.assertIs(error, raised.exception.__cause__)

    def test_an_error_in_the_queue_object_itself_is_raised(self):
        self.failing = [AttributeError("a defect")]
        with self.assertRaisesRegex(
            PollRefused, "a defect: correct the object that queue_constructor returns"
        ) as refused:
            self.worker().run(burst=True)
        self.assertIsInstance(refused.exception.__cause__, AttributeError)

    def test_a_stop_ends_the_wait_at_once(self):
        self.failing = [refusal("Throttling")] * 1000
        began = awake_seconds()

        def stop(*_):
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
            return DEADLINE_SECONDS

        with mock.patch("sqstaskmaster._service.polling._BACKOFF", stop):
            self.assertEqual({}, self.worker().run())
        self.assertEqual(999, len(self.failing))
        self.assertLess(awake_seconds() - began, DEADLINE_SECONDS / 2)


class PollErrorsOnServerTest(ServerTestCase):
    def test_a_queue_that_does_not_exist_ends_the_worker_with_its_remedy(self):
        url = self.create_queue() + "-not"
        with self.assertRaisesRegex(PollRefused, "check the queue's URL"):
            Worker(TaskManager(url), {"T": Recording}, wait_time=0).run(burst=True)


if __name__ == "__main__":
    unittest.main()
