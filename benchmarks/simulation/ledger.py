"""What happened in one run, and the laws that hold after every event and at its end."""

import collections
import math

from sqstaskmaster._sqs.limits import MAX_VISIBILITY_SECONDS

from benchmarks.simulation.events import Violation
from benchmarks.simulation.groups import Groups

# How long a worker's turn, a request and its answer may take if nothing goes wrong.
_SLACK_SECONDS = 0.6

# How long a worker waits for SQS's answer before it retries an extension.
_PATIENCE_SECONDS = 2.0

# How long a worker may sleep on after its machine was suspended.
_LOOK_SECONDS = 5.0

# A task that cannot be started is retried no sooner than this.
_START_SECONDS = 0.9

# How long a worker waits for an extension under way before it returns a message.
_QUIET_SECONDS = 1.0


# Extensions are for whole seconds, and so end up to this long before the 12 hours do.
_FINAL_SECONDS = 1.5

# A task must be stopped this long, plus its grace, before the 12 hours of its claim end.
_END_SECONDS = 2.0

# A poll that is answered this long after its wait is late.
_LATE_SECONDS = 2.0


class Try:
    """One try to extend a claim. `goes_well`: None while it waits for a thread."""

    __slots__ = ("sent_at", "goes_well")

    def __init__(self, sent_at):
        self.sent_at = sent_at
        self.goes_well = None


class Handle:
    """One receive of one message."""

    def __init__(self, record, world, key, asked_at, received_at):
        self.record = record
        self.key = key
        self.world = world
        self.asked_at = asked_at
        self.received_at = received_at
        self.is_final = False  # SQS has said that it will not extend it any more
        self.attempt = None
        self.tries = []
        self.returned_at = math.inf
        self.begun_at = math.inf  # when its worker learned of it
        self.replaced = None  # why another receive has the message, if one has
        self.wrong = ""
        self.asked_to_return = False
        self.task_ended_at = -math.inf


class Record:
    """One message."""

    def __init__(self, message_id, n, step, group):
        self.message_id, self.n, self.step, self.group = message_id, n, step, group
        self.live = []
        self.is_done = self.continues = self.deleted = False
        self.newest = None
        self.granted_at = self.granted_until = -math.inf
        self.granted_by = None
        self.not_before = -math.inf  # a receive before that would be a mistake


