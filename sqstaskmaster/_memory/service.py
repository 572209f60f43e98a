"""SQS as botocore's own model defines it: what boto3 refuses before it sends, and the classes of SQS's errors."""

from __future__ import annotations

import functools
import itertools
import uuid
from collections.abc import Mapping
from typing import Any

from botocore.errorfactory import ClientExceptionsFactory
from botocore.exceptions import ClientError, ParamValidationError, ReadTimeoutError
from botocore.loaders import create_loader
from botocore.model import ServiceModel
from botocore.validate import ParamValidator

from sqstaskmaster._memory.refusals import code_and_name, error_response

_validator = ParamValidator()
_valid: set[tuple[object, ...]] = set()
_run = uuid.uuid4().hex
_numbers = itertools.count(1)


@functools.cache
def _model() -> Any:
    return ServiceModel(create_loader().load_service_model("sqs", "service-2"), "sqs")


@functools.cache
def _input_of(operation: str) -> Any:
    return _model().operation_model(operation).input_shape


@functools.cache
def exceptions() -> Any:
    """A client's `exceptions`. Each boto3 session makes classes of its own; their base is ClientError."""
    return ClientExceptionsFactory().create_client_exceptions(_model())


@functools.cache
def queue_attribute_names() -> frozenset[str]:
    return frozenset(_model().shape_for("QueueAttributeName").enum)


@functools.cache
def system_attribute_names() -> frozenset[str]:
    """The attributes that ReceiveMessage may be asked for, including those of the deprecated AttributeNames."""
    return frozenset(_model().shape_for("MessageSystemAttributeName").enum) | queue_attribute_names()


def validate(operation: str, parameters: Mapping[str, Any]) -> None:
    """Raise botocore's ParamValidationError for what boto3 would not send."""
    # Most requests have only strings and integers, of which only names and types are checked. Checking them again and
    # again would take longer than carrying them out.
    known = operation, *parameters, *map(type, parameters.values())
    if known in _valid:
        return
    report = _validator.validate(parameters, _input_of(operation))
    if report.has_errors():
        raise ParamValidationError(report=report.generate_report())
    if all(type(value) in (str, int) for value in parameters.values()):
        _valid.add(known)


def new_id() -> str:
    """An id that looks like SQS's."""
    return f"{next(_numbers):08x}-{_run[:4]}-4{_run[4:7]}-a{_run[7:10]}-{_run[10:22]}"


def answer(**content: Any) -> dict[str, Any]:
    """An answer with the metadata that boto3 puts into each."""
    request_id = new_id()
    content["ResponseMetadata"] = {
        "RequestId": request_id,
        "HTTPStatusCode": 200,
        "HTTPHeaders": {"x-amzn-requestid": request_id, "content-type": "application/x-amz-json-1.0"},
        "RetryAttempts": 0,
    }
    return content


def refusal(operation: str, code: str, text: str) -> Exception:
    """What boto3 raises if SQS refuses a request."""
    response = error_response(code, text)
    response["ResponseMetadata"].update({"RequestId": new_id(), "HTTPHeaders": {}, "RetryAttempts": 0})
    # Older releases of botocore name the classes by the query protocol's code.
    full, name = code_and_name(code)
    kind = next((kind for kind in map(exceptions().from_code, (name, full)) if kind is not ClientError), ClientError)
    error: Exception = kind(response, operation)
    return error


def no_answer(url: str) -> Exception:
    error: Exception = ReadTimeoutError(endpoint_url=url)
    return error
