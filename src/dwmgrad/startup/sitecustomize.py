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
        _import_dwmgrad()
        for finder in list(sys.meta_path):  # anew, with dwmgrad's own
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                return spec
        return None


def _import_dwmgrad():
    try:
        try:
            import dwmgrad  # noqa: F401
        except ImportError:  # the one above may have been found in a folder that is not on the path
            package = os.path.dirname(HERE)
            spec = importlib.util.spec_from_file_location(
                "dwmgrad",
                os.path.join(package, "__init__.py"),
                submodule_search_locations=[package],
            )
            if spec is None or spec.loader is None:
                return
            module = importlib.util.module_from_spec(spec)
            sys.modules["dwmgrad"] = module
            try:
                spec.loader.exec_module(module)
            except BaseException:
                sys.modules.pop("dwmgrad", None)
                raise
    except Exception:  # no torch here, say
        pass


def _step_aside():
    """Runs the sitecustomize that there would be without this one."""
    sys.path[:] = [p for p in sys.path if not p or os.path.abspath(p) != HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


sys.meta_path.insert(0, _Finder())  # first, as the other one may import a library, too
_step_aside()
