"""One attempt at a task: every decision from the receive of its message until nothing more is done about it.

    state machines   claim, deletion, watch (a running task), settlement (an ended one): no input, no output, no clock
    sent on          forwarding (what is sent), destinations (where to: blocking calls)
    around them      attempt (what they share), report (log and notify), note (the receipt on the message), current (the
                     task, for its own code), clock, owner (the process that holds the claim)

Belongs here: decisions about one attempt. Not here: where messages come from, how a task runs, waiting, signals. Knows
`_sqs`, `_signals` (to bound a call) and the errors. Re-exported: nothing.
"""
