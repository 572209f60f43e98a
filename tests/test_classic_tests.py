"""Unit tests as users of the classic library have them: a Mock for a message, and patches of what they see.

Written from what the library promises them, with nothing of its insides.
"""

import json
import queue
import signal
import sys
import time
import unittest
from unittest.mock import ANY, MagicMock, Mock, NonCallableMock, call, patch

from botocore.exceptions import ClientError

from sqstaskmaster.local import LocalMessage, LocalQueue
from sqstaskmaster.message_handler import MessageHandler
from sqstaskmaster.queue_scale import Provisioner
from sqstaskmaster.task_manager import TaskManager

URL = "https://sqs.us-east-1.amazonaws.com/123456789012/classic"


class Handler(MessageHandler):
    def __init__(self, message, sqs_timeout=30, alarm_timeout=10, hard_timeout=60):
        super().__init__(message, sqs_timeout, alarm_timeout, hard_timeout)
        self.notified = Mock()
        self.is_running = True

    def run(self):
        pass

    def running(self):
        return self.is_running

    def notify(self, exception, context=None):
        self.notified(exception, context=context)


class Patched(unittest.TestCase):
    """No test touches the real timer."""

    def setUp(self):
        self.setitimer = self.patch("signal.setitimer")
        self.signal = self.patch("signal.signal")
        self.logger = self.patch("sqstaskmaster.message_handler.logger")

    def patch(self, *args, **kwargs):
        patcher = patch(*args, **kwargs)
        self.addCleanup(patcher.stop)
        return patcher.start()


