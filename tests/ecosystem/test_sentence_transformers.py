"""Sentence Transformers' trainer with `optim="dwmgrad"`."""

import warnings
from pathlib import Path

import pytest
import torch
from small import Seen, parameters, sentences, train

pytest.importorskip("sentence_transformers")
pytestmark = [pytest.mark.ecosystem, pytest.mark.usefixtures("registered")]


def trainer_of(encoder: Path, output: Path, loss: str, **settings):
    import sentence_transformers as st
    from datasets import Dataset

    model = st.SentenceTransformer(modules=layers(encoder), device="cpu")
    columns = {"anchor": sentences(24), "positive": sentences(24, seed=1)}
    if loss == "CosineSimilarityLoss":
        columns["score"] = torch.rand(24, generator=torch.Generator().manual_seed(2)).tolist()
    seen = Seen()
    arguments = st.SentenceTransformerTrainingArguments(
        str(output),
        **{
            "optim": "dwmgrad",
            "optim_args": "max_window=20,missing_loss=error",
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 4,
            "max_steps": 6,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": 2,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            **settings,
        },
    )
    trainer = st.SentenceTransformerTrainer(
        model,
        arguments,
        train_dataset=Dataset.from_dict(columns),
        loss=losses(loss)(model),
        callbacks=[seen],
    )
    return trainer, seen


def layers(encoder: Path) -> list[torch.nn.Module]:
    try:
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    except ImportError:  # before version 5
        from sentence_transformers.models import Pooling, Transformer
    transformer = Transformer(str(encoder))
    return [transformer, Pooling(16)]


def losses(name: str):
    try:
        from sentence_transformers.sentence_transformer import losses
    except ImportError:
        from sentence_transformers import losses
    return getattr(losses, name)


@pytest.mark.parametrize("loss", ["MultipleNegativesRankingLoss", "CosineSimilarityLoss"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_loss_reaches_the_window(
    encoder: Path, tmp_path: Path, loss: str, accumulation: int
) -> None:
    trainer, seen = trainer_of(
        encoder,
        tmp_path,
        loss,
        gradient_accumulation_steps=accumulation,
        save_strategy="no",
    )
    before = parameters(trainer.model)
    train(trainer, seen)
    assert len(seen.logged) == 6 and len(set(seen.logged)) > 4
    after = parameters(trainer.model)
    assert any(not torch.equal(p, before[name]) for name, p in after.items())


def test_accumulation_gives_no_false_alarm(encoder: Path, tmp_path: Path) -> None:
    trainer, seen = trainer_of(
        encoder, tmp_path, "CosineSimilarityLoss", gradient_accumulation_steps=2
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*num_items_in_batch")
        train(trainer, seen)


def test_a_resumed_run_is_the_run(encoder: Path, tmp_path: Path) -> None:
    loss = "MultipleNegativesRankingLoss"
    whole, seen_whole = trainer_of(encoder, tmp_path, loss)
    train(whole, seen_whole)
    resumed, seen = trainer_of(encoder, tmp_path, loss)
    train(resumed, seen, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert (seen.observed, seen.windows) == (seen_whole.observed[2:], seen_whole.windows[2:])
    ours, theirs = parameters(resumed.model), parameters(whole.model)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
