"""Options and fixtures of all tests: no network, one thread a process, few surprises."""

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: threads only wait for each other
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # where there are several: without spinning

from pathlib import Path

import pytest
import torch
from hypothesis import settings

HERE = Path(__file__).parent
HOSTS = {
    "integrations/test_configs.py",
    "integrations/test_deepspeed.py",
    "integrations/test_deepspeed_limit.py",
    "integrations/test_deepspeed_trainer.py",
    "integrations/test_hooks.py",
    "integrations/test_hosts.py",
    "integrations/test_machines.py",
    "integrations/test_main.py",
    "integrations/test_resume.py",
    "integrations/test_trainer_fsdp2.py",
    "test_agreement.py",
    "test_ddp.py",
    "test_distributed.py",
    "test_fsdp2.py",
    "test_groups.py",
    "test_import.py",
    "test_libraries.py",
    "test_notebook.py",
    "test_package.py",
    "test_ranks_apart.py",
    "test_readme.py",
    "test_sanitizer.py",
    "test_tensor_parallel.py",
}
"""Files whose tests start processes: ranks, launchers, whole trainings, compilers."""
NEWEST = {
    "lab/bench/test_bench.py",
    "lab/experiments",
    "lab/glue/test_configs.py",
    "lab/glue/test_lock.py",
    "test_docs.py",
    "test_fuzz.py",
    "test_libraries.py",
    "test_notebook.py",
    "test_package.py",
    "test_sanitizer.py",
    "test_state_machine.py",
}
"""Files, and a folder of them, whose tests depend on no version of torch or of Hugging Face's."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


def pytest_configure(config: pytest.Config) -> None:
    settings.register_profile("default", max_examples=3000 if config.getoption("--slow") else 500)
    settings.load_profile("default")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            path = item.path.relative_to(HERE)
            if path.as_posix() in HOSTS:
                item.add_marker(pytest.mark.hosts)
            if path.as_posix() in NEWEST or path.parent.as_posix() in NEWEST:
                item.add_marker(pytest.mark.newest)
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
        if "cuda" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    # the files that take longest come first, so that all workers end together
    items.sort(key=lambda item: "hosts" not in item.keywords)


@pytest.fixture(autouse=True, scope="module")
def _what_is_imported_stays() -> None:
    """Accelerate collects garbage after each run, and would walk all that is imported."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else some libraries tell of leaks at the end


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch):
    """As where the compiled kernel is not installed."""
    from dwmgrad.kernels import native

    monkeypatch.setenv("DWMGRAD_NATIVE", "0")
    native.library.cache_clear()
    yield
    native.library.cache_clear()
