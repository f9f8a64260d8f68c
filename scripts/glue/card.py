"""What a run ends with: a table on the terminal, a plot, and the model card."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from huggingface_hub import ModelCard
from transformers import Trainer
from transformers.modelcard import TrainingSummary

from dwmgrad import DWMGrad, __version__
from dwmgrad.arguments import ARGUMENTS
from dwmgrad.integrations.optim_args import NAMES
from dwmgrad.report import plot_run
from dwmgrad.rule import RULE_VERSION
from glue.data import HUB
from glue.tasks import Task

_GAP = "More information needed\n"
_PLOT = "### Loss, learning rate and window\n\n![Over the training's steps](window.png)\n\n"


def report(args: Any, run: Any, results: Mapping[str, float], saved: dict[str, Path | str]) -> None:
    """Print the run's table; draw its plot if one was asked for, and write its model card."""
    drawn = {"plot": lambda: plot_run(run.folder)} if args.report.plot else {}
    if args.training.do_train:
        for name, make in {**drawn, "model card": lambda: write_card(args, run)}.items():
            try:
                saved[name] = make()
            except (ImportError, OSError, ValueError) as error:  # it must not cost the results
                saved[name] = f"none: {error}"
    title = run.task.name
    if args.training.do_train:
        title += f", optimizer {getattr(args.training.optim, 'value', args.training.optim)}"
    print(summary(title, run.task, results, saved))


def summary(
    title: str, task: Task, results: Mapping[str, float], saved: Mapping[str, Path | str]
) -> str:
    """A table: each metric's name and value, the time, the speed, and where things lie.

    `results` has the names of all_results.json; a metric of the mismatched set ends in `_mm`.
    """
    shown = {
        f"{name}{where}": (f"eval_{name}{suffix}", "{:.4f}")
        for suffix, where in (("", ""), ("_mm", " (mismatched)"))
        for name in (*task.metrics, "combined_score", "loss")
    } | {
        "evaluation examples": ("eval_samples", "{:,.0f}"),
        "training time": ("train_runtime", "{:,.1f} s"),
        "training examples / s": ("train_samples_per_second", "{:,.1f}"),
        "evaluation examples / s": ("eval_samples_per_second", "{:,.1f}"),
    }
    rows = {
        name: form.format(results[key]) for name, (key, form) in shown.items() if key in results
    }
    rows |= {name: str(path) for name, path in saved.items()}
    left = max(map(len, rows), default=0)
    lines = [f"{name:<{left}}  {value}" for name, value in rows.items()]
    rule = "-" * min(100, max(map(len, [title, *lines])))
    return "\n".join(["", title, rule, *lines, rule])


def write_card(args: Any, run: Any) -> Path:
    """Writes `README.md` from what the run has left in its folder; the same files, the same card.

    It is transformers' own card; the sections that it leaves open are filled in or taken out.
    """
    training, base = args.training, args.model.model_name_or_path
    task, folder = run.task, run.folder
    history = json.loads((folder / "trainer_state.json").read_text("utf-8"))["log_history"]
    results = json.loads((folder / "all_results.json").read_text("utf-8"))
    trainer = {"args": training, "model": run.model, "train_dataset": None, "eval_dataset": None}
    card = TrainingSummary.from_trainer(
        SimpleNamespace(state=SimpleNamespace(log_history=history), **trainer),
        tags=["dwmgrad"] if training.optim in NAMES else [],
        model_name=(training.hub_model_id or folder.resolve().name).split("/")[-1],
        finetuned_from=base if base and not os.path.exists(base) else "",
        tasks="text-classification",
        **_data_set(args, task),
    )
    card.finetuned_from, card.eval_lines = card.finetuned_from or None, card.eval_lines or None
    card.eval_results = {
        name.removeprefix("eval_").replace("_", " ").capitalize(): value
        for name, value in results.items()
        if name.startswith(tuple(f"eval_{each}" for each in (*task.metrics, "loss", "combined")))
    } or None
    card.hyperparameters |= _more(args)
    name = str(getattr(training.optim, "value", training.optim))
    text = card.to_model_card().replace(str(training.optim), name)
    if base and not card.finetuned_from:
        local = f"is a fine-tuned version of {Path(base).resolve().name} (a local folder) on"
        text = text.replace("was trained from scratch on", local)
    for heading, content in _sections(run, results).items():
        text = text.replace(
            f"\n## {heading}\n\n{_GAP}", content and f"\n## {heading}\n\n{content}\n"
        )
    if (folder / "window.png").is_file():
        text = text.replace("### Framework versions\n\n", f"{_PLOT}### Framework versions\n\n")
    finished = ModelCard(f"{text}- dwmgrad {__version__}\n")
    if args.lora.enabled:
        finished.data["library_name"] = "peft"
    finished.save(folder / "README.md")
    return folder / "README.md"


def _data_set(args: Any, task: Any) -> dict[str, Any]:
    name, config, split = args.data.dataset_name, args.data.dataset_config_name, "validation"
    if task.own and (name is None or os.path.exists(name)):
        return {"dataset": Path(name or args.data.train_file).name}
    if not task.own:
        name, config, split = HUB, task.name, task.validation[0]
    data_set = {"dataset": " ".join(filter(None, (name, config))), "dataset_tags": name}
    metadata = {"config": config or "default", "split": split}
    return {**data_set, "dataset_args": config, "dataset_metadata": [metadata]}


def _more(args: Any) -> dict[str, Any]:
    """Hyper-parameters that transformers leaves out; the settings of a preset in full."""
    training = args.training
    more = {name: getattr(training, name) for name in ("weight_decay", "max_grad_norm")}
    more["max_seq_length"] = args.data.max_seq_length
    if args.lora.enabled:
        more |= {name: value for name, value in vars(args.lora).items() if value}
        if (adapter := args.lora.adapter_name_or_path) and os.path.exists(adapter):
            more["adapter_name_or_path"] = f"{Path(adapter).resolve().name} (a local folder)"
    if training.optim in NAMES:
        _, options = Trainer.get_optimizer_cls_and_kwargs(training)
        settings = DWMGrad([torch.zeros(1)], **options).defaults
        names = ARGUMENTS.keys() - {"lr", "weight_decay"}  # the latter is that of the groups
        shown = [f"{k}={v}" for k, v in settings.items() if k in names and v is not None]
        preset = options.get("preset") or "none"
        more["optimizer"] = (
            f"DWMGrad {__version__}, rule {RULE_VERSION}, preset {preset} ({', '.join(shown)})"
        )
    return more


def _sections(run: Any, results: dict[str, float]) -> dict[str, str]:
    task = run.task
    kind = "scores (regression)" if task.is_regression else f"classes: {', '.join(task.labels)}"
    texts = "a pair of texts" if len(task.columns) == 2 else "one text"
    examples = f"{len(run.train):,} examples for training"
    if "eval_samples" in results:
        examples += f", {results['eval_samples']:,} for evaluation"
    return {
        "Model description": f"{task.name}: {texts}; {kind}. The metric is {task.main_metric}.",
        "Intended uses & limitations": "",
        "Training and evaluation data": f"{examples}. The text columns: {', '.join(task.columns)}.",
    }
