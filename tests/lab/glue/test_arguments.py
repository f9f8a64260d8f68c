"""Files and the command line: one set of names, the command line wins."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from glue.errors import UsageError
from glue.parsing import parse
from glue.tasks import TASKS

import dwmgrad

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def registered():
    dwmgrad.register()


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_the_command_line_wins_over_files_and_later_files_over_earlier(tmp_path):
    first = write(
        tmp_path / "a.yaml",
        "task_name: rte\nlearning_rate: 1e-5\nseed: 3\noutput_dir: out\nuse_cpu: true\n"
        "lora_r: 4\nlora_target_modules: [query, key]\nlr_scheduler_kwargs: {}\n"
        "model_revision: null\n",
    )
    second = write(tmp_path / "b.json", json.dumps({"seed": 4, "optim_args": "max_window=7"}))
    args = parse([first, second, "--learning_rate", "2e-5", "--lora_r=8"])
    assert (args.data.task_name, args.training.seed) == ("rte", 4)
    assert args.training.learning_rate == 2e-5 and args.training.optim_args == "max_window=7"
    assert args.lora.lora_r == 8 and args.lora.lora_target_modules == ["query", "key"]
    assert {"seed", "learning_rate", "lora_r"} <= args.given and "max_steps" not in args.given


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_unknown_key_in_a_file_lists_near_matches(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", json.dumps({"learning_rat": 1}))
    with pytest.raises(UsageError, match=r"learning_rat.*a\.\w+.*did you mean learning_rate"):
        parse([path])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rat", "1"], "learning_rat.*did you mean learning_rate"),
        (["--learning_rate", "fast", "--output_dir", "o"], "--learning_rate.*'fast'"),
        (["--optim", "dwmgard", "--output_dir", "o"], "--optim.*dwmgard"),
        (["--output_dir", "o", "stray"], "stray"),
        (["missing.yaml"], "cannot read missing.yaml"),
    ],
)
def test_bad_words(words, message):
    with pytest.raises(UsageError, match=message):
        parse(words)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "- 1\n- 2\n", "expected lines of `name: value`"),
        ("a.yaml", "a: [1\n", "not YAML"),
        ("a.json", "{", "a.json"),
        ("a.yaml", "seed: many\noutput_dir: o\n", "--seed.*many"),
    ],
)
def test_bad_files(tmp_path, name, text, message):
    with pytest.raises(UsageError, match=message):
        parse([write(tmp_path / name, text)])


def test_portable_names():
    """Names that one end of the supported transformers versions lacks."""
    args = parse(
        [
            *"--output_dir o --warmup_ratio 0.06 --group_by_length --use_cpu".split(),
            "--overwrite_output_dir",
        ]
    ).training
    assert args.get_warmup_steps(1000) == 60
    grouped = getattr(args, "train_sampling_strategy", None) or args.group_by_length
    assert grouped in ("group_by_length", True)
    assert args.overwrite_output_dir


def test_every_config_parses():
    files = [*ROOT.glob("configs/glue*/*.yaml"), ROOT / "configs" / "demo.yaml"]
    assert len(files) == 19
    for path in files:
        args = parse([str(path), "--use_cpu"])
        assert args.training.optim == "dwmgrad_finetune" and not args.training.optim_args
        assert args.training.do_train
        if path.parent.name.startswith("glue"):
            assert args.data.task_name == path.stem in TASKS
            assert args.training.get_warmup_steps(1000) == 60
            assert args.lora.enabled == (path.parent.name == "glue_lora")


def test_null_in_a_later_file_is_the_default(tmp_path):
    one = write(tmp_path / "one.yaml", "save_total_limit: 1\nseed: 3\noutput_dir: out\n")
    two = write(tmp_path / "two.yaml", "save_total_limit: null\n")
    args = parse([one, two])
    assert args.training.save_total_limit is None and args.training.seed == 3
    assert args.given == {"seed", "output_dir"}


def test_a_file_wins_over_its_base(tmp_path):
    write(tmp_path / "base.yaml", "seed: 3\nlearning_rate: 1e-5\noutput_dir: out\n")
    (tmp_path / "more").mkdir()
    path = write(tmp_path / "more" / "a.yaml", "base: ../base.yaml\nlearning_rate: 2e-5\n")
    args = parse([path, "--use_cpu"])
    assert (args.training.seed, args.training.learning_rate) == (3, 2e-5)
    assert {"seed", "learning_rate", "output_dir"} <= args.given and "base" not in args.given
    for text, message in (
        ("base: none.yaml\n", "cannot read .*none.yaml"),
        ("base: a.yaml\n", "cannot have a base of its own; .* give both: .*a.yaml"),
        ("base:\n", "a.yaml: base None: give one file, or leave the line out"),
        ("base: ''\n", "a.yaml: base : give one file, or leave the line out"),
    ):
        with pytest.raises(UsageError, match=message):
            parse([write(tmp_path / "a.yaml", text), "--use_cpu"])


def test_values_of_files_as_yaml_writes_them(tmp_path):
    text = "lora_init_weights: false\noptim_args: {max_window: 50, preset: finetune}\n"
    args = parse([write(tmp_path / "a.yaml", f"{text}output_dir: o\nuse_cpu: true\n")])
    assert args.lora.lora_init_weights == "false"
    assert args.training.optim_args == "max_window=50,preset=finetune"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seed: 1.5", "--seed: invalid int value: '1.5'"),
        ("seed: true", "--seed: invalid int value: 'True'"),
        ("seed: [1, 2]", "seed .*: expected one value"),
        ("do_train: perhaps", "--do_train.*perhaps"),
        ("log_level: loud", "log_level loud: expected one of"),
        ("save_strategy: sometimes", "sometimes"),
        ("help: true", "unknown argument 'help'"),
    ],
)
def test_values_of_files_are_checked_as_on_the_command_line(tmp_path, line, message):
    with pytest.raises(UsageError, match=message):
        parse([write(tmp_path / "a.yaml", f"{line}\noutput_dir: o\nuse_cpu: true\n")])


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "accelerate").glob("*.yaml")))
def test_accelerate_reads_its_configs(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes >= 1


def test_help(script, capsys):
    with pytest.raises(SystemExit) as end:
        script(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for word in ("--task_name", "--lora_r", "--learning_rate", "configs/demo.yaml", "LoRA"):
        assert word in shown


@pytest.mark.parametrize("name", ["run_glue", "run_glue_no_trainer"])
def test_one_line_errors(name, tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py")]
    words = ["--task_name", "sts2", "--output_dir", str(tmp_path), "--do_eval", "--use_cpu"]
    wrong = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr
    assert f"{name}.py: error: --task_name sts2" in wrong.stderr
    assert all(task in wrong.stderr for task in TASKS)
