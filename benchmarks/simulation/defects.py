"""Mistakes that were once made, or nearly, to be put back one by one: the simulation must find each.

Each is a function that yields the patches to enter. The sentence says what the worker then does.
"""

import contextlib
import math
from unittest import mock

from sqstaskmaster import task_manager
from sqstaskmaster._claim import settlement
from sqstaskmaster._claim.attempt import Attempt
from sqstaskmaster._claim.claim import Claim
from sqstaskmaster._claim.settlement import Ask
from sqstaskmaster._claim.watch import Watch
from sqstaskmaster._service import attendant, heartbeat, intake, loop, polling, settling, slot_pool, supervisor, warming
from sqstaskmaster._sqs import queues
from sqstaskmaster._sqs.answers import Kind
from sqstaskmaster.errors import NoAnswer, TaskKilled

DEFECTS = {}


def _defect(sentence):
    def register(patches):
        DEFECTS[sentence] = patches
        return patches

    return register


@contextlib.contextmanager
def put_back(sentence):
    """A block in which the package has this defect."""
    with contextlib.ExitStack() as stack:
        for patch in DEFECTS[sentence]():
            stack.enter_context(patch)
        yield


@_defect("an entry that is missing in a batch's answer is taken for success")
def _missing():
    strict = queues.batch_results

    def lenient(*arguments):
        results = strict(*arguments)
        return {name: {} if isinstance(result, NoAnswer) else result for name, result in results.items()}

    yield mock.patch.object(queues, "batch_results", lenient)


@_defect("an entry of a batch that failed is taken for success")
def _failed():
    strict = queues.batch_results

    def lenient(*arguments):
        results = strict(*arguments)
        return {name: result if isinstance(result, NoAnswer) else {} for name, result in results.items()}

    yield mock.patch.object(queues, "batch_results", lenient)


@_defect("a message is given back once more where it is not known whether it was")
def _repeated():
    known = settlement.kind_of

    def repeat(error):
        kind = known(error)
        return Kind.REFUSED_FOR_NOW if kind is Kind.UNKNOWN else kind

    yield mock.patch.object(settlement, "kind_of", repeat)


@_defect("a failure is reported before its message is given back")
def _reported():
    def keep(attempt, outcome, exception, at_once=False):
        attempt.end_as(outcome)
        yield Ask(lambda: attempt.report.failed(exception))
        yield from settlement._return(attempt, 0 if at_once else None)

    yield mock.patch.object(settlement, "_keep", keep)


@_defect("a poll that fails ends the loop")
def _poll():
    polled = intake.Intake._polled

    def raising(self, source, idle, received, error):
        if error is not None:
            raise error
        polled(self, source, idle, received, error)

    yield mock.patch.object(intake.Intake, "_polled", raising)


@_defect("a message whose task could not be started is visible at once")
def _start():
    yield mock.patch.object(loop, "_START_BACKOFF", mock.Mock(bound=lambda number: 0.0))


@_defect("an extension that is not answered holds up the next")
def _one_at_a_time():
    begin = Claim.begin_extension

    def begin_one(self, now, seconds=None):
        request = begin(self, now, seconds)
        if request is not None:
            self._extension_due = math.inf
        return request

    yield mock.patch.object(Claim, "begin_extension", begin_one)
    yield mock.patch.object(Claim, "unanswered", lambda self, request, now: None)


@_defect("a message that is received again runs beside itself")
def _beside():
    take = loop.Loop._take

    def forgetful(self, source, received):
        self._by_id = {}
        take(self, source, received)

    yield mock.patch.object(loop.Loop, "_take", forgetful)


@_defect("a stop waits for as long as callbacks and SQS take")
def _stop():
    yield mock.patch.object(loop, "_LAST_SECONDS", 1e9)


@_defect("an extension under way is not waited for before a message is given back")
def _quiet():
    yield mock.patch.object(settlement, "_EXTENSION_SECONDS", 0.0)


@_defect("a slot whose keeper has died is not replaced")
def _keeper():
    yield mock.patch.object(slot_pool.SlotPool, "_reopen", lambda self, number: None)


@_defect("a claim that is planned twice is extended twice, again and again")
def _twice():
    def plan(self, attempt, earliest=-math.inf):
        self._due[attempt] = due = max(attempt.claim.due(self._world.claim_now()), earliest)
        if due < math.inf:
            heartbeat.heapq.heappush(self._order, (due, next(self._numbers), attempt))

    class Due(dict):
        def __delitem__(self, attempt):
            if not self.sends:
                super().__delitem__(attempt)

    send = heartbeat.Heartbeat._send

    def keep_while_sending(self, first, now):
        self._due = Due(self._due)
        self._due.sends = True
        send(self, first, now)
        self._due.sends = False

    yield mock.patch.object(heartbeat.Heartbeat, "_plan", plan)
    yield mock.patch.object(heartbeat.Heartbeat, "_send", keep_while_sending)


