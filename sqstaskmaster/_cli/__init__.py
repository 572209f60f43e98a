"""The command line, a leaf: nothing outside this room imports it.

Belongs here: arguments, exit sentences, tables, and the only code that configures logging or reads the environment.
Knows everything. Re-exported: nothing; the entry points are `python -m sqstaskmaster` and the installed command.
"""
