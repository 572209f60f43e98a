"""Whether an answer confirms what was asked for. An answer that says nothing is none of SQS's.

A captive portal, a login page or a mesh's default backend answers 200 too, and botocore makes an empty answer of its
page. What boto3's own methods give is therefore looked at. A user's own queue may change the body, or return nothing:
it is believed when it returns, unless it hands on what is botocore's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from sqstaskmaster.errors import NoAnswer

#: What is to be done about an answer that is none of SQS's.
REMEDY = "check AWS_ENDPOINT_URL_SQS, and what stands between here and SQS (a login page, a proxy, a mesh)"

# What botocore puts into all that it has read of an answer.
_METADATA = "ResponseMetadata"

_LISTS = ("Successful", "Failed")


def md5(text: str) -> str:
    """The checksum of the SQS protocol, 32 hexadecimal digits."""
    # No security: without the flag, FIPS builds of Python refuse it.
    return hashlib.md5(text.encode(errors="surrogatepass"), usedforsecurity=False).hexdigest()


def is_of_boto3(thing: Any, method: str) -> bool:
    """Whether a queue's or message's method is boto3's own, in its class and in itself: nobody's wrapper or mock."""
    return all(
        getattr(getattr(owner, method, None), "__module__", None) == "boto3.resources.factory"
        for owner in (type(thing), thing)
    )


def check_sent(answer: Any, body: str, of_boto3: bool) -> None:
    """Raise NoAnswer unless this answer to SendMessage says that the message was sent.

    :param body: what was sent. Where boto3's own method has sent it, the answer has its MD5.
    :param of_boto3: whether boto3's own method made the request.
    """
    if of_boto3 or _is_botocores(answer):
        lack = _lack(answer if isinstance(answer, Mapping) else {}, body if of_boto3 else None)
        if lack is not None:
            raise _not_said("SendMessage", lack)


def check_done(operation: str, answer: Any, endpoint: str) -> None:
    """Raise NoAnswer where this answer came from no SQS: for operations that have nothing to say (DeleteMessage)."""
    if not _is_botocores(answer):
        return
    metadata = answer[_METADATA]
    kind = metadata.get("HTTPHeaders", {}).get("content-type", "")
    if "RequestId" not in metadata and not kind.startswith("application/x-amz-json"):
        raise NoAnswer(f"{endpoint}: the answer to {operation} is not SQS's: it has no request id: {REMEDY}")


def is_foreign(answer: Mapping[str, Any]) -> bool:
    """Whether an error was answered by something that is not SQS: in place of a code it has the status, or nothing."""
    code = str(answer.get("Error", {}).get("Code") or "")
    return not code or code.isdecimal()


def text_of_foreign(answer: Mapping[str, Any], operation: str, endpoint: str) -> str:
    """What is said of such an error, in place of the page that it may be."""
    metadata = answer.get(_METADATA, {})
    kind = metadata.get("HTTPHeaders", {}).get("content-type", "")
    status = f"HTTP {metadata.get('HTTPStatusCode')}" + f", {kind}" * bool(kind)
    return f"{endpoint} does not answer {operation} as SQS does ({status}): {REMEDY}"


def attributes_in(answer: Any) -> Mapping[str, str]:
    """The attributes in an answer to GetQueueAttributes.

    :raises NoAnswer: where there are none.
    """
    found = answer.get("Attributes") if isinstance(answer, Mapping) else None
    if not isinstance(found, Mapping):
        raise NoAnswer(f"The answer to GetQueueAttributes is not SQS's: it has no attributes: {REMEDY}")
    return found


def batch_results(
    operation: str, answer: Any, bodies: Mapping[str, str | None], of_boto3: bool
) -> dict[str, Mapping[str, Any] | Exception]:
    """For each entry of a batch what SQS says of it, or the error that a request of its own would have raised.

    An entry that is in neither list, or in them more than once, is unknown: NoAnswer. Ids that were never sent say
    nothing.

    :param operation: SendMessageBatch, say.
    :param bodies: the ids of the entries, each with its body where it is a message that is sent.
    :param of_boto3: whether boto3's own method made the request. A queue of the user's own that answers without lists
        is believed, as it is with a single message.
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
    """What an answer about a message that was sent has not, of what SQS says."""
    if not said.get("MessageId"):
        return "it has no MessageId"
    if body is None or said.get("MD5OfMessageBody") == md5(body):
        return None
    return "its MD5 is not that of the body" if "MD5OfMessageBody" in said else "it has no MD5 of the body"


def _not_said(operation: str, lack: str) -> NoAnswer:
    return NoAnswer(f"The answer to {operation} does not say that the message was sent: {lack}: {REMEDY}")


def _error(operation: str, entry: Mapping[str, Any]) -> Exception:
    """What the request for this one entry would have raised."""
    from botocore.exceptions import ClientError  # loaded here: not everybody who knows a queue sends requests

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
