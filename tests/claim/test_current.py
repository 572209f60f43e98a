"""current_task(): what the task's own code, and its log, know of it."""

import logging
import threading
import unittest
import unittest.mock

from sqstaskmaster import LocalMessage
from sqstaskmaster._claim import current
from sqstaskmaster._claim.current import CurrentTask, TaskFilter, current_task


class CurrentTaskTest(unittest.TestCase):
    def task(self, name="T", message=None, left=100.0):
        self.reported, self.told = [], False
        message = message or LocalMessage("{}", {"ApproximateReceiveCount": "3"}, {"a": {"StringValue": "b"}})
        return CurrentTask(name, message, lambda: left, self.reported.append, lambda: self.told)

    def test_outside_a_task_there_is_none(self):
        self.assertIsNone(current_task())

    def test_it_says_what_the_message_says(self):
        task = self.task()
        self.assertEqual(("T", 3, 0), (task.name, task.receive_count, task.continuation))
        self.assertTrue(task.message_id.startswith("local-"))
        self.assertEqual(task.message_id, task.first_message_id)
        self.assertEqual({"a": {"StringValue": "b"}}, task.message_attributes)

    def test_a_message_that_says_nothing_is_no_trouble(self):
        task = self.task(message=unittest.mock.Mock())
        self.assertEqual(
            (None, 0, {}, {}), (task.receive_count, task.continuation, task.attributes, task.message_attributes)
        )

    def test_the_seconds_left_are_never_fewer_than_none(self):
        self.assertTrue(99 < self.task().seconds_left <= 100)
        self.assertEqual(0, self.task(left=-5).seconds_left)

    def test_stopping_is_asked_each_time_and_reports_go_where_they_should(self):
        task = self.task()
        self.assertFalse(task.stopping)
        self.told = True
        self.assertTrue(task.stopping)
        task.report(done=1, of=2)
        self.assertEqual([{"done": 1, "of": 2}], self.reported)

    def test_it_is_known_in_every_thread_while_it_runs_and_the_innermost_counts(self):
        outer, inner, seen = self.task("outer"), self.task("inner"), []
        with current.running(outer):
            with current.running(inner):
                thread = threading.Thread(target=lambda: seen.append(current_task()))
                thread.start()
                thread.join(30)
            self.assertIs(outer, current_task())
        self.assertEqual([inner], seen)
        self.assertIsNone(current_task())
        current.end(outer)

    def test_log_records_made_meanwhile_carry_task_and_message_id_unless_they_have_their_own(self):
        record = logging.makeLogRecord({})
        self.assertTrue(TaskFilter().filter(record))
        self.assertFalse(hasattr(record, "task"))
        with current.running(self.task()) as task:
            TaskFilter().filter(record)
            own = logging.makeLogRecord({"task": "other"})
            TaskFilter().filter(own)
        self.assertEqual(("T", task.message_id), (record.task, record.message_id))
        self.assertEqual(("other", task.message_id), (own.task, own.message_id))


if __name__ == "__main__":
    unittest.main()
