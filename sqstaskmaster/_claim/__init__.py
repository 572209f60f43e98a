"""The claim on one message: what is due when, what an answer of SQS meant, and how the claim ends.

    decisions   claim (the state machine), deletion, forwarding: no input, no output, no clock of their own
    requests    requests (each bounded, for a handler of one message)
    one block   block (what a handler has of it), ending (its verdict, carried out)
    around it   report (log and notify), note (the receipt on the message), clock, owner (the process that holds it)

Belongs here: decisions about one claim, and the requests that end it. Not here: where messages come from, how a task
runs, signals. Knows `_sqs`, `_signals` (to bound a call) and the errors. Re-exported: nothing.
"""
