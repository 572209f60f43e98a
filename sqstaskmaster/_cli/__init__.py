"""The command line, a leaf: nothing outside this room imports it.

Belongs here: arguments, exit sentences, tables, and the only place that configures logging or reads the environment.
Knows everybody. Re-exported: nothing; `python -m sqstaskmaster` and the installed command are the doors.
"""
