"""What the errors of SQS mean to the holder of a claim."""

from __future__ import annotations

from botocore.exceptions import BotoCoreError, ClientError

# ClientError: SQS answered with an error. BotoCoreError: there was no answer, or no request: a lost connection, a read
# timeout, missing or expired credentials.
SQS_ERRORS = (ClientError, BotoCoreError)

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


def is_answer(error: BaseException) -> bool:
    """Whether SQS itself said no. Anything else may have taken effect, its answer lost on the way."""
    return isinstance(error, ClientError)


def is_beyond_total(error: BaseException) -> bool:
    """Whether SQS refused because the claim's 12 hours would be exceeded. The claim itself is still held."""
    return code_of(error) == "InvalidParameterValue" and "beyond the limit" in str(error)


def is_claim_lost(error: BaseException) -> bool:
    """Whether SQS said that this receipt handle holds no claim any more."""
    return code_of(error) in _CLAIM_LOST and not is_beyond_total(error)
