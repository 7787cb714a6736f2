"""A room's door: the few names that the room hands out, each loaded when somebody asks for it (PEP 562)."""

import sys
from importlib import import_module

# What the core leaves to a room above it: a function's name -> the module that defines it. `gemma_colab/__init__.py` fills it.
plugs: dict[str, str] = {}


def plugged(name: str):
    return getattr(import_module(plugs[name]), name)


def door(package: str, modules: dict[str, str]):
    """`__all__`, `__getattr__` and `__dir__` of a package that imports nothing before it is used, so that a room whose modules need
    torch can be looked at without it. modules: module -> the public names that it defines."""
    names = {name: module for module, its in modules.items() for name in its.split()}

    def __getattr__(name: str):
        if name not in names:
            raise AttributeError(f"{package} has no {name!r}; it has {', '.join(names)}")
        vars(sys.modules[package])[name] = value = getattr(import_module(names[name]), name)
        return value

    return sorted(names), __getattr__, lambda: sorted(names)
