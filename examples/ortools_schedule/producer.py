"""Submits a random job shop: python producer.py QUEUE_URL"""

import argparse
import random

from sqstaskmaster import TaskManager


def job_shop(jobs, machines, seed):
    """Every job visits every machine once, in an order of its own."""
    chance = random.Random(seed)
    return [
        [[machine, chance.randint(1, 99)] for machine in chance.sample(range(machines), machines)] for _ in range(jobs)
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("queue_url")
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--machines", type=int, default=15)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, help="how long to search (default: until there is nothing better)")
    arguments = parser.parse_args()
    jobs = job_shop(arguments.jobs, arguments.machines, arguments.seed)
    TaskManager(arguments.queue_url, sender_name="producer").submit("schedule", jobs=jobs, seconds=arguments.seconds)


if __name__ == "__main__":
    main()
