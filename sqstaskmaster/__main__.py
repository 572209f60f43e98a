"""`python -m sqstaskmaster`."""

import sys

from sqstaskmaster._cli.main import main

if __name__ == "__main__":
    sys.exit(main())
