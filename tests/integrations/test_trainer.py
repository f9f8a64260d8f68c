"""The Trainer feeds the loss by itself, and the window is where people look."""

import dataclasses
import itertools
import re
import warnings

import pytest
import torch
from tiny import tiny_roberta
from transformers import Trainer, TrainerCallback, TrainingArguments

import dwmgrad
from dwmgrad import DWMGrad
from dwmgrad.integrations.accelerate import innermost

pytestmark = pytest.mark.usefixtures("registered")


class Seen(TrainerCallback):
    """What the optimizer saw at every log, beside what the Trainer logged."""

    def __init__(self) -> None:
        self.logged: list[float] = []
        self.observed: list[float] = []

    def on_log(self, args, state, control, logs=None, optimizer=None, **kwargs) -> None:
        if "loss" in logs:
            self.logged.append(logs["loss"])
            self.observed.append(innermost(optimizer).last_loss)


def train(model, dataset, args, **options) -> tuple[Trainer, Seen]:
    seen = Seen()
    trainer = Trainer(model, args, train_dataset=dataset, callbacks=[seen], **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(no loss|num_items_in_batch|not finite).*")
        trainer.train()
    assert len(seen.logged) == args.max_steps
    return trainer, seen


def mean_loss(outputs, labels, num_items_in_batch=None) -> torch.Tensor:
    loss = torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum")
    return loss / (labels.numel() if num_items_in_batch is None else num_items_in_batch)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_accumulation_steps": 4},  # 11 batches an epoch: the last accumulation is short
        {"gradient_accumulation_steps": 4, "label_smoothing_factor": 0.1},
        {"bf16": True},
        {"lr_scheduler_type": "cosine", "warmup_steps": 3},
        {"max_grad_norm": 0.0},
        {"gradient_checkpointing": True},
    ],
    ids=str,
)
def test_the_window_sees_the_loss_that_the_trainer_logs(
    model, dataset, arguments, settings
) -> None:
    _, seen = train(model, dataset, arguments(**settings))
    assert seen.observed == pytest.approx(seen.logged, abs=1e-4)  # newer Trainers round the log
    assert len(set(seen.observed)) > 5


def test_so_it_does_with_a_loss_function_of_ones_own(model, dataset, arguments) -> None:
    args = arguments(gradient_accumulation_steps=4)
    _, seen = train(model, dataset, args, compute_loss_func=mean_loss)
    assert seen.observed == pytest.approx(seen.logged, abs=1e-4)


class ScaledModel(torch.nn.Module):
    """A head that divides by num_items_in_batch, as causal language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 2)

    def forward(self, input_ids, labels=None, num_items_in_batch=None, **kwargs):
        logits = self.linear(input_ids.float() / 40)
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        return {"loss": loss / (num_items_in_batch or labels.numel()), "logits": logits}


def test_so_it_does_with_num_items_in_batch(dataset, arguments) -> None:
    _, seen = train(ScaledModel(), dataset, arguments(gradient_accumulation_steps=4))
    assert seen.observed == pytest.approx(seen.logged, abs=1e-4)
    assert max(seen.observed) < 1.5


def test_a_gradient_scaler_leaves_no_trace_in_the_window(model, dataset, arguments) -> None:
    seen = Seen()
    trainer = Trainer(model, arguments(), train_dataset=dataset, callbacks=[seen])
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    trainer.accelerator.native_amp = True
    poison = iter([False, False, True, False, True] + [False] * 10)

    def poisoned(grad: torch.Tensor) -> torch.Tensor:
        return torch.full_like(grad, float("inf")) if next(poison) else grad

    model.classifier.out_proj.bias.register_hook(poisoned)
    trainer.train()
    expected, last = [], None
    for step, loss in enumerate(seen.logged):
        last = last if step in (2, 4) else loss
        expected.append(last)
    assert seen.observed == pytest.approx(expected, abs=1e-4)
    assert innermost(trainer.optimizer).param_groups[0]["observations"] == 7


def undivided(outputs, labels, num_items_in_batch=None) -> torch.Tensor:
    """As of a head that ignores num_items_in_batch: the Trainer does not divide it either."""
    return torch.nn.functional.cross_entropy(outputs.logits, labels)


def test_accumulations_of_unlike_length_are_not_compared(model, dataset, arguments) -> None:
    """11 batches, 8 a step: the undivided losses are 8 and 3 times too large. Full ones compare.

    Nothing is said of it: whether a loss is divided cannot be told from the model.
    """
    seen = Seen()
    args = arguments(gradient_accumulation_steps=8, max_steps=6)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*num_items_in_batch.*")
        options = {"compute_loss_func": undivided, "callbacks": [seen]}
        trainer = Trainer(model, args, train_dataset=dataset, **options)
        trainer.train()
    full, short = seen.observed[::2], seen.observed[1::2]
    assert max(short) < min(full) / 2
    optimizer = innermost(trainer.optimizer)
    group = optimizer.param_groups[0]
    improved = sum(after < before for before, after in itertools.pairwise(full))
    assert (group["observations"], group["increases"]) == (6, improved)
    assert (group["micro_batches"], group["mean_micro_batches"]) == (3, 8)
    assert optimizer.window == 4 + improved - (2 - improved)  # the first loss shrinks it


class Stubborn(Trainer):
    """Makes its own optimizer, whatever it is asked for, as DeepSpeed may."""

    def create_optimizer(self, model=None):
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        return self.optimizer


def test_another_optimizer_in_its_place_is_an_error(model, dataset, arguments) -> None:
    given = DWMGrad(model.parameters())
    for args, options in (
        (arguments(), {}),
        (arguments(optim="adamw_torch"), {"optimizers": (given, None)}),
    ):
        with pytest.raises(RuntimeError, match="asked for and AdamW trains in its place"):
            Stubborn(model, args, train_dataset=dataset, **options).train()
    Stubborn(model, arguments(optim="adamw_torch"), train_dataset=dataset).train()


def test_sorting_by_length_is_warned_of(model, dataset, arguments) -> None:
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    old = {"group_by_length": True}
    new = {"train_sampling_strategy": "group_by_length"}
    args = arguments(max_steps=1, **(old if "group_by_length" in names else new))
    with pytest.warns(UserWarning, match="batches in random order"):
        Trainer(model, args, train_dataset=dataset).train()


def test_the_logs_are_those_of_the_device(dataset, arguments) -> None:
    """With `capturable`, a log's share is that of the steps since the log before it."""
    found = []
    for options in ("", "capturable=True"):
        trainer = Trainer(
            tiny_roberta(), arguments(logging_steps=3, optim_args=options), train_dataset=dataset
        )
        trainer.train()
        logs = trainer.state.log_history
        found.append([entry["window_increase_share"] for entry in logs if "loss" in entry])
    assert len(found[0]) == 3 and found[0] == found[1]


