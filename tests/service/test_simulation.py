"""The worker's loop in a simulated world: every law holds for these seeds, and each mistake that is put back is found.

`python -m benchmarks.simulate --defects` finds the seeds anew, where a change of the simulation has moved them.
"""

import hashlib
import os
import subprocess
import sys
import unittest

from benchmarks.simulation.defects import DEFECTS, put_back
from benchmarks.simulation.run import run

SEEDS, SEEDS_A_TEST = 300, 50

# What is found by which seed, and a part of what is said of it.
FOUND_BY = {
    "an entry that is missing in a batch's answer is taken for success": (168, "was not deleted"),
    "an entry of a batch that failed is taken for success": (89, "nothing was tried"),
    "a message is given back once more where it is not known whether it was": (7, "was given back before"),
    "a failure is reported before its message is given back": (4, "reported before it is given back"),
    "a poll that fails ends the loop": (1, "ends with"),
    "a message whose task could not be started is visible at once": (1, "too early"),
    "an extension that is not answered holds up the next": (20, "nothing was tried"),
    "a message that is received again runs beside itself": (18, "runs beside itself"),
    "a stop waits for as long as callbacks and SQS take": (1, "has not stopped"),
    "an extension under way is not waited for before a message is given back": (7, "which was given back"),
    "a slot whose keeper has died is not replaced": (13, "these are not done"),
    "the limit is not looked at while running() has not answered": (111, "runs on"),
    "while a poll is under way it is looked again and again whether another is due": (1, "spins"),
    "a task that died without a word is taken for done": (1, "it is lost"),
    "a successor, or a dead letter, is tried no second time and counts as sent": (1, "it is lost"),
    "what a poll brings after its claims have ended is run": (9, "of a poll that took"),
    "a message that comes back while its task's end is settled is taken as another": (41, "in whose place"),
    "after a suspension a task runs on into the end of its claim's 12 hours": (13, "12 hours"),
    "a task's limit is its own, whenever the 12 hours of its claim end": (5, "12 hours"),
    "several messages of a FIFO queue are taken at a time": (3, "comes first in its group"),
    "while one of several queues is refused no other is polled": (11, "spins"),
    "a process that stays has one task too many": (9, "must not take one"),
    "the memory of a task is not looked at": (46, "after its limit"),
    "an initializer that hangs is not stopped": (12, "spins"),
    "a task is started though its claim may have ended since its poll was answered": (424, "after its claim has ended"),
    "the exit code of a worker process says by itself that none is to be started again": (4, "it gives up"),
    "one worker process without a ready slot ends all others": (1, "it gives up"),
    # These the simulation has found itself.
    "a claim that is planned twice is extended twice, again and again": (1, "twice in one request"),
    "a worker that was suspended sleeps on until its timer is over": (13, "12 hours"),
    "a worker process is started while the supervisor gives up": (100, "all is to end"),
    "a message that comes back while its task is about to begin is taken as another": (185, "in whose place"),
}

PRINTS_TRACES = """
from benchmarks.simulation.run import run
for seed in (3, 17):
    run(seed, print)
"""


class SimulationTest(unittest.TestCase):
    def test_every_law_holds_where_the_simulation_has_found_something(self):
        for seed in sorted({seed for seed, _ in FOUND_BY.values() if seed > SEEDS} | {674}):
            with self.subTest(seed=seed):
                self.assertIsNone(run(seed).violation)

    def test_one_seed_gives_one_trace_whatever_the_order_of_hashes(self):
        traces = set()
        for hash_seed in ("1", "2"):
            traced = subprocess.run(
                [sys.executable, "-c", PRINTS_TRACES],
                env={**os.environ, "PYTHONHASHSEED": hash_seed},
                capture_output=True,
                timeout=60,
                check=True,
            )
            self.assertGreater(traced.stdout.count(b"\n"), 1000)
            traces.add(hashlib.sha256(traced.stdout).hexdigest())
        self.assertEqual(1, len(traces))

    def test_each_mistake_has_a_seed(self):
        self.assertEqual(set(DEFECTS), set(FOUND_BY))


def _holds(seeds):
    def test(self):
        broken = {seed: violation for seed in seeds if (violation := run(seed).violation) is not None}
        self.assertEqual({}, broken)

    test.__name__ = f"test_every_law_holds_in_the_seeds_from_{seeds[0]}_to_{seeds[-1]}"
    return test


def _finds(sentence, seed, said):
    def test(self):
        with put_back(sentence):
            violation = run(seed).violation
        self.assertIn(said, violation or "every law held")

    test.__name__ = f"test_it_finds_that_{''.join(c if c.isalnum() else '_' for c in sentence)}"
    return test


_tests = [_holds(range(first, first + SEEDS_A_TEST)) for first in range(1, SEEDS, SEEDS_A_TEST)]
_tests += [_finds(sentence, *found) for sentence, found in FOUND_BY.items()]
for _test in _tests:
    setattr(SimulationTest, _test.__name__, _test)


if __name__ == "__main__":
    unittest.main()
