"""What SQS refuses in sent messages. Both queues in memory refuse the same, with SQS's code and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqstaskmaster._sqs.limits import (
    MAX_BATCH_BYTES,
    MAX_BATCH_ENTRIES,
    MAX_DELAY_SECONDS,
    MAX_IDENTIFIER_CHARACTERS,
    MAX_MESSAGE_BYTES,
    check_identifier,
    is_whole,
)

#: SQS's code, and its text.
Wrong = tuple[str, str]

INVALID = "InvalidParameterValue"
MISSING = "MissingParameter"

# Codes of the query protocol, which the JSON protocol passes on: boto3 shows them as `Code`.
_PREFIX = "AWS.SimpleQueueService."
_PREFIXED = {
    "BatchEntryIdsNotDistinct",
    "BatchRequestTooLong",
    "EmptyBatchRequest",
    "InvalidBatchEntryId",
    "MessageNotInflight",
    "PurgeQueueInProgress",
    "TooManyEntriesInBatchRequest",
    "UnsupportedOperation",
}
# The JSON protocol's names for errors that are in no model.
_JSON_NAMES = {INVALID: "InvalidParameterValueException", MISSING: "MissingRequiredParameterException"}
_FORBIDDEN = {"PurgeQueueInProgress"}

#: The system attribute that carries an AWS X-Ray trace.
TRACE_HEADER = "AWSTraceHeader"

IDENTIFIERS = ("MessageGroupId", "MessageDeduplicationId")


def invalid(name: str, value: Any, reason: str) -> Wrong:
    return INVALID, f"Value {value} for parameter {name} is invalid. Reason: {reason}"


def wrong_message(given: Mapping[str, Any], fifo: bool, size: int, most: int = MAX_MESSAGE_BYTES) -> Wrong | None:
    """What is wrong with a message of `size` bytes, if anything. Its attributes are not checked."""
    if size > most:
        return INVALID, f"One or more parameters are invalid. Reason: Message must be shorter than {most} bytes."
    delay = given.get("DelaySeconds", 0)
    if not is_whole(delay) or not 0 <= delay <= MAX_DELAY_SECONDS:
        return invalid("DelaySeconds", delay, f"DelaySeconds must be >= 0 and <= {MAX_DELAY_SECONDS}.")
    if fifo and delay:
        reason = "The request include parameter that is not valid for this queue type."
        return invalid("DelaySeconds", delay, reason)
    if fifo and "MessageGroupId" not in given:
        return MISSING, "The request must contain the parameter MessageGroupId."
    if "MessageDeduplicationId" in given and not fifo:
        reason = "The request includes a parameter that is not valid for this queue type."
        return invalid("MessageDeduplicationId", given["MessageDeduplicationId"], reason)
    for name in IDENTIFIERS:
        if name in given:
            try:
                check_identifier(name, given[name])
            except ValueError:
                reason = f"{name} can only include alphanumeric and punctuation characters. "
                return invalid(name, given[name], f"{reason}1 to {MAX_IDENTIFIER_CHARACTERS} in length.")
    return None


def wrong_entries(entries: Sequence[Mapping[str, Any]], kind: str) -> Wrong | None:
    """What is wrong with the entries of a batch as a whole. `kind`: "SendMessage", say."""
    if not entries:
        return "EmptyBatchRequest", f"There should be at least one {kind}BatchRequestEntry in the request."
    if len(entries) > MAX_BATCH_ENTRIES:
        sent = f"You have sent {len(entries)}."
        return "TooManyEntriesInBatchRequest", f"Maximum number of entries per request are {MAX_BATCH_ENTRIES}. {sent}"
    seen = set()
    for entry in entries:
        if entry["Id"] in seen:
            return "BatchEntryIdsNotDistinct", f"Id {entry['Id']} repeated."
        seen.add(entry["Id"])
    return None


def too_long(size: int) -> Wrong | None:
    """What is wrong with a batch whose messages have `size` bytes in all, if anything."""
    if size <= MAX_BATCH_BYTES:
        return None
    text = f"Batch requests cannot be longer than {MAX_BATCH_BYTES} bytes. You have sent {size} bytes."
    return "BatchRequestTooLong", text


def code_and_name(code: str) -> tuple[str, str]:
    """What boto3 shows as `Code` and as `QueryErrorCode`, which is the class's name in `client.exceptions`."""
    return f"{_PREFIX}{code}" if code in _PREFIXED else code, _JSON_NAMES.get(code, code)


def error_response(code: str, text: str) -> dict[str, Any]:
    """The answer with which SQS refuses a request, as boto3 returns it."""
    full, name = code_and_name(code)
    error = {"Message": text, "Code": full, "QueryErrorCode": name, "Type": "Sender"}
    return {"Error": error, "ResponseMetadata": {"HTTPStatusCode": 403 if code in _FORBIDDEN else 400}}


def refusal(operation: str, code: str, text: str) -> Exception:
    """What boto3 raises if SQS refuses a request, but as a plain ClientError."""
    from botocore.exceptions import ClientError  # loads botocore, which a LocalQueue that refuses nothing does not need

    refused: Exception = ClientError(error_response(code, text), operation)
    return refused
