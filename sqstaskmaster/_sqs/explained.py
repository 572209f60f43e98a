"""Requests whose errors say what to do."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from sqstaskmaster._sqs.confirmation import REMEDY, check_sent, is_of_boto3, text_of_foreign
from sqstaskmaster.errors import NoAnswer

# What a URL like memory:tasks may mean in a test. The command line leaves it out.
IN_TESTS = ". For a queue in memory, in tests, give queue_constructor=LocalQueue"


class Explained:
    """A block of requests to a queue whose errors say what to do. They remain botocore's own errors.

    If something else answered in place of SQS, the error names it and leaves out its page. An answer that botocore
    cannot read becomes a NoAnswer.

    :param url: the queue's URL.
    :param asked: the queue, or the client, that makes the requests. boto3's knows its endpoint.
    :param remedies: whether to also say what helps if credentials or the queue are missing.
    """

    __slots__ = ("_url", "_asked", "_remedies")

    def __init__(self, url: str, asked: Any, remedies: bool = True) -> None:
        self._url = url
        self._asked = asked
        self._remedies = remedies

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        # If botocore is not loaded, the error is not botocore's.
        if not isinstance(error, Exception) or "botocore" not in sys.modules:
            return
        from sqstaskmaster._sqs.answers import is_missing_queue, is_of_another, is_unreadable, remedy_for

        if isinstance(error, NoAnswer):
            if self._endpoint not in str(error):
                error.args = (f"{self._endpoint}: {error}",)
        elif is_unreadable(error):
            problem = f"the answer cannot be read, and is not SQS's ({type(error).__name__})"
            raise NoAnswer(f"{self._endpoint}: {problem}: {REMEDY}") from error
        elif is_of_another(error):
            leave_out_page(error, self._endpoint)
        elif not self._remedies:
            pass
        elif type(error).__name__ == "NoCredentialsError":
            error.args = (f"No AWS credentials found: {remedy_for(error)}",)
        elif "MessageDeduplicationId" in str(error) and "options(" not in str(error):
            remedy = "give manager.options(message_deduplication_id=...), or set ContentBasedDeduplication on the queue"
            error.args = (f"{str(error).rstrip('.')}: {remedy}",)
        elif is_missing_queue(error) and self._url not in str(error):
            error.args = (f"{str(error).rstrip('.')}: {self._url}: {remedy_for(error)}",)

    @property
    def _endpoint(self) -> str:
        meta = getattr(self._asked, "meta", None)
        endpoint = getattr(getattr(getattr(meta, "client", None), "meta", meta), "endpoint_url", None)
        return endpoint if isinstance(endpoint, str) else self._url


def send(queue: Any, url: str, request: Mapping[str, Any]) -> Any:
    """Send one message to a queue, boto3's or of the user's own making. Returns the answer.

    :raises NoAnswer: if the answer does not say that it was sent.
    :raises Exception: what the queue raises.
    """
    with Explained(url, queue):
        answer = queue.send_message(**request)
        check_sent(answer, request["MessageBody"], is_of_boto3(queue, "send_message"))
        return answer


def leave_out_page(error: Any, endpoint: str) -> None:
    """Make a ClientError without an SQS error code say what answered, in place of the page."""
    said = error.response.setdefault("Error", {})
    if REMEDY not in str(said.get("Message")):  # else it already does
        said["Message"] = text_of_foreign(error.response, error.operation_name, endpoint)
    error.args = (said["Message"],)
