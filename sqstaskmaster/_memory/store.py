"""The messages of one simulated queue, and what becomes of them. Call every method with the clock's lock held."""

from __future__ import annotations

import collections
import hashlib
import heapq
import itertools
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from sqstaskmaster._memory import service
from sqstaskmaster._memory.clock import SimulatedClock
from sqstaskmaster._memory.lines import DELAYED, GONE, IN_FLIGHT, READY, FifoLine, Line, StandardLine, Stored
from sqstaskmaster._memory.refusals import IDENTIFIERS, Wrong, invalid
from sqstaskmaster._memory.requests import copy_of, md5_of_attributes, wrong_visibility
from sqstaskmaster._sqs.confirmation import md5
from sqstaskmaster._sqs.limits import DEDUPLICATION_SECONDS, MAX_MESSAGE_BYTES, MAX_VISIBILITY_SECONDS

ACCOUNT = "123456789012"

# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_PurgeQueue.html
_PURGE_SECONDS = 60

# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ReceiveMessage.html
_ATTEMPT_SECONDS = 5 * 60

_GONE = "Message does not exist or is not available for visibility timeout change."
_HIDDEN = (DELAYED, IN_FLIGHT)

# How many out-of-date entries a heap may have beyond the number of valid ones.
_SPARE_ENTRIES = 64


class Refused(Exception):
    """What SQS refuses: its code and text are the arguments."""


class Settings(NamedTuple):
    """A queue's settings, in seconds and bytes. The defaults are those of AWS."""

    visibility_timeout: int = 30
    max_receive_count: int | None = None
    content_based_deduplication: bool = False
    deduplication_scope: str = "queue"
    delay_seconds: int = 0
    wait_time_seconds: int = 0
    maximum_message_size: int = MAX_MESSAGE_BYTES
    retention_seconds: int = 4 * 24 * 60 * 60


class Received(NamedTuple):
    """One receive of one message."""

    message: Stored
    handle: str
    receives: int


class _Attempt(NamedTuple):
    until: float
    received: list[Received]


class _Sent(NamedTuple):
    """What is kept of a message to deduplicate later ones."""

    until: float
    message_id: str
    sequence_number: str