class Ledger:
    def __init__(self, run):
        self._run = run
        self._events = run.events
        self.records = {}
        self.handles = {}
        self._receives = {}
        self.successors = set()
        self.dead = set()
        self._groups = Groups(self, run)
        self.violation = None
        self._said = collections.Counter()

    def violated(self, text):
        self._events.trace("LAW", "%s", text)
        if self.violation is None:
            for message_id, name in self._events.names.items():
                text = text.replace(message_id, name)
            self.violation = text
        raise Violation(self.violation)

    def name_of(self, record):
        return self._events.names.get(record.message_id, "?")

    # -- messages ------------------------------------------------------------------------------------------------

    def sent(self, url, kwargs, message_id, group):
        n, step = kwargs["n"], kwargs.get("step", 0)
        names = self._events.names
        if message_id in self.records:
            return  # a FIFO queue already had it
        if url in self._run.queues:
            names[message_id] = f"m{n}" + (f".{step}" if step else "") + ("'" if (n, step) in self.successors else "")
            record = self.records[message_id] = Record(message_id, n, step, (url, group))
            self._groups.sent(record)
            self.successors.add((n, step))
        else:
            names[message_id] = f"dead m{n}"
            self.dead.add((n, step))
        self._events.trace("SQS", "has %s", names[message_id])

    def received(self, world, message, seconds, is_copy):
        record = self.records.get(message.message_id)
        if record is None:
            return
        now = self._events.now
        self._events.trace(
            "SQS",
            "gives %s, receive %s, to %s",
            self.name_of(record),
            message.attributes["ApproximateReceiveCount"],
            world.name,
        )
        if now < record.not_before and not is_copy:
            self.violated(f"{self.name_of(record)} is received again {record.not_before - now:.3f} s too early")
        before = record.newest
        if before is not None:
            before.replaced, before.wrong = ("a copy", "") if is_copy else self.why_replaced(record, before)
            for process in record.live:
                self._check_replaced(process)
        handle = Handle(record, world, message.receipt_handle, self._run.thread.sent_at, now)
        self.handles[message.receipt_handle] = handle
        self._receives[message.message_id, int(message.attributes["ApproximateReceiveCount"])] = handle
        record.newest = handle
        record.granted_at, record.granted_until, record.granted_by = now, now + seconds, handle

    def _check_replaced(self, process):
        """A running task's message was received again: that must be explained."""
        self._follow(process)
        if process.handle.wrong and not process.world.dead and process.world.over_at is None:
            self.violated(f"{process.name} runs, {process.handle.wrong}")

    def _follow(self, process):
        """Note the receive that holds the process's claim: its worker may have received the message again."""
        attempt = self._attempt_of(process.handle)
        if attempt is not None:
            process.handle = self.handles.get(attempt.message.receipt_handle, process.handle)
            process.handle.attempt = attempt
        return process.handle

    def why_replaced(self, record, handle):
        """Why the message of a claim could be received again, and what is wrong with that, "" if nothing is."""
        world = handle.world
        if world.dead or world.over_at is not None:
            return "its worker is gone", ""
        if handle.returned_at < math.inf:
            return "it was given back", "and its claim was given up"
        if record.granted_by is not handle:
            return "an earlier claim's request moved it", ""
        lapsed_at = record.granted_until
        attempt = self._attempt_of(handle)
        if attempt is not None and world.lost.get(attempt, math.inf) < lapsed_at - _SLACK_SECONDS:
            return "its worker took it for gone, since no answer had told of the last extension", ""
        if handle.is_final or lapsed_at >= handle.asked_at + self._run.total - _FINAL_SECONDS:
            return "the end of the 12 hours", ""
        # `cursor`: the latest moment for the next try, given what was left of the claim.
        due_at = max(record.granted_at + self._run.alarm_timeout, handle.begun_at)
        cursor = self._after_stand(world, due_at + _SLACK_SECONDS)
        for each in handle.tries:
            if each.sent_at < record.granted_at:
                continue
            if each.sent_at > cursor or each.sent_at > lapsed_at:
                break
            if each.goes_well and each.sent_at < lapsed_at - _SLACK_SECONDS:
                return "", "and its claim lapsed though it was extended"
            pause = min(self._run.alarm_timeout, max(0.5, (lapsed_at - each.sent_at) / 4))
            waited = 0.0 if each.goes_well else _PATIENCE_SECONDS
            cursor = self._after_stand(world, each.sent_at + waited + pause + _SLACK_SECONDS)
        if cursor < lapsed_at:
            return "", f"and its claim lapsed, nothing was tried for the last {lapsed_at - cursor:.3f} s"
        return "an outage longer than the claim", ""

    def _after_stand(self, world, moment):
        """The moment, or, if the machine stood still then, a moment after that."""
        for begin, end, suspended in world.machine.stands:
            after = end + _SLACK_SECONDS + (_LOOK_SECONDS if suspended else 0.0)
            if begin - _SLACK_SECONDS <= moment <= after:
                moment = max(moment, after)
        return moment

    def changed(self, world, receipt_handle, seconds, thread):
        """A change of visibility was carried out."""
        handle = self.handles.get(receipt_handle)
        if handle is None:
            return
        record, now = handle.record, self._events.now
        extends = thread.pool.startswith("extensions ")
        self._events.trace(
            world.name, "%s %s for %d s", "extends" if extends else "returns", self.name_of(record), seconds
        )
        if extends and handle.returned_at < now and handle is record.newest:
            if now - thread.sent_at < _QUIET_SECONDS and now - handle.returned_at < _QUIET_SECONDS:
                self.violated(f"an extension hides {self.name_of(record)} again, which was given back")
        if not extends:
            handle.returned_at = min(handle.returned_at, now)
        record.granted_at, record.granted_until, record.granted_by = now, now + seconds, handle

    def is_final(self, receipt_handle):
        """SQS has refused an extension past the 12 hours."""
        handle = self.handles.get(receipt_handle)
        if handle is not None:
            handle.is_final = True

    def deletes(self, world, receipt_handle):
        handle = self.handles.get(receipt_handle)
        if handle is None:
            return
        record = handle.record
        self._events.trace(world.name, "deletes %s", self.name_of(record))
        record.deleted = True
        if not (record.is_done or self._was_sent_on(record)):
            self.violated(f"{self.name_of(record)} is deleted, and its task was not done: it is lost")

    def _was_sent_on(self, record):
        went_on = record.continues and (record.n, record.step + 1) in self.successors
        return went_on or (record.n, record.step) in self.dead

    def asks(self, world, receipt_handle, thread, what):
        """A request about a claim arrives. Its sender must be judged by what it knew when it sent it."""
        handle = self.handles.get(receipt_handle)
        if handle is None:
            return
        name = self.name_of(handle.record)
        if handle.returned_at < thread.called_at:
            self.violated(f"{what} of {name} by a claim that was given back before")
        newest = handle.record.newest
        if newest.world is world and newest.begun_at < thread.called_at and newest is not handle:
            self.violated(f"{what} of {name} by a receipt in whose place its worker has another")
        attempt = self._attempt_of(handle)
        if attempt is None:
            return
        lost_at = world.lost.get(attempt, math.inf)
        # A delete that has begun is for finished work, and is retried whatever happens to the claim.
        knew_by = handle.task_ended_at if what == "delete" else thread.called_at
        if lost_at < knew_by and attempt.message.receipt_handle == receipt_handle:
            self.violated(f"{what} of {name} by a claim that its worker knew to be gone")

    def tries_to_return(self, receipt_handles):
        for each in receipt_handles:
            if each in self.handles:
                self.handles[each].asked_to_return = True

    def tries_to_extend(self, world, receipt_handles):
        tries = []
        if len(set(receipt_handles)) < len(receipt_handles):
            self.violated(f"{world.name} extends a claim twice in one request")
        for each in receipt_handles:
            handle = self.handles.get(each)
            if handle is not None:
                tried = Try(self._events.now)
                handle.tries.append(tried)
                tries.append(tried)
        return tries

    # -- tasks ---------------------------------------------------------------------------------------------------

    def started(self, process):
        record = self.records[process.message_id]
        self._events.trace(process.world.name, "starts %s, which %s", process.name, process.kind)
        handle = process.handle = self._receives[process.message_id, int(process.receive)]
        for other in record.live:
            if other.world is process.world:
                self.violated(f"{process.name} runs beside itself in {process.world.name}")
        ended = self._events.now - record.granted_until
        if record.granted_by is handle and ended > _LATE_SECONDS + _SLACK_SECONDS:
            self.violated(f"{process.name} is started {ended:.3f} s after its claim has ended")
        if handle.replaced is not None:
            self._check_replaced(process)
        self._groups.check(record, process)
        record.live.append(process)
        if self._run.total < MAX_VISIBILITY_SECONDS:
            self._events.at(process.handle.received_at + self._run.total, lambda: self._look_at_the_end(process))

    def _look_at_the_end(self, process):
        """A task must be gone when the 12 hours of its claim end."""
        world, now = process.world, self._events.now
        if not process.alive or world.dead or world.over_at is not None:
            return
        handle = self._follow(process)
        end = due = handle.received_at + self._run.total
        # It must be stopped this long before that.
        stops = end - _END_SECONDS - process.term_grace
        for begin, until, suspended in world.machine.stands:
            if begin < end and until > stops:
                due = max(due, until + process.longest - process.limit + (_LOOK_SECONDS if suspended else 0.0))
        if process.keeper_hangs or handle.is_final:
            due += process.longest - process.limit
        if now >= due:
            self.violated(f"{process.name} runs on {now - end:.3f} s after the end of its claim's 12 hours")
        self._events.at(due, lambda: self._look_at_the_end(process))

    def ended(self, process, kind):
        record = self.records[process.message_id]
        self._events.trace(process.world.name, "%s is gone: %s", process.name, kind)
        if process in record.live:
            record.live.remove(process)
        if process.world.dead:
            return
        process.handle.task_ended_at = self._events.now
        record.is_done = record.is_done or kind == "done"
        record.continues = record.continues or kind == "continues"

    # -- attempts ------------------------------------------------------------------------------------------------

    def begun(self, world, attempt):
        handle = self.handles.get(attempt.message.receipt_handle)
        receipt = attempt.receipt
        took = receipt.answered_at - receipt.asked_at
        if took >= max(receipt.seconds, self._run.wait_time + _LATE_SECONDS):
            self.violated(f"{world.name} takes a message of a poll that took {took:.3f} s")
        if handle is not None:
            handle.attempt, handle.begun_at = attempt, self._events.now
        world.begun_attempts += 1

    def over(self, world, attempt):
        world.over_attempts += 1
        outcome = str(attempt.report.outcome)
        handle = self.handles.get(attempt.message.receipt_handle)
        if handle is None:
            return
        name = self.name_of(handle.record)
        self._events.trace(world.name, "%s is over: %s", name, outcome)
        back = attempt.report.comes_back_in
        if outcome in ("done", "continued", "dead-lettered") and back is None and not handle.record.deleted:
            self.violated(f"{name} is over: {outcome}, and it was not deleted")
        if type(back) is int and handle.returned_at == math.inf:
            self.violated(f"{name} is over: {outcome}, comes back in {back} s, and it was not given back")
        finished = self._said.pop((attempt, "finished"), 0)
        wanted = 0 if outcome in ("given back", "refused") else 1
        if finished > 1 or finished < wanted:
            self.violated(f"{name}, {outcome}: {finished} finished lines")
        failures = self._said.pop((attempt, "failed"), 0)
        if failures > 1:
            self.violated(f"{name}, {outcome}: {failures} reports of its failure")

    def logged(self, world, level, text, values, more):
        extra = more.get("extra") or {}
        if extra.get("action") == "start_failed":
            # Its worker lacks something: the message must not be received again and again meanwhile.
            record = self.records[extra["message_id"]]
            is_newest = self._receives.get((record.message_id, extra["receive_count"])) is record.newest
            if is_newest and self._events.now < record.granted_until:
                record.not_before = self._events.now + _START_SECONDS
        elif extra.get("action") == "adopted":
            self.records[extra["message_id"]].newest.begun_at = self._events.now
        self._events.trace(world.name, text.replace("%g", "%s"), *values)

    def reports(self, message_id, receive_count, action):
        """A line of the log about one receive of a message."""
        self._events.trace("LOG", "%s: %s", self._events.names.get(message_id, "?"), action)
        handle = self._receives.get((message_id, receive_count))
        attempt = self._attempt_of(handle) if handle is not None else None
        if attempt is None:
            return
        if action == "finished":
            self._said[attempt, "finished"] += 1
        elif action in ("failed", "interrupted"):
            self._said[attempt, "failed"] += 1
            claim_held = attempt.claim.lost is None and self._events.now <= attempt.claim.latest_end
            if attempt.report.outcome == "interrupted" and claim_held and not handle.asked_to_return:
                self.violated(f"{self.name_of(handle.record)} is reported before it is given back")

    def _attempt_of(self, handle):
        """The attempt that has this receive, possibly one that had the message before."""
        if handle.attempt is None:
            for attempt in handle.world.attempts:
                if attempt.message.receipt_handle == handle.key:
                    handle.attempt = attempt
        return handle.attempt

    # -- the end -------------------------------------------------------------------------------------------------

    def end(self):
        for record in self.records.values():
            if record.live:
                self.violated(f"{record.live[0].name} runs on after its worker")
