"""Many tasks to one queue: batches, in parallel, retried, every task accounted for.

the caller's thread:  tasks -> prepare -> line (bounded) --+
sender threads:                  line -> request -> SQS  <-+   -> sent, to be retried, or failed
the caller's thread:  waits for room, reports progress, and at the end returns the result or raises what failed
"""

from __future__ import annotations

import contextvars
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from botocore.exceptions import ClientError

from sqstaskmaster._logging import get_logger
from sqstaskmaster._sending.batches import Entry, GroupedLine, Line
from sqstaskmaster._sending.concurrency import Concurrency
from sqstaskmaster._signals import state
from sqstaskmaster._sqs.answers import code_of, is_about_queue, is_transient
from sqstaskmaster._sqs.confirmation import batch_results
from sqstaskmaster._sqs.limits import MAX_BATCH_BYTES, MAX_BATCH_ENTRIES
from sqstaskmaster.errors import Failure, SubmitInterrupted, TasksNotSent
from sqstaskmaster.results import SubmitResult

logger = get_logger(__name__)

Prepare = Callable[[Any, Any], tuple[dict[str, Any], int]]
Send = Callable[[list[dict[str, Any]]], Any]
Progress = Callable[[SubmitResult], Any]

# A task that is not sent after this many tries, on top of the client's own, is given up; and no try starts later than
# this, so that the last still ends within the five minutes for which a FIFO queue remembers a deduplication id.
_TRIES = 10
_RETRY_SECONDS = 100.0
# The n-th pause is a random part of 0.1 s doubled n times ("full jitter"), but of 10 s at most.
_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 10.0

# Four requests per thread are kept ready; the caller is woken when half of them are gone. With fewer, the senders run
# dry while the caller, on a busy machine, waits for its turn.
_AHEAD = 4
# A request that is not full waits this long for more tasks.
_LINGER_SECONDS = 0.5
# How often the waiting caller checks for progress to report, and for requests that hang.
_TICK_SECONDS = 0.1
# How long after Ctrl-C to wait for the answers to requests under way; a second Ctrl-C ends that.
_INTERRUPT_SECONDS = 5.0

# After this many requests in a row that were given up or refused as a whole, nothing gets through (no network, no
# permission, no queue): the other tasks are listed as failures without being tried.
_DOWN_AFTER = 8
# Failures are kept with their arguments. After this many no further task is taken: the error has the rest.
_MOST_FAILURES = 100_000

_IDS = tuple(str(number) for number in range(MAX_BATCH_ENTRIES))

_Refused = list[tuple[Entry, str, str]]


class _Answer:
    """What became of the entries of one request."""

    def __init__(self) -> None:
        self.sent: list[tuple[Entry, str | None]] = []
        self.refused: _Refused = []  # for good, with SQS's code and text
        self.again: _Refused = []  # for now
        self.blocked = False  # no request would have got through

    def add(self, other: _Answer) -> None:
        self.sent += other.sent
        self.refused += other.refused
        self.again += other.again
        self.blocked = self.blocked or other.blocked


