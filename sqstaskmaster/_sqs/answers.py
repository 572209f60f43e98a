"""What the errors of SQS mean: to the holder of a claim, and to the sender of tasks."""

from __future__ import annotations

import enum
import re
import traceback
from types import FrameType
from typing import TypeGuard

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError as NotConnected,
    HTTPClientError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
    SSLError,
)
from botocore.parsers import ResponseParserError

from sqstaskmaster._sqs.confirmation import is_foreign
from sqstaskmaster.errors import NoAnswer

# ClientError: SQS answered with an error. BotoCoreError: there was no answer, or no request: a lost connection, a read
# timeout, missing or expired credentials. NoAnswer: the answer was not SQS's, or came too late.
SQS_ERRORS = (ClientError, BotoCoreError, NoAnswer)

# What a poll may raise: the same, and errors from an answer that was cut off, or came from something in between, such
# as a proxy's page that is not UTF-8.
_POLL_ERRORS = (*SQS_ERRORS, ResponseParserError, UnicodeDecodeError, OSError)

# How servers other than AWS answer an operation that they do not know.
_LACKING = {"InvalidAction", "UnknownOperationException", "NotImplemented", "UnsupportedOperation"}

# The functions in which botocore reads what it has parsed.
_ENDPOINT = {"botocore.endpoint._do_get_response", "botocore.endpoint._send_request"}

# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html
# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ReceiveMessage.html#API_ReceiveMessage_Errors
_NO_QUEUE = "check the queue's URL, its region and its account, and AWS_ENDPOINT_URL where it is set"
_NO_PERMISSION = "grant sqs:ReceiveMessage, DeleteMessage, ChangeMessageVisibility and GetQueueAttributes to this role"
_NO_SUCH_KEY = (
    "AWS does not know the access key: check AWS_ACCESS_KEY_ID, AWS_PROFILE or the role; for another server set "
    "AWS_ENDPOINT_URL_SQS"
)
_REMEDIES = {
    "QueueDoesNotExist": _NO_QUEUE,
    "NonExistentQueue": _NO_QUEUE,
    "InvalidAddress": _NO_QUEUE,
    "AccessDenied": _NO_PERMISSION,
    "AccessDeniedException": _NO_PERMISSION,
    "NotAuthorized": _NO_PERMISSION,
    "InvalidClientTokenId": _NO_SUCH_KEY,
    "UnrecognizedClientException": _NO_SUCH_KEY,
    "MissingAuthenticationToken": _NO_SUCH_KEY,
    "OptInRequired": "the AWS account is not activated for this region: enable it, or correct the queue's URL",
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY, the region, and this machine's clock",
    "InvalidSignature": "check AWS_SECRET_ACCESS_KEY, the region, and this machine's clock",
    "IncompleteSignature": "check AWS_SECRET_ACCESS_KEY, and whatever stands between here and SQS",
    "InvalidSecurity": "SQS takes requests over HTTPS only, signed with AWS signature version 4",
    # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-key-management.html
    "KmsAccessDenied": "the queue is encrypted: grant kms:Decrypt on its key to this role, and, to send, "
    "kms:GenerateDataKey",
    "KmsDisabled": "the key that encrypts the queue is disabled: enable it in KMS",
    "KmsInvalidKeyUsage": "the key of the queue cannot encrypt it: set KmsMasterKeyId to a symmetric encryption key",
    "KmsInvalidState": "the key that encrypts the queue cannot be used (to be deleted, or not imported yet): check "
    "it in KMS, or set another KmsMasterKeyId",
    "KmsNotFound": "the key that encrypts the queue does not exist: set KmsMasterKeyId of the queue to one that does",
    "KmsOptInRequired": "the AWS account may not use KMS: activate it for this region",
}

# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibility.html
# A message that was deleted answers InvalidParameterValue on AWS and ReceiptHandleIsInvalid elsewhere: one family.
_CLAIM_LOST = {
    "MessageNotInflight",
    "ReceiptHandleIsInvalid",
    "InvalidReceiptHandle",
    "InvalidParameterValue",
    "QueueDoesNotExist",
    "NonExistentQueue",
}

# Of those, the answers for a deleted message: the last is AWS's, the others are those of other servers.
_DELETED = {"ReceiptHandleIsInvalid", "InvalidReceiptHandle", "InvalidParameterValue"}


# The query protocol's spelling, KMS.AccessDeniedException, of what the model calls KmsAccessDenied, for example.
_KMS = re.compile(r"KMS\.(?:KMS)?(\w+?)(?:Exception)?")


class Kind(enum.Enum):
    """What an error says about its request."""

    REFUSED_FOR_NOW = "nothing has happened, and asking again may help: throttled, or no connection was made"
    REFUSED = "nothing has happened, and asking again does not help: SQS said so"
    UNKNOWN = "it may have been carried out: no answer, a fault of the service (5xx), or an answer that is not SQS's"


