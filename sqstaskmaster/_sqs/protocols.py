"""The two boto3 shapes this package relies on; anything with these members will do (see `queue_constructor`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Message(Protocol):
    """The part of boto3's `SQS.Message` that is used here."""

    @property
    def body(self) -> str: ...

    @property
    def attributes(self) -> Mapping[str, Any] | None: ...

    def change_visibility(self, *, VisibilityTimeout: int) -> Any: ...

    def delete(self) -> Any: ...


class Queue(Protocol):
    """The part of boto3's `SQS.Queue` that is used here."""

    @property
    def attributes(self) -> Mapping[str, Any]: ...

    def load(self) -> Any: ...

    def purge(self) -> Any: ...

    def send_message(self, **kwargs: Any) -> Any: ...

    def receive_messages(self, **kwargs: Any) -> Sequence[Any]: ...
