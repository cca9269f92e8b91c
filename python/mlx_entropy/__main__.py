"""`python -m mlx_entropy` is the `mlx-entropy` command."""

import sys

from ._entry import main

if __name__ == "__main__":
    sys.exit(main())