class HandlerTest(Patched):
    def test_a_message_may_be_a_mock_whose_attributes_say_nothing(self):
        for message in (Mock(), MagicMock(), Mock(attributes={}), Mock(attributes=None), Mock(attributes=MagicMock())):
            with Handler(message) as handler:
                handler.run()
            message.change_visibility.assert_called_once_with(VisibilityTimeout=30)
            message.delete.assert_called_once_with()
            self.assertEqual("done", handler.outcome)

    def test_no_value_of_the_attributes_need_be_what_sqs_sends(self):
        for value in (Mock(), MagicMock(), object(), None, [], "", "soon", -1, 1.5, "9" * 5000):
            message = Mock(body="b", attributes={"ApproximateReceiveCount": value, "SentTimestamp": value})
            with Handler(message) as handler:
                raise ValueError("x")
            handler.notified.assert_called_once_with(ANY, context={"body": "b", **message.attributes})

    def test_a_message_needs_nothing_but_its_four_parts(self):
        class Message:
            __slots__ = ("body", "attributes", "changes", "deleted")

            def change_visibility(self, *, VisibilityTimeout):
                self.changes = VisibilityTimeout

            def delete(self):
                self.deleted = True

        message = Message()
        message.body, message.attributes = "b", None
        with Handler(message):
            pass
        self.assertEqual((30, True), (message.changes, message.deleted))

    def test_enter_extends_installs_the_handler_and_arms_the_alarm(self):
        message = Mock()
        handler = Handler(message)
        self.assertIs(handler, handler.__enter__())
        message.change_visibility.assert_called_once_with(VisibilityTimeout=30)
        self.signal.assert_called_with(signal.SIGALRM, handler._handle_alarm)
        self.setitimer.assert_called_with(signal.ITIMER_REAL, 10)
        handler.__exit__(None, None, None)
        self.setitimer.assert_called_with(signal.ITIMER_REAL, 0)

    def test_one_failure_is_one_notify_and_one_logger_exception(self):
        message = Mock(body="the body", attributes={"ApproximateReceiveCount": "2", "SenderId": Mock()})
        error = RuntimeError("failed")
        with Handler(message) as handler:
            raise error
        handler.notified.assert_called_once_with(error, context={"body": "the body", **message.attributes})
        self.logger.exception.assert_called_once_with("Failed for message: %s", message)
        message.delete.assert_not_called()

    def test_an_interruption_is_one_notify_and_one_logger_exception_and_propagates(self):
        message = Mock(body="b", attributes={})
        handler = Handler(message)
        with self.assertRaises(KeyboardInterrupt), handler:
            raise KeyboardInterrupt
        handler.notified.assert_called_once_with(ANY, context={"body": "b"})
        self.logger.exception.assert_called_once_with("Failed for message: %s", message)
        self.assertEqual([call(VisibilityTimeout=30), call(VisibilityTimeout=0)], message.change_visibility.mock_calls)

    def test_a_delete_given_up_on_is_one_notify_and_one_logger_exception(self):
        error = ClientError({"Error": {"Code": "ReceiptHandleIsInvalid"}}, "DeleteMessage")
        message = Mock(body="b", attributes={})
        message.delete.side_effect = error
        with Handler(message) as handler:
            pass
        handler.notified.assert_called_once_with(error, context={"body": "b"})
        self.logger.exception.assert_called_once_with(ANY, message)

    def test_exit_without_enter_disarms_and_gives_the_verdict(self):
        message = Mock(body="b", attributes={})
        self.assertTrue(Handler(message).__exit__(None, None, None))
        message.delete.assert_called_once_with()
        self.assertEqual(call(signal.ITIMER_REAL, 0), self.setitimer.mock_calls[-1])

        for given in (ValueError("x"), Mock()):
            message = Mock(body="b", attributes={})
            handler = Handler(message)
            self.setitimer.reset_mock()
            self.logger.reset_mock()
            self.assertTrue(handler.__exit__(type(given), given, None))
            message.delete.assert_not_called()
            handler.notified.assert_called_once_with(given, context={"body": "b"})
            self.logger.exception.assert_called_once_with("Failed for message: %s", message)
            self.assertEqual(call(signal.ITIMER_REAL, 0), self.setitimer.mock_calls[-1])
            self.assertEqual("failed", handler.outcome)
        self.assertFalse(Handler(Mock()).__exit__(SystemExit, SystemExit(), None))

    def test_handle_alarm_without_enter_extends_and_arms_the_next_alarm(self):
        message = Mock()
        Handler(message)._handle_alarm(signal.SIGALRM, None)
        message.change_visibility.assert_called_once_with(VisibilityTimeout=30)
        self.assertEqual(call(signal.ITIMER_REAL, 10), self.setitimer.mock_calls[-1])
        Handler(message)._handle_alarm(Mock(), Mock())

    def test_handle_alarm_past_the_limit_raises_in_the_classic_words(self):
        message = Mock()
        with patch("time.monotonic", return_value=1000.0):
            handler = Handler(message)
        with patch("time.monotonic", return_value=1060.0):
            self.assertEqual(60, handler._run_time())
            with self.assertRaises(TimeoutError) as caught:
                handler._handle_alarm(signal.SIGALRM, sys._getframe())
        self.assertEqual("Hit Hard Timeout for message handler", str(caught.exception))
        message.delete.assert_not_called()

    def test_start_time_can_be_set(self):
        handler = Handler(Mock())
        handler._start_time -= 60
        with self.assertRaises(TimeoutError):
            handler._handle_alarm(signal.SIGALRM, None)

    def test_run_time_can_be_patched(self):
        handler = Handler(Mock())
        with patch.object(handler, "_run_time", return_value=61), self.assertRaises(TimeoutError):
            handler._handle_alarm(signal.SIGALRM, None)

    def test_handle_alarm_of_a_stuck_task_raises(self):
        handler = Handler(Mock())
        handler.is_running = False
        with self.assertRaisesRegex(RuntimeError, "^Handler is stuck on"):
            handler._handle_alarm(signal.SIGALRM, None)

    def test_extend_timeout_can_be_called_and_patched(self):
        message = Mock()
        handler = Handler(message)
        handler._extend_timeout(17)
        message.change_visibility.assert_called_once_with(VisibilityTimeout=17)
        with patch.object(handler, "_extend_timeout") as extend:
            handler._handle_alarm(signal.SIGALRM, None)
        extend.assert_called_once_with(30)


