"""Every workload, end to end, on data that fits in a second."""

from __future__ import annotations

import importlib
import inspect
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from experiments import training
from experiments.workloads import WORKLOADS, language, make_workload
from glue.errors import UsageError
from pages import ROOT
from transformers import Trainer

DWMGRAD = ("dwmgrad-decrease", {"lr": 1e-3, "max_window": 15})


@pytest.fixture
def few_texts(monkeypatch):
    """Tokens that follow a rule, in place of a tokenized sample."""
    tokens = torch.arange(40 * 8).remainder(11).view(40, 8)
    monkeypatch.setattr(language, "blocks", lambda size: (tokens[:32], tokens[32:], 11))


@pytest.fixture
def small(cora_dir, images_dir, digits_dir, urbansound_dir, few_texts):
    """Workload by name, a few steps each."""
    made = {
        "rosenbrock": (None, {"steps": 20}),
        "cora": (cora_dir, {"steps": 20}),
        "cifar10-short": (images_dir, {"steps": 4, "depth": 8, "batch_size": 8}),
        "digits": (digits_dir, {"steps": 6, "batch_size": 8, "width": 4}),
        "urbansound8k": (urbansound_dir, {"steps": 4, "batch_size": 4, "width": 4}),
        "tiny-sst2": (
            None,
            {"steps": 4, "batch_size": 8, "train_examples": 40, "eval_examples": 16},
        ),
        "language": (None, {"steps": 6, "batch_size": 4, "width": 8, "heads": 2, "block": 8}),
        "small-regression": (None, {"steps": 4}),
        "small-factors": (None, {"steps": 4}),
        "small-characters": (None, {"steps": 4}),
    }
    return lambda name: make_workload(name, str(made[name][0] or "") or None, **made[name][1])


NAMES = ("rosenbrock", "cora", "cifar10-short", "digits", "urbansound8k", "tiny-sst2", "language")
NAMES += ("small-regression", "small-factors", "small-characters")


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_numbers(name, small, tmp_path):
    workload = small(name)
    workload.check()
    first, again = (workload.run(*DWMGRAD, 3, tmp_path) for _ in range(2))
    for key in ("score", "train_loss", "history", "metrics", "steps", "diverged"):
        assert first[key] == again[key]
    assert json.loads(json.dumps(first, allow_nan=False)).keys() == first.keys()
    assert first["steps"] == workload.steps and not first["diverged"]
    losses = [point for point in first["history"] if "loss" in point]
    assert [point["step"] for point in losses] == list(range(1, workload.steps + 1))
    assert {"window", "effective_momentum"} <= losses[-1].keys()
    scores = [point for point in first["history"] if "score" in point]
    assert scores[-1] == {"step": workload.steps, "score": first["score"]}
    assert first["seconds"] > 0 and first["machine"]["threads"] and first["versions"]["torch"]
    if name != "rosenbrock":
        assert workload.run(*DWMGRAD, 4, tmp_path)["train_loss"] != first["train_loss"]


@pytest.mark.parametrize("name", ["rosenbrock", "cora", "digits"])
@pytest.mark.parametrize("contender", ["adamw", "sgd", "rmsprop", "schedule-free-adamw"])
def test_other_contenders_train_too(name, contender, small, tmp_path):
    if contender.startswith("schedule-free"):
        pytest.importorskip("schedulefree")
    result = small(name).run(contender, {"lr": 1e-3}, 0, tmp_path)
    assert math.isfinite(result["score"])
    assert not any("window" in point for point in result["history"])


def test_the_last_score_is_that_of_the_end(tmp_path):
    """Also where the evaluations before it do not divide the steps."""
    workload = make_workload("small-regression", steps=10)
    result = workload.run("adamw", {"lr": 1e-3}, 0, tmp_path)
    scores = [point for point in result["history"] if "score" in point]
    assert [point["step"] for point in scores] == [4, 8, 10]
    assert result["score"] == scores[-1]["score"]


@pytest.mark.parametrize("name", ["rosenbrock", "language"])
def test_divergence_is_a_result(name, small, tmp_path):
    result = small(name).run("sgd", {"lr": 1e30}, 0, tmp_path)
    assert result["diverged"] and result["score"] is None and result["train_loss"] is None
    assert result["steps"] < small(name).steps
    json.dumps(result, allow_nan=False)


