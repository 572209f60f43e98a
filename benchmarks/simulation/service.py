"""SQS, and what goes wrong on the way to it and back. A request is a call of a worker's thread."""

import functools
import json
import math

from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError

from sqstaskmaster._memory import service
from sqstaskmaster._memory.calls import Calls as PlainCalls
from sqstaskmaster._memory.store import READY, Refused
from sqstaskmaster.testing import SimulatedClock, SimulatedMessage, SimulatedQueue

# How a request can go wrong.
FAULTS = (
    "throttled",  # refused, not carried out
    "unreachable",  # no connection
    "expired",  # credentials that are renewed soon
    "no credentials",
    "internal error",  # 500: it may have been carried out; half of them were
    "cut before",  # no answer, after a long wait, and not carried out
    "cut after",  # no answer, but carried out
    "late answer",
    "late arrival",  # carried out long after it was sent
    "failed entries",
    "missing entries",
)

# The longest that a client waits for an answer: botocore's 60 seconds and a connect.
CLIENT_SECONDS = 70.0


class Clock(SimulatedClock):
    """Moved only by the simulation, which it informs of attempts that begin and end, as a loop informs its queue."""

    def __init__(self, began):
        super().__init__()
        self._now = self._began = began
        self._began_epoch = 1_700_000_000.0

    def begin(self, attempt):
        pass

    def end(self, attempt):
        pass


class Calls(PlainCalls):
    """Requests without the check for what boto3 would refuse to send: these are the package's own, and many."""

    def call(self, operation, parameters, carry_out):
        try:
            return carry_out()
        except Refused as refused:
            raise service.refusal(operation, *refused.args) from None


class Thread:
    """A worker's thread that makes a call: its own view of time, and how its first request goes."""

    __slots__ = ("pool", "called_at", "sent_at", "time", "fault", "answer_after", "peeks", "entries")

    def __init__(self, pool, sent_at, fault, answer_after, entries=0.5):
        self.pool = pool
        self.called_at = self.sent_at = self.time = sent_at
        self.fault = fault
        self.answer_after = answer_after
        self.entries = entries  # which part of a batch fails
        self.peeks = None


class Queue(SimulatedQueue):
    """The queue as seen by one worker."""

    def __init__(self, url, *, host):
        super().__init__(url, clock=host.run.clock)
        self.host = host

    @property
    def clock(self):
        return self.host.queue_clock

    # -- the requests that a worker makes ------------------------------------------------------------------------

    def receive_messages(self, **kwargs):
        host = self.host
        hidden = kwargs["VisibilityTimeout"]
        kwargs["WaitTimeSeconds"] = 0  # the simulation has waited

        def receive():
            store = self._home.store
            copies = {message.message_id for message in store._copies}
            receive = super(Queue, self).receive_messages
            received = [Message(self, each) for each in receive(**kwargs)]
            for message in received:
                host.run.ledger.received(host, message, hidden, message.message_id in copies)
            return received

        return self._request("ReceiveMessage", receive)

    def change_message_visibility_batch(self, *, Entries):
        ledger, thread = self.host.run.ledger, self.host.run.thread
        if thread.peeks is not None:
            thread.peeks += [entry["ReceiptHandle"] for entry in Entries]
            return {}

        def change(entries):
            answer = super(Queue, self).change_message_visibility_batch(Entries=entries)
            failed = {each["Id"]: each["Message"] for each in answer.get("Failed", ())}
            for entry in entries:
                if entry["Id"] not in failed:
                    ledger.changed(self.host, entry["ReceiptHandle"], entry["VisibilityTimeout"], thread)
                elif "beyond" in failed[entry["Id"]]:
                    ledger.is_final(entry["ReceiptHandle"])
            return answer

        for entry in Entries:
            ledger.asks(self.host, entry["ReceiptHandle"], thread, "change")
        return self._batch("ChangeMessageVisibilityBatch", Entries, change)

    def delete_messages(self, *, Entries):
        ledger, thread = self.host.run.ledger, self.host.run.thread

        def delete(entries):
            for entry in entries:
                ledger.deletes(self.host, entry["ReceiptHandle"])
            return super(Queue, self).delete_messages(Entries=entries)

        for entry in Entries:
            ledger.asks(self.host, entry["ReceiptHandle"], thread, "delete")
        return self._batch("DeleteMessageBatch", Entries, delete)

    def send_message(self, **kwargs):
        def send():
            answer = super(Queue, self).send_message(**kwargs)
            ledger, said = self.host.run.ledger, json.loads(kwargs["MessageBody"])["kwargs"]
            ledger.sent(self.url, said, answer["MessageId"], kwargs.get("MessageGroupId"))
            return answer

        return self._request("SendMessage", send)

    def load(self):
        self._request("GetQueueAttributes", super().load)

    # -- how they go ---------------------------------------------------------------------------------------------

    def _batch(self, operation, entries, carry_out):
        thread = self.host.run.thread
        fault = thread.fault
        if fault not in ("failed entries", "missing entries"):
            return self._request(operation, lambda: carry_out(entries))
        thread.fault = None
        bad = max(1, int(len(entries) * thread.entries))
        good = entries[bad:]
        answer = self._request(operation, lambda: carry_out(good)) if good else service.answer()
        if fault == "failed entries":
            failed = {"SenderFault": False, "Code": "InternalError", "Message": "It failed"}
            answer["Failed"] = [*answer.get("Failed", ()), *({"Id": entry["Id"], **failed} for entry in entries[:bad])]
        return answer

    def _request(self, operation, carry_out):
        host = self.host
        run, thread = host.run, host.run.thread
        fault, thread.fault = thread.fault, None
        run.events.trace(host.name, "%s arrives%s", operation, f": {fault}" if fault else "")
        if fault == "throttled":
            raise _error(operation, "RequestThrottled", 400)
        if fault == "refused":
            raise _error(operation, "AccessDenied", 403)
        if fault == "expired":
            raise _error(operation, "ExpiredToken", 403)
        if fault == "no credentials":
            raise NoCredentialsError()
        if fault == "unreachable":
            raise EndpointConnectionError(endpoint_url="https://sqs.simulated")
        if fault == "cut before":
            raise ReadTimeoutError(endpoint_url="https://sqs.simulated")
        if fault == "internal error" and thread.entries < 0.5:
            raise _error(operation, "InternalError", 500)
        try:
            answer = carry_out()
        finally:
            polls = run.polls.get(self.url)
            if polls is not None:
                polls.look()
        if fault == "internal error":
            raise _error(operation, "InternalError", 500)
        if fault == "cut after":
            raise ReadTimeoutError(endpoint_url="https://sqs.simulated")
        thread.time = run.events.now + thread.answer_after
        return answer


