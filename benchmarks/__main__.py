"""`python -m benchmarks`: the benchmarks' command."""

import sys

from benchmarks.cli.main import main

sys.exit(main())
