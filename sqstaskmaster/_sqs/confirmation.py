"""Whether an answer confirms that a request was carried out. An empty answer is not SQS's.

A captive portal, a login page or a mesh's default backend answers 200 too, and botocore turns its page into an empty
answer. So the results of boto3's own methods are checked. A user's own queue may change the body, or return nothing: it
is believed when it returns, unless it passes on botocore's answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from sqstaskmaster.errors import NoAnswer

#: What to do about an answer that is not SQS's.
REMEDY = "check AWS_ENDPOINT_URL_SQS, and what stands between here and SQS (a login page, a proxy, a mesh)"

# The key that botocore puts into every parsed answer.
_METADATA = "ResponseMetadata"

_LISTS = ("Successful", "Failed")


def md5(text: str) -> str:
    """The checksum of the SQS protocol, 32 hexadecimal digits."""
    # Not used for security: without the flag, FIPS builds of Python refuse it.
    return hashlib.md5(text.encode(errors="surrogatepass"), usedforsecurity=False).hexdigest()


def is_of_boto3(thing: Any, method: str) -> bool:
    """Whether a queue's or message's method is boto3's own, on its class and on itself: not a wrapper or a mock."""
    return all(
        getattr(getattr(owner, method, None), "__module__", None) == "boto3.resources.factory"
        for owner in (type(thing), thing)
    )


def check_sent(answer: Any, body: str, of_boto3: bool) -> None:
    """Raise NoAnswer unless this answer to SendMessage says that the message was sent.

    :param body: what was sent. If boto3's own method sent it, the answer has its MD5.
    :param of_boto3: whether boto3's own method made the request.
    """
    if of_boto3 or _is_botocores(answer):
        lack = _lack(answer if isinstance(answer, Mapping) else {}, body if of_boto3 else None)
        if lack is not None:
            raise _not_said("SendMessage", lack)


def check_done(operation: str, answer: Any, endpoint: str) -> None:
    """Raise NoAnswer if this answer is not SQS's: for operations whose answers are empty (DeleteMessage)."""
    if not _is_botocores(answer):
        return
    metadata = answer[_METADATA]
    kind = metadata.get("HTTPHeaders", {}).get("content-type", "")
    if "RequestId" not in metadata and not kind.startswith("application/x-amz-json"):
        raise NoAnswer(f"{endpoint}: the answer to {operation} is not SQS's: it has no request id: {REMEDY}")


def is_foreign(answer: Mapping[str, Any]) -> bool:
    """Whether an error answer is from something other than SQS: in place of a code it has the status, or nothing."""
    code = str(answer.get("Error", {}).get("Code") or "")
    return not code or code.isdecimal()


def text_of_foreign(answer: Mapping[str, Any], operation: str, endpoint: str) -> str:
    """The text for such an error, in place of the page that it may be."""
    metadata = answer.get(_METADATA, {})
    kind = metadata.get("HTTPHeaders", {}).get("content-type", "")
    status = f"HTTP {metadata.get('HTTPStatusCode')}" + f", {kind}" * bool(kind)
    return f"{endpoint} does not answer {operation} as SQS does ({status}): {REMEDY}"


def attributes_in(answer: Any) -> Mapping[str, str]:
    """The attributes in an answer to GetQueueAttributes.

    :raises NoAnswer: if there are none.
    """
    found = answer.get("Attributes") if isinstance(answer, Mapping) else None
    if not isinstance(found, Mapping):
        raise NoAnswer(f"The answer to GetQueueAttributes is not SQS's: it has no attributes: {REMEDY}")
    return found


def batch_results(
    operation: str, answer: Any, bodies: Mapping[str, str | None], of_boto3: bool
) -> dict[str, Mapping[str, Any] | Exception]:
    """For each entry of a batch SQS's result, or the error that a request for it alone would have raised.

    An entry that is in neither list, or listed more than once, is unknown: NoAnswer. Ids that were never sent are
    ignored.

    :param operation: SendMessageBatch, for example.
    :param bodies: the ids of the entries, each with its body if it is a message to send.
    :param of_boto3: whether boto3's own method made the request. A queue of the user's own that answers without lists
        is believed, as it is for a single message.
    """
    strict = of_boto3 or _is_botocores(answer)
    if not strict and not (isinstance(answer, Mapping) and any(name in answer for name in _LISTS)):
        return dict.fromkeys(bodies, {})
    results: dict[str, Mapping[str, Any] | Exception] = {}
    for entry in _entries(answer, "Failed"):
        _put(results, operation, entry.get("Id"), _error(operation, entry))
    for entry in _entries(answer, "Successful"):
        body = bodies.get(entry.get("Id", ""))
        lack = _lack(entry, body if of_boto3 else None) if strict and body is not None else None
        _put(results, operation, entry.get("Id"), entry if lack is None else _not_said(operation, lack))
    nowhere = NoAnswer(f"The answer to {operation} does not list this entry: {REMEDY}")
    return {name: results.get(name, nowhere) for name in bodies}


def _put(results: dict[Any, Any], operation: str, name: Any, result: Mapping[str, Any] | Exception) -> None:
    if name in results:
        result = NoAnswer(f"The answer to {operation} lists this entry more than once: {REMEDY}")
    results[name] = result


def _lack(said: Mapping[str, Any], body: str | None) -> str | None:
    """What an answer about a sent message lacks that SQS's would have; None if nothing."""
    if not said.get("MessageId"):
        return "it has no MessageId"
    if body is None or said.get("MD5OfMessageBody") == md5(body):
        return None
    return "its MD5 is not that of the body" if "MD5OfMessageBody" in said else "it has no MD5 of the body"


def _not_said(operation: str, lack: str) -> NoAnswer:
    return NoAnswer(f"The answer to {operation} does not say that the message was sent: {lack}: {REMEDY}")


def _error(operation: str, entry: Mapping[str, Any]) -> Exception:
    """What a request for this one entry would have raised."""
    from botocore.exceptions import ClientError  # loaded here: not every user of a queue sends requests

    code, text = str(entry.get("Code", "")), str(entry.get("Message", "no reason given"))
    of_sender = bool(entry.get("SenderFault"))
    error = {"Code": code, "Message": text, "Type": "Sender" if of_sender else "Receiver"}
    metadata = {"HTTPStatusCode": 400 if of_sender else 500}
    raised: Exception = ClientError({"Error": error, "ResponseMetadata": metadata}, operation)
    return raised


def _is_botocores(answer: Any) -> bool:
    return isinstance(answer, Mapping) and isinstance(answer.get(_METADATA), Mapping)


def _entries(answer: Any, name: str) -> list[Mapping[str, Any]]:
    found = answer.get(name) if isinstance(answer, Mapping) else None
    return [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, (list, tuple)) else []
