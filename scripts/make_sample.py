"""Make the sample of SST-2 again: `make_sample.py SST2_FOLDER [OUTPUT_FOLDER]`.

SST2_FOLDER holds train.parquet and validation.parquet with `sentence` and `label`. Written are
both splits without what the run does not need, a tokenizer trained on the training sentences,
and a small RoBERTa's config. Deterministic: the same input gives the same bytes with the same
library versions.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from atomic import write_json
from glue.errors import UsageError, UsageParser, needs, run_cli

with needs("glue"):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from glue.data import SAMPLE
    from glue.files import read_split
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import RobertaConfig

VOCABULARY = 16000
ENDINGS = 300
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # RoBERTa's order: <pad> is 1
MAX_LENGTH = 128


def write_split(columns: dict[str, list[Any]], target: Path) -> list[str]:
    """Write `sentence` and `label`, as strongly compressed as parquet goes."""
    sentences = [text.strip() for text in columns["sentence"]]
    try:
        labels = pa.array(map(int, columns["label"]), pa.int8())
    except (TypeError, ValueError) as error:
        raise UsageError(f"{target.stem}: label must be whole numbers: {error}") from error
    slim = pa.table({"sentence": sentences, "label": labels})
    pq.write_table(
        slim,
        target,
        compression="zstd",
        compression_level=22,
        use_dictionary=False,
        write_statistics=False,
        row_group_size=len(slim),
        data_page_size=1 << 24,
    )
    return sentences


def vocabulary(words: Counter[str], size: int) -> list[str]:
    """RoBERTa's special tokens, the characters, the commonest word endings, the commonest words.

    Counted here, with ties in alphabetical order: the trainers of `tokenizers` break ties, and
    number the pieces, in an order that changes from run to run.
    """
    characters = sorted({character for word in words for character in word})
    endings = Counter(
        "##" + word[-size:] for word in words for size in range(2, 6) if len(word) > size + 1
    )
    pieces = SPECIAL + characters + ["##" + character for character in characters]
    pieces += _commonest(endings, ENDINGS)
    known = set(pieces)
    rest = Counter({word: count for word, count in words.items() if word not in known})
    return pieces + _commonest(rest, size - len(pieces))


def _commonest(counts: Counter[str], number: int) -> list[str]:
    return sorted(counts, key=lambda piece: (-counts[piece], piece))[:number]


def write_tokenizer(sentences: list[str], folder: Path, size: int) -> None:
    """A lower-case WordPiece tokenizer with RoBERTa's special tokens and pair format."""
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    words = Counter(
        word
        for text in sentences
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    )
    numbers = {piece: number for number, piece in enumerate(vocabulary(words, size))}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="<unk>"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(word, SPECIAL.index(word)) for word in ("<s>", "</s>")],
    )
    content = json.loads(tokenizer.to_str())  # compact it is half the size
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(text + "\n", "utf-8")
    names = ["bos_token", "pad_token", "eos_token", "unk_token", "mask_token"]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_LENGTH,
        "model_input_names": ["input_ids", "attention_mask"],
        **dict(zip(names, SPECIAL, strict=True)),
        "cls_token": "<s>",
        "sep_token": "</s>",
    }
    write_json(folder / "tokenizer_config.json", config, indent=2)


def write_config(folder: Path) -> None:
    """A small RoBERTa: 2 layers, 128 wide."""
    config = RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=MAX_LENGTH + 2,
        type_vocab_size=1,
        hidden_dropout_prob=0.2,
        attention_probs_dropout_prob=0.1,
        classifier_dropout=0.3,
        layer_norm_eps=1e-5,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        architectures=["RobertaForSequenceClassification"],
    )
    values = {**config.to_diff_dict(), "model_type": "roberta"}
    values.pop("transformers_version", None)
    write_json(folder / "config.json", dict(sorted(values.items())), indent=2)


def main() -> None:
    parser = UsageParser(description=__doc__)
    parser.add_argument("source", type=Path, help="folder of SST-2's parquet files")
    parser.add_argument("output", type=Path, nargs="?", default=SAMPLE)
    arguments = parser.parse_args()
    splits = ("train", "validation")
    train, validation = (read_split(arguments.source, s, ("sentence", "label"))[0] for s in splits)
    arguments.output.mkdir(parents=True, exist_ok=True)
    sentences = write_split(train, arguments.output / "train.parquet")
    write_split(validation, arguments.output / "validation.parquet")
    write_tokenizer(sentences, arguments.output, VOCABULARY)
    write_config(arguments.output)
    for path in sorted(arguments.output.iterdir()):
        print(f"{path.stat().st_size:>9,} {path}")


if __name__ == "__main__":
    run_cli(main)
