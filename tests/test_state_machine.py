"""Whole histories at random: a real DWMGrad under a real Accelerator against a plain oracle.

Each example draws an optimizer and then some fifteen events, in any order: losses on each route,
accumulation, drops, skips, errors, parameters that come and go, checkpoints. After each of them
parameters, state, gradients and the window's numbers must be those of `oracle.Oracle`.
`pytest --slow` draws 5,000 histories.
"""

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from oracle import Failed, Group, Oracle, Param, Refused, Window, clear_grad
from torch import Tensor

from dwmgrad import DWMGrad

CLEAR = (TypeError, ValueError, RuntimeError)
SCALE = 16.0

# ---- what is drawn ----

SHAPES = [(3,), (), (2, 2), (5,), (1,)]
WIDE = (4100,)  # the second one with state_dtype="int8", which leaves small tensors in float32
NUMBERS = [1.0, -0.5, 0.25, 2.0, -1.0]  # whose products and sums are exact in float32

indices = st.integers(0, 4)
one_gradient = st.tuples(
    st.sampled_from([1.0, -1.0, 0.5, 2.0, -0.125, 0.0]),
    st.sampled_from([None] * 9 + [math.nan, math.inf, -math.inf, 1e20]),
)
losses = st.sampled_from([1.0, 0.5, 0.75, 2.0, -1.0, 0.0, 1.5, 3.0, 0.25, 2.5, math.nan, math.inf])
batches = st.tuples(
    losses, st.dictionaries(st.integers(0, 4), one_gradient, min_size=1, max_size=5)
)
"""A loss and, for some of the parameters, the size of their gradient and one odd element."""
maybe_batches = st.none() | batches
rates = st.sampled_from([0.125, 0.01, 0.5, 0.0])

KINDS: dict[str, dict[str, Any]] = {
    "the paper's rule": {},
    "a short window": {"max_window": 2},
    "a long window": {"max_window": 100},
    "finetune": {"preset": "finetune"},
    "finetune, increase": {"preset": "finetune", "window_signal": "increase"},
    "a memory of its own": {"second_moment_window": 20, "loss_smoothing": 0.5},
    "corrected": {"bias_correction": True, "window_signal": "loss"},
    "normalized": {"normalize_momentum": True, "max_window": 20, "initial_window": 1},
}
FULL: dict[str, Any] = {
    "initial_window": 5,
    "max_window": 10,
    "window_signal": "decrease",
    "loss_smoothing": 0.0,
    "bias_correction": False,
    "normalize_momentum": False,
    "second_moment_window": None,
}
FINETUNE = {
    "max_window": 100,
    "loss_smoothing": 0.9,
    "bias_correction": True,
    "normalize_momentum": True,
    "second_moment_window": 500,
}
FORMS: list[dict[str, Any]] = [
    {},
    {"fused": False},
    {"foreach": True},
    {"capturable": True},
    {"capturable": True, "fused": False},
    {"state_dtype": torch.bfloat16},
    {"state_dtype": "int8"},
    {"state_dtype": "int8", "fused": False},
]
"""Kernels and precisions."""

group_settings = st.fixed_dictionaries(
    {
        "lr": rates,
        "weight_decay": st.sampled_from([0.0, 0.5]),
        "momentum": st.sampled_from([0.9, 0.0]),
        "eps": st.sampled_from([1e-8, 0.01]),
        "maximize": st.booleans(),
    }
)
setups = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(list(KINDS)),
        "form": st.sampled_from(FORMS),
        "missing_loss": st.sampled_from(["warn", "hold", "error"]),
        "groups": st.lists(group_settings, min_size=1, max_size=3),
        "group_of": st.lists(st.sampled_from([0, 1, 2, None]), min_size=5, max_size=5),
        "frozen": st.sets(indices, max_size=2),
        "every": st.sampled_from([1, 2, 4]),
        "scaler": st.booleans(),
        "company": st.booleans(),
        "tensor_lr": st.booleans(),
    }
)
closures = st.fixed_dictionaries(
    {
        "zeroes": st.booleans(),
        "differentiates": st.sampled_from([None, "plainly", "by accelerator"]),
        "returns": st.sampled_from(["the loss", "a number", "None"]),
        "fails": st.sampled_from([False, False, True]),
    }
)


