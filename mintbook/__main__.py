"""``python -m mintbook`` is the command line."""

import sys

from mintbook.cli import main

sys.exit(main())
