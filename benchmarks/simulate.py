"""The worker's loop in a simulated world: one thread, one seed, every kind of trouble, and laws checked at every event.

python -m benchmarks.simulate --seeds 1000 --from 1      many runs, and the seed of each that broke a law
python -m benchmarks.simulate --seed 4711 --trace        one run, event by event, the same every time
python -m benchmarks.simulate --defects                  how many seeds it takes to find each known mistake, put back
"""

import argparse
import collections
import gc
import sys
import time

from benchmarks.simulation.defects import DEFECTS, put_back
from benchmarks.simulation.run import run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1000, help="how many runs")
    parser.add_argument("--from", type=int, default=1, dest="first", help="the first seed")
    parser.add_argument("--seed", type=int, help="one run only")
    parser.add_argument("--trace", action="store_true", help="print each event of the run")
    parser.add_argument("--minutes", type=float, help="stop after so long, whatever is left")
    parser.add_argument("--defects", action="store_true", help="put back each known mistake, and look for it")
    given = parser.parse_args()
    gc.freeze()  # existing objects are not scanned after each run
    if given.defects:
        sys.exit(defects(range(given.first, given.first + given.seeds)))
    if given.seed is not None:
        sys.exit(one(given.seed, given.trace))
    sys.exit(many(range(given.first, given.first + given.seeds), given.minutes))


def one(seed, traced):
    result = run(seed, print if traced else None)
    print(f"seed {seed}: {result.events} events, {result.seconds:.3f} s: {result.violation or 'every law held'}")
    return result.violation is not None


def defects(seeds):
    """How many seeds it takes to find each, from the first on."""
    missed = 0
    for sentence in DEFECTS:
        with put_back(sentence):
            found = next((result for result in map(run, seeds) if result.violation is not None), None)
        missed += found is None
        said = "NOT FOUND" if found is None else f"{found.seed - seeds[0] + 1} seeds, seed {found.seed}"
        print(f"{sentence}: {said}" + (f": {found.violation}" if found else ""), flush=True)
    return missed > 0


def many(seeds, minutes):
    counts, events, seconds, failures, runs = collections.Counter(), 0, 0.0, [], 0
    began, used = time.monotonic(), time.process_time()
    for seed in seeds:
        if minutes is not None and time.monotonic() - began > minutes * 60:
            break
        result = run(seed)
        runs += 1
        counts += result.counts
        events += result.events
        seconds += result.seconds
        if result.violation is not None:
            failures.append(seed)
            print(f"seed {seed}: {result.violation}", flush=True)
    took, used = time.monotonic() - began, time.process_time() - used
    print(f"{runs:,} runs, {events:,} events, {seconds / 3600:,.1f} simulated hours")
    print(f"{runs / used * 60:,.0f} runs in a minute of one core, {took:,.0f} s in all")
    for name, count in sorted(counts.items()):
        print(f"    {count:>9,}  {name}")
    print(f"{len(failures)} failures" + (f": seeds {', '.join(map(str, failures))}" if failures else ""))
    return bool(failures)


if __name__ == "__main__":
    main()
