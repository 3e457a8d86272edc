"""A worker of a cluster that runs already: Python imports this when it starts, before it runs Ray's program.

It travels with a job whose command has a fork server, as a module of its own beside the packages. On the machine of the
command the worker becomes a copy of that server; anywhere else, and where there is no copy, it starts as ever.
"""

import importlib.machinery
import importlib.util
import os
import sys

_WORKER = "default_worker.py"


def _become_a_copy() -> None:
    address = os.environ.get("CLASSIFIER_WORKER_SOCKET", "")
    place = next((place for place, word in enumerate(sys.orig_argv) if word.endswith(_WORKER)), None)
    if place is None or not os.access(address, os.W_OK):
        return
    from cluster.worker_process import is_copied

    if is_copied(sys.orig_argv[place], sys.orig_argv[place + 1 :]):
        os._exit(0)


def _import_the_one_behind() -> None:
    """There may be another one on this machine, which this one hides."""
    here = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120  pathlib is an import
    others = [entry for entry in sys.path if os.path.realpath(entry) != here]
    spec = importlib.machinery.PathFinder.find_spec(__name__, others)
    if spec is not None and spec.loader is not None:
        sys.modules[__name__] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


_become_a_copy()
_import_the_one_behind()
