import unittest

from botocore import exceptions

from sqstaskmaster._cli.exits import explain
from sqstaskmaster._service.exit_codes import Exit
from sqstaskmaster.errors import ConfigurationError


def refused(code, message="no"):
    return exceptions.ClientError({"Error": {"Code": code, "Message": message}}, "SendMessage")


class TestExplain(unittest.TestCase):
    def test_every_error_that_ends_a_command_has_its_code_and_a_sentence_with_what_helps(self):
        for error, code, sentence in (
            (KeyboardInterrupt(), Exit.INTERRUPTED, "Interrupted"),
            (ValueError("slots must be\n1 or more"), Exit.USAGE, "slots must be 1 or more"),
            (ConfigurationError("No region"), Exit.QUEUE, "No region"),
            (FileNotFoundError(2, "No such file", "x.jsonl"), Exit.FAILED, "No such file: 'x.jsonl'"),
            (KeyError("x"), Exit.FAILED, "KeyError: 'x' (--debug shows where)"),
            (RuntimeError(), Exit.FAILED, "RuntimeError: RuntimeError"),
            (exceptions.NoCredentialsError(), Exit.QUEUE, "Unable to locate credentials"),
            (exceptions.NoRegionError(), Exit.QUEUE, "set AWS_DEFAULT_REGION"),
            (exceptions.ProfileNotFound(profile="p"), Exit.QUEUE, "check the AWS configuration"),
            (exceptions.EndpointConnectionError(endpoint_url="http://x"), Exit.UNREACHABLE, "check the network"),
            (refused("ServiceUnavailable"), Exit.UNREACHABLE, "try again later"),
            (refused("AccessDenied"), Exit.QUEUE, "grant sqs:SendMessage on the queue q to this role"),
            (refused("KMS.AccessDeniedException"), Exit.QUEUE, "(KmsAccessDenied): the queue is encrypted: grant kms:"),
            (refused("InvalidParameterValue", "no MessageDeduplicationId"), Exit.QUEUE, "--deduplication-id"),
            (refused("SomethingNew"), Exit.QUEUE, "SQS refused SendMessage for q: no (SomethingNew): check"),
        ):
            with self.subTest(repr(error)):
                found, said = explain(error, "q")
                self.assertEqual(code, found, said)
                self.assertIn(sentence.replace("the queue q", "the queue"), said)


if __name__ == "__main__":
    unittest.main()
