"""Kill a real training with SIGKILL at random moments, resume it, and compare the two ends.

    python scripts/fault_run.py                           # 50 kills, about 3 minutes on 2 cores
    python scripts/fault_run.py --kills 4 --seed 1

The trainings are those of run_glue.py and run_glue_no_trainer.py on the SST-2 sample, with a
checkpoint at every step, alone and on two ranks, of which one is killed. Each kill is followed by
the same command again; the end must be that of a run that was never killed, bit by bit.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import runpy
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from atomic import write_json
from environment import ROOT
from glue.errors import UsageParser, needs, run_cli

with needs("glue"):
    import accelerate
    import torch
    import transformers
    from glue.checkpoints import checkpoints
    from glue.data import SAMPLE
    from torch.distributed.elastic.utils.distributed import get_free_port

SCRIPTS = ROOT / "scripts"
CASES = [(script, ranks) for script in ("run_glue", "run_glue_no_trainer") for ranks in (1, 2)]
STEPS = 10
WORDS = """
    --task_name sst2 --use_sample --max_eval_samples 12 --do_train --do_eval --use_cpu
    --per_device_train_batch_size 4 --num_train_epochs 2 --learning_rate 1e-3
    --optim dwmgrad_finetune --logging_steps 1 --plot false
    --save_strategy steps --save_steps 1 --save_total_limit 2
    --report_to none --disable_tqdm true
"""
_BEGUN = ".run_arguments.json"  # which a run writes when its model is loaded
_context = multiprocessing.get_context("forkserver")  # each training is a fork that has torch
_context.set_forkserver_preload(["transformers.trainer", "datasets", "peft", "evaluate"])


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs all cases; returns the figures."""
    parser = UsageParser(description=__doc__)
    add = parser.add_argument
    add("--kills", type=int, default=50, help="the number of kills, over all cases (default: 50)")
    add("--seed", type=int, default=0, help="decides the moments (default: 0)")
    folder = Path("runs/faults")
    add("--folder", type=Path, default=folder, help=f"of the runs; emptied (default: {folder})")
    add("--output", type=Path, help="a JSON file for the figures")
    args = parser.parse_args(argv)
    shutil.rmtree(args.folder, ignore_errors=True)
    tiny = _tiny_model(args.folder / "tiny")
    draw = random.Random(args.seed)
    rows = []
    for index, (script, ranks) in enumerate(CASES):
        kills = args.kills // len(CASES) + (index < args.kills % len(CASES))
        if kills:
            rows.append(_Case(script, ranks, args.folder, tiny).run(kills, draw))
    counts = ("kills", "inside_checkpoint_writing", "equal_ends")
    total = {name: sum(row[name] for row in rows) for name in counts}
    versions = {each.__name__: each.__version__ for each in (torch, transformers, accelerate)}
    about = {"seed": args.seed, "steps": STEPS, "asked": args.kills, "versions": versions}
    found = {**about, "cases": rows, **total}
    print(
        f"{total['kills']} of {args.kills} kills, {total['inside_checkpoint_writing']} of them "
        f"while a checkpoint was written: {total['equal_ends']} ends equal to that of a run never "
        "killed"
    )
    if args.output:
        write_json(args.output, found, indent=2)
    return found


def check() -> None:
    """Runs all cases, and ends the program with 1 if an end was another, or a kill is missing."""
    figures = main()
    sys.exit(int(figures["equal_ends"] != figures["asked"]))