def kind_of(error: BaseException) -> Kind:
    """Which of the three it is, for the last try only: a client that retries by itself does not report earlier ones.

    An exception that is not botocore's, raised by a queue of the user's own making, is UNKNOWN.
    """
    if isinstance(error, ClientError):
        code, status = code_of(error), _status(error)
        if code in _THROTTLED or status == 429:
            return Kind.REFUSED_FOR_NOW
        return Kind.UNKNOWN if status >= 500 or code in _FAULTS or is_of_another(error) else Kind.REFUSED
    if isinstance(error, ParamValidationError):
        return Kind.REFUSED
    if isinstance(error, (SSLError, HTTPClientError)):
        return Kind.UNKNOWN  # cut off, perhaps after the request had arrived
    # botocore raises its other errors before there is a connection.
    return Kind.REFUSED_FOR_NOW if isinstance(error, (BotoCoreError, ConnectionRefusedError)) else Kind.UNKNOWN


def code_of(error: BaseException) -> str:
    """The error code of SQS's answer, without the prefix of the query protocol; "" if SQS did not answer.

    If botocore's model of SQS knows the code, the model's name for it.
    """
    if not isinstance(error, ClientError):
        return ""
    found = error.response.get("Error", {})
    modelled = str(found.get("QueryErrorCode") or "")
    # A code that is in no model has another name there: InvalidParameterValueException.
    code = modelled if modelled and not modelled.endswith("Exception") else str(found.get("Code") or "")
    kms = _KMS.fullmatch(code)
    return f"Kms{kms[1]}" if kms else code.removeprefix("AWS.SimpleQueueService.")


def is_of_another(error: BaseException) -> bool:
    """Whether the error is the answer of something other than SQS."""
    return isinstance(error, ClientError) and is_foreign(error.response)


def is_failed_poll(error: BaseException) -> TypeGuard[Exception]:
    """Whether a poll failed as polls do. Anything else is the fault of a queue of the user's own making.

    On JSON that is not SQS's, botocore stumbles while it reads the answer.
    """
    return isinstance(error, _POLL_ERRORS) or is_unreadable(error)


def is_unreadable(error: BaseException) -> bool:
    """Whether botocore stumbled over an answer."""
    if isinstance(error, ResponseParserError):
        return True
    places = [_place(frame) for frame, _ in traceback.walk_tb(error.__traceback__)]
    in_parser = any(place.startswith("botocore.parsers.") for place in places)
    return isinstance(error, Exception) and (in_parser or not _ENDPOINT.isdisjoint(places[-1:]))


def _place(frame: FrameType) -> str:
    return f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}"


def is_answer(error: BaseException) -> bool:
    """Whether SQS itself said no. Anything else may have taken effect, its answer lost on the way."""
    return isinstance(error, ClientError) and kind_of(error) is not Kind.UNKNOWN


def is_lacking(error: BaseException) -> bool:
    """Whether a server other than AWS does not know the operation: it said so, or answered with a page."""
    if not isinstance(error, ClientError):
        return False
    return code_of(error) in _LACKING or _status(error) == 501 or is_of_another(error)


def is_beyond_total(error: BaseException) -> bool:
    """Whether SQS refused because the claim's 12 hours would be exceeded. The claim itself is still held."""
    return code_of(error) == "InvalidParameterValue" and "beyond the limit" in str(error)


def is_claim_lost(error: BaseException) -> bool:
    """Whether SQS said that this receipt handle no longer holds a claim."""
    return code_of(error) in _CLAIM_LOST and not is_beyond_total(error)


def is_deleted(error: BaseException) -> bool:
    """Whether SQS answered an extension as it does for a deleted message."""
    return is_claim_lost(error) and code_of(error) in _DELETED and "expired" not in str(error)


def is_missing_queue(error: BaseException) -> bool:
    """Whether SQS says that there is no such queue."""
    return _REMEDIES.get(code_of(error)) is _NO_QUEUE


def remedy_for(error: BaseException) -> str | None:
    """What helps if asking again does not; None if it may help: no answer, throttling, SQS's own failures (5xx),
    credentials that expired and may be renewed, and any error unknown here."""
    if isinstance(error, ClientError):
        return _REMEDIES.get(code_of(error))
    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run with an IAM role"
    if isinstance(error, NoRegionError):
        return "set AWS_DEFAULT_REGION, or a region in the profile you use"
    return None


# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html and SendMessageBatch's own
_THROTTLED = {
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestThrottled",
    "RequestThrottledException",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "SlowDown",
    "KmsThrottled",
    "KmsThrottling",
}
_FAULTS = {
    "InternalError",
    "InternalFailure",
    "InternalServerError",
    "ServiceUnavailable",
    "RequestTimeout",
    "RequestTimeoutException",
    "RequestAbortedException",
}
# In addition to the codes that have a remedy above.
_ABOUT_QUEUE = {"QueueDeletedRecently", "ExpiredToken", "ExpiredTokenException", "RequestExpired"}


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: throttling, faults of the service, troubles of the network."""
    if isinstance(error, ClientError):
        return kind_of(error) is not Kind.REFUSED
    # ConnectionError and TimeoutError: a queue of the user's own making. An answer that cannot be read was cut off.
    return isinstance(error, (NotConnected, HTTPClientError, ConnectionError, TimeoutError)) or is_unreadable(error)


def is_about_queue(error: BaseException) -> bool:
    """Whether every request to this queue with these credentials meets the same error, whatever its content."""
    if isinstance(error, ClientError):
        return code_of(error) in _REMEDIES or code_of(error) in _ABOUT_QUEUE
    return isinstance(error, BotoCoreError) and not isinstance(error, ParamValidationError)


def _status(error: ClientError) -> int:
    status: int = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status
