"""What faulthandler writes, made readable."""

import unittest

from sqstaskmaster._isolation.stacks import readable

STARTER = ("/lib/sqstaskmaster/keeper.py", "_run")

DUMP = """\
Fatal Python error: Segmentation fault

Thread 0x00007f0000000001 (most recent call first):
  File "/lib/threading.py", line 5 in wait

Current thread 0x00007f0000000002 (most recent call first):
  File "/app/model.py", line 9 in fit
  File "/app/task.py", line 3 in run
  File "/lib/sqstaskmaster/process_handler.py", line 2 in _run_task
  File "/lib/sqstaskmaster/keeper.py", line 2 in _run
  File "/lib/sqstaskmaster/isolation.py", line 2 in start
  File "/app/worker.py", line 1 in <module>

Extension modules: a, b
"""


class ReadableTest(unittest.TestCase):
    def test_the_innermost_call_comes_last_and_the_worker_s_frames_are_left_out(self):
        self.assertEqual(
            [
                "Segmentation fault",
                "Another thread, most recent call last:",
                '  File "/lib/threading.py", line 5, in wait',
                "Current thread, most recent call last:",
                '  File "/app/task.py", line 3, in run',
                '  File "/app/model.py", line 9, in fit',
                "Extension modules: a, b",
            ],
            readable(DUMP, STARTER).splitlines(),
        )

    def test_a_frame_of_a_file_that_can_be_read_shows_its_line(self):
        here = readable(f'  File "{__file__}", line 1 in somewhere', STARTER)
        self.assertIn("What faulthandler writes", here)

    def test_a_task_that_hangs_in_the_starter_itself_is_shown_there(self):
        dump = f'  File "{STARTER[0]}", line 5 in wait_for_threads\n  File "{STARTER[0]}", line 2 in _run\n'
        self.assertIn("line 5, in wait_for_threads", readable(dump, STARTER))

    def test_a_task_that_is_reporting_is_shown_from_its_own_code_on(self):
        frames = ("send", STARTER[0]), ("fit", "/app/task.py"), ("_run", STARTER[0]), ("<module>", "/app/worker.py")
        dump = "".join(f'  File "{file}", line 1 in {function}\n' for function, file in frames)
        self.assertEqual(["fit", "send"], [line.split()[-1] for line in readable(dump, STARTER).splitlines()])

    def test_no_dump_is_no_text(self):
        self.assertEqual("", readable("", STARTER))


if __name__ == "__main__":
    unittest.main()