def test_the_window_is_in_the_logs_and_in_tensorboard(model, dataset, arguments, tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    args = arguments(logging_steps=3, report_to="tensorboard", optim_args="max_window=20")
    trainer = Trainer(model, args, train_dataset=dataset)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 3
    optimizer = innermost(trainer.optimizer)
    assert logs[-1]["window"] == optimizer.window
    assert logs[-1]["effective_momentum"] == pytest.approx(0.9 * optimizer.window / 20)
    shares = sum(entry["window_increase_share"] * 3 for entry in logs)
    assert shares == pytest.approx(optimizer.param_groups[0]["increases"])
    [folder] = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder))
    events.Reload()
    assert {"train/window", "train/effective_momentum"} <= set(events.Tags()["scalars"])


def test_other_optimizers_log_as_ever(model, dataset, arguments) -> None:
    trainer = Trainer(model, arguments(optim="adamw_torch"), train_dataset=dataset)
    trainer.train()
    assert not any("window" in entry for entry in trainer.state.log_history)


class Renames(Trainer):
    """Logs its loss under a name of its own, as SetFit does."""

    def log(self, logs, *args, **kwargs) -> None:
        names = {"loss": "embedding_loss", "eval_loss": "eval_embedding_loss"}
        super().log({names.get(key, key): value for key, value in logs.items()}, *args, **kwargs)


def test_the_window_is_in_logs_that_call_the_loss_otherwise(model, dataset, arguments) -> None:
    args = arguments(logging_steps=3, eval_strategy="steps", eval_steps=3)
    trainer = Renames(model, args, train_dataset=dataset, eval_dataset=dataset)
    trainer.train()
    trainer.evaluate(metric_key_prefix="held_out")
    has_window = {
        key: "window" in entry
        for entry in trainer.state.log_history
        for key in entry
        if key.endswith("_loss")
    }
    assert has_window == {
        "embedding_loss": True,
        "eval_embedding_loss": False,
        "train_loss": False,
        "held_out_loss": False,
    }


