"""`loss_limit` and the preset `auto` under DeepSpeed ZeRO, on two processes, beside one process.

This file is also the script that those processes run, as test_deepspeed.py is.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("deepspeed")

from ranks import launch, leave  # noqa: E402
from test_deepspeed import (  # noqa: E402
    FP16,
    ZERO,
    _limits,
    allow_fp16,
    new_accelerator,
    no_extensions,
    parts,
    prepare,
    train,
)

from dwmgrad.wrappers import layers  # noqa: E402

pytestmark = pytest.mark.ecosystem

STEPS = 24
STOP = 6  # in the middle of an epoch of four steps
CLIP = 0.1
# rates that differ: what is a share of the highest must not be taken of one group alone
AUTO: dict[str, Any] = {"preset": "auto", "lr": 1e-2, "bias_lr": 3e-2}
CEILING: dict[str, Any] = {"preset": "finetune", "loss_limit": 0.5, "lr": 0.5}
CASES = {
    "auto": {"settings": AUTO},
    "auto x2, clipped": {"settings": AUTO, "accumulation": 2, "gradient_clipping": CLIP},
    "ceiling, clipped": {"settings": CEILING, "gradient_clipping": CLIP},
}
HALF: dict[str, dict[str, Any]] = {
    **{f"bf16 {stage}": {"stage": stage, "bf16": {"enabled": True}} for stage in (1, 2, 3)},
    "bf16 1, float32 gradients": {
        "stage": 1,
        "bf16": {"enabled": True},
        "data_types": {"grad_accum_dtype": "fp32"},
    },
    "torch_autocast": {"stage": 2, "torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
}


# ---- in the test's process ----


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    return launch(__file__, tmp_path_factory.mktemp("limit"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ZERO)
def test_ranks_do_what_one_process_does(ranks, name: str, case: str) -> None:
    expected = ranks[0][case]
    assert min(step[0][0] for step in expected["limits"]) < 0.5
    for rank in ranks:
        found = rank[f"{name}, {case}"]
        assert found["limits"] == ranks[0][f"{name}, {case}"]["limits"]  # to the last bit
        for ours, one in zip(found["limits"], expected["limits"], strict=True):
            assert ours[0] == ours[1] == pytest.approx(one[0], rel=1e-5)
        torch.testing.assert_close(
            found["parameters"], expected["parameters"], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ZERO)
def test_a_step_takes_one_more_small_reduction(ranks, name: str, case: str) -> None:
    for rank in ranks:
        assert rank[f"{name}, {case}"]["reductions"] == 2 * STEPS  # the loss, and one more


@pytest.mark.parametrize("name", ZERO)
def test_a_resumed_run_is_the_run(ranks, name: str) -> None:
    for rank in ranks:
        whole, resumed = rank[f"{name}, auto x2, clipped"], rank[f"{name} resumed"]
        assert resumed["limits"] == whole["limits"][STOP:]
        assert torch.equal(resumed["parameters"], whole["parameters"])


@pytest.mark.parametrize("name", HALF)
def test_bfloat16(ranks, name: str) -> None:
    one, other = (rank[name]["limits"] for rank in ranks)
    assert one == other
    for ours, expected in zip(one, ranks[0]["auto x2, clipped"]["limits"], strict=True):
        assert ours[0] == pytest.approx(expected[0], rel=0.1)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_scale_of_fp16_is_not_in_the_limit(ranks, stage: int) -> None:
    """And an overflow of fp16 leaves no trace."""
    for rank in ranks:
        run = rank[f"fp16 {stage}"]
        made = [at for at, skipped in enumerate(run["skipped"]) if not skipped]
        assert 0 < len(made) < len(run["skipped"])
        assert len({run["limits"][at][0][0] for at in made}) == len(made)
        before = [[0.0, 0.0, 1.0]] * 2  # no loss has said yet how far a step of auto may go
        for limits, skipped in zip(run["limits"], run["skipped"], strict=True):
            assert (limits == before) is skipped
            before = limits
        scaled, plain = (rank[f"fp16 {stage}, scale {scale}"]["limits"] for scale in (16, 1))
        for ours, one in zip(scaled, plain, strict=True):
            assert ours[0] == pytest.approx(one[0], rel=1e-2)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("stage 0", "DeepSpeedOptimizerWrapper: use ZeRO-1, 2 or 3"),
        ("capturable", "capturable=True: use"),
        ("a loss of its own", "ranks that do not share one loss"),
        ("another version", "a DeepSpeedZeroOptimizer that has no averaged_gradients"),
    ],
)
def test_what_does_not_show_the_gradients_is_refused(ranks, case: str, words: str) -> None:
    for rank in ranks:
        assert f"loss_limit does not work under DeepSpeed with {words}" in rank[case]


# ---- in the launched processes ----


def alone(
    settings: dict[str, Any], accumulation: int = 1, gradient_clipping: float = 0.0
) -> dict[str, Any]:
    """The run of one process, with the batches of both ranks."""
    own = dist.new_subgroups(group_size=1)[0]
    model, optimizer, loader = parts(**settings, loss_group=own)
    batches = list(loader)
    joined = [torch.cat(pair) for pair in zip(batches[::2], batches[1::2], strict=True)]
    limits: list[list[list[float]]] = []
    while len(limits) < STEPS:
        for first in range(0, len(joined), accumulation):
            optimizer.zero_grad()
            for batch in joined[first : first + accumulation]:
                loss = (model(batch) - 1).square().mean() / accumulation
                optimizer.observe_loss(loss)
                loss.backward()
            if gradient_clipping:
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), gradient_clipping)
                optimizer.observe_clipping(norm, gradient_clipping)
            optimizer.step()
            limits.append([_limits(group) for group in optimizer.param_groups])
            if len(limits) == STEPS:
                break
    parameters = torch.cat([p.detach().flatten() for p in model.parameters()])
    return {"limits": limits, "parameters": parameters}


def counted(*args: Any, **options: Any) -> dict[str, Any]:
    """A run, with the number of the optimizer's own reductions."""
    reduce, wide = dist.all_reduce, []

    def all_reduce(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # DeepSpeed has gradients in float32, and norms of one element
        wide.append(tensor.dtype == torch.float64 and tensor.numel() > 1)
        return reduce(tensor, *args, **kwargs)

    dist.all_reduce = all_reduce
    told = train(*args, **options)
    dist.all_reduce = reduce
    return {**told, "reductions": sum(wide)}


def refusal(stage: int, lacks: str = "", **settings: Any) -> str:
    """What the first backward pass says."""
    accelerator = new_accelerator(2, 1, {"stage": stage})
    model, optimizer, loader, inner = prepare(accelerator, preset="auto", **settings)
    if lacks:
        delattr(layers(optimizer)[-2], lacks)
    try:
        accelerator.backward(model(next(iter(loader))).square().mean())
    except RuntimeError as error:
        return str(error)
    return "not refused"


def main(folder: Path) -> None:
    no_extensions()
    new_accelerator(2, 1, {})  # for the process group
    told: dict[str, Any] = {case: alone(**options) for case, options in CASES.items()}
    told["stage 0"] = refusal(0)
    told["capturable"] = refusal(2, capturable=True)
    own = dist.new_subgroups(group_size=1)[0]
    told["a loss of its own"] = refusal(2, loss_group=own)
    told["another version"] = refusal(2, lacks="averaged_gradients")
    for name, zero in ZERO.items():
        for case, options in CASES.items():
            told[f"{name}, {case}"] = counted(end=STEPS, **{**zero, **options})
        options = CASES["auto x2, clipped"]
        saved = folder / name
        train(end=STOP, save={STOP: saved}, **{**zero, **options})
        resumed = train(begin=STOP, end=STEPS, load=saved, **{**zero, **options})
        told[f"{name} resumed"] = resumed
    for name, half in HALF.items():
        told[name] = train(end=STEPS, **{**half, **CASES["auto x2, clipped"]})
    allow_fp16()
    for stage in (1, 2, 3):
        told[f"fp16 {stage}"] = train(stage, end=12, settings=AUTO, fp16=FP16)
        for scale in (16, 1):
            told[f"fp16 {stage}, scale {scale}"] = train(
                stage, end=12, settings=AUTO, fp16={"enabled": True, "loss_scale": scale}
            )
    leave(told, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
