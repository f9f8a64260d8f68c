"""GLUE: a tiny RoBERTa from random weights on SST-2, and pretrained encoders on any task.

`tiny-sst2` needs no path: 20,000 sentences of the package's own sample, one epoch of 313 steps of
64, linear decay. AdamW reaches about 80 % at 5e-4 to 1e-3. One run takes 30 s on one core.

`glue-TASK` and `glue-TASK-lora` fine-tune `model_name_or_path` on `data_dir`/TASK, 3 epochs in
full or 10 with LoRA (r = 8). `glue-TASK-broken-5` gives 5 % of the batches wrong labels. With
MiniLM (6 layers, 384 wide) one core takes 0.6 s a step on cola, 1.1 s on sst2, 1.8 s on stsb, 2 s
on mrpc and 3.3 s on rte: 8 minutes for cola, 12 to 16 for mrpc, rte and stsb, 2 hours for sst2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glue.errors import UsageError
from glue.files import find_split
from glue.tasks import get_task

from experiments.workload import Job, TrainerWorkload, folder_of, standard

SAMPLE_SIZES = {
    **{"cola": 8551, "sst2": 67349, "mrpc": 3668, "stsb": 5749, "rte": 2490},
    **{"mnli": 392702, "qqp": 363846},
}
"""The tasks of workloads, and how many training examples GLUE has of each."""


@dataclass(frozen=True, kw_only=True)
class Glue(TrainerWorkload):
    """The task's main metric on its development set.

    Attributes:
        task: a name of `glue.tasks.TASKS`.
        model_name_or_path: a pretrained encoder; None: the sample's small RoBERTa, random weights.
        lora_r: the adapter's rank; None: all weights are trained.
        train_examples, eval_examples: at most so many; None: all.
        holdout: the share of the training set that is kept out of it and evaluated in place of the
            development set, the same for every seed.
        max_seq_length: in tokens.
    """

    defaults: Mapping[str, Any] = standard(schedule="linear", warmup=0.06, weight_decay=0.01)
    task: str
    model_name_or_path: str | None = None
    lora_r: int | None = None
    train_examples: int | None = None
    eval_examples: int | None = None
    holdout: float = 0.0
    max_seq_length: int = 128
    batch_size: int = 32
    evaluations: int = 3

    def check(self) -> None:
        from glue.arguments import DataArguments, ModelArguments
        from glue.data import task_folder
        from glue.model import load_config

        task = get_task(self.task)
        if self.data_dir is not None:
            for split in (task.train, *task.validation):
                find_split(task_folder(self.data_dir, task), split)
        elif self.task != "sst2":  # of which there is a sample
            folder_of(None, f"GLUE's tasks, {self.task} among them")
        if self.model_name_or_path is None and self.name != "tiny-sst2":
            raise UsageError("--model_name_or_path is missing: give a pretrained encoder")
        if self.model_name_or_path is not None:  # else every run would find that it cannot be had
            load_config(ModelArguments(self.model_name_or_path), DataArguments())

    def description(self) -> dict[str, Any]:
        values = super().description()
        if self.model_name_or_path:  # wherever it lies
            values["model_name_or_path"] = Path(self.model_name_or_path).name
        return values

    def run(self, contender: str, settings: Mapping[str, Any], seed: int, folder: Path) -> dict:
        from glue.metrics import compute_metrics
        from glue.parsing import parse
        from glue.preprocess import collator
        from glue.setup import prepare

        from experiments.training import train

        settings = self.settings(contender, settings)
        arguments = parse(self._arguments(seed, folder))
        with prepare(arguments, "experiment") as run:
            examples, evaluation = run.train, run.splits[run.task.validation[0]]
            if self.holdout:
                examples, evaluation = examples.train_test_split(self.holdout, seed=0).values()
            job = Job(
                model=run.model,
                train=examples,
                evaluation=evaluation,
                collate=collator(run.tokenizer, False, False),
                compute_metrics=compute_metrics(run.task, run.order),
                score=lambda metrics: metrics[run.task.main_metric],
                classes=run.model.config.num_labels,
            )
            return train(self, job, contender, settings, seed, folder)

    def _arguments(self, seed: int, folder: Path) -> list[str]:
        """The words that scripts/run_glue.py would be given for this model and data."""
        words = {
            "task_name": self.task,
            "output_dir": folder,
            "model_name_or_path": self.model_name_or_path,
            "data_dir": self.data_dir,
            "use_sample": None if self.data_dir else True,
            "lora_r": self.lora_r,
            "max_train_samples": self.train_examples,
            "max_eval_samples": self.eval_examples,
            "max_seq_length": self.max_seq_length,
            "seed": seed,
            "report_to": "none",
        }
        flags = ["--do_train", "--do_eval", "--overwrite_output_dir"]
        return flags + [f"--{name}={value}" for name, value in words.items() if value is not None]


def pretrained(name: str, **options: Any) -> Glue:
    """A workload of `WORKLOADS` that begins with glue."""
    _, task, *form = name.split("-")
    lora = form == ["lora"]
    epochs, batch_size = (10 if lora else 3), options.get("batch_size", 32)
    values = {
        "metric": get_task(task).main_metric,
        "task": task,
        "lora_r": 8 if lora else None,
        "broken": int(form[1]) / 100 if form[:1] == ["broken"] else 0.0,
        "lr_scale": 0.3 if lora else 0.03,
        "steps": epochs * -(-SAMPLE_SIZES[task] // batch_size),
    }
    return Glue(**{"name": name, **values, **options})
