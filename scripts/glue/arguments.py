"""The arguments that the GLUE scripts add to transformers' `TrainingArguments`."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from transformers import TrainingArguments


def _arg(default: Any, text: str) -> Any:
    """A field with its default and what --help says of it."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass
class ModelArguments:
    """Which model is fine-tuned."""

    _argument_group_name = "model"

    model_name_or_path: str | None = _arg(
        None, "A pretrained model: a name on the hub, or a folder."
    )
    config_name: str | None = _arg(
        None,
        "A configuration, where it is not the model's own. Without --model_name_or_path a "
        "model with random weights is built from it.",
    )
    tokenizer_name: str | None = _arg(None, "A tokenizer, where it is not the model's own.")
    cache_dir: str | None = _arg(None, "Where downloads from the hub and tokenized data are kept.")
    model_revision: str = _arg("main", "A branch, tag or commit of the model on the hub.")
    token: str | None = _arg(None, "The hub's access token for models that are not public.")
    trust_remote_code: bool = _arg(False, "Run model code that comes from the hub.")
    ignore_mismatched_sizes: bool = _arg(
        False, "Start a new head where the model's has another number of labels."
    )


@dataclass
class DataArguments:
    """Which data is used, and how much of it."""

    _argument_group_name = "data"

    task_name: str | None = _arg(None, "cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli or ax.")
    data_dir: str | None = _arg(
        None,
        "A folder with one folder per task, or the task's own: train, validation and test as "
        ".parquet, .csv, .tsv, .jsonl or .json. Default: nyu-mll/glue on the hub.",
    )
    use_sample: bool = _arg(
        False,
        "Use the real SST-2 sample in the checkout (no network). Without a model argument "
        "also the small RoBERTa, with random weights, and the tokenizer there.",
    )
    train_file: str | None = _arg(
        None, "One's own training data: .csv, .tsv, .jsonl, .json or .parquet."
    )
    validation_file: str | None = _arg(None, "One's own data to evaluate on.")
    test_file: str | None = _arg(None, "One's own data to predict; it needs no labels.")
    dataset_name: str | None = _arg(
        None, "A data set on the hub, or a folder: whatever datasets.load_dataset takes."
    )
    dataset_config_name: str | None = _arg(None, "The data set's configuration.")
    train_split_name: str = _arg("train", "The data set's split, or a part: train[:90%%].")
    validation_split_name: str = _arg("validation", "As above: train[90%%:].")
    test_split_name: str = _arg("test", "As above.")
    text_column_name: list[str] | None = _arg(
        None, "One text column of one's own data, or two for pairs. Default: the only one."
    )
    label_column_name: str = _arg("label", "The column of one's own data with the labels.")
    do_regression: bool | None = _arg(
        None,
        "Take one's own labels for scores. Default: if all are numbers, not all integers.",
    )
    max_seq_length: int = _arg(128, "Longer inputs are cut to this number of tokens.")
    pad_to_max_length: bool = _arg(
        False, "Pad every input to --max_seq_length, not to the batch's longest."
    )
    max_train_samples: int | None = _arg(None, "Use only the first N training examples.")
    max_eval_samples: int | None = _arg(
        None, "Use only the first N examples of a validation split."
    )
    max_predict_samples: int | None = _arg(None, "Use only the first N examples of a test split.")


@dataclass
class LoraArguments:
    """LoRA, switched on by --lora_r (or by an adapter to start from)."""

    _argument_group_name = "LoRA"

    lora_r: int | None = _arg(None, "The adapter's rank; giving it switches LoRA on.")
    lora_alpha: int = _arg(16, "The adapter's scale: its output times alpha / r.")
    lora_dropout: float = _arg(0.0, "Dropout before the adapter.")
    lora_target_modules: list[str] | None = _arg(
        None,
        "Modules that get an adapter: names, or all-linear, or one regular expression of the "
        "whole path. Default: peft's (RoBERTa: query, value).",
    )
    lora_modules_to_save: list[str] | None = _arg(
        None, "Modules that are trained in full, beside the classifier."
    )
    lora_init_weights: Literal["true", "false", "gaussian", "olora", "orthogonal", "pissa"] = _arg(
        "true", "How the adapter starts: peft's init_lora_weights."
    )
    lora_use_rslora: bool = _arg(False, "rsLoRA: the output times alpha / sqrt(r).")
    loraplus_lr_ratio: float | None = _arg(
        None, "LoRA+: the learning rate of the adapter's B is so many times that of A."
    )
    use_dora: bool = _arg(False, "DoRA in place of plain LoRA.")
    adapter_name_or_path: str | None = _arg(None, "A saved adapter to start from, or to evaluate.")
    merge_adapter: bool = _arg(False, "Also write the merged full model to OUTPUT_DIR/merged.")

    @property
    def enabled(self) -> bool:
        return self.lora_r is not None or self.adapter_name_or_path is not None


@dataclass
class ReportArguments:
    """What is checked on the way and drawn at the end."""

    _argument_group_name = "report"

    plot: bool = _arg(True, "Draw loss, learning rate, window and momentum as a PNG at the end.")
    check_ranks_steps: int | None = _arg(
        None,
        "Check every N optimizer steps that all ranks have one window and, bit by bit, one "
        "set of weights, and end with an error if not.",
    )


# Arguments that some supported transformers versions have and others have not: (type, default,
# help). Where TrainingArguments lacks one, our parser has it and `apply_portable` carries it over.
_PORTABLE = {
    "overwrite_output_dir": (bool, False, "Train from the start in a folder that is not empty."),
    "warmup_ratio": (
        float | None,
        None,
        "The share of all steps during which the learning rate rises from 0.",
    ),
    "group_by_length": (bool, False, "Batches of similar length: less padding, less work."),
}
_LACKING = [
    (name, kind, _arg(default, text))
    for name, (kind, default, text) in _PORTABLE.items()
    if name not in {f.name for f in dataclasses.fields(TrainingArguments)}
]
PortableArguments: Any = dataclasses.make_dataclass("PortableArguments", _LACKING)
PortableArguments._argument_group_name = "training, for every transformers version"


def apply_portable(args: Any, portable: Any) -> None:
    """Set on `args` what this transformers version has renamed (or, for one name, dropped)."""
    vars(args).update({name: value for name, value in vars(portable).items() if value is not None})
    if getattr(portable, "warmup_ratio", None) is not None and not args.warmup_steps:
        args.warmup_steps = portable.warmup_ratio  # below 1 it is a ratio there
    if getattr(portable, "group_by_length", False):
        args.train_sampling_strategy = "group_by_length"
