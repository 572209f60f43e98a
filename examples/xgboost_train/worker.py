"""Trains XGBoost models, one message each: python worker.py QUEUE_URL"""

import argparse
import logging
import time

from sqstaskmaster import ProcessMessageHandler, TaskManager

logger = logging.getLogger("train")


class Train(ProcessMessageHandler):
    """Trains a model of `rounds` rounds, `trees` trees in each, on `rows` rows, and saves it as `path`."""

    def __init__(self, message, sqs_timeout, hard_timeout, rows, rounds, trees, path):
        # A round does not return to Python before it is over, so there is little to wait for.
        super().__init__(message, sqs_timeout, sqs_timeout / 4, hard_timeout, term_grace=1)
        self.rows = rows
        self.rounds = rounds
        self.trees = trees
        self.path = path

    def run(self):
        # Here, not at the top: see the README.
        import xgboost

        logger.info("Training on %d rows", self.rows)
        data = xgboost.QuantileDMatrix(*self.load())
        parameters = {"tree_method": "hist", "max_depth": 10, "num_parallel_tree": self.trees, "subsample": 0.8}
        model = xgboost.Booster({**parameters, "nthread": 2}, [data])
        longest = 0.0
        for number in range(self.rounds):
            began = time.monotonic()
            model.update(data, number)
            longest = max(longest, time.monotonic() - began)
            # For running() below, and for whoever watches the worker.
            self.report(rounds_done=number + 1, score=model.eval(data))
        model.save_model(self.path)
        return {"score": model.eval(data), "longest_round": longest}

    def load(self):
        """Where a real worker reads its data set."""
        import numpy

        chance = numpy.random.default_rng(1)
        features = chance.random((self.rows, 50), dtype=numpy.float32)
        return features, features[:, 0] * features[:, 1] + features[:, 2]

    def running(self):
        """In the worker, at every alarm."""
        logger.info("Progress: %s", self.progress)
        return True


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("queue_url")
    parser.add_argument("--sqs-timeout", type=int, default=30, help="visibility timeout, in seconds (%(default)s)")
    parser.add_argument("--hard-timeout", type=float, default=3600, help="limit of one task, in seconds (%(default)s)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    manager = TaskManager(arguments.queue_url)
    for task, kwargs, message in manager.task_generator(sqs_timeout=arguments.sqs_timeout):
        with Train(message, arguments.sqs_timeout, arguments.hard_timeout, **kwargs) as handler:
            logger.info("Trained: %s", handler.run())


if __name__ == "__main__":
    main()
