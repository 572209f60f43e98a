"""Trains step by step, and hands its state over when it is stopped: python worker.py QUEUE_URL"""

import argparse
import json
import logging
import pathlib
import time

from sqstaskmaster import Continue, ProcessMessageHandler, TaskManager, Worker, current_task

logger = logging.getLogger("train")


class Train(ProcessMessageHandler):
    """`steps` steps, each noted in the folder `path`, where the state is kept too."""

    def __init__(self, message, sqs_timeout, alarm_timeout, hard_timeout, path, steps, seconds, step=0):
        super().__init__(message, sqs_timeout, alarm_timeout, hard_timeout, term_grace=10)
        self.path = pathlib.Path(path)
        self.steps = steps
        self.seconds = seconds
        self.step = step

    def run(self):
        task = current_task()
        state = self.load()
        for step in range(self.step, self.steps):
            # Before the next step, not in the middle of one: the worker stops, or the 12 hours of the claim, or the
            # hard timeout, are nearly over. It goes on with this very step, in another worker.
            if task.stopping or task.seconds_left < 2 * self.seconds:
                raise Continue(step=step)
            state["sum"] += self.one_step(step)
            self.save(state)
            task.report(step=step)
        return state

    def one_step(self, step):
        """Where a real worker computes."""
        time.sleep(self.seconds)
        with open(self.path / "steps", "a") as steps:
            steps.write(f"{step}\n")
        return step

    def load(self):
        if self.step == 0:
            return {"sum": 0}
        return json.loads((self.path / f"state-{self.step}").read_text())

    def save(self, state):
        """Once all of it is written, under a name of its own: a successor that is sent twice finds what it needs."""
        step = self.step = self.step + 1
        part = self.path / f"state-{step}.part"
        part.write_text(json.dumps(state))
        part.rename(self.path / f"state-{step}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("queue_url")
    parser.add_argument("--hard-timeout", type=float, default=3600, help="limit of one turn, in seconds (%(default)s)")
    parser.add_argument("--grace", type=float, default=20, help="to end a step in, in seconds (%(default)s)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    worker = Worker(
        TaskManager(arguments.queue_url),
        {"train": Train},
        hard_timeout=arguments.hard_timeout,
        shutdown_grace=arguments.grace,
        wait_time=1,
    )
    worker.run()


if __name__ == "__main__":
    main()