@_defect("a worker that was suspended sleeps on until its timer is over")
def _suspended():
    yield mock.patch.object(heartbeat, "_LOOK_SECONDS", math.inf)
    yield mock.patch.object(attendant, "_SUSPENDED_SECONDS", math.inf)  # else any wake-up makes it look


@_defect("after a suspension a task runs on into the end of its claim's 12 hours")
def _ends():
    yield mock.patch.object(attendant, "_SUSPENDED_SECONDS", math.inf)


@_defect("a task's limit is its own, whenever the 12 hours of its claim end")
def _beyond():
    yield mock.patch.object(Watch, "limit_at", lambda self, now, claim_now: self._limit_at)


@_defect("several messages of a FIFO queue are taken at a time")
def _several():
    receive = task_manager.TaskManager.receive

    def ten(self, wait, timeout, most, *more, **wanted):
        return receive(self, wait, timeout, 10, *more, **wanted)

    yield mock.patch.object(task_manager.TaskManager, "receive", ten)


@_defect("while one of several queues is refused no other is polled")
def _refused():
    yield mock.patch.object(polling.Polling, "_pass_over", lambda self: None)


@_defect("a process that stays has one task too many")
def _too_many():
    is_last = warming.Warming.is_last
    yield mock.patch.object(warming.Warming, "is_last", lambda self, number: is_last(self, number) and False)


@_defect("the memory of a task is not looked at")
def _memory():
    yield mock.patch.object(Watch, "measured", lambda self, size, seconds, now: False)


@_defect("an initializer that hangs is not stopped")
def _hangs():
    yield mock.patch.object(warming._Starting, "_see_to", lambda self, now: None)


@_defect("the limit is not looked at while running() has not answered")
def _limit():
    due = Watch.due

    def waiting(self, now, claim_now):
        return math.inf if self._ask_at == math.inf and self.limits.asks_running else due(self, now, claim_now)

    yield mock.patch.object(Watch, "due", waiting)


@_defect("a task that died without a word is taken for done")
def _done():
    came_to = Attempt.came_to

    def kind(self, error):
        return came_to(self, None if isinstance(error, TaskKilled) and error.signal is None else error)

    yield mock.patch.object(Attempt, "came_to", kind)


@_defect("a successor, or a dead letter, is tried no second time and counts as sent")
def _sent():
    def send(request, now):
        result = yield settlement.Send(request, settlement.SEND_SECONDS)
        return True if result.error is not None else result.value, None

    yield mock.patch.object(settlement, "_send", send)


@_defect("a message that comes back while its task is about to begin is taken as another")
def _begins():
    is_adopted = loop.Loop._is_adopted

    def adopted(self, attempt, *more):
        return attempt not in self._preparing and is_adopted(self, attempt, *more)

    yield mock.patch.object(loop.Loop, "_is_adopted", adopted)
    yield mock.patch.object(Claim, "let_go", lambda self, now: None)


@_defect("a message that comes back while its task's end is settled is taken as another")
def _settled():
    def adopts(self, attempt):
        return self._cases[attempt].deleting

    yield mock.patch.object(settling.Settling, "adopts", adopts)
    yield mock.patch.object(Claim, "let_go", lambda self, now: None)


@_defect("what a poll brings after its claims have ended is run")
def _late():
    yield mock.patch.object(task_manager, "_LATE_SECONDS", math.inf)


@_defect("a task is started though its claim may have ended since its poll was answered")
def _stale():
    yield mock.patch.object(loop, "_FRESH_SECONDS", math.inf)


@_defect("the exit code of a worker process says by itself that none is to be started again")
def _code():
    yield mock.patch.object(supervisor._Process, "is_fatal", True)


@_defect("one worker process without a ready slot ends all others")
def _not_ready():
    yield mock.patch.object(supervisor.Supervisor, "_others_ready", lambda self, slot: False)


@_defect("a worker process is started while the supervisor gives up")
def _gives_up():
    def start_due(self):
        if not self._is_ending():
            for slot in [slot for slot in self._vacant() if slot.due <= self._clock()]:
                self._start(slot)

    yield mock.patch.object(supervisor.Supervisor, "_start_due", start_due)


@_defect("while a poll is under way it is looked again and again whether another is due")
def _spins():
    yield mock.patch.object(polling.Polling, "due", lambda self, now: now)
