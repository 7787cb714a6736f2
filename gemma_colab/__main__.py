"""`python -m gemma_colab`, and `accelerate launch -m gemma_colab` for several GPUs: the command line."""

import sys

from gemma_colab.cli import main

sys.exit(main())
