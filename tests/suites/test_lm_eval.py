"""lm-eval scores a task over HTTP as the runtime does in process."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from causal_onnx.runtime import load
from tests.suites.suite import run_suite

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")

DOCUMENTS = [
    {"text": "Once upon a time, there was a", "choices": [" little girl", " zx qq vk", " big dog"]},
    {"text": "Lily and Tom went to the", "choices": [" park", " qqrk", " house"]},
    {"text": 'He said, "Thank', "choices": [" you", " zyu", " cat"]},
    {"text": "The sun was", "choices": [" gzw", " hot", " shining"]},
    {"text": "She was very", "choices": [" happy", " hpapy", " sad"]},
    {"text": "They played with the", "choices": [" ball", " bxll", " toys"]},
]

TASK = """\
task: stories_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


def command_of_the_page(address: str, model: Path, folder: Path) -> list[str]:
    """What docs/serving.md says, with this server, model and task."""
    text = re.search(r"    (lm-eval run .*?)\n\n", PAGE, re.DOTALL)
    assert text is not None
    whole = text[1].replace("\\\n", " ").replace("http://127.0.0.1:8000", address)
    whole = whole.replace("model=model,", f"model={model.name},")
    whole = whole.replace("tokenizer=model/", f"tokenizer={model}")
    program, *arguments = whole.replace("TASK", "stories_choice").split()
    return [str(Path(sys.executable).with_name(program)), *arguments, f"--include_path={folder}"]


def in_process(model: Path) -> list[list[float]]:
    """The log-probability of each choice after its text, by plain calls of the model."""
    found = load(model, threads=1)
    scores = []
    for document in DOCUMENTS:
        scores.append([])
        for choice in document["choices"]:
            before = found.tokenizer.encode(document["text"], add_special_tokens=False)
            whole = found.tokenizer.encode(document["text"] + choice, add_special_tokens=False)
            logits = found(np.array([whole]))[0].astype(np.float64)
            peak = logits.max(-1, keepdims=True)
            table = logits - peak - np.log(np.exp(logits - peak).sum(-1, keepdims=True))
            places = range(len(before), len(whole))
            scores[-1].append(sum(table[place - 1, whole[place]] for place in places))
    return scores


def test_a_task_has_the_score_of_scoring_in_process(
    address: str, stories: Path, tmp_path: Path
) -> None:
    lines = "".join(json.dumps(document) + "\n" for document in DOCUMENTS)
    (tmp_path / "data.jsonl").write_text(lines)
    (tmp_path / "task.yaml").write_text(TASK.format(data=tmp_path / "data.jsonl"))
    command = command_of_the_page(address, stories, tmp_path)
    run_suite([*command, "--output_path=out", "--log_samples"], folder=tmp_path)
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    (results,) = (tmp_path / "out").rglob("results_*.json")
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    served = [[float(response[0][0]) for response in row["resps"]] for row in rows]
    expected = in_process(stories)
    assert served == [pytest.approx(row, abs=1e-4) for row in expected]
    best = np.mean([int(np.argmax(row)) == 0 for row in expected])
    assert json.loads(results.read_text())["results"]["stories_choice"]["acc,none"] == best
