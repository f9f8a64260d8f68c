"""The model card of both scripts, and how it gets to a hub."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import yaml

import dwmgrad

from .conftest import ROOT, read_json


@pytest.fixture
def words(argv):
    plot = argv.index("--plot")
    return [*argv[:plot], *argv[plot + 2 :], "--max_eval_samples", "9", "--max_train_samples", "16"]


def read_card(folder) -> tuple[dict, str]:
    _, head, text = (folder / "README.md").read_text("utf-8").split("---\n", 2)
    return yaml.safe_load(head), text


def test_what_it_says(script, words, glue_dir, tmp_path):
    pytest.importorskip("matplotlib")
    words = [*words, "--task_name", "mrpc", "--data_dir", str(glue_dir), "--do_train", "--do_eval"]
    results = script([*words, "--optim", "dwmgrad_finetune", "--eval_strategy", "epoch"])
    head, text = read_card(tmp_path / "out")
    assert head["library_name"] == "transformers" and "dwmgrad" in head["tags"]
    assert head["datasets"] == ["nyu-mll/glue"] and {"accuracy", "f1"} <= set(head["metrics"])
    [result] = head["model-index"][0]["results"]
    assert result["dataset"]["config"] == "mrpc"
    accuracy = next(m["value"] for m in result["metrics"] if m["type"] == "accuracy")
    assert accuracy == results["eval_accuracy"]
    assert f"DWMGrad {dwmgrad.__version__}, rule 1, preset finetune" in text
    assert "second_moment_window=500" in text and "max_window=100" in text
    assert "- learning_rate: 0.001\n" in text and "- weight_decay: 0.0\n" in text
    assert "not_equivalent, equivalent. The metric is accuracy." in text
    assert "12 examples for training, 9 for evaluation" in text
    assert "![Over the training's steps](window.png)" in text
    assert (tmp_path / "out" / "window.png").is_file()
    assert "| Training Loss | Epoch | Step |" in text and "More information needed" not in text


def test_of_an_adapter_on_ones_own_data(script, words, pretrained, tmp_path, sentences):
    lines = [json.dumps({"text": text, "label": "ab"[i % 2]}) for i, text in enumerate(sentences)]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines[:16]))
    words = [*words, "--train_file", str(tmp_path / "mine.jsonl"), "--do_train", "--lora_r", "2"]
    words += ["--optim", "adamw_torch", "--optim_args", ""]
    script([*words, "--model_name_or_path", str(pretrained), "--config_name", str(pretrained)])
    head, text = read_card(tmp_path / "out")
    assert head["library_name"] == "peft" and "dwmgrad" not in head["tags"]
    assert "on the mine.jsonl dataset" in text and "classes: a, b." in text
    assert f"fine-tuned version of {pretrained.name} (a local folder)" in text
    assert "- lora_r: 2\n" in text and "adamw_torch" in text and "DWMGrad" not in text
    assert str(tmp_path) not in text and "datasets" not in head


def test_a_local_adapter_by_its_name_alone(script, words, tmp_path):
    words = [*words, "--task_name", "sst2", "--use_sample", "--do_train"]
    script([*words, "--lora_r", "2"])
    again = ["--adapter_name_or_path", str(tmp_path / "out"), "--output_dir", str(tmp_path / "2")]
    script([*words, *again])
    _, text = read_card(tmp_path / "2")
    assert "- adapter_name_or_path: out (a local folder)\n" in text and str(tmp_path) not in text


class Hub(BaseHTTPRequestHandler):
    """The few answers of a hub that a push needs; keeps what it is sent."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        seen: dict = self.server.seen  # type: ignore[attr-defined]
        address, answer = f"http://{self.headers['Host']}/me/mine", {}
        if self.path == "/api/repos/create":
            seen["repo"] = json.loads(body)
            answer = {"url": address, "id": "1"}
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]
            answer = {"files": files}
        elif "/commit/" in self.path:
            if seen.get("refuses"):
                self.send_error(403, "no more room")
                return
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    seen[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                else:
                    seen.setdefault("commits", []).append(line["value"]["summary"])
            answer = {"commitUrl": f"{address}/commit/1", "commitOid": "1"}
        self.respond(answer)

    def do_GET(self) -> None:
        self.respond({"id": "me/mine", "sha": "1", "siblings": []})

    def respond(self, answer: dict) -> None:
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def hub():
    server = HTTPServer(("127.0.0.1", 0), Hub)
    server.seen = {}  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def push(words, hub):
    """Runs the script in a process of its own, with a hub on this machine, or at an `address`."""
    words = [*words, "--task_name", "sst2", "--use_sample", "--do_train", "--do_eval"]
    words += ["--push_to_hub", "--hub_model_id", "me/mine", "--hub_token", "hf_any"]
    words += ["--hub_private_repo", "true"]

    def run(address: str = f"http://127.0.0.1:{hub.server_port}") -> subprocess.CompletedProcess:
        environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address}
        command = [sys.executable, str(ROOT / "scripts" / "run_glue.py"), *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    return run


def test_push(push, hub, tmp_path):
    done = push()
    assert done.returncode == 0, done.stderr[-3000:]
    repo = hub.seen["repo"]  # huggingface_hub wrote `private` once
    assert repo.get("private") is True or repo["visibility"] == "private"
    assert hub.seen["commits"][-1] == "End of training"
    assert hub.seen["README.md"] == (tmp_path / "out" / "README.md").read_bytes()
    assert re.search(rb"# mine\n", hub.seen["README.md"])
    assert {"model.safetensors", "window.png", "all_results.json", "config.json"} <= set(hub.seen)
    assert not [name for name in hub.seen if "lock" in name], "it has the machine's name"


def test_a_push_that_fails_costs_nothing(push, hub, tmp_path):
    hub.seen["refuses"] = True
    done = push()
    assert done.returncode == 2 and "is whole, but not uploaded: " in done.stderr.splitlines()[-1]
    out = tmp_path / "out"
    assert {"train_results.json", "README.md"} <= {path.name for path in out.iterdir()}
    assert "ended_after_steps" in read_json(out / ".run_arguments.json")


def test_a_hub_that_does_not_answer(push, tmp_path):
    done = push("http://127.0.0.1:9")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert not (tmp_path / "out" / "train_results.json").exists()


def test_the_bare_loop_pushes_nothing(script, words):
    from glue.errors import UsageError

    if script.name == "run_glue_no_trainer":
        with pytest.raises(UsageError, match="cannot honour --.*push_to_hub"):
            script([*words, "--task_name", "sst2", "--use_sample", "--do_train", "--push_to_hub"])


def test_trackio(words, tmp_path):
    """`--report_to trackio` is the Trainer's own: nothing here stands in its way."""
    pytest.importorskip("trackio")
    words = [*words, "--task_name", "sst2", "--use_sample", "--do_train"]
    words += ["--report_to", "trackio", "--project", "tracked", "--run_name", "one"]
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    command = [sys.executable, str(ROOT / "scripts" / "run_glue.py"), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    [data] = (tmp_path / "trackio").glob("tracked.db")
    assert b"train/window" in data.read_bytes()
