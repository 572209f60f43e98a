"""What SQS refuses in a request that boto3 would send, and how it checksums and selects message attributes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqstaskmaster._memory import service
from sqstaskmaster._memory.refusals import (
    TRACE_HEADER,
    INVALID,
    MISSING,
    Wrong,
    invalid,
    too_long,
    wrong_entries,
    wrong_message,
)
from sqstaskmaster._sqs.limits import (
    MAX_BATCH_ENTRIES,
    MAX_MESSAGE_ATTRIBUTES,
    MAX_VISIBILITY_SECONDS,
    MAX_WAIT_SECONDS,
    check_identifier,
    first_not_sendable,
    message_bytes,
)

# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-message-metadata.html
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,256}")
_RESERVED = re.compile(r"(aws|amazon)\.|\.", re.IGNORECASE)
_TYPE = re.compile(r"(String|Number|Binary)(\..+)?")
_MAX_TYPE_CHARACTERS = 256
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessageBatchRequestEntry.html
_ENTRY_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")

_ALLOWED = "#x9 | #xA | #xD | #x20 to #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF"
_NO_DEDUPLICATION = (
    INVALID,
    "The queue should either have ContentBasedDeduplication enabled or MessageDeduplicationId provided explicitly",
)

Attributes = Mapping[str, Mapping[str, Any]]


# -- sending ----------------------------------------------------------------------------------------------------------


def wrong_send(given: Mapping[str, Any], fifo: bool, by_content: bool, most: int) -> Wrong | None:
    """What is wrong with one message; errors for which a FIFO batch is refused as a whole come first."""
    body = given["MessageBody"]
    if not body:
        return MISSING, "The request must contain the parameter MessageBody."
    wrong = wrong_message(given, fifo, message_bytes(given), most)
    if wrong:
        return wrong
    if fifo and not by_content and "MessageDeduplicationId" not in given:
        return _NO_DEDUPLICATION
    odd = first_not_sendable(body)
    if odd:
        return "InvalidMessageContents", _odd_character(odd, "the message body")
    return _wrong_attributes(given.get("MessageAttributes") or {}) or _wrong_system_attributes(
        given.get("MessageSystemAttributes") or {}
    )


def wrong_send_batch(entries: Sequence[Mapping[str, Any]], fifo: bool, by_content: bool) -> Wrong | None:
    """What is wrong with a batch of messages as a whole."""
    wrong = wrong_batch(entries, "SendMessage") or too_long(sum(map(message_bytes, entries)))
    if wrong or not fifo:
        return wrong
    for entry in entries:
        if "MessageGroupId" not in entry:
            return INVALID, "The request must contain the parameter MessageGroupId."
        if not by_content and "MessageDeduplicationId" not in entry:
            return _NO_DEDUPLICATION
    return None


def wrong_batch(entries: Sequence[Mapping[str, Any]], kind: str) -> Wrong | None:
    """What is wrong with a batch of any kind: the number of its entries, and their ids."""
    wrong = wrong_entries(entries, kind)
    if wrong or all(_ENTRY_ID.fullmatch(entry["Id"]) for entry in entries):
        return wrong
    return "InvalidBatchEntryId", (
        "A batch entry id can only contain alphanumeric characters, hyphens and underscores. "
        "It can be at most 80 letters long."
    )


def _wrong_attributes(attributes: Attributes) -> Wrong | None:
    if len(attributes) > MAX_MESSAGE_ATTRIBUTES:
        text = f"Number of message attributes [{len(attributes)}] exceeds the allowed maximum"
        return INVALID, f"{text} [{MAX_MESSAGE_ATTRIBUTES}]."
    for name, attribute in attributes.items():
        wrong = _wrong_name(name) or _wrong_value(f"message (user) attribute '{name}'", attribute)
        if wrong:
            return wrong
    return None


def _wrong_name(name: str) -> Wrong | None:
    if _RESERVED.match(name) or name.endswith(".") or ".." in name:
        return INVALID, (
            f"The message attribute name '{name}' is invalid. Attribute name can't begin with AWS. or Amazon., begin "
            "or end with a period, or have periods in succession."
        )
    if not _NAME.fullmatch(name):
        return INVALID, (
            f"The message attribute name '{name}' is invalid. Attribute name can contain A-Z, a-z, 0-9, underscore "
            "(_), hyphen (-), and period (.) characters."
        )
    return None


def _wrong_value(what: str, attribute: Mapping[str, Any]) -> Wrong | None:
    """`what`: what it is called in the middle of a sentence."""
    kind = attribute["DataType"]
    base = kind.partition(".")[0]
    upper = f"{what[0].upper()}{what[1:]}"
    if not kind:
        return INVALID, f"{upper} must contain a non-empty attribute type."
    if not _TYPE.fullmatch(kind) or len(kind) > _MAX_TYPE_CHARACTERS:
        supported = "You must use only the following supported type prefixes: Binary, Number, String."
        return INVALID, f"The type of {what} is invalid. {supported}"
    if attribute.get("StringListValues") or attribute.get("BinaryListValues"):
        return INVALID, f"{upper} has a list of values, which are not supported."
    value = attribute.get("BinaryValue" if base == "Binary" else "StringValue")
    if not value:
        return INVALID, f"{upper} must contain a non-empty value of type '{kind}'."
    odd = "" if base == "Binary" else first_not_sendable(value)
    if odd:
        return INVALID, _odd_character(odd, f"{what} value")
    if base == "Number" and not _NUMBER.fullmatch(value):
        return INVALID, f"Can't cast the value of {what} to a number."
    return None


def _wrong_system_attributes(attributes: Attributes) -> Wrong | None:
    for name, attribute in attributes.items():
        if name != TRACE_HEADER:
            return (
                INVALID,
                f"Message (system) attribute '{name}' is invalid: the only one supported is {TRACE_HEADER}.",
            )
        if attribute["DataType"] != "String":
            return INVALID, f"The type of message (system) attribute '{name}' must be 'String'."
        wrong = _wrong_value(f"message (system) attribute '{name}'", attribute)
        if wrong:
            return wrong
    return None


def _odd_character(character: str, place: str) -> str:
    found = f"Invalid binary character '#x{ord(character):X}' was found in {place}"
    return f"{found}, the set of allowed characters is {_ALLOWED}"


# -- receiving, claims ------------------------------------------------------------------------------------------------


def wrong_receive(given: Mapping[str, Any], fifo: bool) -> Wrong | None:
    most = given.get("MaxNumberOfMessages", 1)
    if not 1 <= most <= MAX_BATCH_ENTRIES:
        return invalid("MaxNumberOfMessages", most, f"Must be between 1 and {MAX_BATCH_ENTRIES}, if provided.")
    wait = given.get("WaitTimeSeconds", 0)
    if not 0 <= wait <= MAX_WAIT_SECONDS:
        return invalid("WaitTimeSeconds", wait, f"Must be >= 0 and <= {MAX_WAIT_SECONDS}, if provided.")
    known = service.system_attribute_names()
    for name in (*given.get("AttributeNames", ()), *given.get("MessageSystemAttributeNames", ())):
        if name not in known and name != "*":
            return "InvalidAttributeName", f"Unknown Attribute {name}."
    attempt = given.get("ReceiveRequestAttemptId")
    if attempt is not None:
        if not fifo:
            reason = "The request includes a parameter that is not valid for this queue type."
            return invalid("ReceiveRequestAttemptId", attempt, reason)
        try:
            check_identifier("ReceiveRequestAttemptId", attempt)
        except ValueError:
            reason = "ReceiveRequestAttemptId can only include alphanumeric and punctuation characters. "
            return invalid("ReceiveRequestAttemptId", attempt, f"{reason}1 to 128 in length.")
    return wrong_visibility(given.get("VisibilityTimeout", 0))


def wrong_visibility(seconds: int) -> Wrong | None:
    if 0 <= seconds <= MAX_VISIBILITY_SECONDS:
        return None
    return invalid("VisibilityTimeout", seconds, f"Must be between 0 and {MAX_VISIBILITY_SECONDS}, if provided.")


# -- the attributes of messages ---------------------------------------------------------------------------------------


def chosen(attributes: Mapping[str, Any], names: Iterable[str]) -> Mapping[str, Any]:
    """The requested attributes: by name, all of them, or by the beginning of the name, "prefix.*"."""
    names = tuple(names)
    if not names or not attributes:
        return {}
    if "All" in names or ".*" in names or "*" in names:
        return attributes
    prefixes = tuple(name[:-2] for name in names if name.endswith(".*"))
    return {
        name: value for name, value in attributes.items() if name in names or (prefixes and name.startswith(prefixes))
    }


def md5_of_attributes(attributes: Attributes) -> str:
    """SQS's checksum of message attributes: sorted by name, each part preceded by its length in four bytes.

    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-message-metadata.html
    """
    summed = bytearray()
    for name in sorted(attributes):
        attribute = attributes[name]
        kind = attribute["DataType"]
        binary = kind.startswith("Binary")
        value = attribute["BinaryValue"] if binary else attribute["StringValue"].encode(errors="surrogatepass")
        for part in (name.encode(), kind.encode()):
            summed += len(part).to_bytes(4, "big") + part
        summed += (b"\x02" if binary else b"\x01") + len(value).to_bytes(4, "big") + value
    return hashlib.md5(summed, usedforsecurity=False).hexdigest()


def copy_of(attributes: Attributes) -> dict[str, dict[str, Any]]:
    """The attributes as a receiver gets them: only the keys of the value, and bytes for bytes-like values."""
    copied: dict[str, dict[str, Any]] = {}
    for name, attribute in attributes.items():
        kind = attribute["DataType"]
        if kind.startswith("Binary"):
            copied[name] = {"BinaryValue": _bytes_of(attribute["BinaryValue"]), "DataType": kind}
        else:
            copied[name] = {"StringValue": attribute["StringValue"], "DataType": kind}
    return copied


def _bytes_of(value: Any) -> bytes:
    """The bytes of a blob, for which boto3 also accepts text and files."""
    if hasattr(value, "read"):
        value = value.read()
    return value.encode() if isinstance(value, str) else bytes(value)
