"""Tiny real runs: the scripts themselves, small models built here, rows from the sample."""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries are imported

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from glue.data import SAMPLE
from glue.tasks import TASKS, Task

from ..conftest import load_script

ROOT = Path(__file__).parents[3]
SCRIPTS = ("run_glue", "run_glue_no_trainer")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(params=SCRIPTS)
def script(request):
    """Each script's `main` in turn; `.name` says which."""
    module = load_script(request.param)
    module.main.name = request.param
    return module.main


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A one-layer RoBERTa's config with the sample's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    config = json.loads((SAMPLE / "config.json").read_text())
    config.update(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((SAMPLE / name).read_bytes())
    return folder


@pytest.fixture(scope="session")
def pretrained(tiny, tmp_path_factory) -> Path:
    """The same with weights: what `--model_name_or_path` takes."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(tiny)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    return pq.read_table(SAMPLE / "validation.parquet")["sentence"].to_pylist()


def rows_of(task: Task, sentences: list[str], count: int, labelled: bool) -> dict[str, list]:
    """Real sentences in the task's columns; labels that use every class."""
    rows = {name: sentences[100 * i : 100 * i + count] for i, name in enumerate(task.columns)}
    if task.is_regression:
        labels = [float(i % 6) * 0.9 for i in range(count)]
    else:
        labels = [i % task.num_labels for i in range(count)]
    return {**rows, "label": labels if labelled else [-1] * count}


@pytest.fixture(scope="session")
def glue_dir(tmp_path_factory, sentences) -> Path:
    """Every task's splits, a few rows each, as parquet: one folder per task."""
    folder = tmp_path_factory.mktemp("glue")
    for task in TASKS.values():
        (folder / task.name).mkdir()
        splits = [(task.train, True), *((s, True) for s in task.validation)]
        for split, labelled in [*splits, *((s, False) for s in task.test)]:
            if split:
                rows = rows_of(task, sentences, 12 if split == "train" else 9, labelled)
                pq.write_table(pa.table(rows), folder / task.name / f"{split}.parquet")
    return folder


@pytest.fixture
def argv(tiny, tmp_path):
    """The words of a short run that every test shares; a later word of a name wins."""
    return [
        "--config_name",
        str(tiny),
        "--output_dir",
        str(tmp_path / "out"),
        *"--per_device_train_batch_size 4 --per_device_eval_batch_size 4".split(),
        *"--num_train_epochs 1 --report_to none --disable_tqdm true --use_cpu".split(),
        *"--max_train_samples 64 --save_strategy no --logging_steps 1 --plot false".split(),
        *"--learning_rate 1e-3 --optim dwmgrad --optim_args max_window=100".split(),
    ]


def read_json(path: Path):
    return json.loads(path.read_text())
