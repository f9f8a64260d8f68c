"""A pretrained language model that learns the sentences of MRPC, in full or with LoRA; perplexity.

`model_name_or_path` is any causal language model. scripts/make_language_model.py makes a small one
of 2.1 million parameters; with it, one run of 300 steps takes 45 s on one core.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glue.data import task_folder
from glue.errors import UsageError, one_line
from glue.files import read_split
from glue.model import DAMAGED
from glue.tasks import get_task

from experiments.workload import Job, TrainerWorkload, folder_of, standard
from experiments.workloads.language import in_blocks, own_labels, perplexity, tokens_of


@dataclass(frozen=True, kw_only=True)
class Sentences(TrainerWorkload):
    """Perplexity of other sentences: the exponential of the mean loss per token.

    Attributes:
        split: whose sentences are scored.
        block: tokens in an example; the sentences stand one after the other.
        lora_r: the rank of an adapter of all linear layers; None: all weights are trained.
    """

    metric: str = "perplexity"
    higher_is_better: bool = False
    steps: int = 300
    defaults: Mapping[str, Any] = standard(schedule="linear", warmup=0.06, weight_decay=0.01)
    model_name_or_path: str | None = None
    split: str = "validation"
    block: int = 32
    batch_size: int = 16
    lora_r: int | None = None

    def check(self) -> None:
        from transformers import AutoConfig

        for split in ("train", self.split):
            self._texts(split)
        source = self.model_name_or_path
        if source is None:
            raise UsageError("--model_name_or_path is missing: give a causal language model")
        with one_line(*DAMAGED, of=f"--model_name_or_path {source}: "):
            AutoConfig.from_pretrained(source)

    def _folder(self) -> Path:
        found = folder_of(self.data_dir, "GLUE's tasks, mrpc among them")
        return task_folder(str(found), get_task("mrpc"))

    def description(self) -> dict[str, Any]:
        values = super().description()
        return values | {"model_name_or_path": Path(self.model_name_or_path or "").name}

    def job(self) -> Job:
        from peft import LoraConfig, TaskType, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        source = self.model_name_or_path or ""
        tokenizer = AutoTokenizer.from_pretrained(source)
        model: Any = AutoModelForCausalLM.from_pretrained(source)
        model.loss_type = "ForCausalLM"  # which the name of GPT-2's class does not say
        if self.lora_r:
            adapter = LoraConfig(
                task_type=TaskType.CAUSAL_LM,
                r=self.lora_r,
                lora_alpha=2 * self.lora_r,
                target_modules="all-linear",
            )
            model = get_peft_model(model, adapter)
        return Job(
            model=model,
            train=self._rows(tokenizer, "train"),
            evaluation=self._rows(tokenizer, self.split),
            score=perplexity,
        )

    def _texts(self, split: str) -> list[str]:
        columns, _ = read_split(self._folder(), split, ("sentence1", "sentence2"))
        return [*columns["sentence1"], *columns["sentence2"]]

    def _rows(self, tokenizer: Any, split: str) -> Any:
        return own_labels(in_blocks(tokens_of(tokenizer, self._texts(split)), self.block))
