"""How a command ends: every error as one sentence with its remedy, and its exit code."""

from __future__ import annotations

import sys
import traceback
from typing import Any

from sqstaskmaster._service.exit_codes import Exit
from sqstaskmaster.errors import ConfigurationError, PollRefused


class CommandError(Exception):
    """A command cannot go on. The text is one sentence with its remedy."""

    def __init__(self, code: Exit, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


# What to do about the error codes of SQS that a poll does not meet; for the others see `sqs_errors.remedy_for`.
_REMEDIES = {
    "ExpiredToken": "renew the credentials, with 'aws sso login' for example",
    "ExpiredTokenException": "renew the credentials, with 'aws sso login' for example",
    "PurgeQueueInProgress": "SQS allows one purge of a queue in 60 seconds: try again later",
    "ResourceNotFoundException": "a redrive starts from a queue that is a dead-letter queue: check its URL",
}
_DENIED = {"AccessDenied", "AccessDeniedException"}


def report(error: BaseException, debug: bool, queue: str = "the queue") -> Exit:
    """Print the sentence for an error that ends a command, with `debug` its traceback too; gives the exit code."""
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
    # Whoever raised an error of botocore has loaded it; loading it here only to look would cost every command 100 ms.
    if "botocore" in sys.modules:
        explained = _explain_botocore(error, queue)
        if explained:
            return explained
    if isinstance(error, (ConfigurationError, PollRefused)):
        return Exit.QUEUE, _one_line(error)
    if isinstance(error, (ValueError, TypeError)):
        return Exit.USAGE, _one_line(error)
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
            f"{_one_line(error).rstrip('.')}: check the network, the region, and AWS_ENDPOINT_URL where it is set"
        )
    if isinstance(error, exceptions.BotoCoreError):
        return Exit.QUEUE, f"{_one_line(error).rstrip('.')}: check the AWS configuration (profile, region, endpoint)"
    return None


def _explain_answer(error: Any, queue: str) -> tuple[Exit, str]:
    from sqstaskmaster._sqs.answers import code_of, is_transient, remedy_for

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
    remedy = _REMEDIES.get(code) or remedy_for(error) or "check the queue's URL and what was asked of it"
    return Exit.QUEUE, f"{sentence}: {remedy}"


def _one_line(said: object) -> str:
    return " ".join(str(said).split()) or type(said).__name__