def test_dwmgrad_that_gets_no_finite_loss_has_diverged_as_well(small, tmp_path, monkeypatch):
    from transformers import GPT2LMHeadModel

    forward = GPT2LMHeadModel.forward

    def broken(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.loss = output.loss * math.inf
        return output

    monkeypatch.setattr(GPT2LMHeadModel, "forward", broken)
    result = small("language").run(*DWMGRAD, 0, tmp_path)
    assert result["diverged"] and result["score"] is None and result["steps"] == 0


def test_rosenbrock_ends_where_the_authors_code_ends(tmp_path):
    result = make_workload("rosenbrock").run(*DWMGRAD, 0, tmp_path)
    assert result["path"][0] == [1.0, 2.0] and len(result["path"]) == 1001
    np.testing.assert_allclose(result["path"][-1], (1.00528951, 1.01149244), atol=1e-8)
    assert result["score"] == pytest.approx(1.0638e-4, abs=1e-8)


def test_the_language_models_loss_is_the_mean_over_its_targets(small, tmp_path):
    """Untrained, each of 11 tokens has log 11; older Trainers divide 7 targets by 8 labels."""
    result = small("language").run("sgd", {"lr": 0.0}, 0, tmp_path)
    exact = "_loss_shifts_labels" in inspect.getsource(Trainer)
    ratios = (1.0,) if exact else (1.0, 7 / 8)
    for loss in (result["train_loss"], result["metrics"]["loss"]):
        assert any(loss / math.log(11) == pytest.approx(ratio, abs=0.03) for ratio in ratios)


def test_cora_learns_a_graph_whose_groups_are_plain(cora_dir, tmp_path):
    result = make_workload("cora", str(cora_dir), steps=100).run(
        "dwmgrad-decrease", {"lr": 1e-2}, 0, tmp_path
    )
    assert result["score"] > 0.9
    assert set(result["metrics"]) == {"accuracy", "validation_accuracy"}


def test_pretrained_encoders_in_full_and_with_lora(tmp_path, monkeypatch):
    """On a model and a task made here, three labelled sentences each."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from glue.data import SAMPLE
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    config = AutoConfig.from_pretrained(SAMPLE)
    config.update(
        {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": 1}
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(SAMPLE).save_pretrained(tmp_path / "model")
    (tmp_path / "stsb").mkdir()
    rows = {"sentence1": ["a", "b", "c"], "sentence2": ["d", "e", "f"], "label": [0.0, 2.5, 5.0]}
    for split in ("train", "validation"):
        pq.write_table(pa.table(rows), tmp_path / "stsb" / f"{split}.parquet")
    for name in ("glue-stsb", "glue-stsb-lora"):
        workload = make_workload(
            name, str(tmp_path), model_name_or_path=str(tmp_path / "model"), steps=3, batch_size=2
        )
        workload.check()
        (tmp_path / "out").mkdir(exist_ok=True)
        result = workload.run(*DWMGRAD, 0, tmp_path / "out")
        assert workload.metric == "pearson" and -1 <= result["score"] <= 1


def test_a_language_model_made_from_questions_learns_sentences_in_full_and_with_lora(tmp_path):
    import make_language_model
    import pyarrow as pa
    import pyarrow.parquet as pq

    questions = [f"How do I learn the number {number} in a day ?" for number in range(40)]
    sentences = [f"The number {number} was in the papers on a day ." for number in range(40)]
    (tmp_path / "mrpc").mkdir()
    rows = pa.table({"question1": questions, "question2": questions})
    pq.write_table(rows, tmp_path / "train.parquet")
    for split, texts in (("train", sentences), ("validation", questions), ("test", sentences[:9])):
        rows = pa.table({"sentence1": texts, "sentence2": texts})
        pq.write_table(rows, tmp_path / "mrpc" / f"{split}.parquet")
    make_language_model.main([str(tmp_path), str(tmp_path / "made" / "gpt2")])
    scores = {}
    for name, split in (
        ("sentences", "validation"),
        ("sentences", "test"),
        ("sentences-lora", "test"),
    ):
        workload = make_workload(
            name,
            str(tmp_path),
            model_name_or_path=str(tmp_path / "made" / "gpt2"),
            split=split,
            steps=12,
            batch_size=4,
        )
        workload.check()
        assert workload.description()["model_name_or_path"] == "gpt2", "wherever it lies"
        (tmp_path / "out").mkdir(exist_ok=True)
        result = workload.run("adamw", {"lr": 3e-3}, 0, tmp_path / "out")
        losses = [point["loss"] for point in result["history"] if "loss" in point]
        assert losses[-1] < losses[0]
        assert result["score"] == pytest.approx(math.exp(result["metrics"]["loss"]))
        scores[name, split] = result["score"]
    assert scores["sentences", "test"] < scores["sentences", "validation"], "which it has not seen"
    assert scores["sentences", "test"] != scores["sentences-lora", "test"]


@pytest.mark.parametrize(
    ("script", "column"), [("make_language_model", "question1"), ("make_sample", "label")]
)
def test_what_is_made_of_a_folder_says_what_it_lacks(script, column, tmp_path, monkeypatch):
    main = importlib.import_module(script).main
    words = [script, str(tmp_path / "none"), str(tmp_path / "made")]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(UsageError, match="none: no such folder"):
        main()
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "train.csv").write_text("sentence\nfine\n")
    (tmp_path / "none" / "validation.csv").write_text("sentence\nfine\n")
    with pytest.raises(UsageError, match=f"train.csv: no column {column}.*it has sentence"):
        main()
    assert not (tmp_path / "made").exists()


def test_a_share_of_the_training_set_takes_the_place_of_the_development_set(tmp_path, monkeypatch):
    """The same for every seed, apart from what is trained on, and in bfloat16."""
    seen = []

    train = training.train

    def look(workload, job, *args):
        sets = [{tuple(row["input_ids"]) for row in each} for each in (job.train, job.evaluation)]
        seen.append((len(job.train), len(job.evaluation), *sets))
        return train(workload, job, *args)

    monkeypatch.setattr("experiments.training.train", look)
    plain = make_workload("tiny-sst2", steps=2, batch_size=8, train_examples=40, eval_examples=16)
    kept = replace(plain, holdout=0.1, bf16=True)
    results = [
        each.run(*DWMGRAD, seed, tmp_path) for each, seed in ((kept, 0), (kept, 1), (plain, 0))
    ]
    assert [some[:2] for some in seen] == [(36, 4), (36, 4), (40, 16)]
    assert seen[0][2:] == seen[1][2:] and not seen[0][2] & seen[0][3]
    assert seen[0][3] <= seen[2][2], "they are of the training set"
    assert results[0]["train_loss"] != results[2]["train_loss"]
    assert not plain.description().keys() & {"holdout", "bf16"}  # their runs keep their names
    assert kept.description()["holdout"] == 0.1 and kept.description()["bf16"] is True


@pytest.mark.parametrize(
    "name", ["cora", "cifar10", "digits", "urbansound8k", "glue-rte", "sentences"]
)
def test_missing_data_is_told_before_training(name, tmp_path):
    for folder in (None, str(tmp_path / "no"), str(tmp_path)):
        workload = make_workload(name, folder)
        with pytest.raises(UsageError, match="--data_dir"):
            workload.check()


def test_images_that_are_no_parquet_are_told_before_training(tmp_path):
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text("img,label\nx,1\n")
    with pytest.raises(UsageError, match=r"no train\*.parquet; found test.csv, train.csv"):
        make_workload("cifar10", str(tmp_path)).check()


def test_a_missing_encoder_is_told_before_training():
    with pytest.raises(UsageError, match="--model_name_or_path is missing"):
        make_workload("glue-sst2").check()


def test_a_share_of_a_tasks_batches_is_broken():
    shares = {name: make_workload(name).broken for name in WORKLOADS if "mrpc" in name}
    assert shares == {
        "glue-mrpc": 0.0,
        "glue-mrpc-lora": 0.0,
        "glue-mrpc-broken-5": 0.05,
        "glue-mrpc-broken-10": 0.1,
    }


@pytest.mark.parametrize("task", ["regression", "factors", "characters"])
def test_small_data_are_the_same_in_every_run_and_the_weights_are_not(task):
    jobs = []
    for seed in (0, 1, 1):
        torch.manual_seed(seed)
        jobs.append(make_workload(f"small-{task}").job())
    first, other, again = jobs
    for one, two in zip(*(job.evaluation.datasets.values() for job in (first, other)), strict=True):
        assert torch.equal(one, two)
    weights = [next(job.model.parameters()) for job in jobs]
    assert torch.equal(weights[1], weights[2]) and not torch.equal(weights[0], weights[1])
    assert len(first.train) > len(first.evaluation) > 0


def test_the_plans_numbers_of_parameters_are_those_of_the_networks():
    """The three that need data are made by hand, as their workloads make them."""
    from experiments.workloads.cifar10 import ResNet
    from experiments.workloads.cora import GCN
    from experiments.workloads.digits import SoundClassifier

    networks = {
        "Cora": GCN(1433, 16, 7, 0.5),
        "spoken digits": SoundClassifier(10, 8),
        "ResNet-8, cifar10-brief": ResNet(8),
        "ResNet-20": ResNet(20),
    }
    for task in ("regression", "factors", "characters"):
        networks[f"small-{task}"] = make_workload(f"small-{task}").job().model
    plan = (ROOT / "docs" / "plans" / "loss-limit.md").read_text("utf-8")
    for name, network in networks.items():
        count = sum(param.numel() for param in network.parameters())
        assert f"\n| {name} | {count:,} |" in plan, (name, count)


def test_auto_learns_from_losses_whose_scale_differs_from_step_to_step(tmp_path, monkeypatch):
    """They are clipped at each step; by the largest share that clipping left it reached 47 %."""
    scales = torch.randn(600, generator=torch.Generator().manual_seed(0)).exp().mul(16).tolist()
    of_means = training._Trainer.compute_loss

    def scaled(self, model, inputs, return_outputs=False, **more):
        loss, outputs = of_means(self, model, inputs, return_outputs=True, **more)
        if model.training:
            loss = loss * scales.pop()
        return (loss, outputs) if return_outputs else loss

    monkeypatch.setattr(training._Trainer, "compute_loss", scaled)
    result = make_workload("small-factors").run("dwmgrad-auto", {"lr": 1.0}, 0, tmp_path)
    assert not scales and result["score"] > 0.65


def test_a_small_task_that_is_none_is_told():
    with pytest.raises(UsageError, match="task factor: no such one. Did you mean factors"):
        make_workload("small-factors", task="factor").check()
