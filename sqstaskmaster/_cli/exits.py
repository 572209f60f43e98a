"""How a command ends: every error becomes one sentence with its remedy, and an exit code."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from sqstaskmaster._service.exit_codes import Exit
from sqstaskmaster._sqs.explained import IN_TESTS, Explained, leave_out_page
from sqstaskmaster.errors import ConfigurationError, InitializerFailed, NoAnswer, PollRefused


class CommandError(Exception):
    """A command cannot go on. The text is one sentence with its remedy."""

    def __init__(self, code: Exit, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


# Remedies for SQS error codes that a poll does not meet; for the others see `answers.remedy_for`.
_REMEDIES = {
    "ExpiredToken": "renew the credentials, with 'aws sso login' for example",
    "ExpiredTokenException": "renew the credentials, with 'aws sso login' for example",
    "PurgeQueueInProgress": "SQS allows one purge of a queue in 60 seconds: try again later",
    "ResourceNotFoundException": "a redrive starts from a queue that is a dead-letter queue: check its URL",
}
_DENIED = {"AccessDenied", "AccessDeniedException"}


@contextlib.contextmanager
def asking(queue: str, asked: Any) -> Iterator[None]:
    """A block of requests about one queue; an error in it names that queue.

    :param queue: its URL.
    :param asked: the queue or client that makes the requests.
    :raises CommandError: for errors of SQS.
    """
    try:
        with Explained(queue, asked, remedies=False):
            yield
    except Exception as error:
        from sqstaskmaster._sqs.answers import SQS_ERRORS  # loads botocore; the requests have loaded it anyway

        if not isinstance(error, SQS_ERRORS):
            raise
        raise CommandError(*explain(error, queue)) from error


def report(error: BaseException, debug: bool, queue: str = "the queue") -> Exit:
    """Print the sentence for an error that ends a command, with `debug` its traceback too; returns the exit code."""
    if debug:
        traceback.print_exception(error)
    code, sentence = explain(error, queue)
    print(f"sqstaskmaster: {sentence}", file=sys.stderr)
    return code


def explain(error: BaseException, queue: str = "the queue") -> tuple[Exit, str]:
    """The exit code and the sentence for an error that ends a command."""
    if isinstance(error, CommandError):
        return error.code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return Exit.INTERRUPTED, "Interrupted"
    # Code that raised a botocore error has loaded botocore; loading it here just to check would cost 100 ms each time.
    if "botocore" in sys.modules:
        explained = _explain_botocore(error, queue)
        if explained:
            return explained
    if isinstance(error, InitializerFailed):
        return Exit.NOT_READY, f"{_one_line(error)}: its traceback is in the log"
    if isinstance(error, NoAnswer):
        return Exit.UNREACHABLE, f"{queue}: {_one_line(error)}"
    if isinstance(error, (ConfigurationError, PollRefused)):
        return Exit.QUEUE, _one_line(error)
    if isinstance(error, (ValueError, TypeError)):
        return Exit.USAGE, _one_line(error).removesuffix(IN_TESTS)
    if isinstance(error, OSError):
        return Exit.FAILED, _one_line(error)
    return Exit.FAILED, f"{type(error).__name__}: {_one_line(error)} (--debug shows where)"


def _explain_botocore(error: BaseException, queue: str) -> tuple[Exit, str] | None:
    from botocore import exceptions

    if isinstance(error, exceptions.ClientError):
        return _explain_answer(error, queue)
    if isinstance(error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)):
        return Exit.QUEUE, _one_line(error)
    if isinstance(error, exceptions.NoRegionError):
        return Exit.QUEUE, "No AWS region is configured: set AWS_DEFAULT_REGION, or a region in the profile you use"
    if isinstance(error, (exceptions.ConnectionError, exceptions.HTTPClientError)):
        return Exit.UNREACHABLE, (
            f"{_one_line(error).rstrip('.')}: check the network, the region, and AWS_ENDPOINT_URL_SQS, "
            "which leads to a server other than AWS"
        )
    if isinstance(error, exceptions.BotoCoreError):
        return Exit.QUEUE, f"{_one_line(error).rstrip('.')}: check the AWS configuration (profile, region, endpoint)"
    return None


def _explain_answer(error: Any, queue: str) -> tuple[Exit, str]:
    from sqstaskmaster._sqs.answers import code_of, is_of_another, is_transient, remedy_for

    if is_of_another(error):
        leave_out_page(error, "The endpoint")
        return Exit.UNREACHABLE, f"{queue}: {_one_line(error)}"
    code = code_of(error)
    said = error.response.get("Error", {}).get("Message") or code
    said = _one_line(said).rstrip(".")
    sentence = f"SQS refused {error.operation_name} for {queue}: {said} ({code})"
    if "MessageDeduplicationId" in said:
        return Exit.QUEUE, f"{sentence}: give --deduplication-id, or set ContentBasedDeduplication on the queue"
    if is_transient(error):
        return Exit.UNREACHABLE, f"{sentence}: try again later"
    if code in _DENIED:
        return Exit.QUEUE, f"{sentence}: grant sqs:{error.operation_name} on the queue to this role"
    remedy = _REMEDIES.get(code) or remedy_for(error) or "check the queue's URL and the request"
    return Exit.QUEUE, f"{sentence}: {remedy}"


def _one_line(said: object) -> str:
    return " ".join(str(said).split()) or type(said).__name__
