"""Scale-in protection of the ECS task that a worker runs in: taken when work starts, returned when there is none.

https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task-scale-in-protection-endpoint.html
"""

from __future__ import annotations

import _thread
import json
import math
import time
from collections.abc import Callable
from urllib.parse import urlsplit

try:
    import fcntl
except ImportError:  # Windows, where this is imported and not called
    pass

from sqstaskmaster._isolation import pipes

from sqstaskmaster._logging import get_logger
from sqstaskmaster._signals.bounded import BoundedCall, looks

logger = get_logger(__name__)

# The agent is on the same machine. Longer than this and it is not going to answer.
_CALL_SECONDS = 2.0

# From the hard timeout to the end of the protection: for a task that is slow to stop, and for deleting its message.
_MARGIN_SECONDS = 300.0

# Another process that is just returning the protection is waited for, and looked at so often.
_LOOK_AGAIN_SECONDS = 0.01

# How long the end of a worker waits for the last request.
_LAST_CALL_SECONDS = 2 * _CALL_SECONDS

_MINUTES = (1, 2880)


class ScaleInProtection:
    """Protects this ECS task for as long as the work may take, so that nothing has to be renewed while it runs.

    Protection is asked for until after the hard timeout of the task that starts, and renewed when a later one would
    outlast it. A timer that renews would have to run beside tasks that hold the interpreter.

    Nothing here waits for the agent, leaving aside: what is wanted is noted, and a thread that ends when it is told to
    the agent makes the requests, one after the other. Of what was wanted while a request was under way only the last
    is asked for.

    All worker processes of a container share its one protection: each holds a shared lock on a file while it is busy,
    and the one that becomes idle returns the protection only where no other is busy. The lock is one of POSIX: it is a
    process's own though the descriptor is inherited, what a task forks does not have it, and the kernel releases it
    when the process is killed.

    :param agent_uri: what ECS puts into ECS_AGENT_URI; None: not on ECS, nothing is done.
    :param lock: a descriptor, for reading and writing, of a file that the processes of the container share; None: there
        is one process.

    Nothing here raises: what fails is a warning.
    """

    def __init__(
        self,
        agent_uri: str | None,
        *,
        lock: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        call_seconds: float = _CALL_SECONDS,
    ) -> None:
        self._url = f"{agent_uri.rstrip('/')}/task-protection/v1/state" if agent_uri else None
        self._clock = clock
        self._call_seconds = call_seconds
        self._lock = lock
        self._expires = -math.inf
        self._busy: bool | None = None
        self._wanted: int | None = None  # minutes, 0 to return it; None: nothing to be asked for
        self._teller: BoundedCall | None = None
        self._telling = False
        self._hand_over = _thread.allocate_lock()

    def __enter__(self) -> ScaleInProtection:
        if self._url:
            # Loaded here and not in the thread: a task that is forked meanwhile would find the import half done.
            import http.client  # noqa: F401

            self.idle()  # a worker that was killed here before may have left it
        return self

    def __exit__(self, *exception: object) -> None:
        self.idle()
        if self._teller is not None and not self._teller.wait(_LAST_CALL_SECONDS):
            _warn("ECS scale-in protection: the agent does not answer; the protection lasts until it expires")

    def busy(self, seconds: float) -> None:
        """Work starts that may take so long."""
        if not self._url:
            return
        self._busy = True
        now = self._clock()
        if self._expires < now + seconds:
            lowest, highest = _MINUTES
            minutes = min(highest, max(lowest, math.ceil((seconds + _MARGIN_SECONDS) / 60)))
            self._expires = now + minutes * 60
            self._want(minutes)

    def idle(self) -> None:
        """There is no work."""
        if not self._url or self._busy is False:
            return
        self._busy = False
        self._expires = -math.inf
        self._want(0)

    # -- in the thread -------------------------------------------------------------------------------------------

    def _want(self, minutes: int) -> None:
        with self._hand_over:
            self._wanted = minutes
            telling, self._telling = self._telling, True
        if not telling:
            self._teller = BoundedCall(self._tell)

    def _tell(self) -> None:
        while True:
            with self._hand_over:
                minutes, self._wanted = self._wanted, None
                if minutes is None:
                    self._telling = False
                    return
            try:
                if minutes:
                    self._share()
                    self._ask({"ProtectionEnabled": True, "ExpiresInMinutes": minutes})
                else:
                    self._return()
            except Exception as error:  # of the agent, or of the lock
                _warn("ECS scale-in protection: %s", error)
                self._expires = -math.inf  # so that the next task asks again

    def _return(self) -> None:
        if self._lock is None:
            self._ask({"ProtectionEnabled": False})
            return
        fcntl.lockf(self._lock, fcntl.LOCK_UN)
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return  # another process is busy
        try:
            self._ask({"ProtectionEnabled": False})
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)

    def _ask(self, state: dict[str, object]) -> None:
        # In a thread of its own again: the bound of `urllib` is for each byte, and an agent may drip.
        call = BoundedCall(lambda: _request(str(self._url), state, self._call_seconds))
        if not call.wait(self._call_seconds):
            raise TimeoutError(f"no answer within {self._call_seconds} seconds")
        if call.error is not None:
            raise call.error

    def _share(self) -> None:
        """Wait until no other process is just returning the protection: at most for its bounded call."""
        if self._lock is None:
            return
        for _ in looks(self._call_seconds, _LOOK_AGAIN_SECONDS):
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return
            except OSError as error:
                problem = error
        _warn("Another worker process may return this one's scale-in protection: %s", problem)


def _request(url: str, state: dict[str, object], seconds: float) -> None:
    import http.client

    parts = urlsplit(url)
    # No proxy is asked: the agent's address is link-local, and none leads there.
    connection = http.client.HTTPConnection(parts.netloc, timeout=seconds)
    connection.connect()
    descriptor = connection.sock.fileno()
    pipes.keep_from_children(descriptor)  # a call that hangs is abandoned, and its socket is not for tasks to inherit
    try:
        connection.request("PUT", parts.path, json.dumps(state), {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
    finally:
        pipes.leave_to_children(descriptor)
        connection.close()
    if response.status >= 300:
        raise OSError(f"the agent answered {response.status} {response.reason}")
    answer = json.loads(content or b"{}")
    failed = answer.get("failure") or answer.get("error")
    if failed:
        raise OSError(f"the agent answered {failed}")


def _warn(text: str, *arguments: object) -> None:
    logger.warning(text, *arguments, extra={"action": "protection_failed"})
