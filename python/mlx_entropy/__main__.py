"""`python -m mlx_entropy` is the `mlx-entropy` command."""

import sys

from .cli.main import main

sys.exit(main())