class LeftBehindTest(unittest.TestCase):
    """A test that enters a handler with signals patched, and never leaves it, does nothing to the tests after it."""

    def setUp(self):
        self.addCleanup(signal.signal, signal.SIGALRM, signal.getsignal(signal.SIGALRM))
        self.addCleanup(signal.setitimer, signal.ITIMER_REAL, 0)
        self.left = []

    def enter_and_leave_it_so(self):
        with patch("signal.signal"), patch("signal.setitimer"):
            self.left.append(Handler(Mock(body="left", attributes={})).__enter__())
        self.addCleanup(self.leave, self.left[-1])

    def leave(self, handler):
        """After the test, so that it does nothing to those after it where the law does not hold."""
        with patch("signal.signal"), patch("signal.setitimer"), patch("sqstaskmaster.message_handler.logger"):
            handler.__exit__(None, None, None)

    def test_a_handler_that_is_called_by_hand_arms_the_next_alarm_and_disarms(self):
        self.enter_and_leave_it_so()
        with patch("signal.setitimer") as setitimer:
            Handler(Mock())._handle_alarm(signal.SIGALRM, None)
            self.assertEqual([call(signal.ITIMER_REAL, 10)], setitimer.mock_calls[-1:])
            Handler(Mock(body="b", attributes={})).__exit__(None, None, None)
            self.assertEqual([call(signal.ITIMER_REAL, 0)], setitimer.mock_calls[-1:])

    def test_a_handler_entered_with_real_signals_is_alarmed_and_done(self):
        self.enter_and_leave_it_so()
        before = signal.getsignal(signal.SIGALRM)
        message = Mock(body="b", attributes={})
        with self.assertNoLogs("sqstaskmaster", "WARNING"), Handler(message, 30, 0.05) as handler:
            self.assertEqual(handler._handle_alarm, signal.getsignal(signal.SIGALRM))
            until = time.monotonic() + 60
            while len(message.change_visibility.mock_calls) < 2 and time.monotonic() < until:
                time.sleep(0.01)
        self.assertEqual("done", handler.outcome)
        self.assertGreaterEqual(len(message.change_visibility.mock_calls), 2)
        message.delete.assert_called_once_with()
        self.assertEqual([call(VisibilityTimeout=30)], self.left[0]._message.change_visibility.mock_calls)
        handler.notified.assert_not_called()
        self.assertEqual(before, signal.getsignal(signal.SIGALRM))
        self.assertEqual((0.0, 0.0), signal.getitimer(signal.ITIMER_REAL))

    def test_a_handler_entered_with_real_signals_is_stopped_at_its_limit(self):
        self.enter_and_leave_it_so()
        with self.assertLogs("sqstaskmaster"), Handler(Mock(body="b", attributes={}), 30, 10, 0.1) as handler:
            until = time.monotonic() + 60
            while time.monotonic() < until:
                pass
        self.assertEqual("timed out", handler.outcome)

    def test_a_handler_entered_with_patched_signals_makes_the_calls_that_it_makes_alone(self):
        def calls():
            with (
                patch("signal.signal") as install,
                patch("signal.setitimer") as setitimer,
                patch("sqstaskmaster.message_handler.logger"),
            ):
                handler = Handler(Mock(body="b", attributes={})).__enter__()
                entered = list(setitimer.mock_calls)
                handler.__exit__(None, None, None)
                install.assert_any_call(signal.SIGALRM, handler._handle_alarm)
                self.assertEqual(call(signal.ITIMER_REAL, 0), setitimer.mock_calls[-1])
            return len(install.mock_calls), entered

        alone = calls()
        self.enter_and_leave_it_so()
        self.assertEqual(alone, calls())


