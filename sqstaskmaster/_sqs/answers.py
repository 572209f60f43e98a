"""What the errors of SQS mean: to the holder of a claim, and to the sender of tasks."""

from __future__ import annotations

import traceback
from types import FrameType
from typing import TypeGuard

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
)
from botocore.parsers import ResponseParserError

# ClientError: SQS answered with an error. BotoCoreError: there was no answer, or no request: a lost connection, a read
# timeout, missing or expired credentials.
SQS_ERRORS = (ClientError, BotoCoreError)

# What a poll may meet: the same, and an answer that was cut off or came from something else in between, a proxy's page
# that is no UTF-8 perhaps.
_POLL_ERRORS = (*SQS_ERRORS, ResponseParserError, UnicodeDecodeError, OSError)

# Where botocore reads what it has parsed.
_ENDPOINT = {"botocore.endpoint._do_get_response", "botocore.endpoint._send_request"}

# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html
# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ReceiveMessage.html#API_ReceiveMessage_Errors
_NO_QUEUE = "check the queue's URL, its region and its account, and AWS_ENDPOINT_URL where it is set"
_NO_PERMISSION = "grant sqs:ReceiveMessage, DeleteMessage, ChangeMessageVisibility and GetQueueAttributes to this role"
_NO_SUCH_KEY = "AWS does not know the access key: check AWS_ACCESS_KEY_ID, AWS_PROFILE or the role"
_NO_KEY_ACCESS = "the queue is encrypted: grant kms:Decrypt on its key to this role, and check that the key is enabled"
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
    "KmsAccessDenied": _NO_KEY_ACCESS,
    "KmsDisabled": _NO_KEY_ACCESS,
    "KmsInvalidState": _NO_KEY_ACCESS,
    "KmsNotFound": _NO_KEY_ACCESS,
    "KmsOptInRequired": _NO_KEY_ACCESS,
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


def code_of(error: BaseException) -> str:
    """The error code SQS answered with, without the prefix of the query protocol; "" where SQS did not answer."""
    if not isinstance(error, ClientError):
        return ""
    return str(error.response.get("Error", {}).get("Code", "")).rpartition(".")[2]


def is_failed_poll(error: BaseException) -> TypeGuard[Exception]:
    """Whether a poll failed as polls do. Anything else is the fault of a queue of the user's own making.

    Over JSON that is not what SQS says, botocore stumbles where it reads the answer.
    """
    if isinstance(error, _POLL_ERRORS):
        return True
    places = [_place(frame) for frame, _ in traceback.walk_tb(error.__traceback__)]
    in_parser = any(place.startswith("botocore.parsers.") for place in places)
    return isinstance(error, Exception) and (in_parser or not _ENDPOINT.isdisjoint(places[-1:]))


def _place(frame: FrameType) -> str:
    return f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}"


def is_answer(error: BaseException) -> bool:
    """Whether SQS itself said no. Anything else may have taken effect, its answer lost on the way."""
    return isinstance(error, ClientError)


def is_beyond_total(error: BaseException) -> bool:
    """Whether SQS refused because the claim's 12 hours would be exceeded. The claim itself is still held."""
    return code_of(error) == "InvalidParameterValue" and "beyond the limit" in str(error)


def is_claim_lost(error: BaseException) -> bool:
    """Whether SQS said that this receipt handle holds no claim any more."""
    return code_of(error) in _CLAIM_LOST and not is_beyond_total(error)


def is_missing_queue(error: BaseException) -> bool:
    """Whether SQS says that there is no such queue."""
    return _REMEDIES.get(code_of(error)) is _NO_QUEUE


def remedy_for(error: BaseException) -> str | None:
    """What helps where asking again does not; None where it may: no answer, throttling, SQS's own failures (5xx),
    credentials that expired and may be renewed, and whatever is not known here."""
    if isinstance(error, ClientError):
        return _REMEDIES.get(code_of(error))
    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run with an IAM role"
    if isinstance(error, NoRegionError):
        return "set AWS_DEFAULT_REGION, or a region in the profile you use"
    return None


# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html and SendMessageBatch's own
_BUSY = {
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestThrottled",
    "RequestThrottledException",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "SlowDown",
    "KmsThrottled",
    "InternalError",
    "InternalFailure",
    "InternalServerError",
    "ServiceUnavailable",
    "RequestTimeout",
}
_ABOUT_QUEUE = {"QueueDoesNotExist", "NonExistentQueue", "QueueDeletedRecently", "InvalidAddress", "InvalidSecurity"}


def is_busy(code: str) -> bool:
    """Whether an error code says that the same request may succeed later: throttling, and faults of the service."""
    return code.rpartition(".")[2] in _BUSY


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: throttling, faults of the service, troubles of the network."""
    if isinstance(error, ClientError):
        return is_busy(code_of(error)) or _status(error) >= 500 or _status(error) == 429
    # ConnectionError and TimeoutError: a queue of the user's own making. An answer that cannot be read was cut off.
    return isinstance(error, (HTTPClientError, ResponseParserError, ConnectionError, TimeoutError))


def is_about_queue(error: BaseException) -> bool:
    """Whether any request to this queue with these credentials meets the same error, whatever is in it."""
    if isinstance(error, ClientError):
        return _status(error) in (401, 403) or code_of(error) in _ABOUT_QUEUE
    return isinstance(error, BotoCoreError) and not isinstance(error, ParamValidationError)


def _status(error: ClientError) -> int:
    status: int = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status
