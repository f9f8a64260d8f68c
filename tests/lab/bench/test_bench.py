"""The benchmarks: what they write, that rows which cannot run say why, and what they count."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from glue.errors import UsageError

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"


def run(script: str, *words: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPTS / f"{script}.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("bench") / "new"
    words = "--shapes tiny decoder-1b --states float32 int8 --pairs 3 --max_memory_gib 1"
    words += " --kernels native one_launch fused loop --peers adamw-fused schedulefree"
    files = ["--output", folder / "bench.json", "--plot", folder / "bench.png"]
    done = run("bench_step", *words.split(), *files)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "bench.json").read_text()), folder / "bench.png"


def rows_of(results: dict[str, Any], shapes: str) -> dict[tuple[str, str, str], dict[str, Any]]:
    rows = [row for row in results["rows"] if row["shapes"] == shapes]
    return {(row["optimizer"], row["kernel"], row["state"]): row for row in rows}


def test_the_head_says_where_and_with_what(measured):
    _, results, _ = measured
    machine, versions = results["machine"], results["versions"]
    assert machine["device"] == "cpu" and machine["processor"] and machine["threads"] == 1
    assert versions["torch"] == torch.__version__ and versions["dwmgrad"] and versions["python"]
    assert {"bitsandbytes", "torchao", "torch-optimi", "schedulefree"} <= versions.keys()
    assert {"id", "changed"} == results["commit"].keys()


def test_a_row_has_all_columns(measured):
    text, results, _ = measured
    rows = rows_of(results, "tiny")
    for key in (
        ("DWMGrad", "fused", "float32"),
        ("DWMGrad", "loop", "int8"),
        ("AdamW", "fused", "float32"),
    ):
        row = rows[key]
        assert row["why_not"] is None and row["pairs"] == 3 and row["parameters"] == 4288
        for name in ("ms", "adamw_fused_ms", "ratio"):
            low, high = row[name]["quartiles"]
            assert 0 < low <= row[name]["median"] <= high
        assert row["share_of_copy"] > 0 and row["share_of_add"] > 0
        assert row["launches"] is None and row["syncs"] is None and row["recompilations"] == 0
    row = rows["DWMGrad", "fused", "float32"]
    assert row["state_bytes_per_parameter"] == 8 and row["bytes_moved"] == 28 * 4288
    matrix, others, scales = 64 * 64 * 2, 192 * 8, 2 * 16 * 4  # 8 bits; small ones in float32
    expected = (matrix + others + scales) / 4288
    assert rows["DWMGrad", "loop", "int8"]["state_bytes_per_parameter"] == pytest.approx(expected)
    assert rows["DWMGrad", "loop", "int8"]["extra_memory"] > 64 * 64
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(results["rows"])
    assert len({line.count("|") for line in lines}) == 1


def test_a_row_that_cannot_run_says_why(measured):
    text, results, _ = measured
    rows = rows_of(results, "tiny")
    assert rows["DWMGrad", "one_launch", "float32"]["why_not"] == "needs CUDA"
    refused = rows["DWMGrad", "fused", "int8"]["why_not"]
    assert refused == "fused does not take int8 state here: loop would run instead"
    assert refused in text
    large = rows_of(results, "decoder-1b")
    assert len(large) == len(rows)
    reason = large["AdamW", "fused", "float32"]["why_not"]
    assert reason == "needs 40.5 GiB of memory, 1.0 GiB free"
    missing = rows["AdamWScheduleFree", "own", "float32"]["why_not"]
    installed = results["versions"]["schedulefree"] is not None
    assert missing == (None if installed else "not installed: pip install schedulefree")


def test_the_plot_is_drawn(measured):
    assert measured[2].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_growth_on_small_points(tmp_path):
    words = "--parameters 1000 1000000000 --tensors 7 --total 2000 --pairs 3 --max_memory_gib 1"
    files = ["--output", tmp_path / "growth.json", "--plot", tmp_path / "growth.png"]
    done = run("bench_growth", *words.split(), *files)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "growth.json").read_text())
    first, large, last = results["rows"]
    assert (first["sweep"], first["parameters"], first["tensors"]) == ("parameters", 1000, 10)
    assert (last["sweep"], last["parameters"], last["tensors"]) == ("tensors", 2000, 7)
    for row in (first, last):
        assert row["why_not"] is None
        assert 0 < row["feed_ms"]["median"] and 0 < row["feed_share"] < 1
        assert {"ms", "adamw_fused_ms", "ratio", "with_minus_without_ms"} <= row.keys()
    assert large["why_not"].endswith("1.0 GiB free")
    assert results["kernels"] and (tmp_path / "growth.png").stat().st_size > 1000


def test_growth_without_a_compiled_kernel(tmp_path, monkeypatch):
    monkeypatch.setenv("DWMGRAD_NATIVE", "0")
    words = "--parameters 1000 --tensors --total 2000 --pairs 3".split()
    done = run("bench_growth", *words, "--output", tmp_path / "growth.json")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "growth.json").read_text())
    assert results["kernels"] == ["fused"] and results["rows"][0]["why_not"] is None


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_leaves_the_rows_so_far(tmp_path):
    file = tmp_path / "bench.json"
    words = ["--shapes", "tiny", "--pairs", "5000", "--peers", "--output", str(file)]
    command = [sys.executable, str(SCRIPTS / "bench_step.py"), *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not file.exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted after" in said and "Traceback" not in said
    assert len(json.loads(file.read_text())["rows"]) >= 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pairs", "2"], "argument --pairs: must be at least 3, got 2"),
        (["--row_seconds", "0"], "argument --row_seconds: must be above 0, got 0"),
        (["--max_memory_gib", "nan"], "argument --max_memory_gib: must be above 0, got nan"),
        (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["--device", "cuda:99"], "argument --device: invalid choice: 'cuda:99'"),
        (["--output", "."], "--output .: cannot be written: it is a folder"),
        (["--plot", "/proc/no.png"], "--plot /proc/no.png: cannot be written"),
        (["--shapes", "huge"], "argument --shapes: invalid choice: 'huge'"),
        (["--max_steps", "0"], "argument --max_steps: must be at least 1, got 0"),
    ],
)
def test_what_is_wrong_is_named(words, said):
    import bench_step

    with pytest.raises(UsageError) as caught:
        bench_step.main(words)
    assert said in str(caught.value)


def test_a_picture_of_an_unknown_kind_is_refused_before_the_first_row(tmp_path):
    import bench_step

    with pytest.raises(UsageError, match="--plot .*x.xyz: its name must end in one of .*png"):
        bench_step.main(["--shapes", "--plot", str(tmp_path / "x.xyz")])


def test_a_sweep_without_points_is_not_drawn(tmp_path):
    import bench_growth

    words = "--parameters 1000 --tensors --pairs 3 --row_seconds 2 --plot".split()
    bench_growth.main([*words, str(tmp_path / "growth.png")])
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_growth_names_what_is_wrong():
    import bench_growth

    for words, said in (
        (["--parameters", "9"], "argument --parameters: must be at least 10, got 9"),
        (["--tensors", "0"], "argument --tensors: must be at least 1, got 0"),
        (["--total", "1999"], "--total must be at least 2000, the most of --tensors, got 1999"),
    ):
        with pytest.raises(UsageError) as caught:
            bench_growth.main(words)
        assert said in str(caught.value)


def options(**changed: Any) -> argparse.Namespace:
    given = {"device": "cpu", "pairs": 3, "row_seconds": 60.0, "max_memory_gib": None}
    return argparse.Namespace(**{**given, **changed})


class Broken(torch.optim.SGD):
    def __init__(self, *args, **kwargs):
        raise OSError("no such library\nat all")


class Slow(torch.optim.AdamW):
    def step(self, closure=None):
        try:
            time.sleep(60)
        except Exception:  # as some libraries do
            pass


def attempt(name: str, given: argparse.Namespace, **changed: Any) -> dict[str, Any]:
    from bench.optimizers import TimedOptimizer
    from bench.program import attempt
    from bench_step import measure

    timed = TimedOptimizer("x", "own", "float32", name, **changed)
    return attempt(timed, [(2, 2)], given, measure)


def test_what_a_library_raises_is_the_rows_reason():
    row = attempt(f"{__name__}:Broken", options())
    assert row == {"why_not": "failed: OSError: no such library"}
    row = attempt("no_such_module.optim:SGD", options())
    assert row == {"why_not": "not installed: pip install no_such_module"}
    row = attempt("no_such_module:SGD", options(), package="it")
    assert row == {"why_not": "not installed: pip install it"}


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
def test_a_step_that_takes_too_long_is_given_up():
    start = time.perf_counter()
    row = attempt(f"{__name__}:Slow", options(row_seconds=0.2))
    assert row == {"why_not": "its first three steps take longer than --row_seconds 0.2"}
    assert time.perf_counter() - start < 30


def test_a_row_makes_fewer_pairs_rather_than_take_longer():
    from bench.program import compare

    found = compare(lambda: time.sleep(0.01), lambda: None, options(pairs=10**6, row_seconds=0.1))
    assert 3 <= found["pairs"] <= 10


def test_the_kernel_of_a_row_is_the_one_that_runs():
    from bench.optimizers import KERNELS, dwmgrad_with, kernels_of

    import dwmgrad.kernels

    available = dwmgrad.kernels.native.library() is not None
    expected = {"native": "native" if available else "fused", "loop": "reference"}
    for name in KERNELS:
        used = kernels_of(dwmgrad_with(name, "float32"), "cpu")
        if name != "one_launch":
            assert used == {expected.get(name, name)}
    assert kernels_of(dwmgrad_with("loop", "int8"), "cpu") == {"reference"}
    assert (dwmgrad.kernels.native.library() is not None) == available  # as it was before


def test_bytes_of_state_are_counted_once_and_of_all_parts():
    from bench.timing import state_bytes
    from torch.testing._internal.two_tensor import TwoTensor

    shared = torch.zeros(3)
    optimizer = torch.optim.SGD([torch.zeros(2, requires_grad=True)])
    optimizer.state = {
        0: {"a": torch.zeros(5, dtype=torch.int8), "map": shared, "step": 1},
        1: {"pair": TwoTensor(torch.zeros(2), torch.ones(2)), "map": shared, "no": None},
    }
    assert state_bytes(optimizer) == 5 + 12 + 2 * 8


def test_extra_memory_of_a_step_on_the_cpu():
    from bench.timing import extra_memory

    def step():
        first = torch.zeros(2**18)  # 1 MiB, then 2, then 3
        second = torch.zeros(2**19)
        del first
        torch.zeros(2**17)
        del second

    assert extra_memory(step, "cpu") == 3 * 2**20


def test_launches_are_told_from_other_events():
    from bench.timing import LAUNCH

    for name in ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx"):
        assert LAUNCH.match(name)
    for name in ("cudaMemcpyAsync", "Optimizer.step#AdamW.step", "cudaDeviceSynchronize"):
        assert not LAUNCH.match(name)


def test_shapes():
    from bench.optimizers import SHAPES, count, lora

    counts = {name: count(make()) for name, make in SHAPES.items()}
    assert counts["demo"] == 2_346_754 and counts["roberta-base"] == 124_647_170
    assert counts["roberta-large"] == 355_361_794 and counts["decoder-1b"] == 1_235_814_400
    assert len(lora(768, 12)) == 48 and len(lora(1024, 24)) == 96
    assert len(SHAPES["lora"]()) == 400 and counts["100m"] == 100_000_000


@pytest.mark.slow
def test_end_to_end(tmp_path):
    words = ["--shapes", "--end_to_end", "--rounds", "1", "--max_steps", "2"]
    done = run("bench_step", *words, "--output", tmp_path / "bench.json")
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "bench.json").read_text())["end_to_end"]
    assert row["why_not"] is None and row["ratio"]["median"] > 0
    assert "configs/demo.yaml, 2 steps" in done.stdout
