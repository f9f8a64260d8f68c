"""What `site` runs in every Python process that a script under `python -m dwmgrad` starts.

It steps aside for the sitecustomize that it hides, and imports dwmgrad as soon as a library is
imported that dwmgrad attaches itself to. Interpreters of any age, and environments without dwmgrad
or torch, come by here: they go on as if it were not there.
"""

import importlib.machinery
import importlib.util
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
HOSTS = ("accelerate.accelerator", "transformers.training_args", "transformers.trainer")


class _Finder:
    """Finds nothing by itself."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in HOSTS:
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        try:
            _import_dwmgrad()
        except Exception:  # such as an environment without torch
            sys.modules.pop("dwmgrad", None)
        return importlib.util.find_spec(fullname)  # anew, with dwmgrad's own finders


def _import_dwmgrad():
    if importlib.util.find_spec("dwmgrad") is None:
        # the one above was found in a folder that is not on the path
        package = os.path.dirname(HERE)
        _run(
            importlib.util.spec_from_file_location(
                "dwmgrad",
                os.path.join(package, "__init__.py"),
                submodule_search_locations=[package],
            )
        )
    else:
        import dwmgrad  # noqa: F401


def _run(spec):
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)


sys.path[:] = [p for p in sys.path if not p or os.path.abspath(p) != HERE]
sys.meta_path.insert(0, _Finder())  # first, as the other one may import a library, too
_run(importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path))
