"""The libraries this project stands on: which versions are here, which were tested, and how to keep them quiet."""

from __future__ import annotations

import logging
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version

# The oldest and the newest version that the tests run with: those of Colab, after the install, and of constraints.txt.
TESTED = {
    "torch": ("2.11.0", "2.13.0"),
    "transformers": ("5.15.0", "5.23.0"),
    "peft": ("0.20.0", "0.21.2"),
    "trl": ("1.16.0",),
    "bitsandbytes": ("0.50.2",),
    "datasets": ("5.2.0",),
    "ipywidgets": ("7.7.1", "8.1.9"),
    "matplotlib": ("3.10.0", "3.11.2"),
    "pandas": ("2.2.3", "3.1.1"),
}
STACK = tuple(TESTED)


def stack_versions() -> dict[str, str]:
    """Installed versions of the libraries this project stands on; "missing" where one isn't there."""
    found = {"python": sys.version.split()[0]}
    for name in STACK:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def quiet_libraries() -> None:
    """Show only errors of the libraries below, for the rest of this session: no notes on deprecated names or missing extras.

    Called in a notebook's cell, never on import; leave the call out to see everything.
    """
    from transformers.utils.logging import set_verbosity_error

    set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="peft")
    for name in ("bitsandbytes", "trl", "peft", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
