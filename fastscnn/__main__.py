"""`python -m fastscnn`."""

import sys

from fastscnn.cli import main

sys.exit(main())
