"""LoRA: trained, saved, loaded, merged; the logits stay the same all the way."""

from __future__ import annotations

import pytest
import torch
from glue.errors import UsageError
from transformers import AutoModelForSequenceClassification, AutoTokenizer


@pytest.fixture
def words(argv, pretrained):
    return [
        *argv,
        "--model_name_or_path",
        str(pretrained),
        "--config_name",
        str(pretrained),
        "--task_name",
        "sst2",
        "--use_sample",
        "--max_train_samples",
        "16",
        "--max_eval_samples",
        "40",
    ]


def logits(model, folder) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["a gorgeous film", "dull"], padding=True, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.mark.parametrize("kind", [[], ["--use_dora"]])
def test_save_load_merge(script, words, pretrained, tmp_path, capsys, kind):
    from peft import PeftModel

    out = tmp_path / "out"
    script([*words, "--do_train", "--lora_r", "2", "--merge_adapter", *kind])
    text = capsys.readouterr().out
    assert "Trainable parameters:" in text and "100.00%" not in text and "merged" in text
    assert (out / "adapter_config.json").exists() and not (out / "model.safetensors").exists()

    base = AutoModelForSequenceClassification.from_pretrained(pretrained)
    start = logits(base, pretrained)
    adapted = PeftModel.from_pretrained(base, out)
    merged = AutoModelForSequenceClassification.from_pretrained(out / "merged")
    assert torch.allclose(logits(adapted, out), logits(merged, out / "merged"), atol=1e-5)
    assert not torch.allclose(start, logits(merged, out / "merged"), atol=1e-5)

    loaded = script(
        [
            *words,
            "--do_eval",
            "--adapter_name_or_path",
            str(out),
            "--output_dir",
            str(tmp_path / "again"),
        ]
    )
    whole = script(
        [
            *words,
            "--do_eval",
            "--model_name_or_path",
            str(out / "merged"),
            "--config_name",
            str(out / "merged"),
            "--output_dir",
            str(tmp_path / "whole"),
        ]
    )
    assert loaded["eval_loss"] == pytest.approx(whole["eval_loss"], rel=1e-5)


def test_only_adapter_and_head_change(script, words, pretrained, tmp_path):
    from safetensors.torch import load_file

    script([*words, "--do_train", "--lora_r", "2", "--lora_target_modules", "query", "value"])
    names = load_file(tmp_path / "out" / "adapter_model.safetensors").keys()
    assert all("lora_" in name or "classifier" in name for name in names)
    assert any("query.lora_A" in name for name in names)
    assert not any("key" in name for name in names)


def test_train_on_from_an_adapter(script, words, tmp_path):
    script([*words, "--do_train", "--lora_r", "2"])
    results = script(
        [
            *words,
            "--do_train",
            "--adapter_name_or_path",
            str(tmp_path / "out"),
            "--output_dir",
            str(tmp_path / "more"),
        ]
    )
    assert results["train_loss"] > 0
    assert (tmp_path / "more" / "adapter_model.safetensors").exists()


def test_an_adapter_brings_its_own_rank(script, words, tmp_path):
    with pytest.raises(UsageError, match="brings its own rank"):
        script([*words, "--do_train", "--lora_r", "2", "--adapter_name_or_path", str(tmp_path)])
