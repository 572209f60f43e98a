"""Scale-in protection of the ECS task that a worker runs in: taken when work starts, released when there is none.

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

# The agent is on the same machine: if it has not answered by then, it will not.
_CALL_SECONDS = 2.0

# From the hard timeout to the end of the protection: for a task that is slow to stop, and for deleting its message.
_MARGIN_SECONDS = 300.0

# How often to look whether another process has finished releasing the protection.
_LOOK_AGAIN_SECONDS = 0.01

# How long a worker that ends waits for the last request.
_LAST_CALL_SECONDS = 2 * _CALL_SECONDS

_MINUTES = (1, 2880)


class ScaleInProtection:
    """Protects this ECS task for as long as the work may take, so that nothing has to be renewed while it runs.

    Protection is requested until after the hard timeout of the task that starts, and renewed when a later task would
    outlast it. A timer for renewals would have to run beside tasks that hold the interpreter.

    Nothing here waits for the agent, except leaving: a thread makes the requests, one after the other, and ends when
    the agent knows what is wanted. Of the changes wanted during one request, only the last is requested.

    All worker processes of a container share its one protection: each holds a shared lock on a file while it is busy,
    and a process that becomes idle releases the protection only if no other is busy. It is a POSIX lock: it belongs to
    the process although the descriptor is inherited, forked tasks do not hold it, and the kernel releases it when the
    process is killed.

    :param agent_uri: the value of ECS_AGENT_URI; None: not on ECS, nothing is done.
    :param lock: a descriptor, for reading and writing, of a file that the processes of the container share; None: there
        is one process.

    Nothing here raises: failures are logged as warnings.
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
        self._wanted: int | None = None  # minutes, 0 to release it; None: nothing to request
        self._teller: BoundedCall | None = None
        self._telling = False
        self._hand_over = _thread.allocate_lock()

    def __enter__(self) -> ScaleInProtection:
        if self._url:
            # Loaded here, not in the thread: a task forked meanwhile would find the import half done.
            import http.client  # noqa: F401

            self.idle()  # an earlier worker that was killed here may have left protection on
        return self

    def __exit__(self, *exception: object) -> None:
        self.idle()
        if self._teller is not None and not self._teller.wait(_LAST_CALL_SECONDS):
            _warn("ECS scale-in protection: the agent does not answer; the protection lasts until it expires")

    def busy(self, seconds: float) -> None:
        """Work starts that may take this long."""
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
        # In yet another thread: the timeout of `http.client` applies to each read, and the agent may answer in drips.
        call = BoundedCall(lambda: _request(str(self._url), state, self._call_seconds))
        if not call.wait(self._call_seconds):
            raise TimeoutError(f"no answer within {self._call_seconds} seconds")
        if call.error is not None:
            raise call.error

    def _share(self) -> None:
        """Take the shared lock, waiting while another process releases the protection: at most for its bounded call."""
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
    # Without a proxy: the agent's address is link-local, and no proxy leads there.
    connection = http.client.HTTPConnection(parts.netloc, timeout=seconds)
    connection.connect()
    descriptor = connection.sock.fileno()
    pipes.keep_from_children(descriptor)  # a hanging call is abandoned, and tasks must not inherit its socket
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
