"""Every walk from a host's optimizer to the one inside ends, whatever the host has there."""

from unittest.mock import MagicMock

import pytest
import torch
from tiny import tiny_roberta
from transformers import Trainer

from dwmgrad import DWMGrad
from dwmgrad.distributed import assert_ranks_agree
from dwmgrad.wrappers import dwmgrad_in, innermost, inside, layers


class Wrapper:
    def __init__(self, optimizer) -> None:
        self.optimizer = optimizer


class ByProperty:
    def __init__(self, optimizer) -> None:
        self._inner = optimizer

    @property
    def optimizer(self):
        if isinstance(self._inner, Exception):
            raise self._inner
        return self._inner


class BySlot:
    __slots__ = ("optimizer",)

    def __init__(self, optimizer) -> None:
        self.optimizer = optimizer


class Endless:
    @property
    def optimizer(self):
        return Endless()


class MakesUp:
    def __getattr__(self, name):
        return MakesUp()


def ours() -> DWMGrad:
    return DWMGrad(torch.nn.Linear(2, 2).parameters())


@pytest.mark.parametrize("kind", [Wrapper, ByProperty, BySlot])
def test_dwmgrad_is_found_under_any_wrapper(kind) -> None:
    inner = ours()
    twice = kind(Wrapper(kind(inner)))
    assert innermost(twice) is dwmgrad_in(twice) is inner
    assert inside([twice, inner, kind(None)]) == [inner]
    inner.optimizer = Wrapper(None)  # what DWMGrad has under that name is of no interest
    assert innermost(twice) is inner


def ring() -> Wrapper:
    first = Wrapper(None)
    first.optimizer = Wrapper(first)
    return first


def itself() -> Wrapper:
    wrapper = Wrapper(None)
    wrapper.optimizer = wrapper
    return wrapper


@pytest.mark.parametrize(
    "make",
    [
        MagicMock,
        lambda: MagicMock(spec=torch.optim.Optimizer),
        lambda: MagicMock(spec=DWMGrad),
        lambda: Wrapper(MagicMock()),
        MakesUp,
        Endless,
        itself,
        ring,
        lambda: ByProperty(ValueError("not prepared yet")),
        lambda: None,
        lambda: "adamw",
    ],
)
def test_whatever_else_there_is_the_walk_ends(make) -> None:
    thing = make()
    assert len(list(layers(thing))) <= 32
    assert dwmgrad_in(thing) is None and inside([thing, thing]) == []
    innermost(thing)
    with pytest.raises(TypeError, match="assert_ranks_agree takes a DWMGrad"):
        assert_ranks_agree(thing)


@pytest.mark.parametrize("spec", [None, torch.optim.AdamW, DWMGrad])
def test_a_trainer_with_a_mock(dataset, arguments, spec) -> None:
    optimizer = MagicMock(spec=spec)
    optimizer.param_groups = [{"lr": 0.1, "params": []}]
    args = arguments(optim="adamw_torch", max_steps=2)
    trainer = Trainer(
        tiny_roberta(), args, train_dataset=dataset, optimizers=(optimizer, MagicMock())
    )
    for event in ("on_train_begin", "on_step_end", "on_train_end"):
        getattr(trainer.callback_handler, event)(args, trainer.state, trainer.control)
    trainer.callback_handler.on_log(args, trainer.state, trainer.control, {"loss": 1.0})
