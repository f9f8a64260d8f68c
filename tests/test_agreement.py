"""assert_ranks_agree on real processes: silent where ranks agree, precise where they do not."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import run

from dwmgrad import DWMGrad
from dwmgrad.distributed import assert_ranks_agree


def trained(**options) -> tuple[list[torch.Tensor], DWMGrad]:
    params = [torch.ones(n, requires_grad=True) for n in (3, 2, 4)]
    optimizer = DWMGrad([{"params": params[:2]}, {"params": params[2:]}], **options)
    for loss in (3.0, 2.0):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step(loss=loss)
    return params, optimizer


def message_of(optimizer: DWMGrad) -> str:
    try:
        assert_ranks_agree(optimizer)
    except RuntimeError as error:
        return str(error)
    return ""


def verdicts(rank: int) -> list[str]:
    found = [message_of(trained()[1])]
    if rank == 1:  # 1 ulp in one element
        params, optimizer = trained()
        params[1].data[1] = torch.nextafter(params[1].data[1], torch.tensor(9.0))
    else:
        optimizer = trained()[1]
    found.append(message_of(optimizer))
    for key, value in (("window", 7), ("last_loss", 2.5), ("last_loss", None)):
        _, optimizer = trained()
        if rank == 1:
            optimizer.param_groups[1][key] = value
        found.append(message_of(optimizer))
    _, optimizer = trained()
    if rank == 1:
        optimizer.add_param_group({"params": [torch.ones(1)]})
    found.append(message_of(optimizer))
    return found


def test_what_differs_is_named_on_every_rank(tmp_path: Path) -> None:
    first, second = run(verdicts, tmp_path)
    assert first == second
    assert first[0] == ""
    assert first[1] == "ranks disagree on parameter 1 of group 0 (ranks 0 and 1)"
    assert first[2] == "ranks disagree on window of group 1 (ranks 0 and 1)"
    assert first[3] == first[4] == "ranks disagree on last_loss of group 1 (ranks 0 and 1)"
    assert first[5].startswith("ranks disagree on the number of parameters")


def halves(rank: int) -> list:
    """Ranks 0 and 1, and ranks 2 and 3, train two models; each pair shares a loss."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    own = groups[rank // 2]
    param = torch.full((3,), 1.0 + rank // 2, requires_grad=True)
    optimizer = DWMGrad([param], loss_group=own, missing_loss="error")
    for step in range(6):
        if rank >= 2 and step >= 4:
            break  # the second pair is done earlier, and nobody waits for it
        param.grad = torch.ones(3)
        optimizer.step(loss=float(10 * (rank // 2) + (-1) ** step * step + rank % 2))
    assert_ranks_agree(optimizer)
    refused = []
    others = groups[1 - rank // 2]
    for wrong in (others, dist, "dp", 3):
        try:
            DWMGrad([param], loss_group=wrong)
        except (TypeError, ValueError) as error:
            refused.append(f"{type(error).__name__}: {error}")
    return [optimizer.last_loss, optimizer.window, refused]


def test_loss_group_keeps_the_loss_within_its_ranks(tmp_path: Path) -> None:
    ranks = run(halves, tmp_path, ranks=4)
    assert [rank[0] for rank in ranks] == [-4.5, -4.5, 7.5, 7.5]
    assert ranks[0][1] == ranks[1][1] and ranks[2][1] == ranks[3][1]
    for rank in ranks:
        assert rank[2][0] == (
            "ValueError: loss_group: this rank is not in the group; pass one that it belongs to"
        )
        assert all(text.startswith("TypeError: loss_group must be a") for text in rank[2][1:])


def meshes(rank: int) -> list:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    param = torch.ones(3, requires_grad=True)
    optimizer = DWMGrad([param], loss_group=mesh["dp"])
    param.grad = torch.ones(3)
    optimizer.step(loss=float(rank))
    with pytest.raises(ValueError, match=r'2 dimensions: pass mesh\["dp"\]'):
        DWMGrad([param], loss_group=mesh)
    with pytest.raises(TypeError, match="cannot be copied: copy its state_dict"):
        optimizer.__getstate__()
    first = optimizer.last_loss
    optimizer.load_state_dict(optimizer.state_dict())  # the group is not in it, and stays
    optimizer.step(loss=float(10 * rank))
    return [first, optimizer.last_loss]


def test_a_dimension_of_a_device_mesh_is_a_loss_group(tmp_path: Path) -> None:
    assert run(meshes, tmp_path, ranks=4) == [[1.0, 10.0], [2.0, 20.0]] * 2


def test_one_process_agrees_with_itself() -> None:
    assert_ranks_agree(trained()[1])
    with pytest.raises(TypeError, match="takes a DWMGrad, got AdamW"):
        assert_ranks_agree(torch.optim.AdamW([torch.ones(1, requires_grad=True)]))
