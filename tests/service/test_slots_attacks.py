"""What a task may do to its surroundings: it fails alone, in time, and a healthy task beside it notices nothing."""

import os
import resource
import signal
import time

from sqstaskmaster._claim.current import current_task
from sqstaskmaster.errors import HardTimeout, TaskKilled
from tests.service.test_slots import SlotsTestCase
from tests.support import DEADLINE_SECONDS
from tests.support.descriptors import left_open, open_descriptors

# Of a task that never ends by itself; long enough to begin on a busy machine, and to do what is to be seen of it.
LIMIT_SECONDS = 1


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


class AttacksTest(SlotsTestCase):
    def attack(self, attack, hard_timeout=DEADLINE_SECONDS):
        """The outcome of a task that attacks. One beside it and those after it in the same slots must be done.

        The one beside it waits for the last of them: they ran while it did, in the slot that was attacked.
        """
        worker = self.worker(slots=2)
        # What the test itself has open is not to be hit.
        spared = open_descriptors()
        worker.task("Attack", hard_timeout=hard_timeout, term_grace=0.2)(lambda: attack(spared))
        folder = self.folder

        @worker.task("Healthy", hard_timeout=DEADLINE_SECONDS)
        def healthy(name):
            (folder / f"{name} began").touch()
            while name == "beside" and not (folder / "after 3 ended").exists():
                time.sleep(0.01)
            (folder / f"{name} ended").touch()

        outcomes = {}
        worker._on_finish = lambda finished: outcomes.setdefault(finished.task, []).append(str(finished.outcome))
        self.manager.submit("Healthy", name="beside")
        self.manager.submit("Attack")
        for number in range(4):
            self.manager.submit("Healthy", name=f"after {number}")
        worker.run(burst=True)
        self.assertEqual(["done"] * 5, outcomes["Healthy"])
        self.assertEqual(10, len(self.files()), "each was begun once and ended")
        self.assertEqual(set(), left_open(spared))
        (outcome,) = outcomes["Attack"]
        deleted = [each.deleted for each in self.messages if '"Attack"' in each.body]
        self.assertEqual([outcome == "done"], deleted, "only what is done is deleted")
        return outcome

    def test_a_child_that_falls_out_of_run_says_nothing_for_a_task_that_dies(self):
        def attack(spared):
            child = os.fork()
            if child == 0:
                return "a verdict that is not its own"
            os.waitpid(child, 0)
            os.kill(os.getpid(), signal.SIGKILL)

        self.assertEqual("failed", self.attack(attack))
        self.assertIsInstance(self.notified[0][0], TaskKilled)

    def test_garbage_in_every_descriptor_is_no_verdict(self):
        def attack(spared):
            for _ in range(20):
                for descriptor in open_descriptors() - spared:
                    try:
                        os.set_blocking(descriptor, False)
                        os.write(descriptor, os.urandom(997))
                    except OSError:
                        pass
            os._exit(0)

        self.assertEqual("failed", self.attack(attack))

    def test_closing_every_descriptor_ends_the_task_only(self):
        def attack(spared):
            os.closerange(0, 4096)
            time.sleep(3600)

        self.assertEqual("timed out", self.attack(attack, LIMIT_SECONDS))

    def test_a_task_that_stops_its_keeper_again_and_again_is_over_at_its_limit(self):
        def attack(spared):
            while True:
                try:
                    os.kill(os.getppid(), signal.SIGSTOP)
                except OSError:
                    pass

        self.assertEqual("timed out", self.attack(attack, LIMIT_SECONDS))

    def test_a_task_that_stops_itself_is_over_at_its_limit(self):
        self.assertEqual("timed out", self.attack(lambda spared: os.kill(os.getpid(), signal.SIGSTOP), LIMIT_SECONDS))
        self.assertIsInstance(self.notified[0][0], HardTimeout)

    def test_a_task_that_kills_its_group_kills_nothing_else(self):
        self.assertEqual("failed", self.attack(lambda spared: os.killpg(0, signal.SIGKILL)))
        self.assertIsInstance(self.notified[0][0], TaskKilled)

    def test_a_flood_of_progress_holds_up_nobody(self):
        def attack(spared):
            while True:
                current_task().report(text="x" * 1000)

        self.assertEqual("timed out", self.attack(attack, LIMIT_SECONDS))

    def test_nesting_too_deep_for_the_interpreter_is_told_as_a_failure(self):
        def attack(spared):
            raise ValueError(nested(100_000))

        self.assertEqual("failed", self.attack(attack))

    def test_progress_too_deep_for_the_interpreter_harms_the_task_only(self):
        self.assertIn(self.attack(lambda spared: current_task().report(value=nested(100_000))), ("failed", "done"))

    def test_a_body_nested_too_deep_is_notified_and_left_to_the_redrive_policy(self):
        worker = self.worker()
        ran = self.folder / "ran"
        worker.task("Healthy")(ran.touch)
        self.manager.queue.send_message(
            MessageBody='{"task": "Healthy", "kwargs": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}"
        )
        self.manager.submit("Healthy")
        self.assertEqual({"done": 1}, dict(worker.run(burst=True)))
        self.assertTrue(ran.exists())
        self.assertEqual(1, len(self.notified))
        self.assertEqual([False, True], [message.deleted for message in self.messages])

    def test_a_storm_of_forks_is_gone_when_its_task_is(self):
        mark = self.folder.with_name(f"{self.folder.name}-storm")
        self.addCleanup(lambda: mark.unlink(missing_ok=True))

        def attack(spared):
            while True:
                try:
                    if os.fork() == 0:
                        os.setsid()
                        with open(mark, "a") as pids:
                            pids.write(f"{os.getpid()}\n")
                        time.sleep(3600)
                except OSError:
                    pass
                time.sleep(0.02)

        self.assertEqual("timed out", self.attack(attack, LIMIT_SECONDS))
        stormed = [int(line) for line in mark.read_text().split()]
        self.assertGreater(len(stormed), 3)
        self.assertEqual([], [pid for pid in stormed if os.path.exists(f"/proc/{pid}")])


class DescriptorsTest(SlotsTestCase):
    def test_many_slots_run_under_a_low_soft_limit_and_their_tasks_keep_it(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        low = sorted({*range(1024)} - open_descriptors())[30]  # leaves thirty
        resource.setrlimit(resource.RLIMIT_NOFILE, (low, hard))
        worker = self.worker(slots=20)

        @worker.task("T")
        def task():
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (low, hard)

        self.assertEqual({"done": 20}, self.run_tasks(worker, *[{}] * 20))

    def test_where_the_worker_has_no_standard_input_a_file_of_the_tasks_does_not_become_it(self):
        kept = os.dup(0)
        self.addCleanup(os.close, kept)
        self.addCleanup(os.dup2, kept, 0)
        for settings in ({}, {"max_tasks_per_child": None}):
            with self.subTest(settings):
                worker = self.worker(**settings)

                @worker.task("T")
                def task():
                    with open(os.devnull) as file:
                        assert file.fileno() > 2

                os.close(0)
                self.assertEqual({"done": 1}, self.run_tasks(worker, {}))
