"""A `with` block around one message: the drivers, each of which waits for one task.

    block (what both have)  <--- alarm_block: the task is in this process, SIGALRM interrupts it
                            <--- process_block: the task is in a process of its own, a loop waits for it
    requests (bounded), settling (carries out a settlement), returned (what `run` returned)

Belongs here: waiting, for one task. Not here: what is to be done (`_claim`), and how processes are started
(`_isolation`). A handler says what a task is; the drivers know how to run it. Re-exported: nothing.
"""
