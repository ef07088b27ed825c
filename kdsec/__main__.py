"""``python -m kdsec`` is the command ``kdsec``."""

import sys

from kdsec.cli import main

if __name__ == "__main__":  # the processes of a run import this module too
    sys.exit(main())
