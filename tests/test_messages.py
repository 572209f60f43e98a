"""The decoder and encoder on their own."""

import unittest

from sqstaskmaster.errors import MalformedMessage
from sqstaskmaster.messages import decode, encode


class MessagesTest(unittest.TestCase):
    def test_a_task_comes_back_as_it_was_sent(self):
        self.assertEqual(("T", {"a": [1, {"b": None}]}), decode(encode("T", {"a": [1, {"b": None}]})))

    def test_every_other_body_is_one_error(self):
        for body in ("[1]", '"x"', "5", "null", "", None, '{"task": 5, "kwargs": {}}', '{"task": "T", "kwargs": []}'):
            with self.subTest(body=body), self.assertRaises(MalformedMessage):
                decode(body)


if __name__ == "__main__":
    unittest.main()
