"""The name of the command line in its help and messages: the name by which it was started."""

import sys
from pathlib import Path

PROGRAM = "train.py" if Path(sys.argv[0]).name == "train.py" else "palimpsest"
COMMAND = "python train.py" if PROGRAM == "train.py" else PROGRAM
"""The words to type to start it."""