class TaskManagerTest(Patched):
    def test_notify_may_be_any_object_and_one_that_cannot_be_called_is_logged_once_when_it_is_needed(self):
        for notify in (object(), "sentry", 4711, NonCallableMock()):
            with self.subTest(notify):
                made = Mock()
                made.receive_messages.side_effect = [
                    [Mock(body="no json", attributes={})],
                    [Mock(body="nor this", attributes={})],
                    KeyboardInterrupt,
                ]
                with self.assertNoLogs("sqstaskmaster"):
                    manager = TaskManager(URL, notify, queue_constructor=lambda url: made)
                    manager.submit("Task", a=1)
                with self.assertLogs("sqstaskmaster", "ERROR") as logs, self.assertRaises(KeyboardInterrupt):
                    next(manager.task_generator())
                manager.notify(ValueError("x"), context={"a": 1})  # raises nothing
                told = [record for record in logs.records if repr(notify) in record.getMessage()]
                self.assertEqual(1, len(told), logs.output)
                self.assertEqual("ERROR", told[0].levelname)

    def test_the_sender_is_what_was_given_and_only_the_attribute_says_unknown(self):
        made = Mock()
        self.assertEqual("me", TaskManager(URL, queue_constructor=lambda url: made, sender_name="me").sender_name)
        manager = TaskManager(URL, queue_constructor=lambda url: made)
        self.assertIsNone(manager.sender_name)
        self.assertIs(made.send_message.return_value, manager.submit("Task", a=1))
        made.send_message.assert_called_once_with(
            MessageBody=json.dumps({"task": "Task", "kwargs": {"a": 1}}),
            MessageAttributes={"service_name": {"StringValue": f"Unknown sender to: {URL}", "DataType": "String"}},
        )

    def test_a_malformed_message_is_notified_and_logged_by_the_modules_logger(self):
        logger = self.patch("sqstaskmaster.task_manager.logger")
        good = Mock(body=json.dumps({"task": "T", "kwargs": {"a": 1}}))
        bad = Mock(body="no json", attributes={"ApproximateReceiveCount": "1"})
        made, notify = Mock(), Mock()
        made.receive_messages.side_effect = [[bad], [], [good]]
        manager = TaskManager(URL, notify, queue_constructor=lambda url: made)
        self.assertEqual(("T", {"a": 1}, good), next(manager.task_generator()))
        notify.assert_called_once_with(ANY, context={"body": "no json", "ApproximateReceiveCount": "1"})
        self.assertEqual(1, logger.exception.call_count)
        self.assertEqual(
            [call(AttributeNames=["All"], MaxNumberOfMessages=1, WaitTimeSeconds=20, VisibilityTimeout=20)] * 3,
            made.receive_messages.mock_calls,
        )

    def test_a_malformed_message_that_is_all_mock_is_notified_too(self):
        self.patch("sqstaskmaster.task_manager.logger")
        made, notify = Mock(), Mock()
        made.receive_messages.side_effect = [[Mock()], KeyboardInterrupt]
        with self.assertRaises(KeyboardInterrupt):
            next(TaskManager(URL, notify, queue_constructor=lambda url: made).task_generator())
        notify.assert_called_once_with(ANY, context={"body": ANY})


class LocalTest(Patched):
    def setUp(self):
        super().setUp()
        LocalQueue.reset()
        self.local_logger = self.patch("sqstaskmaster.local.logger")

    def test_the_queue_can_be_patched_on_the_class(self):
        with patch.object(LocalQueue, "queue") as patched, patch("sqstaskmaster.local.LocalMessage") as message:
            LocalQueue("here").send_message(MessageBody="b")
        message.assert_called_once_with("b", {}, {})
        patched.put_nowait.assert_called_once_with(message.return_value)

    def test_a_queue_made_before_sees_the_patch(self):
        made = LocalQueue("here")
        with patch.object(LocalQueue, "queue", queue.SimpleQueue()) as patched:
            patched.put_nowait(LocalMessage("b", {}, {}))
            self.assertEqual(["b"], [message.body for message in made.receive_messages(WaitTimeSeconds=0)])

    def test_a_message_is_made_positionally_and_put_by_hand(self):
        message = LocalMessage("b", {"x": "y"}, {"service_name": {"StringValue": "s"}})
        LocalQueue("here").queue.put_nowait(message)
        self.assertEqual([message], LocalQueue("here").receive_messages(WaitTimeSeconds=0))
        self.assertEqual(({}, {}), (LocalMessage("b").attributes, LocalMessage("b").message_attributes))

    def test_what_does_nothing_says_so_in_one_line_at_info(self):
        LocalQueue("here").load()
        self.local_logger.info.assert_called_once_with("Noop load!")
        message = LocalMessage("b", {}, {})
        for does_nothing in (
            message.change_visibility,
            message.delete,
            lambda: message.change_visibility(VisibilityTimeout=1),
        ):
            self.local_logger.reset_mock()
            does_nothing()
            self.assertEqual(1, self.local_logger.info.call_count)


class ProvisionerTest(Patched):
    def test_an_error_of_aws_is_notified_and_logged_by_the_modules_logger(self):
        logger = self.patch("sqstaskmaster.queue_scale.logger")
        rule = {"queue_name": URL, "service_name": "s", "cluster_name": "c", "active_size": 1}
        with patch("boto3.resource") as resource, patch("boto3.client"):
            notify = Mock()
            provisioner = Provisioner([rule], notify)
            error = ClientError({"Error": {"Code": "AccessDenied"}}, "GetQueueAttributes")
            resource.return_value.Queue.side_effect = error
            provisioner.run()
        notify.assert_called_once_with(error, context=rule)
        self.assertTrue(logger.exception.called)


if __name__ == "__main__":
    unittest.main()
