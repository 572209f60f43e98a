"""A simulated world for the worker's loop: one thread, one seed, a clock that jumps from event to event.

    run          one run of one seed: who works, what is submitted, and what befalls them
    events       time, chance, what happens next, and the trace
    machines     a machine with a worker on it: what `_service.world` is to its loop
    processes    template, keepers and tasks
    service      SQS, and what goes wrong on the way there and back
    supervisors  the supervisor's decisions
    ledger       what happened, and the laws that hold after every event
    groups       the same of FIFO queues
    defects      mistakes that were made once, to be put back: each has to be found

The package runs as it is: the loop, the pool of slots, the settlements, the claims, the polling. Nothing here may
depend on the order of a hash, on an id, on the real time or on a thread: the same seed gives the same trace.
"""
