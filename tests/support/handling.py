"""What the tests of the handler share: a clock and a message that obey, and a handler that remembers."""

import itertools
import logging
import signal
import unittest

from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
)

from sqstaskmaster import MessageHandler
from sqstaskmaster._signals import alarm

BODY = '{"task": "T", "kwargs": {"password": "body-secret"}}'
ATTRIBUTES = {"ApproximateReceiveCount": "3", "SentTimestamp": "1700000000000"}

NO_ANSWERS = (
    EndpointConnectionError(endpoint_url="http://sqs"),
    ReadTimeoutError(endpoint_url="http://sqs"),
    ConnectTimeoutError(endpoint_url="http://sqs"),
    NoCredentialsError(),
)


def client_error(code, text="no"):
    return ClientError({"Error": {"Code": code, "Message": text}}, "ChangeMessageVisibility")


BEYOND_TOTAL = client_error(
    "InvalidParameterValue",
    "Value 30 for parameter VisibilityTimeout is invalid. Reason: Total VisibilityTimeout for the message is beyond "
    "the limit [43200 seconds]",
)


numbers = itertools.count(1)

# The tests read what they need; also between two tests, where a thread given up by one of them may log.
logging.getLogger("sqstaskmaster").addHandler(logging.NullHandler())


class Clock:
    def __init__(self):
        self.now = 5000.0

    def __call__(self):
        return self.now


class FakeMessage:
    """Keeps what was asked of it; `on_change` and `on_delete` are asked for each answer: an exception, or None."""

    def __init__(self, on_change=None, on_delete=None, attributes=ATTRIBUTES):
        self.body = BODY
        self.attributes = attributes
        self.message_id = f"id-{next(numbers)}"
        self.changes = []
        self.deletes = 0
        self.on_change = on_change or (lambda: None)
        self.on_delete = on_delete or (lambda: None)

    def change_visibility(self, *, VisibilityTimeout):
        self.changes.append(VisibilityTimeout)
        self._answer(self.on_change)

    def delete(self):
        self.deletes += 1
        self._answer(self.on_delete)

    def __repr__(self):
        return f"FakeMessage({self.message_id})"

    @staticmethod
    def _answer(ask):
        error = ask()
        if error is not None:
            raise error


class Answers:
    """Gives one answer after the other, the last one for ever."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def __call__(self):
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class Handler(MessageHandler):
    # A check that fails inside a `with` block fails the task only, as any exception there: SignalTestCase asks for it.
    # And for what a mistake in the test or in the handler raises there.
    failed_checks = []

    def __init__(self, message, sqs_timeout=30, alarm_timeout=10, hard_timeout=100, **kwargs):
        super().__init__(message, sqs_timeout, alarm_timeout, hard_timeout, **kwargs)
        self.notified = []
        self.lost = []
        self.makes_progress = True

    def run(self):
        pass

    def running(self):
        return self.makes_progress

    def notify(self, exception, context=None):
        self.notified.append((exception, context))
        if isinstance(exception, (AssertionError, AttributeError, LookupError, NameError, StopIteration)):
            self.failed_checks.append(exception)

    def claim_lost(self, exception):
        self.lost.append(exception)
        super().claim_lost(exception)

    def alarm(self):
        """What an alarm does, without the signal."""
        self._handle_alarm(signal.SIGALRM, None)

    def armed(self):
        """Seconds until the real timer, which a fake clock does not move."""
        return signal.getitimer(signal.ITIMER_REAL)[0]


class SignalTestCase(unittest.TestCase):
    """Every test leaves SIGALRM, its mask and its timer as it found them."""

    def setUp(self):
        self.found = signal.getsignal(signal.SIGALRM)
        Handler.failed_checks.clear()
        self.addCleanup(self.check_signals)
        self.addCleanup(self.check_blocks)

    def check_blocks(self):
        for error in Handler.failed_checks:
            raise error

    def check_signals(self):
        timer = signal.setitimer(signal.ITIMER_REAL, 0)
        handler = signal.signal(signal.SIGALRM, self.found)
        blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        top, alarm.Alarm._top = alarm.Alarm._top, None
        self.assertEqual(
            ((0.0, 0.0), self.found, False, None), (timer, handler, signal.SIGALRM in blocked, top), "left behind"
        )

    def actions(self, logs, handler):
        """What the log tells of one message. A thread given up by an earlier test may log at any time."""
        return [record.action for record in logs.records if record.message_id == handler._message.message_id]
