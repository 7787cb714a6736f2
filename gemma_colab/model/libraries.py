"""The libraries this project uses: which versions are here, and how to keep them quiet."""

import logging
import platform
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version

STACK = "torch transformers peft trl bitsandbytes datasets ipywidgets matplotlib pandas".split()


def stack_versions() -> dict[str, str]:
    """Installed versions of the libraries this project uses; "missing" where one isn't there."""
    found = {"python": platform.python_version()}
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


def pass_over_old_torchao() -> None:
    """Let peft adapt plain linear layers beside a torchao that it finds too old (Colab has 0.10, peft wants 0.16).

    peft raises at an old one, although only weights that torchao quantized concern it; there are none here. So peft alone, in this
    process alone, is told that there is no torchao.
    """
    from peft import import_utils

    try:
        import_utils.is_torchao_available()
    except ImportError:
        for name, module in list(sys.modules.items()):
            if name.startswith("peft.") and hasattr(module, "is_torchao_available"):
                module.is_torchao_available = lambda: False
