"""``python -m vqformat`` is ``vqm``."""

import sys

from .cli import main

sys.exit(main())
