"""What SQS allows, as constants, and the checks that quote them.

A check builds its message from the same constant it compares with, so that the text can never contradict the rule.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
MAX_MESSAGE_BYTES = 1024 * 1024
MAX_BATCH_BYTES = MAX_MESSAGE_BYTES
MAX_BATCH_ENTRIES = 10
MAX_MESSAGE_ATTRIBUTES = 10
MAX_DELAY_SECONDS = 900
MAX_WAIT_SECONDS = 20

# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/using-messagegroupid-property.html
# Message group ids and message deduplication ids: letters, digits and punctuation of ASCII.
MAX_IDENTIFIER_CHARACTERS = 128
_IDENTIFIER = re.compile(f"[!-~]{{1,{MAX_IDENTIFIER_CHARACTERS}}}")

# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/using-messagededuplicationid-property.html
# For this long a FIFO queue accepts, and drops, messages with the deduplication id of an earlier one.
DEDUPLICATION_SECONDS = 5 * 60

# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-visibility-timeout.html
# The ceiling of one visibility timeout, and of a claim as a whole: the total counts from the ReceiveMessage request,
# and extensions do not reset it.
MAX_VISIBILITY_SECONDS = 12 * 60 * 60

# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html
# What SQS refuses in a message: control characters other than tab and line ends, surrogates, U+FFFE and U+FFFF.
_NOT_SENDABLE = re.compile(r"[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def is_sendable(text: str) -> bool:
    """Whether SQS takes `text` as the value of a message attribute: not empty, and only of allowed characters."""
    return bool(text) and not _NOT_SENDABLE.search(text)


def first_not_sendable(text: str) -> str:
    """The first character that SQS refuses in bodies and attributes, "" if there is none."""
    found = _NOT_SENDABLE.search(text)
    return "" if found is None else found.group()


def message_bytes(request: Mapping[str, Any]) -> int:
    """The bytes of a message as SQS counts them: its body, and the names, types and values of its attributes."""
    return _text_bytes(request["MessageBody"]) + attributes_bytes(request.get("MessageAttributes", {}))


def attributes_bytes(attributes: Mapping[str, Any]) -> int:
    """The bytes of message attributes as SQS counts them: their names, types and values."""
    size = 0
    for name, attribute in attributes.items():
        value = attribute.get("StringValue", attribute.get("BinaryValue", b""))
        size += _text_bytes(name) + len(attribute["DataType"])
        size += _text_bytes(value) if isinstance(value, str) else len(value)
    return size


def _text_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def is_number(value: Any) -> bool:
    """Whether `value` is a finite real number (True and False are not)."""
    if type(value) is int:  # first, since most are
        return True
    if isinstance(value, float):
        return math.isfinite(value)
    # math.isfinite raises OverflowError for an int beyond the range of floats.
    return isinstance(value, int) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Whether `value` is a whole number, 30.0 included."""
    return type(value) is int or (is_number(value) and value == int(value))


def check_whole_seconds(name: str, value: Any, highest: int) -> int:
    """`value` as an int, if it is a whole number of seconds in 0..`highest`.

    Raises ValueError naming the argument, the value and the range.
    """
    if not is_whole(value) or not 0 <= value <= highest:
        raise ValueError(f"{name} must be a whole number of seconds from 0 to {highest}, not {value!r}")
    return int(value)


def check_identifier(name: str, value: Any) -> str:
    """`value`, if SQS takes it as a message group id or a deduplication id.

    Raises ValueError naming the argument, the value and what is allowed.
    """
    if not isinstance(value, str) or not _IDENTIFIER.fullmatch(value):
        raise ValueError(
            f"{name} must be a string of 1 to {MAX_IDENTIFIER_CHARACTERS} ASCII letters, digits and punctuation "
            f"characters (no spaces), not {value!r:.200}"
        )
    return value


def check_whole(name: str, value: Any, lowest: int, highest: int) -> int:
    """`value` as an int, if it is a whole number in `lowest`..`highest`. Raises ValueError naming all of them."""
    if not is_whole(value) or not lowest <= value <= highest:
        raise ValueError(f"{name} must be a whole number from {lowest} to {highest}, not {value!r}")
    return int(value)
