"""What keeps tasks running in production: worker processes and their supervisor, Amazon ECS, functions as tasks.

Belongs here: whatever `Worker` and its command line share. Not here: arguments, tables, sentences for people (`_cli`).
Knows the handlers and the rooms below them. Re-exported: nothing; `worker` is the door.
"""
