"""`python -m sqstaskmaster`."""

import sys

from sqstaskmaster.cli import main

if __name__ == "__main__":
    sys.exit(main())
