"""`python -m affectgpt_jax.cli` is `affectgpt`."""

import sys

from affectgpt_jax.cli import main

sys.exit(main())
