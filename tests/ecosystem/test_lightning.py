"""Lightning and Fabric, as they are: every effective batch's loss arrives, and none that was not.

Under both names of their packages.
"""

import importlib
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import launch
from torch.nn.functional import mse_loss
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, TensorDataset

from dwmgrad import DWMGrad

pytestmark = [
    pytest.mark.ecosystem,
    pytest.mark.filterwarnings("ignore::UserWarning:(pytorch_)?lightning"),
]
PACKAGES = ("lightning", "pytorch_lightning")
FABRICS = ("lightning.fabric", "lightning_fabric")


def data() -> DataLoader:
    rows = torch.randn(48, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(rows, rows.sum(1, keepdim=True)), batch_size=8)


def fit(package: str, module: Any, tmp_path: Any, **options: Any) -> Any:
    lightning = pytest.importorskip(package)
    logging.getLogger(f"{package}.pytorch").setLevel(logging.ERROR)
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        default_root_dir=tmp_path,
        **dict.fromkeys(quiet, False),
        **options,
    )
    module = module(lightning.LightningModule)()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(no loss|not finite).*")
        trainer.fit(module, data())
    return module


def automatic(base: type, skipped: tuple[int, ...] = (), optimizer: type = DWMGrad) -> type:
    """A module whose training_step returns None for these batches."""

    class Module(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = torch.nn.Linear(4, 1)
            self.losses: list[float | None] = []
            self.seen: list[tuple[float | None, int, int]] = []

        def training_step(self, batch: Any, index: int) -> Any:
            loss = mse_loss(self.net(batch[0]), batch[1])
            self.losses.append(None if index in skipped else loss.item())
            return None if index in skipped else loss

        def on_train_batch_end(self, *_: Any) -> None:
            if optimizer is DWMGrad:
                made = self.optimizers().optimizer
                group = made.param_groups[0]
                self.seen.append((made.last_loss, group["observations"], group["steps"]))

        def configure_optimizers(self) -> Any:
            options = {"missing_loss": "error"} if optimizer is DWMGrad else {}
            return optimizer(self.parameters(), lr=1e-2, **options)

    return Module


@pytest.mark.parametrize("package", PACKAGES)
def test_the_loss_of_every_batch_arrives(package: str, tmp_path) -> None:
    module = fit(package, automatic, tmp_path, gradient_clip_val=0.5)
    assert [last for last, *_ in module.seen] == pytest.approx(module.losses)
    assert [counts for _, *counts in module.seen] == [[n, n] for n in range(1, 7)]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_batch_that_is_skipped_with_none_leaves_everything_as_it_was(
    package: str, tmp_path
) -> None:
    module = fit(package, lambda base: automatic(base, skipped=(0, 2)), tmp_path)
    assert [counts for _, *counts in module.seen] == [[n, n] for n in (0, 1, 1, 2, 3, 4)]
    assert module.seen[2] == module.seen[1]


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("skipped", [(), (1,), (3,)], ids=str)
def test_accumulated_batches_add_up(package: str, skipped: tuple[int, ...], tmp_path) -> None:
    """6 batches, 4 a step; Lightning divides by 4 in the short last one, too."""
    module = fit(
        package, lambda base: automatic(base, skipped), tmp_path, accumulate_grad_batches=4
    )
    sums = [
        sum(loss or 0.0 for loss in part) / 4 for part in (module.losses[:4], module.losses[4:])
    ]
    assert [module.seen[3][0], module.seen[5][0]] == pytest.approx(sums)
    assert module.seen[5][1:] == (2, 2)


def manual(base: type) -> type:
    """A generator and its judge, trained in turns."""

    class Module(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net, self.judge = torch.nn.Linear(4, 2), torch.nn.Linear(2, 1)
            self.automatic_optimization = False

        def training_step(self, batch: Any, index: int) -> None:
            first, second = self.optimizers()
            made = self.net(batch[0])
            second.zero_grad()
            of_judge = (self.judge(made.detach()) - 1).square().mean()
            self.manual_backward(of_judge)
            second.step()
            first.zero_grad()
            of_net = self.judge(made).square().mean()
            self.manual_backward(of_net)
            first.step()
            assert first.optimizer.last_loss == of_net.item()
            assert second.optimizer.last_loss == of_judge.item()

        def configure_optimizers(self) -> Any:
            parts = (self.net, self.judge)
            return [DWMGrad(part.parameters(), missing_loss="error") for part in parts]

    return Module


@pytest.mark.parametrize("package", PACKAGES)
def test_manual_optimization_of_two_optimizers(package: str, tmp_path) -> None:
    fit(package, manual, tmp_path)


def beside_a_probe(base: type) -> type:
    """A module that also trains a part with an optimizer that Lightning does not know."""

    class Module(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net, self.probe = torch.nn.Linear(4, 1), torch.nn.Linear(4, 1)
            self.automatic_optimization = False

        def training_step(self, batch: Any, index: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            loss = mse_loss(self.net(batch[0]), batch[1])
            self.manual_backward(loss)
            self.manual_backward(mse_loss(self.probe(batch[0]), batch[1]))
            optimizer.step()
            assert optimizer.optimizer.last_loss == loss.item()

        def configure_optimizers(self) -> Any:
            return DWMGrad(self.net.parameters(), missing_loss="error")

    return Module


@pytest.mark.parametrize("package", PACKAGES)
def test_the_loss_of_a_part_that_is_not_optimized_here_is_not_seen(package: str, tmp_path) -> None:
    fit(package, beside_a_probe, tmp_path)


@pytest.mark.parametrize("package", PACKAGES)
def test_other_optimizers_are_left_alone(package: str, tmp_path) -> None:
    module = fit(package, lambda base: automatic(base, optimizer=torch.optim.AdamW), tmp_path)
    assert len(module.losses) == 6


def limited(net: torch.nn.Module) -> DWMGrad:
    return DWMGrad(net.parameters(), lr=1.0, preset="finetune", loss_limit=0.3)


def clipped_by_hand(norm_type: float = 2.0) -> tuple[list[float], list[torch.Tensor]]:
    """The limit of every step, and the parameters at the end."""
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 1)
    optimizer = limited(net)
    limits = []
    for rows, sums in data():
        optimizer.zero_grad()
        loss = mse_loss(net(rows), sums)
        loss.backward()
        norm = clip_grad_norm_(net.parameters(), 0.1, norm_type)
        optimizer.observe_clipping(norm, 0.1)
        optimizer.step(loss=loss)
        limits.append(optimizer.param_groups[0]["step_limit"])
    assert max(limits) < 1.0, "the limit is at work"
    return limits, list(net.parameters())


def clipped(base: type) -> type:
    """A module whose step is limited; the Trainer clips its gradients, or it does so itself."""

    class Module(base):  # type: ignore[misc, valid-type]
        by_itself = False

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = torch.nn.Linear(4, 1)
            self.automatic_optimization = not self.by_itself
            self.limits: list[float] = []

        def training_step(self, batch: Any, index: int) -> Any:
            loss = mse_loss(self.net(batch[0]), batch[1])
            if self.by_itself:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                self.clip_gradients(optimizer, 0.1, "norm")
                optimizer.step()
            return loss

        def on_train_batch_end(self, *_: Any) -> None:
            self.limits.append(self.optimizers().optimizer.param_groups[0]["step_limit"])

        def configure_optimizers(self) -> Any:
            return limited(self.net)

    return Module


@pytest.mark.parametrize("by_itself", [False, True], ids=["automatic", "manual"])
@pytest.mark.parametrize("package", PACKAGES)
def test_its_clipping_to_a_norm_is_that_of_a_loop_which_tells_it(
    package: str, by_itself: bool, tmp_path
) -> None:
    def made(base: type) -> type:
        return type("Made", (clipped(base),), {"by_itself": by_itself})

    module = fit(package, made, tmp_path, **({} if by_itself else {"gradient_clip_val": 0.1}))
    limits, params = clipped_by_hand()
    assert module.limits == limits
    assert all(map(torch.equal, module.parameters(), params))


@pytest.mark.parametrize("norm_type", [2.0, float("inf")])
@pytest.mark.parametrize("package", FABRICS)
def test_the_clipping_of_fabric_is_that_of_a_loop_which_tells_it(
    package: str, norm_type: float
) -> None:
    pytest.importorskip(package.partition(".")[0])
    fabric = importlib.import_module(package).Fabric(accelerator="cpu")
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 1)
    inner = limited(net)
    model, optimizer = fabric.setup(net, inner)
    found = []
    for rows, sums in data():
        optimizer.zero_grad()
        fabric.backward(mse_loss(model(rows), sums))
        fabric.clip_gradients(model, optimizer, max_norm=0.1, norm_type=norm_type)
        optimizer.step()
        found.append(inner.param_groups[0]["step_limit"])
    limits, params = clipped_by_hand(norm_type)
    assert found == limits
    assert all(map(torch.equal, net.parameters(), params))


@pytest.mark.parametrize("package", FABRICS)
def test_what_is_told_to_fabrics_wrapper_reaches_the_optimizer(package: str) -> None:
    """Its class is made of the optimizer's, so that our methods run on the wrapper itself."""
    pytest.importorskip(package.partition(".")[0])
    fabric = importlib.import_module(package).Fabric(accelerator="cpu")
    net = torch.nn.Linear(4, 1)
    inner = DWMGrad(net.parameters(), preset="auto")
    _, optimizer = fabric.setup(net, inner)
    optimizer.expect_steps(1000)
    optimizer.observe_clipping(10.0, 1.0)
    assert inner.param_groups[0]["max_window"] == 200
    for param in net.parameters():
        param.grad = torch.ones_like(param)
    inner.step(loss=1.0)
    assert inner.param_groups[0]["clipped_to"] == pytest.approx(0.1)
    inner.load_state_dict(inner.state_dict())
    optimizer.observe_clipping(0.0, 1.0)
    optimizer.observe_clipping(float("inf"), 1.0)
    optimizer.zero_grad()
    assert inner._feed.clipped_to == 1.0, "the wrapper drops it, too"


@pytest.mark.parametrize("package", FABRICS)
def test_fabric(package: str) -> None:
    pytest.importorskip(package.partition(".")[0])
    fabric = importlib.import_module(package).Fabric(accelerator="cpu")
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    inner = DWMGrad(model.parameters(), lr=1e-2, missing_loss="error")
    bystander = DWMGrad([torch.ones(2, requires_grad=True)])
    model, optimizer = fabric.setup(model, inner)
    losses = []
    for index, (rows, sums) in enumerate(data()):
        loss = mse_loss(model(rows), sums) / 2
        losses.append(loss.item())
        fabric.backward(loss)
        if index == 2:
            model.zero_grad()  # these two are given up
            losses = []
        elif len(losses) == 2:
            optimizer.step()
            optimizer.zero_grad()
            assert inner.last_loss == pytest.approx(sum(losses))
            losses = []
    assert inner.param_groups[0]["observations"] == 2
    assert bystander.last_loss is None


@pytest.mark.newest
def test_fabric_with_fsdp2_brings_the_losses_of_all_micro_batches(tmp_path: Path) -> None:
    """Also where it does not synchronize until the last one."""
    pytest.importorskip("lightning")
    for seen in launch(str(Path(__file__).with_name("fabric_fsdp2.py")), tmp_path):
        for micro_batches, last_loss, total in seen:
            assert micro_batches == 4 and last_loss == pytest.approx(total, rel=1e-5)
