"""`python -m palimpsest`, the same as the command `palimpsest`."""

import sys

from palimpsest.train import main

if __name__ == "__main__":
    sys.exit(main())