class Told(torch.autograd.Function):
    """A loss whose value and gradients are what the test says: exact, whatever the parameters."""

    @staticmethod
    def forward(ctx: Any, value: float, gradients: list[Tensor] | None, *params: Tensor) -> Tensor:
        ctx.gradients = gradients
        return torch.tensor(value)

    @staticmethod
    def backward(ctx: Any, *factors: Any) -> Any:
        if ctx.gradients is None:
            raise Failed
        return None, None, *(gradient * factors[0] for gradient in ctx.gradients)


class Model(torch.nn.Module):
    def __init__(self, values: list[np.ndarray]) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList(
            torch.nn.Parameter(torch.tensor(value, dtype=torch.float32)) for value in values
        )
        self.other = torch.nn.Parameter(torch.zeros(1))  # of another optimizer, if there is one


class Histories(RuleBasedStateMachine):
    """Does everything twice, and compares."""

    @initialize(setup=setups)
    def begin(self, setup: dict[str, Any]) -> None:
        self.setup = setup
        self.every, self.form = setup["every"], setup["form"]
        self.arguments = {**KINDS[setup["kind"]], **self.form}
        self.arguments["missing_loss"] = setup["missing_loss"]
        full = {**FULL, **(FINETUNE if "preset" in self.arguments else {}), **self.arguments}
        full["initial_window"] = min(full["initial_window"], full["max_window"])
        self.rounds = "state_dtype" in self.form
        self.shapes = list(SHAPES)
        if self.form.get("state_dtype") == "int8":
            self.shapes[1] = WIDE
        numbers = np.array(NUMBERS, np.float32)
        self.patterns = [np.resize(numbers[at:], shape) for at, shape in enumerate(self.shapes)]
        values = [np.resize(np.linspace(-1, 1, 7), shape) for shape in self.shapes]
        params = [Param(value) for value in values]
        for index in setup["frozen"]:
            params[index].trained = False
        groups = [Group([], **each) for each in setup["groups"]]
        for index, at in enumerate(setup["group_of"]):
            if at is not None:
                groups[at % len(groups)].members.append(index)
        if not any(group.members for group in groups):
            groups[0].members.append(0)
        self.oracle = Oracle(
            params,
            groups,
            Window(
                full["initial_window"],
                full["max_window"],
                full["window_signal"],
                full["loss_smoothing"],
            ),
            second=full["second_moment_window"],
            corrects=full["bias_correction"],
            normalizes=full["normalize_momentum"],
            missing=full["missing_loss"],
            on_device=full.get("capturable", False),
            in_company=setup["company"],
        )
        self.saved: tuple[bytes, Oracle] | None = None
        self.build()
        self.compare()

    # ---- the host ----

    def build(self) -> None:
        """A model and an optimizer as the oracle is, but for their progress."""
        self.model = Model([param.value for param in self.oracle.params])
        for weight, param in zip(self.weights, self.oracle.params, strict=True):
            weight.requires_grad_(param.trained)
            weight.grad = None if param.grad is None else torch.tensor(param.grad)
        groups = []
        for group in self.oracle.groups:
            settings_ = {**vars(group), "params": [self.weights[i] for i in group.members]}
            del settings_["members"]
            if self.setup["tensor_lr"]:
                settings_["lr"] = torch.tensor(group.lr, dtype=torch.float64)
            groups.append(settings_)
        self.prepare(DWMGrad(groups, **self.arguments))

    def prepare(self, inner: DWMGrad) -> None:
        """An Accelerator of its own, with a gradient scaler if one was drawn."""
        GradientState._reset_state()
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=self.every)
        self.scaler = None
        if self.setup["scaler"]:
            self.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=10**6)
            self.scaler.scale(torch.zeros(1))  # without which it refuses every step
            self.accelerator.scaler = self.scaler
        self.scale = SCALE if self.scaler else 1.0
        self.is_unscaled = self.is_marked = False
        vars(inner).pop("step", None)  # an Accelerator's, of which the last step raised
        self.inner = inner
        self.model, self.optimizer = self.accelerator.prepare(self.model, inner)
        if self.setup["company"]:
            self.accelerator.prepare(torch.optim.SGD([self.model.other]))
        self.micro_batch, self.syncs = 0, True

    @property
    def weights(self) -> list[Tensor]:
        return list(self.model.weights)

    def goes_on(self, sync: bool | None) -> None:
        """What comes now is within accumulate(); or within the Trainer, which decides itself."""
        if sync is None:
            self.micro_batch += 1
            self.syncs = self.micro_batch % self.every == 0
        else:
            self.syncs = sync
            self.accelerator.gradient_state._set_sync_gradients(sync)

    def gradients(self, batch: tuple) -> dict[int, np.ndarray]:
        found = {}
        for index, (size, odd) in batch[1].items():
            found[index] = self.patterns[index].copy()
            found[index] *= size
            if odd is not None:
                found[index].reshape(-1)[-1] = odd
        return found

    def loss(self, batch: tuple, fails: bool = False) -> Tensor:
        gradients = self.gradients(batch)
        tensors = None if fails else [torch.from_numpy(g) for g in gradients.values()]
        return Told.apply(batch[0], tensors, *(self.weights[index] for index in gradients))

    def both(self, real: Callable[[], Any], plain: Callable[[], Any]) -> None:
        """Runs the two, which must both raise or both not, and compares what is there then."""
        try:
            plain()
        except Refused as refused:
            with pytest.raises(CLEAR, match=str(refused)):
                real()
        except Failed:
            with pytest.raises(Failed):
                real()
        else:
            real()
        self.compare()

    # ---- what both do ----

    def real_backward(
        self, batch: tuple, fails: bool = False, vector: bool = False, changes: bool = False
    ) -> None:
        loss = self.loss(batch, fails)
        if vector:
            weights = torch.tensor([0.25, 0.75])
            self.accelerator.backward(torch.stack([loss, loss]), gradient=weights)
        else:
            self.accelerator.backward(loss)
        if changes:
            loss.detach().mul_(100.0)

    def plain_backward(self, batch: tuple, fails: bool = False) -> None:
        gradients = self.gradients(batch)
        if not any(self.oracle.params[index].trained for index in gradients):
            fails = False  # torch refuses it before
        self.oracle.backward(batch[0], None if fails else gradients, self.every, self.scale)

    def both_backward(self, batch: tuple, **how: bool) -> None:
        self.both(
            lambda: self.real_backward(batch, **how),
            lambda: self.plain_backward(batch, how.get("fails", False)),
        )

    def both_raw_backward(self, batch: tuple) -> None:
        """A backward pass that nobody sees."""
        self.both(
            lambda: (self.loss(batch) * self.scale).backward(),
            lambda: self.oracle.differentiate(self.gradients(batch), self.scale),
        )

    def plain_step(self, *, by_hand: bool = False, **how: Any) -> None:
        """`optimizer.step()`, by a gradient scaler if there is one."""
        oracle = self.oracle
        if self.scaler is None:
            return oracle.step(**how)
        # Accelerate leaves its mark where the step raises
        self.is_marked = self.is_marked or not by_hand
        leaves_it_to_the_step = oracle.on_device and not self.is_marked
        scaled = None if self.is_unscaled else [param.grad for param in oracle.params]
        if not self.is_unscaled:
            self.unscale()
        overflows = self.overflows
        try:
            if leaves_it_to_the_step:
                oracle.step(**how, scaled=True, overflows=overflows)
            elif overflows:
                oracle.skip()
            else:
                oracle.step(**how, scaled=True)
        finally:
            if leaves_it_to_the_step and scaled:
                self.is_unscaled = False
                for param, grad in zip(oracle.params, scaled, strict=True):
                    param.grad = grad
        self.scale /= 2 if overflows else 1
        self.is_unscaled = False
        self.is_marked = self.is_marked and by_hand

    def unscale(self) -> None:
        """`scaler.unscale_(optimizer)`."""
        grads = [param for param in self.oracle.own() if param.grad is not None]
        for param in grads:
            param.grad = np.asarray(param.grad / np.float32(self.scale))
        self.overflows = not all(np.isfinite(param.grad).all() for param in grads)
        self.is_unscaled = True

    def real_step(self, **how: Any) -> None:
        """`optimizer.step()` where Accelerate would not pass it on: with `loss=`."""
        if self.scaler is None:
            self.inner.step(**how)
        else:
            self.scaler.step(self.inner, **how)
            self.scaler.update()

    def both_step(self, closure: Any = None, plain_closure: Any = None) -> None:
        if self.syncs and not self.can_scale():
            return
        self.both(
            lambda: self.optimizer.step(closure),
            lambda: self.plain_step(closure=plain_closure) if self.syncs else None,
        )

    def can_scale(self) -> bool:
        """A gradient scaler makes an error of its own where there is no gradient at all."""
        has_gradient = any(param.grad is not None for param in self.oracle.own())
        return self.scaler is None or has_gradient or self.is_unscaled

    def both_zero_grad(self, set_to_none: bool = True) -> None:
        self.both(
            lambda: self.optimizer.zero_grad(set_to_none=set_to_none),
            lambda: self.oracle.zero_grad(set_to_none) if self.syncs else None,
        )

    # ---- healthy loops ----

    @rule(batches=st.lists(batches, min_size=1, max_size=4))
    def a_loop_that_accumulates(self, batches: list[tuple]) -> None:
        for batch in batches:
            with self.accelerator.accumulate(self.model):
                self.goes_on(None)
                self.both_backward(batch)
                self.both_step()
                self.both_zero_grad()

    @rule(batches=st.lists(batches, min_size=1, max_size=3), set_to_none=st.booleans())
    def a_loop_as_the_trainers(self, batches: list[tuple], set_to_none: bool) -> None:
        for left, batch in reversed(list(enumerate(reversed(batches)))):
            self.goes_on(left == 0)
            self.both_backward(batch)
        self.both_step()
        if set_to_none:
            self.both_zero_grad()
        else:
            self.drop("model, zero")

    @rule(batches=st.lists(batches, min_size=1, max_size=3))
    def a_loop_that_observes(self, batches: list[tuple]) -> None:
        self.goes_on(True)
        for batch in batches:
            self.both_raw_backward(batch)
            self.observe(batch[0], as_tensor=True)
        self.both_step()
        self.both_zero_grad()

    # ---- one event each ----

    @rule(
        batch=batches,
        sync=st.sampled_from([None, True, False]),
        vector=st.booleans(),
        changes=st.booleans(),
    )
    def backward(self, batch: tuple, sync: bool | None, vector: bool, changes: bool) -> None:
        with self.accelerator.accumulate(self.model) if sync is None else torch.enable_grad():
            self.goes_on(sync)
            self.both_backward(batch, vector=vector, changes=changes)

    @rule(batch=batches)
    def backward_that_fails(self, batch: tuple) -> None:
        self.both_backward(batch, fails=True)

    @rule(batch=batches)
    def backward_that_nobody_sees(self, batch: tuple) -> None:
        self.both_raw_backward(batch)

    @rule(loss=losses, as_tensor=st.booleans())
    def observe(self, loss: float, as_tensor: bool) -> None:
        given = torch.tensor(loss) if as_tensor else loss
        self.both(lambda: self.inner.observe_loss(given), lambda: self.oracle.observe(loss))
        if as_tensor:
            given.fill_(777.0)

    @rule()
    def step(self) -> None:
        self.both_step()

    @rule(loss=losses)
    def step_with_its_loss(self, loss: float) -> None:
        if self.can_scale():
            self.both(
                lambda: self.real_step(loss=loss),
                lambda: self.plain_step(loss=loss, by_hand=True),
            )

    @rule(batch=batches, plan=closures)
    def step_with_a_closure(self, batch: tuple, plan: dict[str, Any]) -> None:
        def real() -> Any:
            if plan["zeroes"]:
                self.inner.zero_grad()
            loss = self.loss(batch)
            if plan["differentiates"] == "plainly":
                (loss * self.scale).backward()
            elif plan["differentiates"]:
                self.accelerator.backward(loss)
            if plan["fails"]:
                raise Failed
            return {"the loss": loss, "a number": batch[0], "None": None}[plan["returns"]]

        def plain() -> float | None:
            if plan["zeroes"]:
                self.oracle.zero_grad(True)
            if plan["differentiates"] == "plainly":
                self.oracle.differentiate(self.gradients(batch), self.scale)
            elif plan["differentiates"]:
                self.plain_backward(batch)
            if plan["fails"]:
                raise Failed
            return None if plan["returns"] == "None" else batch[0]

        self.both_step(real, plain)

    @rule(
        way=st.sampled_from(
            ["model", "model, zero", "parameters", "one", "optimizer", "optimizer, zero", "loss"]
        ),
        index=indices,
        batch=maybe_batches,
    )
    def drop(self, way: str, index: int = 0, batch: tuple | None = None) -> None:
        """Gives a batch up."""
        oracle, zeroes = self.oracle, way.endswith("zero")
        if batch is not None:
            self.both_backward(batch)
        if way.startswith("model"):
            self.model.zero_grad(set_to_none=not zeroes)
            for param in oracle.params:
                clear_grad(param, not zeroes)
        elif way == "parameters":
            for weight, param in zip(self.weights, oracle.params, strict=True):
                weight.grad = param.grad = None
        elif way == "one":
            self.weights[index].grad = oracle.params[index].grad = None
        elif way.startswith("optimizer"):
            self.both_zero_grad(not zeroes)
        else:
            self.both(self.inner.discard_loss, oracle.discard)

    @rule(limit=st.sampled_from([0.5, 1.0]))
    def clip(self, limit: float) -> None:
        clipped = [param for param in self.oracle.own() if param.grad is not None]
        if not clipped:  # of none torch makes an error
            return
        if self.scaler and not self.is_unscaled:
            self.scaler.unscale_(self.inner)
            self.unscale()
        own = [p for group in self.inner.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_value_(own, limit)
        for param in clipped:
            param.grad = param.grad.clip(-np.float32(limit), np.float32(limit))
        self.compare()

    @rule(
        before=maybe_batches,
        how=st.sampled_from(["sparse", "negative", "NaN"]),
        index=indices,
        after=maybe_batches,
    )
    def step_that_is_refused(
        self, before: tuple | None, how: str, index: int, after: tuple | None
    ) -> None:
        """Then it is tried again, or more is differentiated before it is."""
        oracle = self.oracle
        if before is not None:
            self.both_backward(before)
        weight, param = self.weights[index], oracle.params[index]
        group, lr = index % len(oracle.groups), oracle.groups[index % len(oracle.groups)].lr
        if how == "sparse":
            if (
                param not in oracle.own()
                or not param.trained
                or self.scaler
                or param.value.ndim < 1
            ):
                return
            grad, plain_grad = weight.grad, param.grad
            weight.grad = torch.ones(weight.shape).to_sparse()
            param.grad, param.sparse = np.ones(weight.shape, np.float32), True
        else:
            self.set_lr(group, -1.0 if how == "negative" else math.nan)
        self.both_step()
        if how == "sparse":
            weight.grad, param.grad, param.sparse = grad, plain_grad, False
        else:
            self.set_lr(group, lr)
        if after is not None:
            self.both_backward(after)
        self.both_step()

    def set_lr(self, group: int, lr: float) -> None:
        group %= len(self.oracle.groups)
        if self.setup["tensor_lr"]:
            self.inner.param_groups[group]["lr"].fill_(lr)
        else:
            self.inner.param_groups[group]["lr"] = lr
        self.oracle.groups[group].lr = lr

    @rule(group=st.integers(0, 2), lr=rates)
    def schedule(self, group: int, lr: float) -> None:
        self.set_lr(group, lr)

    @rule(index=indices)
    def freeze_or_unfreeze(self, index: int) -> None:
        param = self.oracle.params[index]
        param.trained = not param.trained
        self.weights[index].requires_grad_(param.trained)

    @rule(index=indices)
    def move_to_other_memory(self, index: int) -> None:
        """As `model.to()` does, which keeps the parameter."""
        self.weights[index].data = self.weights[index].data.clone()

    @rule(settings_=group_settings)
    def add_a_group(self, settings_: dict[str, Any]) -> None:
        known = {index for group in self.oracle.groups for index in group.members}
        others = [index for index in range(len(self.shapes)) if index not in known]
        if not others:
            return
        added = {**settings_, "params": [self.weights[others[0]]]}
        if self.setup["tensor_lr"]:
            added["lr"] = torch.tensor(added["lr"], dtype=torch.float64)
        self.both(
            lambda: self.optimizer.add_param_group(added),
            lambda: self.oracle.groups.append(Group(others[:1], **settings_)),
        )

    @rule(index=st.none() | indices)
    def clear_state(self, index: int | None) -> None:
        if index is None:
            self.inner.state.clear()
        else:
            self.inner.state.pop(self.weights[index], None)
        for at, param in enumerate(self.oracle.params):
            if index in (None, at):
                param.lose_state()

    @rule(index=indices)
    def others_keep_something_in_the_state(self, index: int) -> None:
        if self.oracle.params[index] in self.oracle.own():
            self.inner.state[self.weights[index]]["slow_weights"] = torch.ones(2)
            self.oracle.params[index].others = True

    # ---- checkpoints ----

    @rule()
    def save(self) -> None:
        file = io.BytesIO()
        torch.save([self.model.state_dict(), self.optimizer.state_dict()], file)
        self.saved = file.getvalue(), copy.deepcopy(self.oracle)

    @rule(fresh=st.booleans())
    def load(self, fresh: bool) -> None:
        """Goes back to what was saved, in this optimizer or in one of the same construction."""
        if self.saved is None:
            self.save()
        assert self.saved is not None
        model, optimizer = torch.load(io.BytesIO(self.saved[0]), weights_only=True)
        saved = self.saved[1]
        if fresh:
            now, self.oracle = self.oracle, copy.deepcopy(saved)
            for param, old in zip(self.oracle.params, now.params, strict=True):
                param.grad, param.trained = old.grad, old.trained
            self.build()
        members = [[group.members for group in each.groups] for each in (saved, self.oracle)]
        if members[0] != members[1]:
            with pytest.raises(ValueError, match="param_groups|parameter groups"):
                self.optimizer.load_state_dict(optimizer)
        else:
            self.model.load_state_dict(model)
            self.optimizer.load_state_dict(optimizer)
            self.oracle = self.oracle.after_loading(saved, is_new=fresh)
        self.look()

    @rule(way=st.sampled_from(["deepcopy", "pickle", "prepare"]))
    def go_on_with_a_copy(self, way: str) -> None:
        """Or with itself under another Accelerator, which loads its own state into it."""
        inner = self.inner
        if way == "pickle":
            self.model, inner = pickle.loads(pickle.dumps((self.model, inner)))
        elif way == "deepcopy":
            self.model, inner = copy.deepcopy((self.model, inner))
        self.oracle = self.oracle.after_loading(self.oracle, is_new=way != "prepare")
        if way != "prepare":
            for param in self.oracle.params:
                param.grad = None
        self.prepare(inner)
        self.look()

    # ---- the comparison ----

    @rule()
    def look(self) -> None:
        """At the numbers, which a capturable optimizer has on its device."""
        oracle = self.oracle
        window = oracle.window
        assert (self.inner.window, self.inner.last_loss) == (window.size, window.last_loss)
        momentum = oracle.groups[0].momentum * window.size / window.most
        assert math.isclose(self.inner.effective_momentum, momentum)
        self.compare_numbers()
        self.compare()

    def compare_numbers(self) -> None:
        window = self.oracle.window
        for group in self.inner.param_groups:
            assert group["window"] == window.size
            for name in ("last_loss", "mean_loss", "observations", "increases", "steps"):
                assert group[name] == getattr(window, name), name
            for name in ("micro_batches", "mean_micro_batches", "passed_over"):
                assert group[name] == getattr(window, name), name

    def compare(self) -> None:
        if not self.oracle.on_device:
            self.compare_numbers()
        for weight, param in zip(self.weights, self.oracle.params, strict=True):
            own = self.inner.state.get(weight, {})
            assert_close(weight, param.value, 1e-5, least=1.0)
            if param.grad is None or param.sparse:
                assert (weight.grad is None) == (param.grad is None)
            else:
                np.testing.assert_array_equal(weight.grad.numpy(), param.grad)
            assert ("momentum_buffer" in own) == (param.v is not None)
            assert ("slow_weights" in own) == param.others
            if param.v is None:
                continue
            v, s, error = read(own)
            assert_close(v, param.v, error)
            assert_close(s, param.s, error)
            if self.rounds:  # so that roundings do not add up
                param.v, param.s = v, s


def read(own: dict[str, Tensor]) -> tuple[np.ndarray, np.ndarray, float]:
    """v and s of a parameter's state, and the error of their precision."""
    v, s = own["momentum_buffer"], own["square_avg"]
    if v.dtype == torch.int8:
        levels = [v.double() / 127, s.double() / 255]
        scales = [own[name].double() for name in ("momentum_scale", "square_scale")]
        scales = [scale.repeat_interleave(256)[: v.numel()].view(v.shape) for scale in scales]
        v, s = levels[0] * levels[0].abs() * scales[0], levels[1] ** 4 * scales[1]
        return v.numpy(), s.numpy(), 0.02
    return v.double().numpy(), s.double().numpy(), 2**-7 if v.dtype == torch.bfloat16 else 1e-5


def assert_close(actual: Any, expected: np.ndarray, error: float, least: float = 0.1) -> None:
    """Within the error relative to the largest number, as steps can cancel each other."""
    actual = actual.detach().double().numpy() if isinstance(actual, Tensor) else actual
    largest = np.abs(expected).max(initial=least)
    assert np.isfinite(actual).all()
    np.testing.assert_allclose(actual, expected, rtol=error, atol=error * largest)


@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")
def test_no_history_differs_from_the_oracle(request: pytest.FixtureRequest) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=5000 if request.config.getoption("--slow") else 250,
            stateful_step_count=16,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
