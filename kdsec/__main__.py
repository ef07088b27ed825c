"""``python -m kdsec`` is the command ``kdsec``."""

import sys

from kdsec.cli import main

sys.exit(main())
