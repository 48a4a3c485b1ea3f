"""What the command line is called, in its help, its errors and its advice: as it was started."""

import sys
from pathlib import Path

PROGRAM = "train.py" if Path(sys.argv[0]).name == "train.py" else "palimpsest"
COMMAND = "python train.py" if PROGRAM == "train.py" else PROGRAM
"""What is typed to start it again."""