def parameters(trainer: Trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


def test_all_ways_to_switch_it_on_give_the_same_run(dataset, arguments) -> None:
    args = arguments(optim_args="max_window=50", lr_scheduler_type="constant")
    by_name, _ = train(tiny_roberta(), dataset, args)

    plain = arguments(optim="adamw_torch", lr_scheduler_type="constant")
    model = tiny_roberta()
    given = DWMGrad(model.parameters(), lr=1e-3, max_window=50)
    by_instance, _ = train(model, dataset, plain, optimizers=(given, None))
    assert innermost(by_instance.optimizer) is given
    assert all(map(torch.equal, parameters(by_name), parameters(by_instance)))

    kwargs = {"lr": 1e-3, "max_window": 50}
    by_class, _ = train(tiny_roberta(), dataset, plain, optimizer_cls_and_kwargs=(DWMGrad, kwargs))
    assert all(map(torch.equal, parameters(by_name), parameters(by_class)))


@pytest.mark.parametrize("stop", [1, 4, 8])
def test_a_resumed_run_is_the_run(dataset, arguments, stop: int, tmp_path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": 2}
    settings["per_device_train_batch_size"] = 1  # transformers 4.48 miscounts short accumulations
    whole, _ = train(tiny_roberta(), dataset, arguments(**settings))
    resumed = Trainer(tiny_roberta(), arguments(**settings), train_dataset=dataset)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{stop}"))
    assert all(map(torch.equal, parameters(whole), parameters(resumed)))
    keys = ("loss", "learning_rate", "window", "effective_momentum", "window_increase_share")
    histories = [
        [{key: entry[key] for key in keys} for entry in t.state.log_history if "loss" in entry]
        for t in (whole, resumed)
    ]
    assert histories[0] == histories[1]


def test_the_adam_arguments_mean_what_they_mean_for_adamw(model, dataset, arguments) -> None:
    args = arguments(weight_decay=0.1, adam_epsilon=1e-6, learning_rate=3e-4, warmup_steps=0)
    trainer = Trainer(model, args, train_dataset=dataset)
    optimizer = trainer.create_optimizer()
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    assert decays == [0.1, 0.0]
    assert {(g["lr"], g["eps"]) for g in optimizer.param_groups} == {(3e-4, 1e-6)}


class Starts(TrainerCallback):
    """The window with which each training starts, and the losses that made it."""

    def __init__(self) -> None:
        self.found: list[tuple[float, int]] = []

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs) -> None:
        optimizer = innermost(optimizer)
        self.found.append((optimizer.window, optimizer.param_groups[0]["observations"]))


def test_hyperparameter_search(dataset, arguments) -> None:
    seen, starts = Seen(), Starts()
    trainer = Trainer(
        model_init=lambda trial: tiny_roberta(),
        args=arguments(max_steps=3),
        train_dataset=dataset,
        eval_dataset=dataset,
        callbacks=[seen, starts],
    )
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {
            "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
            "optim_args": trial.suggest_categorical("optim_args", ["max_window=20"]),
        },
        n_trials=2,
        backend="optuna",
    )
    assert set(best.hyperparameters) == {"learning_rate", "optim_args"}
    fresh = DWMGrad(tiny_roberta().parameters(), max_window=20)
    assert starts.found == [(fresh.window, 0)] * 2
    assert len(seen.logged) == 6
    assert seen.observed == pytest.approx(seen.logged, abs=1e-4)
    assert isinstance(innermost(trainer.optimizer), DWMGrad)


def test_the_feed_works_without_registering(model, dataset, arguments) -> None:
    dwmgrad.unregister()
    optimizer = DWMGrad(model.parameters(), missing_loss="error")
    args = arguments(optim="adamw_torch")
    trainer = Trainer(model, args, train_dataset=dataset, optimizers=(optimizer, None))
    trainer.train()
    assert optimizer.param_groups[0]["observations"] == 9


def test_the_preset_auto_needs_no_learning_rate(dataset, arguments, capsys) -> None:
    runs = []
    for settings in ({}, {"learning_rate": 1.0}):
        args = arguments(optim="dwmgrad_auto", max_steps=20, **{"learning_rate": 5e-5, **settings})
        trainer, _ = train(tiny_roberta(), dataset, args)
        runs.append(trainer)
    for one, other in zip(*map(parameters, runs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    optimizer = innermost(runs[0].optimizer)
    assert optimizer.param_groups[0]["max_window"] == 4, "a fifth of the steps"
    logs = [entry for entry in runs[0].state.log_history if "loss" in entry]
    assert all(0 < entry["effective_lr"] < 1 and 0 < entry["step_limit"] <= 1 for entry in logs)
    told = r"dwmgrad: the loss held back 20 of 20 steps, to 0\.0\d+ of their size in the mean"
    assert re.search(told, capsys.readouterr().out)
    trainer, _ = train(tiny_roberta(), dataset, arguments(optim="dwmgrad"))
    assert "dwmgrad:" not in capsys.readouterr().out
    trainer, _ = train(tiny_roberta(), dataset, arguments(optim="dwmgrad_capped", max_steps=3))
    assert "the loss held back none of 3 steps; the" in capsys.readouterr().out


def test_the_trainers_clipping_is_seen(dataset, arguments) -> None:
    """With the gradients clipped to almost nothing, the limit is that of the whole ones."""
    firsts = []
    for norm in (0.0, 1e-3):
        args = arguments(optim="dwmgrad_auto", max_steps=1, max_grad_norm=norm, logging_steps=1)
        trainer, _ = train(tiny_roberta(), dataset, args)
        (entry,) = (entry for entry in trainer.state.log_history if "loss" in entry)
        firsts.append(entry["effective_lr"])
    assert firsts[0] == pytest.approx(firsts[1], rel=0.05)


@pytest.mark.parametrize("settings", [{"num_train_epochs": 0}, {"max_steps": 2**63 - 1}], ids=str)
@pytest.mark.parametrize("optim", ["dwmgrad", "dwmgrad_auto"])
def test_a_run_of_no_steps_or_of_no_known_number(optim, settings, dataset, arguments) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    args = arguments(optim=optim, **{"max_steps": -1, **settings})
    trainer = Trainer(tiny_roberta(), args, train_dataset=dataset, callbacks=[Stop()])
    trainer.train()
    assert trainer.state.global_step == (0 if "num_train_epochs" in settings else 1)
