"""A small language model, trained on questions: `make_language_model.py QQP_FOLDER OUTPUT_FOLDER`.

QQP_FOLDER holds train.parquet with `question1` and `question2`. A GPT-2 of 2.1 million parameters
learns them for two epochs with AdamW. The workloads `sentences` and `sentences-lora` fine-tune
it. Deterministic: the same input gives the same model on the same machine, with the same library
versions. Takes 13 minutes on one core that has other work, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from glue.errors import UsageParser, needs, run_cli

with needs("glue"):
    from experiments.workloads.language import in_blocks, own_labels, tokens_of
    from glue.files import read_split
    from make_sample import MAX_LENGTH, write_tokenizer
    from transformers import (
        AutoTokenizer,
        GPT2Config,
        GPT2LMHeadModel,
        Trainer,
        TrainingArguments,
        set_seed,
    )

VOCABULARY = 4096
BLOCK = 32


def main(argv: Sequence[str] | None = None) -> None:
    parser = UsageParser(description=__doc__)
    parser.add_argument("source", type=Path, help="folder of QQP's parquet files")
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args(argv)
    columns, _ = read_split(arguments.source, "train", ("question1", "question2"))
    texts = [*columns["question1"], *columns["question2"]]
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_tokenizer(texts, arguments.output, VOCABULARY)
    tokenizer = AutoTokenizer.from_pretrained(arguments.output)
    blocks = in_blocks(tokens_of(tokenizer, texts), BLOCK)
    set_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=MAX_LENGTH,
        n_embd=192,
        n_layer=3,
        n_head=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # which its class name does not say
    training = TrainingArguments(
        output_dir=str(arguments.output),
        num_train_epochs=2,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        weight_decay=0.01,
        warmup_steps=100,
        lr_scheduler_type="cosine",
        save_strategy="no",
        logging_steps=100,
        report_to="none",
        use_cpu=True,
    )
    Trainer(model, training, train_dataset=own_labels(blocks)).train()
    model.save_pretrained(arguments.output)
    print(f"{model.num_parameters():,} parameters: {arguments.output}")


if __name__ == "__main__":
    run_cli(main)
