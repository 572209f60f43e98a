"""Schedules job shops with OR-Tools, one message each: python worker.py QUEUE_URL"""

import argparse
import logging

from sqstaskmaster import ProcessMessageHandler, TaskManager

logger = logging.getLogger("schedule")


class Schedule(ProcessMessageHandler):
    """Finds an order of the operations on each machine that ends all jobs as early as possible.

    `jobs` is a list of jobs, each a list of operations `[machine, minutes]` to be done in that order. The solver stops
    at `seconds`, or, where that is None, when it has proved that there is nothing better: that can take days.
    """

    def __init__(self, message, sqs_timeout, hard_timeout, jobs, seconds=None):
        # The solver does not return to Python when it is asked to end, so there is little to wait for.
        super().__init__(message, sqs_timeout, sqs_timeout / 4, hard_timeout, term_grace=1)
        self.jobs = jobs
        self.seconds = seconds

    def run(self):
        # Here, not at the top: see the README.
        from ortools.sat.python import cp_model

        logger.info("Scheduling %d jobs", len(self.jobs))
        model, makespan = self.model(cp_model)
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 2
        if self.seconds is not None:
            solver.parameters.max_time_in_seconds = self.seconds
        status = solver.solve(model)
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            raise RuntimeError(f"No schedule found: {solver.status_name(status)}")
        return {"makespan": solver.value(makespan), "status": solver.status_name(status), "seconds": solver.wall_time}

    def model(self, cp_model):
        model = cp_model.CpModel()
        horizon = sum(minutes for job in self.jobs for _, minutes in job)
        on_machine, ends = {}, []
        for job in self.jobs:
            end = 0
            for machine, minutes in job:
                start = model.new_int_var(0, horizon, "start")
                model.add(start >= end)
                end = start + minutes
                on_machine.setdefault(machine, []).append(
                    model.new_fixed_size_interval_var(start, minutes, "operation")
                )
            ends.append(end)
        for operations in on_machine.values():
            model.add_no_overlap(operations)
        makespan = model.new_int_var(0, horizon, "makespan")
        model.add_max_equality(makespan, ends)
        model.minimize(makespan)
        return model, makespan


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("queue_url")
    parser.add_argument("--sqs-timeout", type=int, default=30, help="visibility timeout, in seconds (%(default)s)")
    parser.add_argument("--hard-timeout", type=float, default=3600, help="limit of one task, in seconds (%(default)s)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    manager = TaskManager(arguments.queue_url)
    for task, kwargs, message in manager.task_generator(sqs_timeout=arguments.sqs_timeout):
        with Schedule(message, arguments.sqs_timeout, arguments.hard_timeout, **kwargs) as handler:
            logger.info("Scheduled: %s", handler.run())


if __name__ == "__main__":
    main()
