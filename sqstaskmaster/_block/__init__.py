"""A `with` block round one message: the drivers that wait, each for one task.

    block (what both have)  <--- alarm_block: the task is in this process, SIGALRM interrupts it
                            <--- process_block: the task is in a process of its own, a loop waits for it
    requests (bounded), settling (carries a settlement out), returned (what `run` gave)

Belongs here: waiting, for one task. Not here: what is to be done (`_claim`), and how processes are started
(`_isolation`). A handler says what a task is; how it is driven is for these to know. Re-exported: nothing.
"""
