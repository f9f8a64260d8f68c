"""A tiny model, a data set and arguments, made on the spot."""

import os
from pathlib import Path
from unittest import mock

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from tiny import tiny_roberta
from transformers import RobertaForSequenceClassification, TrainingArguments

import dwmgrad


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    """TrainingArguments leave their precision behind, in the environment and in Accelerate."""
    with mock.patch.dict(os.environ):
        for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
            del os.environ[name]
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        yield


@pytest.fixture
def registered():
    dwmgrad.register()
    yield
    dwmgrad.unregister()


@pytest.fixture
def model() -> RobertaForSequenceClassification:
    return tiny_roberta()


@pytest.fixture
def dataset() -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(5, 40, (22, 8), generator=generator)
    return [{"input_ids": row, "labels": int(row[0] > 20)} for row in tokens]


@pytest.fixture
def arguments(tmp_path: Path):
    def make(**changes) -> TrainingArguments:
        settings = {
            "output_dir": str(tmp_path / "run"),
            "optim": "dwmgrad",
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 2,
            "max_steps": 9,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        return TrainingArguments(**{**settings, **changes})

    return make