class Sending:
    """One call of `submit_many`. `run` is called once.

    :param tasks: the iterable of `(task, kwargs)`.
    :param prepare: `prepare(task, kwargs)` returns the parameters of SendMessage and the size in bytes, or raises.
    :param send: sends a list of entries, and returns what SendMessageBatch answers. Called from several threads.
    :param of_boto3: whether boto3's own method makes the requests, whose answers are then SQS's.
    :param line: where entries wait, which decides what may leave together.
    """

    def __init__(
        self,
        tasks: Iterable[Any],
        prepare: Prepare,
        send: Send,
        of_boto3: bool,
        line: Line | GroupedLine,
        threads: int,
        on_progress: Progress | None,
    ) -> None:
        self.result = SubmitResult()
        self._tasks = iter(tasks)
        self._prepare = prepare
        self._send = send
        self._of_boto3 = of_boto3
        self._line = line
        self._threads = threads
        self._most_entries = _AHEAD * threads * MAX_BATCH_ENTRIES
        self._most_bytes = _AHEAD * threads * MAX_BATCH_BYTES
        self._on_progress = on_progress
        self._progress_counts = (0, 0)
        self._progress_at = 0.0

        # One lock for everything below. A bare one: the `with` of a Condition can be interrupted half-way in.
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # entries wait, or the end has come
        self._room = threading.Condition(self._lock)  # entries have gone
        self._failures: list[Failure] = []
        self._flying: set[Entry] = set()
        self._held: dict[str, int] = {}  # message groups that are held back, with the index of the task to blame
        self._concurrency = Concurrency(threads)
        self._senders = 0
        self._started: list[threading.Thread] = []
        self._idle = 0
        self._streak = 0
        self._down: str | None = None
        self._is_hurried = False  # the caller waits for room, or has no more: even requests that are not full are sent
        self._closed = False  # no more tasks come
        self._settled = False  # from now on answers come too late
        self._stopping = threading.Event()

    def run(self) -> SubmitResult:
        ended = None
        try:
            self._start_threads(1)
            try:
                self._feed()
            except Exception as error:
                ended = error  # from the iterable: what was taken from it is still sent
            self._finish()
        except BaseException as interrupt:
            told = self._interrupted(interrupt)
            if isinstance(interrupt, KeyboardInterrupt):
                raise told from interrupt
            raise interrupt from told
        finally:
            self._end()
        for thread in self._started:
            thread.join()
        self._tell(now=True)
        logger.info("Submitted: %s", self.result, extra={"action": "submit_many", "sent": self.result.sent})
        unsent = self._unsent(TasksNotSent, "") if self._failures else None
        if ended is not None:
            logger.error("The tasks ended with %r: %s", ended, self.result, extra={"action": "submit_many_ended"})
            raise ended from unsent
        if unsent is not None:
            raise unsent
        return self.result

    # The caller's thread: tasks in.

    def _feed(self) -> None:
        index, item = -1, None
        try:
            for index, item in enumerate(self._tasks):
                self._accept(index, item)
                if len(self._failures) >= _MOST_FAILURES:
                    break
        except BaseException:
            if index >= self.result.taken:
                self._refuse(index, *_pair(item), "Interrupted", "the interrupt came before it could be sent")
            raise

    def _accept(self, index: int, item: Any) -> None:
        task, kwargs = _pair(item)
        try:
            request, size = self._prepare(task, kwargs)
        except Exception as error:
            self._refuse(index, task, kwargs, type(error).__name__, str(error))
            return
        entry = Entry(index, task, kwargs, request, size)
        line = self._line
        with self._lock:
            blame = self._reason_not_sent(entry) if self._held or self._down is not None else None
            if blame is None:
                line.add(entry)
            else:
                self._fail([(entry, *blame)])
            self.result.taken = index + 1
            if self._idle and line.has_whole():
                self._work.notify()
            full = len(line) >= self._most_entries or line.bytes >= self._most_bytes
        if full:
            self._await(self._is_half_full, pressed=True)
        elif self._on_progress is not None:
            self._tell()

    def _refuse(self, index: int, task: Any, kwargs: Any, code: str, reason: str) -> None:
        with self._lock:
            self._failures.append(Failure(index, task, kwargs, code, reason))
            self.result.failed += 1
            self.result.taken = index + 1

    def _reason_not_sent(self, entry: Entry) -> tuple[str, str] | None:
        """Why the entry is not even tried, if so."""
        if self._down is not None:
            return "NotTried", self._down
        if self._held and entry.group in self._held:
            blame = self._held[entry.group]
            return "HeldBack", f"task {blame} of the same message group, which comes before it, was not sent"
        return None

    def _is_half_full(self) -> bool:
        """Whether at least half as much waits as may: a caller that found it full resumes once less waits."""
        return len(self._line) >= self._most_entries // 2 or self._line.bytes >= self._most_bytes // 2

    # The caller's thread: waiting.

    def _await(self, waiting: Callable[[], bool], pressed: bool, seconds: float = float("inf")) -> None:
        """Wait while `waiting()` is true, at most `seconds`."""
        deadline, waited = time.monotonic() + seconds, 0.0
        while True:
            if self._send_here():
                continue
            with self._lock:
                if not waiting() or time.monotonic() > deadline or waited > seconds:
                    self._is_hurried = False
                    return
                if pressed and not self._is_hurried:
                    self._is_hurried = True
                    self._work.notify_all()
                answered = self.result.sent + self.result.failed
                in_time = self._room.wait(_TICK_SECONDS)
                waited += 0.0 if in_time else _TICK_SECONDS
                hangs = not in_time and answered == self.result.sent + self.result.failed
                missing = 1 if hangs and len(self._line) else 0
            self._start_threads(missing)
            self._tell()

    def _finish(self) -> None:
        """Wait until everything that was taken is sent, or has failed."""
        with self._lock:
            self._closed = True
            self._work.notify_all()
        self._await(lambda: bool(len(self._line) or self._flying), pressed=True)

    def _end(self) -> None:
        self._stopping.set()
        with self._lock:
            self._closed = True
            self._settled = True
            self._work.notify_all()

    def _interrupted(self, interrupt: BaseException) -> SubmitInterrupted:
        self._stopping.set()
        with self._lock:
            waiting = self._line.clear()
            self._work.notify_all()
        try:
            self._await(lambda: bool(self._flying), pressed=False, seconds=_INTERRUPT_SECONDS)
        except KeyboardInterrupt:
            pass  # the second Ctrl-C means now
        with self._lock:
            self._settled = True
            self._fail([(entry, "Interrupted", "the interrupt came before it was sent") for entry in waiting])
            unknown = "its request was under way at the interrupt, and no answer came: it may have been sent"
            self._fail([(entry, "Unknown", unknown) for entry in self._flying])
        error = self._unsent(SubmitInterrupted, "Interrupted: ")
        logger.warning("Interrupted by %r: %s", interrupt, self.result, extra={"action": "submit_many_interrupted"})
        return error

    def _unsent(self, kind: type[_E], why: str) -> _E:
        with self._lock:
            failures = sorted(self._failures, key=lambda failure: failure.index)
            self.result.message_ids.grow(self.result.taken)
        if self._down is not None:
            why += f"Requests no longer got through ({self._down}). "
        return kind(why, failures, self._tasks, self.result)

    def _tell(self, now: bool = False) -> None:
        """Call on_progress if something has changed, and not too often."""
        if self._on_progress is None:
            return
        counts = (self.result.sent, self.result.failed)
        if (counts == self._progress_counts or time.monotonic() < self._progress_at + _TICK_SECONDS) and not now:
            return
        self._progress_counts, self._progress_at = counts, time.monotonic()
        try:
            self._on_progress(self.result)
        except Exception:
            logger.exception("on_progress failed", extra={"action": "on_progress_failed"})

    # The sender threads.

    def _start_threads(self, number: int) -> None:
        """Start `number` more sender threads, as far as allowed.

        Each runs in a copy of the caller's context, so that a trace that is open there continues here.
        """
        for _ in range(number):
            with self._lock:
                if self._senders >= self._threads:
                    return
                self._senders += 1
            run = contextvars.copy_context().run
            thread = threading.Thread(target=run, args=(self._serve,), name="submit_many", daemon=True)
            try:
                with state.starting_thread():
                    thread.start()
            except RuntimeError:
                # The system has no more threads; in an atexit function, from Python 3.12 on, there are none at all.
                self._threads = len(self._started)
                logger.warning("No further thread can be started", extra={"action": "no_thread"})
                return
            self._started.append(thread)

    def _send_here(self) -> bool:
        """If there is no sender thread, make the next request in the caller's. Returns False if it made none."""
        if self._started:
            return False
        with self._lock:
            entries = self._line.take()
            self._flying.update(entries)
        if entries:
            self._deliver_or_fail(entries)
        return bool(entries)

    def _serve(self) -> None:
        while True:
            entries = self._next()
            if not entries:
                return
            self._deliver_or_fail(entries)

    def _deliver_or_fail(self, entries: list[Entry]) -> None:
        try:
            self._deliver(entries)
        except BaseException as error:  # even SystemExit of a user's queue: the caller waits for these entries
            if not self._started and not isinstance(error, Exception):
                raise  # this is the caller's thread
            logger.exception("A sender failed", extra={"action": "sender_failed"})
            left = [entry for entry in entries if entry in self._flying]
            self._record_answer([], [(entry, type(error).__name__, str(error)) for entry in left], [])

    def _next(self) -> list[Entry]:
        """Wait for the entries of the next request; none if there will be no more."""
        with self._lock:
            lingered = False
            while not self._stopping.is_set():
                # Once less than half waits, the caller is about to add more: do not send small requests yet.
                pressed = self._is_hurried and self._is_half_full()
                if pressed or self._closed or lingered or self._line.has_whole():
                    entries = self._line.take()
                    if entries:
                        self._flying.update(entries)
                        if self._is_hurried and not self._is_half_full():
                            self._room.notify()
                        return entries
                if self._closed and not len(self._line):
                    break
                self._idle += 1
                lingered = not self._work.wait(_LINGER_SECONDS)
                self._idle -= 1
            return []

    def _deliver(self, entries: list[Entry]) -> None:
        """Send these, and retry those that may yet get through, until each is sent or has failed."""
        started = time.monotonic()
        tries = 0
        while entries:
            answer = self._ask(entries)
            tries += 1
            last = tries == _TRIES or self._stopping.is_set()
            pause = random.uniform(0, min(_LONGEST_PAUSE_SECONDS, _PAUSE_SECONDS * 2**tries))
            seconds = time.monotonic() - started
            last = last or seconds + pause > _RETRY_SECONDS
            failed = list(answer.refused)
            if last:
                tried = f" (given up after {tries} tries in {seconds:.1f} s)"
                failed += [(entry, code, reason + tried) for entry, code, reason in answer.again]
            self._record_answer(answer.sent, failed, hold=answer.again if last else [])
            if answer.sent or not answer.blocked or last or not answer.again:
                self._judge(answer)
            if last or not answer.again:
                break
            entries = [entry for entry, _, _ in answer.again]
            logger.info(
                "%s of %s tasks are sent again in %.1f s: %s",
                len(entries),
                len(entries) + len(answer.sent) + len(failed),
                pause,
                answer.again[0][1],
                extra={"action": "submit_again"},
            )
            self._stopping.wait(pause)

    def _ask(self, entries: list[Entry]) -> _Answer:
        """Make one request for these, or several smaller ones if SQS refuses the request as a whole."""
        requests = []
        for number, entry in zip(_IDS, entries):
            entry.request["Id"] = number
            requests.append(entry.request)
        answer = _Answer()
        wall, computing = time.perf_counter(), time.thread_time()
        try:
            response = self._send(requests)
        except Exception as error:
            code, reason = code_of(error) or type(error).__name__, str(error)
            answer.blocked = is_transient(error) or is_about_queue(error)
            if is_transient(error):
                answer.again = [(entry, code, reason) for entry in entries]
            elif len(entries) > 1 and not answer.blocked:
                # It may be too long because something on the way adds attributes, or one entry may spoil the others.
                half = len(entries) // 2
                answer.add(self._ask(entries[:half]))
                answer.add(self._ask(entries[half:]))
            else:
                answer.refused = [(entry, code, reason) for entry in entries]
            return answer
        self._watch(time.perf_counter() - wall, time.thread_time() - computing)
        bodies = {entry["Id"]: entry["MessageBody"] for entry in requests}
        results = batch_results("SendMessageBatch", response, bodies, self._of_boto3)
        _read(results, dict(zip(_IDS, entries)), answer)
        return answer

    def _watch(self, wall: float, computing: float) -> None:
        """Add threads if the processor waits for the network."""
        with self._lock:
            wanted = self._concurrency.wanted(self._senders, wall, computing)
            missing = wanted - self._senders if len(self._line) else 0
        self._start_threads(missing)

    def _record_answer(self, sent: Sequence[tuple[Entry, str | None]], failed: _Refused, hold: _Refused) -> None:
        with self._lock:
            if self._settled:
                return
            for entry, message_id in sent:
                self.result.message_ids.put(entry.index, message_id)
                self._flying.discard(entry)
            self.result.sent += len(sent)
            self._fail(failed)
            done = [entry for entry, *_ in sent] + [entry for entry, *_ in failed]
            self._flying.difference_update(done)
            self._line.done(done)
            for entry, _, _ in hold:
                self._hold(entry)
            if self._idle and len(self._line):
                self._work.notify_all()
            if self._closed and not len(self._line) and not self._flying:
                self._room.notify()
                self._work.notify_all()

    def _fail(self, failed: _Refused) -> None:
        for entry, code, reason in failed:
            self._failures.append(Failure(entry.index, entry.task, entry.kwargs, code, reason))
        self.result.failed += len(failed)

    def _hold(self, entry: Entry) -> None:
        """Given up, but the caller may yet send it: later entries of its message group must not overtake it."""
        if isinstance(self._line, GroupedLine):
            self._held[entry.group] = entry.index
            later = self._line.drop(entry.group)
            self._fail([(each, *(self._reason_not_sent(each) or ("HeldBack", ""))) for each in later])

    def _judge(self, answer: _Answer) -> None:
        """Count the requests that came to nothing, and give up after too many in a row."""
        with self._lock:
            self._streak = self._streak + 1 if answer.blocked and not answer.sent else 0
            if self._streak < _DOWN_AFTER or self._settled or self._down is not None:
                return
            _, code, reason = (answer.refused + answer.again)[0]
            self._down = f"not tried, because the {_DOWN_AFTER} requests before it failed: {code}: {reason}"
            self._fail([(entry, "NotTried", self._down) for entry in self._line.clear()])
            self._room.notify()
            self._work.notify_all()


_E = TypeVar("_E", TasksNotSent, SubmitInterrupted)


def _pair(item: Any) -> tuple[Any, Any]:
    """`(task, kwargs)`; for anything else `(item, None)`, which no queue takes."""
    try:
        task, kwargs = item
    except (TypeError, ValueError):
        return item, None
    return task, kwargs


def _read(results: Mapping[str, Mapping[str, Any] | Exception], entries: Mapping[str, Entry], answer: _Answer) -> None:
    """Sort the entries into the answer by their results of SendMessageBatch."""
    for number, result in results.items():
        if isinstance(result, Exception):
            code = code_of(result) or type(result).__name__
            (answer.again if is_transient(result) else answer.refused).append((entries[number], code, _reason(result)))
        else:
            answer.sent.append((entries[number], result.get("MessageId")))


def _reason(error: Exception) -> str:
    """SQS's own message, without botocore's words around it."""
    said = error.response.get("Error", {}).get("Message") if isinstance(error, ClientError) else None
    return str(error) if said is None else str(said)
