"""Requests to a simulated queue: each meets the next fault that a test has injected for its operation."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from sqstaskmaster._memory import service
from sqstaskmaster._memory.refusals import Wrong
from sqstaskmaster._memory.store import Refused, Store
from sqstaskmaster._sqs.limits import check_whole

OPERATIONS = (
    "SendMessage",
    "SendMessageBatch",
    "ReceiveMessage",
    "DeleteMessage",
    "DeleteMessageBatch",
    "ChangeMessageVisibility",
    "ChangeMessageVisibilityBatch",
    "GetQueueAttributes",
    "SetQueueAttributes",
    "PurgeQueue",
)

_BATCH = "Batch"
_Answer = TypeVar("_Answer")


class _Fault(NamedTuple):
    """One injected fault. `error` returns what is raised; None if only entries of a batch fail."""

    error: Callable[[], Exception] | None
    carried_out: bool
    places: frozenset[int] = frozenset()


class Calls:
    """The requests to one queue, and the faults injected into them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._failing: frozenset[int] = frozenset()  # places in the batch being carried out
        self.forget_faults()

    # -- faults --------------------------------------------------------------------------------------------------

    def forget_faults(self) -> None:
        self._faults: dict[str, collections.deque[_Fault]] = {name: collections.deque() for name in OPERATIONS}

    def throttle(self, operation: str, times: int) -> None:
        error = lambda: service.refusal(operation, "RequestThrottled", "Rate exceeded")  # noqa: E731
        self._order(operation, times, _Fault(error, carried_out=False))

    def cut(self, operation: str, times: int, carried_out: bool) -> None:
        self._order(operation, times, _Fault(lambda: service.no_answer(self._store.url), carried_out))

    def fail_entries(self, operation: str, places: Iterable[int], times: int) -> None:
        if not operation.endswith(_BATCH):
            raise ValueError(f"Only a batch has entries: {', '.join(o for o in OPERATIONS if o.endswith(_BATCH))}")
        self._order(operation, times, _Fault(None, carried_out=True, places=frozenset(places)))

    def _order(self, operation: str, times: int, fault: _Fault) -> None:
        if operation not in self._faults:
            raise ValueError(f"{operation!r} is not an operation that can fail, which are: {', '.join(OPERATIONS)}")
        self._faults[operation].extend([fault] * check_whole("times", times, 1, 1_000_000))

    # -- requests ------------------------------------------------------------------------------------------------

    def call(self, operation: str, parameters: Mapping[str, Any], carry_out: Callable[[], _Answer]) -> _Answer:
        """The result of `carry_out`, called with the clock's lock held. It raises `Refused` for what SQS refuses.

        :raises botocore.exceptions.ParamValidationError: for parameters that boto3 would not send.
        :raises botocore.exceptions.ClientError: for what is refused.
        """
        service.validate(operation, {"QueueUrl": self._store.url, **parameters})
        clock = self._store.clock
        with clock.changed:
            faults = self._faults[operation]
            fault = faults.popleft() if faults else None
            if fault is not None and fault.error is not None and not fault.carried_out:
                raise fault.error()
            self._failing = frozenset() if fault is None else fault.places
            try:
                answer = carry_out()
            except Refused as refused:
                raise service.refusal(operation, *refused.args) from None
            finally:
                clock.served()
            if fault is not None and fault.error is not None:
                raise fault.error()
        return answer

    def batch(
        self,
        operation: str,
        entries: Sequence[Mapping[str, Any]],
        wrong: Callable[[], Wrong | None],
        carry_out: Callable[[Mapping[str, Any]], Mapping[str, Any] | None],
    ) -> dict[str, Any]:
        """The same for each entry, with an answer of its own. `wrong`: why the batch as a whole is refused, if so."""

        def carry_out_each() -> dict[str, Any]:
            refused = wrong()
            if refused:
                raise Refused(*refused)
            answers: dict[str, list[dict[str, Any]]] = {}
            for place, entry in enumerate(entries):
                if place in self._failing:
                    failed = {"SenderFault": False, "Code": "InternalError", "Message": "It was ordered to fail"}
                    answers.setdefault("Failed", []).append({"Id": entry["Id"], **failed})
                    continue
                try:
                    answer = {"Id": entry["Id"], **(carry_out(entry) or {})}
                    answers.setdefault("Successful", []).append(answer)
                except Refused as error:
                    code, text = error.args
                    failed = {"SenderFault": True, "Code": code, "Message": text}
                    answers.setdefault("Failed", []).append({"Id": entry["Id"], **failed})
            return service.answer(**answers)

        return self.call(operation, {"Entries": entries}, carry_out_each)