class Message(SimulatedMessage):
    """A message whose requests go the queue's way."""

    def __init__(self, queue, received):
        self.__dict__.update(received.__dict__)
        self._queue = queue

    def change_visibility(self, *, VisibilityTimeout):
        queue, thread = self._queue, self._queue.host.run.thread
        ledger = queue.host.run.ledger
        if thread.peeks is not None:
            thread.peeks.append(self.receipt_handle)
            return
        ledger.asks(queue.host, self.receipt_handle, thread, "change")

        def change():
            try:
                super(Message, self).change_visibility(VisibilityTimeout=VisibilityTimeout)
            except ClientError as error:
                if "beyond" in str(error):
                    ledger.is_final(self.receipt_handle)
                raise
            ledger.changed(queue.host, self.receipt_handle, VisibilityTimeout, thread)

        queue._request("ChangeMessageVisibility", change)

    def delete(self):
        queue = self._queue
        ledger = queue.host.run.ledger
        ledger.asks(queue.host, self.receipt_handle, queue.host.run.thread, "delete")

        def delete():
            ledger.deletes(queue.host, self.receipt_handle)
            super(Message, self).delete()

        queue._request("DeleteMessage", delete)


def _error(operation, code, status):
    error = {"Code": code, "Message": code}
    return ClientError({"Error": error, "ResponseMetadata": {"HTTPStatusCode": status, "RequestId": "1"}}, operation)


def constructor(host):
    """The queue constructor of a worker's TaskManager."""
    return functools.partial(Queue, host=host)


class LongPolls:
    """The polls that wait at SQS for a message of one queue."""

    def __init__(self, run, store):
        self._run = run
        self._store = store
        self._polls = []
        self._look_at = math.inf

    def begin(self, thread, call):
        """A poll has arrived: it is answered as soon as there is a message, or its time is over."""
        if thread.fault is not None or is_ready(self._store):
            call()
            return
        poll = [call]
        self._polls.append(poll)

        def over():
            if poll in self._polls:
                self._polls.remove(poll)
                call()

        self._run.events.after(self._run.wait_time, over)
        self.look()

    def look(self):
        """Waiting polls may be answered, now or once a message becomes visible."""
        if not self._polls:
            return
        if is_ready(self._store):
            self._look_at_time(self._run.events.now)
        else:
            self._look_at_time(self._store.next_visible())

    def _look_at_time(self, when):
        if when < self._look_at:
            self._look_at = when
            self._run.events.at(when, functools.partial(self._answer, when))

    def _answer(self, when):
        if when != self._look_at:
            return
        self._look_at = math.inf
        if self._polls and is_ready(self._store):
            self._polls.pop(int(self._run.chance.random() * len(self._polls)))[0]()
        self.look()


def is_ready(store):
    """Whether a receive would bring something now."""
    store._settle()
    if not store.fifo or not store._counts[READY]:
        return store._counts[READY] > 0 or bool(store._copies)
    groups = store._line._groups
    return any(
        name in groups and groups[name].offered == number and groups[name].first_hidden() > number
        for number, name in store._line._offers
    )