class Store:
    def __init__(self, url: str, settings: Settings, clock: SimulatedClock, dead_letters: Store | None) -> None:
        self.url = url
        self.name = url.rpartition("/")[2]
        self.arn = f"arn:aws:sqs:us-east-1:{ACCOUNT}:{self.name}"
        self.settings = settings
        self.clock = clock
        self.dead_letters = dead_letters
        self.fifo = url.endswith(".fifo")
        self.made_at = int(clock.epoch())
        self.generation = 0
        self._numbers = itertools.count(1)
        self._tag = f"{service.new_id()}:{self.name}"
        self.clear()

    def clear(self) -> None:
        """Forget all messages, and everything known of earlier ones."""
        self.generation += 1
        self.purge_allowed_at = -math.inf
        self.twice = self.out_of_order = 0  # injected faults: the number of receives that are still to have each
        self._drop()

    def purge(self) -> None:
        now = self.clock.now()
        if now < self.purge_allowed_at:
            text = f"Only one PurgeQueue operation on {self.name} is allowed every {_PURGE_SECONDS} seconds."
            raise Refused("PurgeQueueInProgress", text)
        self.purge_allowed_at = now + _PURGE_SECONDS
        self._drop()

    def _drop(self) -> None:
        for message in getattr(self, "_messages", {}).values():
            message.place = GONE
        self._messages: dict[int, Stored] = {}
        self._line: Line = FifoLine() if self.fifo else StandardLine()
        self._hidden: list[tuple[float, int, Stored]] = []
        self._counts = [0, 0, 0]  # ready, delayed, in flight
        self._next_expiry = math.inf
        self._known: dict[tuple[str | None, str], _Sent] = {}
        self._attempts: dict[str, _Attempt] = {}
        self._copies: collections.deque[Stored] = collections.deque()

    # -- where messages are --------------------------------------------------------------------------------------

    def _put(self, message: Stored, visible_at: float, hidden_as: Any) -> None:
        """Make a message in the queue READY, or hide it until `visible_at`."""
        counts, before = self._counts, message.place
        if visible_at <= self.clock.now():
            place = READY
        else:
            place = hidden_as
            if visible_at != message.visible_at:  # otherwise it has an entry
                heapq.heappush(self._hidden, (visible_at, message.number, message))
        message.visible_at = visible_at
        if before is not GONE:
            counts[before] -= 1
        counts[place] += 1
        message.place = place
        if place is READY:
            self._line.show(message)
        else:
            self._line.hide(message)

    def _add(self, message: Stored, expires: float, visible_at: float, hidden_as: Any = DELAYED) -> None:
        message.number = next(self._numbers)
        message.expires = expires
        self._messages[message.number] = message
        self._next_expiry = min(self._next_expiry, expires)
        self._line.add(message)
        self._put(message, visible_at, hidden_as)

    def _remove(self, message: Stored) -> None:
        self._counts[message.place] -= 1
        message.place = GONE
        del self._messages[message.number]
        self._line.remove(message)
        # An entry keeps a message that is gone in memory until its claim ends, on a clock that may stand still.
        if len(self._hidden) > 2 * (self._counts[DELAYED] + self._counts[IN_FLIGHT]) + _SPARE_ENTRIES:
            self._hidden = [entry for entry in self._hidden if _holds(entry)]
            heapq.heapify(self._hidden)

    def _settle(self) -> None:
        """Apply the time that has passed: messages become visible, and expire."""
        now, hidden = self.clock.now(), self._hidden
        while hidden and hidden[0][0] <= now:
            entry = heapq.heappop(hidden)
            if _holds(entry):
                self._put(entry[2], entry[0], READY)
        if now >= self._next_expiry:
            for message in [message for message in self._messages.values() if message.expires <= now]:
                self._remove(message)
            self._next_expiry = min((message.expires for message in self._messages.values()), default=math.inf)

    def next_visible(self) -> float:
        """When the next hidden message becomes visible."""
        self._settle()
        hidden = self._hidden
        while hidden and not _holds(hidden[0]):
            heapq.heappop(hidden)
        return hidden[0][0] if hidden else math.inf

    # -- sending -------------------------------------------------------------------------------------------------

    def send(self, given: Mapping[str, Any]) -> dict[str, str]:
        """SQS's answer to a message that it accepts."""
        body, now = given["MessageBody"], self.clock.now()
        attributes = copy_of(given.get("MessageAttributes") or {})
        trace = given.get("MessageSystemAttributes")
        answer = {"MD5OfMessageBody": md5(body)}
        system = {name: given[name] for name in IDENTIFIERS if name in given}
        if attributes:
            answer["MD5OfMessageAttributes"] = md5_of_attributes(attributes)
        if trace:
            answer["MD5OfMessageSystemAttributes"] = md5_of_attributes(trace)
            system.update({name: attribute["StringValue"] for name, attribute in trace.items()})
        if self.fifo:
            earlier = self._deduplicated(body, system, now)
            if earlier is not None:
                return {**answer, "MessageId": earlier.message_id, "SequenceNumber": earlier.sequence_number}
        message = Stored(body, answer["MD5OfMessageBody"], attributes, service.new_id(), system, self.clock.epoch())
        delay = given.get("DelaySeconds", self.settings.delay_seconds)
        if self.fifo:
            delay = self.settings.delay_seconds
        self._add(message, now + self.settings.retention_seconds, now + delay)
        answer["MessageId"] = message.message_id
        if self.fifo:
            answer["SequenceNumber"] = self._sequence(message)
            until = now + DEDUPLICATION_SECONDS
            self._known[self._identity(system)] = _Sent(until, message.message_id, answer["SequenceNumber"])
        return answer

    def _deduplicated(self, body: str, system: dict[str, str], now: float) -> _Sent | None:
        """The message sent earlier with the same id, if any. All are remembered equally long."""
        if "MessageDeduplicationId" not in system:
            system["MessageDeduplicationId"] = hashlib.sha256(body.encode(errors="surrogatepass")).hexdigest()
        known = self._known
        while known and known[first := next(iter(known))].until <= now:
            del known[first]
        return known.get(self._identity(system))

    def _identity(self, system: Mapping[str, str]) -> tuple[str | None, str]:
        by_group = self.settings.deduplication_scope == "messageGroup"
        return system["MessageGroupId"] if by_group else None, system["MessageDeduplicationId"]

    def _sequence(self, message: Stored) -> str:
        message.system["SequenceNumber"] = f"{18_849_496_460_467_696_128 + message.number * 256:020}"
        return message.system["SequenceNumber"]

    def take_dead(self, message: Stored, source_arn: str) -> None:
        """Take over a message that another queue's redrive policy moves here."""
        message, expires = message.copy(), message.expires
        message.system["DeadLetterQueueSourceArn"] = source_arn
        if self.fifo:
            # As AWS documents it: on a standard queue the retention period goes on, on a FIFO queue it starts anew.
            expires = self.clock.now() + self.settings.retention_seconds
            message.system["MessageDeduplicationId"] = message.message_id
        self._add(message, expires, -math.inf)
        if self.fifo:
            self._sequence(message)

    # -- receiving -----------------------------------------------------------------------------------------------

    def receive(self, most: int, hidden: int, attempt: str | None) -> list[Received]:
        """What a receive returns now."""
        self._settle()
        now = self.clock.now()
        if attempt is not None:
            again = self._repeated(attempt, now, hidden)
            if again:
                return again
        received: list[Received] = []
        while self._copies and len(received) < most:
            received.append(self._delivered_again(self._copies.popleft(), now, hidden))
        shown: list[Stored] = []

        def accept(message: Stored) -> bool:
            if self.dead_letters is not None and message.receives >= (self.settings.max_receive_count or 0):
                self._remove(message)
                self.dead_letters.take_dead(message, self.arn)
                return False
            received.append(self._received(message, now))
            if hidden:
                self._put(message, now + hidden, IN_FLIGHT)
            else:
                shown.append(message)  # shown again after this receive, which returns each message only once
            return True

        if self.out_of_order and isinstance(self._line, StandardLine):
            self._line.take_newest(most - len(received), accept)
            self.out_of_order -= bool(received)
        else:
            self._line.take(most - len(received), accept)
        for message in shown:
            self._put(message, now, READY)
        if received and self.twice:
            self.twice -= 1
            self._copies.extend(each.message for each in received)
        if attempt is not None and received:
            self._attempts[attempt] = _Attempt(now + _ATTEMPT_SECONDS, received)
        return received

    def _received(self, message: Stored, now: float) -> Received:
        message.receives += 1
        message.claimed_at = now
        if message.first_received is None:
            message.first_received = self.clock.epoch()
        handle = f"{self._tag}:{message.number}:{message.receives}:{now!r}"
        return Received(message, handle, message.receives)

    def _delivered_again(self, message: Stored, now: float, hidden: int) -> Received:
        """A copy of a message from another of SQS's servers; it may have been deleted since."""
        if message.place is GONE:
            message = message.copy()
            self._add(message, message.expires, now)
        received = self._received(message, now)
        self._put(message, now + hidden, IN_FLIGHT)
        return received

    def _repeated(self, attempt: str, now: float, hidden: int) -> list[Received]:
        """What the same attempt returned before, hidden again, if nothing has been done with it since."""
        attempts = self._attempts
        while attempts and attempts[first := next(iter(attempts))].until <= now:
            del attempts[first]
        earlier = attempts.get(attempt)
        if earlier is None:
            return []
        if any(
            each.message.place is not IN_FLIGHT or each.message.receives != each.receives for each in earlier.received
        ):
            del attempts[attempt]
            return []
        for each in earlier.received:
            self._put(each.message, now + hidden, IN_FLIGHT)
        return earlier.received

    # -- claims --------------------------------------------------------------------------------------------------

    def change(self, handle: str, seconds: int) -> None:
        """Set the visibility timeout. An older handle changes the current holder's claim."""
        message, _, _ = self._by(handle)
        _check(wrong_visibility(seconds))
        self._settle()
        now = self.clock.now()
        if message is None:
            raise Refused(*invalid("ReceiptHandle", handle, _GONE))
        if now + seconds > message.claimed_at + MAX_VISIBILITY_SECONDS:
            text = f"Total VisibilityTimeout for the message is beyond the limit [{MAX_VISIBILITY_SECONDS} seconds]"
            raise Refused(*invalid("VisibilityTimeout", seconds, text))
        if self._attempts:  # the same attempt must not return it again
            self._attempts = {
                name: attempt
                for name, attempt in self._attempts.items()
                if all(each.message is not message for each in attempt.received)
            }
        self._put(message, now + seconds, IN_FLIGHT)

    def delete(self, handle: str) -> None:
        """Delete; doing so twice is harmless. On a standard queue an older handle works too, within twelve hours."""
        message, receives, received_at = self._by(handle)
        self._settle()
        now = self.clock.now()
        is_old = message is not None and (message.receives != receives or message.place is not IN_FLIGHT)
        if now - received_at >= MAX_VISIBILITY_SECONDS or (self.fifo and is_old):
            raise Refused(*invalid("ReceiptHandle", handle, "The receipt handle has expired."))
        if message is not None and message.place is not GONE:
            self._remove(message)

    def _by(self, handle: str) -> tuple[Stored | None, int, float]:
        """The message that a handle is for, None if it is gone; the number of that receive, and its time."""
        try:
            tag, number, receives, received_at = handle.rsplit(":", 3)
            if tag != self._tag:
                raise ValueError
            return self._messages.get(int(number)), int(receives), float(received_at)
        except ValueError:
            text = f'The input receipt handle "{handle}" is not a valid receipt handle.'
            raise Refused("ReceiptHandleIsInvalid", text) from None

    # -- attributes ----------------------------------------------------------------------------------------------

    def attributes(self) -> dict[str, str]:
        self._settle()
        ready, delayed, in_flight = self._counts
        settings = self.settings
        found = {
            "QueueArn": self.arn,
            "ApproximateNumberOfMessages": str(ready),
            "ApproximateNumberOfMessagesNotVisible": str(in_flight),
            "ApproximateNumberOfMessagesDelayed": str(delayed),
            "CreatedTimestamp": str(self.made_at),
            "LastModifiedTimestamp": str(self.made_at),
            "VisibilityTimeout": str(settings.visibility_timeout),
            "MaximumMessageSize": str(settings.maximum_message_size),
            "MessageRetentionPeriod": str(settings.retention_seconds),
            "DelaySeconds": str(settings.delay_seconds),
            "ReceiveMessageWaitTimeSeconds": str(settings.wait_time_seconds),
            "SqsManagedSseEnabled": "true",
        }
        if self.dead_letters is not None:
            policy = {"deadLetterTargetArn": self.dead_letters.arn, "maxReceiveCount": settings.max_receive_count}
            found["RedrivePolicy"] = json.dumps(policy, separators=(",", ":"))
        if self.fifo:
            found.update(
                FifoQueue="true",
                ContentBasedDeduplication=str(settings.content_based_deduplication).lower(),
                DeduplicationScope=settings.deduplication_scope,
                FifoThroughputLimit="perQueue",
            )
        return found


class WaitingReceive:
    """A receive that waits for messages: see `clock.Poll`."""

    def __init__(self, store: Store, until: float, most: int, hidden: int, attempt: str | None) -> None:
        self.received: list[Received] = []
        self.done = False
        self._store = store
        self._until = until
        self._asked = most, hidden, attempt

    def next_event(self) -> float:
        return min(self._until, self._store.next_visible())

    def attempt(self, now: float) -> None:
        self.received = self._store.receive(*self._asked)
        self.done = bool(self.received) or now >= self._until


def _holds(entry: tuple[float, int, Stored]) -> bool:
    """Whether an entry in the heap of hidden messages is still valid."""
    visible_at, _, message = entry
    return message.place in _HIDDEN and message.visible_at == visible_at


def _check(wrong: Wrong | None) -> None:
    if wrong:
        raise Refused(*wrong)
