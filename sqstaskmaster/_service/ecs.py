"""Scale-in protection of the ECS task that a worker runs in: taken when work starts, returned when there is none.

https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task-scale-in-protection-endpoint.html
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable

from sqstaskmaster._signals.bounded import BoundedCall

logger = logging.getLogger(__name__)

# The agent is on the same machine. Longer than this and the task begins without protection.
_CALL_SECONDS = 2.0

# From the hard timeout to the end of the protection: for a task that is slow to stop, and for deleting its message.
_MARGIN_SECONDS = 300.0

_LOOK_AGAIN_SECONDS = 0.01

_MINUTES = (1, 2880)


class ScaleInProtection:
    """Protects this ECS task for as long as the work may take, so that nothing has to be renewed while it runs.

    Protection is asked for until after the hard timeout of the task that starts, and renewed when a later one would
    outlast it. A thread or a timer that renews would have to run beside tasks that hold the interpreter, and a process
    that forks is better off without threads.

    All worker processes of a container share its one protection: each holds a shared lock on a file while it is busy,
    and the one that becomes idle returns the protection only where no other is busy. The kernel releases the lock of
    a process that was killed.

    :param agent_uri: what ECS puts into ECS_AGENT_URI; None: not on ECS, nothing is done.

    Nothing here raises: what fails is a warning.
    """

    def __init__(
        self, agent_uri: str | None, *, clock: Callable[[], float] = time.monotonic, call_seconds: float = _CALL_SECONDS
    ) -> None:
        self._url = f"{agent_uri.rstrip('/')}/task-protection/v1/state" if agent_uri else None
        self._clock = clock
        self._call_seconds = call_seconds
        self._expires = -math.inf
        self._busy: bool | None = None
        self._lock: int | None = None

    def __enter__(self) -> ScaleInProtection:
        if self._url:
            try:
                self._lock = _open_lock(self._url)
            except OSError as error:
                _warn("Worker processes cannot agree on scale-in protection, it will last until it expires: %s", error)
            self.idle()  # a worker that was killed here before may have left it
        return self

    def __exit__(self, *exception: object) -> None:
        self.idle()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def busy(self, seconds: float) -> None:
        """Work starts that may take so long."""
        if not self._url:
            return
        if self._lock is not None and not self._busy:
            self._share(self._lock)
        self._busy = True
        if self._expires < self._clock() + seconds:
            lowest, highest = _MINUTES
            minutes = min(highest, max(lowest, math.ceil((seconds + _MARGIN_SECONDS) / 60)))
            now = self._clock()
            if self._put({"ProtectionEnabled": True, "ExpiresInMinutes": minutes}):
                self._expires = now + minutes * 60

    def idle(self) -> None:
        """There is no work."""
        if not self._url or self._busy is False:
            return
        self._busy = False
        self._expires = -math.inf
        if self._lock is None:
            return
        with contextlib.suppress(OSError):  # another process is busy
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._put({"ProtectionEnabled": False})
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _share(self, lock: int) -> None:
        """Wait until no other process is just returning the protection: at most for its bounded call."""
        until = time.monotonic() + self._call_seconds
        while True:
            try:
                return fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as error:
                if not isinstance(error, BlockingIOError) or time.monotonic() > until:
                    return _warn("Another worker process may return this one's scale-in protection: %s", error)
                time.sleep(_LOOK_AGAIN_SECONDS)

    def _put(self, state: dict[str, object]) -> bool:
        call = BoundedCall(lambda: _request(str(self._url), state, self._call_seconds))
        if not call.wait(self._call_seconds):
            _warn("ECS scale-in protection: no answer within %s seconds", self._call_seconds)
            return False
        if call.error is not None:
            _warn("ECS scale-in protection: %s", call.error)
        return call.error is None


def _request(url: str, state: dict[str, object], seconds: float) -> None:
    # Loaded here: only workers on ECS need it.
    import urllib.request

    request = urllib.request.Request(
        url, json.dumps(state).encode(), {"Content-Type": "application/json"}, method="PUT"
    )
    # The agent's address is link-local: no proxy leads there.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=seconds) as response:
        answer = json.loads(response.read() or b"{}")
    failed = answer.get("failure") or answer.get("error")
    if failed:
        raise OSError(f"the agent answered {failed}")


def _open_lock(url: str) -> int:
    name = f"sqstaskmaster-{hashlib.sha256(url.encode()).hexdigest()[:16]}.lock"
    return os.open(os.path.join(tempfile.gettempdir(), name), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _warn(text: str, *arguments: object) -> None:
    logger.warning(text, *arguments, extra={"action": "protection_failed"})
