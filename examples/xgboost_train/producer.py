"""Submits a training: python producer.py QUEUE_URL"""

import argparse

from sqstaskmaster import TaskManager


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("queue_url")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--trees", type=int, default=10, help="trees in each round (%(default)s)")
    parser.add_argument("--path", default="model.ubj", help="where the worker saves the model (%(default)s)")
    arguments = parser.parse_args()
    TaskManager(arguments.queue_url, sender_name="producer").submit(
        "train", rows=arguments.rows, rounds=arguments.rounds, trees=arguments.trees, path=arguments.path
    )


if __name__ == "__main__":
    main()
