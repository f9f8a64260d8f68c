"""What `import dwmgrad` costs and brings: torch, and nothing of Hugging Face."""

import subprocess
import sys


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout


def test_import_needs_torch_alone() -> None:
    hosts = "{'transformers', 'accelerate', 'datasets', 'evaluate', 'peft', 'matplotlib'}"
    assert run(f"import sys, dwmgrad; print({hosts} & set(sys.modules))").strip() == "set()"


def test_the_hosts_are_attached_in_any_order_of_imports() -> None:
    check = "; from accelerate import Accelerator; print(Accelerator.backward.feeds_dwmgrad)"
    assert run("import dwmgrad" + check).strip() == "True"
    assert run("import accelerate, dwmgrad" + check).strip() == "True"


def test_the_public_names() -> None:
    import dwmgrad

    assert set(dwmgrad.__all__) == {"DWMGrad", "__version__", "register", "unregister"}
    assert all(hasattr(dwmgrad, name) for name in dwmgrad.__all__)
