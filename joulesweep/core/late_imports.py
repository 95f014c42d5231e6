"""Defer slow imports that a training process rarely needs until something calls them.

A sweep starts hundreds of processes. transformers imports `scipy.optimize` for the matching of detected objects, and
Zeus `sklearn.metrics` (with it pandas, pyarrow and scipy.stats) for the area under a curve that ZeusMonitor computes
on boards without an energy counter only: one function each. transformers reads all its source files when it is
imported, and again for its package `models`. `python -m benchmarks.startup` shows how much time is left.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any


@contextlib.contextmanager
def defer_import(module: str, *functions: str) -> Iterator[None]:
    """Replace functions of a module, inside the block, by stand-ins that import the module when they are called.

    Any other name that the block takes from the module imports it at once. After the block the module is the real
    one; if it was imported before, the block changes nothing.
    """
    if module in sys.modules:
        yield
        return
    stand_in = ModuleType(module)
    vars(stand_in).update({name: _late(module, name) for name in functions})

    def real(name: str) -> Any:  # noqa: ANN401 - whatever the module has
        if name.startswith("__"):  # Python asks for __path__
            raise AttributeError(name)
        if sys.modules.get(module) is stand_in:
            del sys.modules[module]
        return getattr(importlib.import_module(module), name)

    vars(stand_in)["__getattr__"] = real
    sys.modules[module] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(module) is stand_in:
            del sys.modules[module]


def _late(module: str, name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the function itself
        return getattr(importlib.import_module(module), name)(*args, **kwargs)

    return call


def transformers() -> ModuleType:
    """Import the library and the base class of its models, as cheaply as possible.

    The code of its package `models`, which lists all files once more, is not executed: names that are not modules of
    the package are taken from the library, which has the same names.
    """
    library, name = importlib.import_module("transformers"), "transformers.models"
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is not None:
        package = importlib.util.module_from_spec(spec)
        vars(package)["__getattr__"] = lambda name: getattr(library, name)
        sys.modules[name] = package
        vars(library)["models"] = package
    if "accelerate" not in sys.modules:  # peft needs it installed; transformers must behave the same without it
        for utilities in ("transformers.utils", "transformers.utils.import_utils"):
            vars(importlib.import_module(utilities))["is_accelerate_available"] = lambda *_: False
    with defer_import("scipy.optimize", "linear_sum_assignment"):
        importlib.import_module("transformers.modeling_utils")
    with defer_import("sklearn.metrics", "roc_curve"):  # 5.17 needs it at import, later versions when they call it
        importlib.import_module("transformers.generation.candidate_generator")  # every model's class does
    return library
