"""LoRA: trained, saved, loaded, merged; the logits stay the same all the way."""

from __future__ import annotations

import pytest
import torch
from glue.errors import UsageError
from pages import blocks
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from .conftest import ROOT, read_json


@pytest.fixture
def words(argv, pretrained):
    return [
        *argv,
        "--model_name_or_path",
        str(pretrained),
        "--config_name",
        str(pretrained),
        *"--task_name sst2 --use_sample --max_train_samples 16 --max_eval_samples 40".split(),
    ]


def logits(model, folder) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["a gorgeous film", "dull"], padding=True, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**batch).logits


KINDS = (
    [],
    ["--use_dora"],
    ["--lora_use_rslora", "--lora_target_modules", "all-linear"],
    ["--lora_init_weights", "pissa"],
    ["--lora_init_weights", "olora", "--lora_modules_to_save", "word_embeddings"],
    ["--loraplus_lr_ratio", "16"],
)


@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
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


TARGETS = {
    ("all-linear",): ["attention.self.query", "intermediate.dense", "output.dense"],
    (r".*\.self\.(query|key)",): ["attention.self.query", "attention.self.key"],
    ("attention.output.dense",): ["attention.output.dense"],
}


@pytest.mark.parametrize("targets", TARGETS, ids=" ".join)
def test_targets(script, words, tmp_path, targets):
    from safetensors.torch import load_file

    script([*words, "--do_train", "--lora_r", "2", "--lora_target_modules", *targets])
    names = load_file(tmp_path / "out" / "adapter_model.safetensors").keys()
    adapted = {name.split(".lora_")[0] for name in names if ".lora_A" in name}
    for end in TARGETS[targets]:
        assert any(name.endswith(end) for name in adapted)
    assert targets == ("all-linear",) or len(adapted) == len(TARGETS[targets])
    assert not any("classifier" in name for name in adapted)  # it is trained in full


def test_what_reaches_peft(script, words, tmp_path):
    more = ["--lora_use_rslora", "--lora_init_weights", "gaussian"]
    more += ["--lora_modules_to_save", "word_embeddings"]
    script([*words, "--do_train", "--lora_r", "2", *more])
    config = read_json(tmp_path / "out" / "adapter_config.json")
    assert config["use_rslora"] and config["init_lora_weights"] == "gaussian"
    assert {"word_embeddings", "classifier"} <= set(config["modules_to_save"])


def test_loraplus(script, words, tmp_path):
    """B's learning rate is 16 times A's, in the optimizer's groups as they were saved."""
    script(
        [
            *words,
            *"--do_train --lora_r 2 --loraplus_lr_ratio 16 --weight_decay 0.1".split(),
            *"--lr_scheduler_type constant --save_strategy steps --save_steps 1".split(),
        ]
    )
    [path] = (tmp_path / "out" / "checkpoint-2").glob("optimizer.*")
    groups = torch.load(path, weights_only=True)["param_groups"]
    # A and the classifier's weights, embeddings, B, biases
    assert [group["lr"] for group in groups] == pytest.approx([1e-3, 1e-6, 16e-3, 16e-3])
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1, 0.1, 0.0]
    assert [len(group["params"]) for group in groups] == [4, 0, 2, 2]
    assert all(group["max_window"] == 100 for group in groups)


def test_the_pages_loraplus(pretrained):
    from peft import LoraConfig, get_peft_model

    [code] = blocks(ROOT / "docs" / "scripts.md", "python")
    model = AutoModelForSequenceClassification.from_pretrained(pretrained)
    names = {"model": get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2))}
    exec(compile(code, "docs/scripts.md", "exec"), names)
    groups = names["optimizer"].param_groups
    assert [group["lr"] for group in groups] == pytest.approx([2e-4, 1e-6, 32e-4, 32e-4])
    assert all(group["second_moment_window"] == 500 for group in groups)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--lora_target_modules", "query", "nothing"], "--lora_target_modules nothing: .* query,"),
        (["--lora_target_modules", "query,value"], "by a space, not by a comma"),
        (["--lora_target_modules", "(query"], r"--lora_target_modules \(query: .*unterminated"),
        (
            ["--lora_target_modules", ".*nothing"],
            "--lora_target_modules .*nothing: .*(No modules|not found)",
        ),
        (["--lora_modules_to_save", "pooler"], "--lora_modules_to_save pooler: .* classifier,"),
        (["--lora_init_weights", "eva"], "--lora_init_weights.*'eva'"),
        (["--loraplus_lr_ratio", "0.5"], "--loraplus_lr_ratio 0.5: must be at least 1"),
        (["--lora_dropout", "1.5"], "--lora_dropout 1.5"),
        (["--lora_r", "0"], "--lora_r 0: .*positive"),
    ],
)
def test_what_is_refused(script, words, tmp_path, more, message):
    with pytest.raises(UsageError, match=message):
        script([*words, "--do_train", "--lora_r", "2", *more])


@pytest.mark.parametrize("option", ["--lora_use_rslora", "--loraplus_lr_ratio=4"])
def test_options_without_lora(script, words, option):
    with pytest.raises(UsageError, match=f"{option.split('=')[0]} needs LoRA"):
        script([*words, "--do_train", option])


@pytest.mark.newest  # older versions load its base by themselves
def test_an_adapter_is_no_model(script, words, tmp_path):
    script([*words, "--do_train", "--lora_r", "2"])
    folder = str(tmp_path / "out")
    more = ["--model_name_or_path", folder, "--output_dir", str(tmp_path / "b")]
    with pytest.raises(UsageError, match=f"holds an adapter: .* --adapter_name_or_path {folder}"):
        script([*words, "--do_eval", *more])


def test_an_adapter_takes_no_other_target(script, words, tmp_path):
    more = ["--adapter_name_or_path", str(tmp_path), "--lora_target_modules", "all-linear"]
    with pytest.raises(UsageError, match="leave out --lora_target_modules"):
        script([*words, "--do_train", *more])


def test_an_adapter_of_another_architecture(script, words, tmp_path, sentences):
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    script([*words, "--do_train", "--lora_r", "2"])
    adapter = tmp_path / "out"
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    config = BertConfig(vocab_size=len(tokenizer), intermediate_size=8, **small)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    other = ["--config_name", str(tmp_path / "bert"), "--output_dir", str(tmp_path / "b")]
    with pytest.raises(UsageError, match="--adapter_name_or_path .* is of a roberta, .* is a bert"):
        script([*words, *other, "--do_eval", "--adapter_name_or_path", str(adapter)])


def test_a_damaged_adapter(script, words, tmp_path):
    script([*words, "--do_train", "--lora_r", "2"])
    (tmp_path / "out" / "adapter_config.json").write_text("{}")
    more = ["--adapter_name_or_path", str(tmp_path / "out"), "--output_dir", str(tmp_path / "b")]
    with pytest.raises(UsageError, match="--adapter_name_or_path .*peft_type"):
        script([*words, "--do_eval", *more])
