"""A simulated world for the worker's loop: one thread, one seed, a clock that jumps from event to event.

    run          one run of one seed: its workers, the tasks submitted, and what happens to them
    events       time, chance, what happens next, and the trace
    machines     a machine with a worker on it: what `_service.world` is to its loop
    processes    template, keepers and tasks
    service      SQS, and what goes wrong on the way to it and back
    supervisors  the supervisor's decisions
    ledger       what happened, and the laws that hold after every event
    groups       the same for FIFO queues
    defects      past mistakes, to be put back: each must be found

The package runs unchanged: the loop, the pool of slots, the settlements, the claims, the polling. Nothing here may
depend on hash order, object ids, real time or threads: the same seed gives the same trace.
"""
