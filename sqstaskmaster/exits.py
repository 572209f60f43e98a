"""How a command ends: the table of exit codes, and every error as one sentence with its remedy."""

from __future__ import annotations

import enum
import sys
from typing import Any


class Exit(enum.IntEnum):
    """The exit codes of `sqstaskmaster`. Scripts and orchestrators read them: a number is never given a new meaning."""

    OK = 0
    FAILED = 1
    USAGE = 2
    MODULE = 3
    QUEUE = 4
    UNREACHABLE = 5
    CRASHING = 6
    NOT_ALL_SENT = 7
    WARNINGS = 8
    ERRORS = 9
    KILLED = 10
    INTERRUPTED = 130


MEANINGS = {
    Exit.OK: "done; for a worker: an orderly stop, nothing is left running",
    Exit.FAILED: "something else went wrong; the sentence on standard error says what",
    Exit.USAGE: "the command line itself is wrong, nothing was done",
    Exit.MODULE: "MODULE:WORKER cannot be imported, or is no Worker",
    Exit.QUEUE: "the queue, the region or the credentials are wrong: trying again does not help",
    Exit.UNREACHABLE: "SQS did not answer, or was too busy: trying again may help",
    Exit.CRASHING: "worker processes kept dying before their first poll",
    Exit.NOT_ALL_SENT: "submit --file: some lines were not sent, each is named",
    Exit.WARNINGS: "doctor: the worst finding is a warning",
    Exit.ERRORS: "doctor: the worst finding is an error",
    Exit.KILLED: "a worker process had to be killed; its message comes back after its visibility timeout",
    Exit.INTERRUPTED: "interrupted with Ctrl-C",
}


class CommandError(Exception):
    """A command cannot go on. The text is one sentence with its remedy."""

    def __init__(self, code: Exit, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


# What to do about an error code of SQS. The action that was refused is in SQS's own text, which comes first.
_NO_QUEUE = "check the queue's URL, its region and its account; a new queue takes a second to be there"
_NO_PERMISSION = "grant the action to this role on the queue (examples/ecs has policies of least privilege)"
_NO_SUCH_KEY = "the access key is unknown to AWS: check AWS_ACCESS_KEY_ID, AWS_PROFILE or the role"
_RENEW = "renew the credentials, with 'aws sso login' for example"
_REMEDIES = {
    "QueueDoesNotExist": _NO_QUEUE,
    "NonExistentQueue": _NO_QUEUE,
    "InvalidAddress": "check the queue's URL",
    "AccessDenied": _NO_PERMISSION,
    "AccessDeniedException": _NO_PERMISSION,
    "KMS.AccessDeniedException": "grant kms:Decrypt and kms:GenerateDataKey on the queue's key to this role",
    "InvalidClientTokenId": _NO_SUCH_KEY,
    "UnrecognizedClientException": _NO_SUCH_KEY,
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY, and that the region is the queue's",
    "ExpiredToken": _RENEW,
    "ExpiredTokenException": _RENEW,
    "PurgeQueueInProgress": "SQS allows one purge of a queue in 60 seconds: try again later",
    "ResourceNotFoundException": "check the queue's URL; a redrive starts from a queue that is a dead-letter queue",
}
_TRY_AGAIN = {"Throttling", "ThrottlingException", "RequestThrottled", "ServiceUnavailable", "InternalError"}


def explain(error: BaseException) -> tuple[Exit, str]:
    """The exit code and the sentence for an error that ends a command."""
    if isinstance(error, CommandError):
        return error.code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return Exit.INTERRUPTED, "Interrupted"
    # Whoever raised an error of botocore has loaded it; loading it here only to look would cost every command 100 ms.
    if "botocore" in sys.modules:
        explained = _explain_botocore(error)
        if explained:
            return explained
    from sqstaskmaster.errors import ConfigurationError

    if isinstance(error, ConfigurationError):
        return Exit.QUEUE, _one_line(error)
    if isinstance(error, (ValueError, TypeError)):
        return Exit.USAGE, _one_line(error)
    if isinstance(error, OSError):
        return Exit.FAILED, _one_line(error)
    return Exit.FAILED, f"{type(error).__name__}: {_one_line(error)} (--debug shows where)"


def _explain_botocore(error: BaseException) -> tuple[Exit, str] | None:
    from botocore import exceptions

    from sqstaskmaster.sqs_errors import code_of

    if isinstance(error, exceptions.ClientError):
        return _explain_answer(error, code_of(error))
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


def _explain_answer(error: Any, code: str) -> tuple[Exit, str]:
    said = error.response.get("Error", {}).get("Message") or code
    sentence = f"SQS refused {error.operation_name}: {_one_line(said).rstrip('.')} ({code})"
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
    if code in _TRY_AGAIN or status >= 500 and status != 501:
        return Exit.UNREACHABLE, f"{sentence}: try again later"
    remedy = _REMEDIES.get(code, "check the queue's URL and what was asked of it")
    return Exit.QUEUE, f"{sentence}: {remedy}"


def _one_line(said: object) -> str:
    return " ".join(str(said).split()) or type(said).__name__
