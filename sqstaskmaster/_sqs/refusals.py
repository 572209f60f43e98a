"""What SQS refuses in a message that is sent, as the queues in memory refuse it: with the same code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from sqstaskmaster._sqs.limits import (
    MAX_BATCH_BYTES,
    MAX_BATCH_ENTRIES,
    MAX_DELAY_SECONDS,
    MAX_MESSAGE_BYTES,
    check_identifier,
    check_whole_seconds,
    message_bytes,
)


def md5(text: str) -> str:
    # The checksum of the SQS protocol, no security: without the flag, FIPS builds of Python refuse it.
    return hashlib.md5(text.encode(errors="surrogatepass"), usedforsecurity=False).hexdigest()


SYSTEM_ATTRIBUTES = ("MessageGroupId", "MessageDeduplicationId")


def wrong_message(given: Mapping[str, Any], fifo: bool) -> tuple[str, str] | None:
    """SQS's code for what is wrong with a message, and a text."""
    if message_bytes(given) > MAX_MESSAGE_BYTES:
        return "InvalidParameterValue", f"A message must be shorter than {MAX_MESSAGE_BYTES} bytes"
    if fifo and "MessageGroupId" not in given:
        return "MissingParameter", "The request must contain the parameter MessageGroupId"
    if "DelaySeconds" in given and fifo:
        return "InvalidParameterValue", "DelaySeconds is not valid for single messages of a FIFO queue"
    if "MessageDeduplicationId" in given and not fifo:
        return "InvalidParameterValue", "MessageDeduplicationId is not valid for a standard queue"
    try:
        if "DelaySeconds" in given:
            check_whole_seconds("DelaySeconds", given["DelaySeconds"], MAX_DELAY_SECONDS)
        for name in SYSTEM_ATTRIBUTES:
            if name in given:
                check_identifier(name, given[name])
    except ValueError as error:
        return "InvalidParameterValue", str(error)
    return None


def wrong_batch(entries: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    if not entries:
        return "EmptyBatchRequest", "There should be at least one SendMessageBatchRequestEntry in the request"
    if len(entries) > MAX_BATCH_ENTRIES:
        return "TooManyEntriesInBatchRequest", f"Maximum number of entries per request is {MAX_BATCH_ENTRIES}"
    if len({entry["Id"] for entry in entries}) < len(entries):
        return "BatchEntryIdsNotDistinct", "Two or more batch entries in the request have the same Id"
    if sum(map(message_bytes, entries)) > MAX_BATCH_BYTES:
        return "BatchRequestTooLong", f"Batch requests cannot be longer than {MAX_BATCH_BYTES} bytes"
    return None


def refusal(operation: str, code: str, text: str) -> Exception:
    """What boto3 raises where SQS refuses a request."""
    from botocore.exceptions import ClientError

    error = {"Code": code, "Message": text, "Type": "Sender"}
    refused: Exception = ClientError({"Error": error, "ResponseMetadata": {"HTTPStatusCode": 400}}, operation)
    return refused