class _Case:
    """One script on a number of ranks."""

    def __init__(self, script: str, ranks: int, folder: Path, tiny: Path) -> None:
        self.script, self.ranks = script, ranks
        self.folder = folder / f"{script}-{ranks}"
        self.folder.mkdir(parents=True)
        samples = 4 * ranks * STEPS // 2
        self.words = ["--config_name", str(tiny), "--max_train_samples", str(samples)]
        self.words += WORDS.split()
        if ranks > 1:
            self.words += ["--ddp_backend", "gloo"]

    def run(self, kills: int, draw: random.Random) -> dict[str, Any]:
        whole = self.folder / "whole"
        self.finish(whole)
        span = time.time() - (whole / _BEGUN).stat().st_mtime
        expected = end_of(whole)
        equal = inside = done = 0
        for attempt in range(20 + 3 * kills):
            parted = self.folder / f"killed-{attempt}"
            processes = self.start(parted)
            while not (parted / _BEGUN).exists() and processes[0].is_alive():
                time.sleep(0.01)
            moment = draw.uniform(0, span)
            time.sleep(moment)
            if not all(process.is_alive() for process in processes):
                _end(processes)
                span *= 0.9  # it was over before; an earlier moment
                continue
            processes[draw.randrange(self.ranks)].kill()
            _end(processes)
            found = [path for path in parted.glob("checkpoint-*") if path.is_dir()]
            inside += len(found) > len(checkpoints(parted))
            self.finish(parted)
            same = end_of(parted) == expected
            equal += same
            if same:
                shutil.rmtree(parted)
            print(
                f"{self.script}, {self.ranks} rank(s), killed {moment:.1f} s into {span:.1f} s, "
                f"{len(found)} checkpoint(s): {'equal' if same else f'DIFFERENT, see {parted}'}",
                flush=True,
            )
            done += 1
            if done == kills:
                break
        counts = {"kills": done, "inside_checkpoint_writing": inside, "equal_ends": equal}
        return {"script": self.script, "ranks": self.ranks, **counts}

    def start(self, output: Path) -> list[Any]:
        port = get_free_port()
        argv = [str(SCRIPTS / f"{self.script}.py"), *self.words, "--output_dir", str(output)]
        processes = [
            _context.Process(target=_train, args=(argv, rank, self.ranks, port, f"{output}.log"))
            for rank in range(self.ranks)
        ]
        for process in processes:
            process.start()
        return processes

    def finish(self, output: Path) -> None:
        """Gives the command that goes on to the end, whatever is there."""
        processes = self.start(output)
        for process in processes:
            process.join()
        codes = [process.exitcode for process in processes]
        if any(codes):
            sys.exit(f"a training that nobody killed ended with {codes}; see {output}.log")


def _train(argv: list[str], rank: int, ranks: int, port: int, log: str) -> None:
    """One rank: the script as the command line would run it."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    if ranks > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    sys.argv = argv
    sys.path.insert(0, str(SCRIPTS))
    runpy.run_path(argv[0], run_name="__main__")
    if ranks > 1:  # past gloo's own end, which aborts now and then where a peer has left first
        torch.distributed.barrier()
        sys.stdout.flush()
        os._exit(0)


def _end(processes: list[Any]) -> None:
    """What a launcher does when one rank is gone."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(10)
        process.kill()
        process.join()


def end_of(folder: Path) -> dict[str, Any]:
    """All that a run has come to: weights, optimizer state, window, logs and metrics."""
    last = checkpoints(folder)[-1]
    (state_file,) = last.glob("optimizer.*")  # .pt of the Trainer, .bin of Accelerate
    state = torch.load(state_file, weights_only=True)
    logs = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    results = json.loads((folder / "all_results.json").read_text())
    return {
        "weights": _digest((folder / "model.safetensors").read_bytes()),
        "state": {
            key: {name: _digest(buffer.numpy().tobytes()) for name, buffer in buffers.items()}
            for key, buffers in state["state"].items()
        },
        "groups": state["param_groups"],
        "checkpoints": [path.name for path in checkpoints(folder)],
        "logs": [_timeless(entry) for entry in logs if "loss" in entry],
        "metrics": _timeless({k: v for k, v in results.items() if k.startswith("eval")}),
    }


def _timeless(entry: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in entry.items() if not k.endswith(("runtime", "per_second"))}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _tiny_model(folder: Path) -> Path:
    """A RoBERTa of one small layer: most of a run's time is then checkpoint writing."""
    folder.mkdir(parents=True)
    config = json.loads((SAMPLE / "config.json").read_text())
    config.update(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SAMPLE / name, folder / name)
    return folder


if __name__ == "__main__":
    run_cli(check)
