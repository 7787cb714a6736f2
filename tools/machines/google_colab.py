"""A stand-in for Colab's own module, for its twin: as much of it as this project and its libraries ask for."""

import sys
import types
from pathlib import Path


class SecretNotFoundError(Exception):
    """As Colab raises it for a secret that isn't there."""


def _mount(folder: str) -> None:
    (Path(folder) / "MyDrive").mkdir(parents=True, exist_ok=True)
    print(f"Mounted at {folder}")


def _get(name: str) -> str:
    raise SecretNotFoundError(name)


def _part(name: str, **what) -> types.ModuleType:
    module = sys.modules[f"{__name__}.{name}"] = types.ModuleType(f"{__name__}.{name}")
    vars(module).update(what)
    return module


drive = _part("drive", mount=_mount)
userdata = _part("userdata", get=_get, SecretNotFoundError=SecretNotFoundError)
errors = _part("errors", Error=Exception)
files = _part("files", upload=dict, download=print)
output = _part("output", enable_custom_widget_manager=lambda: None, clear=lambda: None)
