from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from causal_onnx.runtime import (
    ArtifactError,
    Model,
    TrialLimits,
    load,
    verify_bundle,
    write_bundle,
)
from causal_onnx.runtime.bundle import verify
from causal_onnx.runtime.bundle.genai_config import genai_config
from causal_onnx.runtime.bundle.generation_settings import generation_settings
from causal_onnx.runtime.bundle.readme import bundle_readme
from causal_onnx.runtime.bundle.triton_config import triton_config
from causal_onnx.runtime.contract import CachePair, Contract, TensorSpec
from tests.cli.onnx_file import make_cached_contract, make_golden, write_model
from tests.runtime.artifacts import fixture
from tests.runtime.language import write_tokenizer


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_bundle(fixture("one_head"), tmp_path / "bundle")
    return tmp_path / "bundle"


def findings(folder: Path) -> str:
    """What is wrong with a bundle, and that it does not pass."""
    try:
        report = verify_bundle(folder)
    except ArtifactError as error:
        return str(error)
    assert not report.passed
    assert report.findings
    return "; ".join(report.findings)


def test_a_bundle_passes_and_runs(bundle: Path) -> None:
    report = verify_bundle(bundle)
    assert report.passed
    assert report.selftest is not None
    assert len(report.selftest.cases) == 3
    assert report.test_data_error is not None
    assert report.test_data_error < 1e-5
    assert load(bundle / "model.onnx").selftest().passed


@pytest.mark.parametrize("name", ["model.onnx", "goldens.json", "test_data_set_0/input_0.pb"])
def test_a_file_that_is_replaced_after_it_was_hashed_is_found(
    bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = verify._check_files

    def then_replace(*args: object) -> list[str]:
        found = original(*args)  # type: ignore[arg-type]
        content = (bundle / name).read_bytes()
        (bundle / name).unlink()
        (bundle / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        return found

    monkeypatch.setattr(verify, "_check_files", then_replace)
    assert f"{name} changed while it was being verified" in findings(bundle)


def test_a_model_that_is_replaced_between_hash_and_load_is_found(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace_and_load(path: Path, **options: Any) -> Model:
        shutil.copy(path, path.with_name("copy"))
        path.with_name("copy").rename(path)
        return load(path, **options)

    monkeypatch.setattr(verify, "load", replace_and_load)
    assert "model.onnx changed while it was being verified" in findings(bundle)


def test_a_folder_that_is_pointed_elsewhere_is_read_where_it_was(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = bundle.with_name("here")
    link.symlink_to(bundle)
    original = verify._check_files

    def then_point(*args: object) -> list[str]:
        found = original(*args)  # type: ignore[arg-type]
        shutil.copytree(bundle, bundle.with_name("other"))
        link.unlink()
        link.symlink_to(bundle.with_name("other"))
        return found

    monkeypatch.setattr(verify, "_check_files", then_point)
    assert "model.onnx changed while it was being verified" in findings(link)


@pytest.mark.skipif(sys.platform != "linux", reason="a trial needs Linux")
def test_a_bundle_can_be_tried_in_a_process_of_its_own(bundle: Path) -> None:
    assert verify_bundle(bundle, isolated=True).passed
    report = verify_bundle(bundle, isolated=TrialLimits(memory_bytes=1 << 20))
    assert "in a separate process" in report.findings[0]
    assert report.selftest is None


def test_contract_json_holds_what_the_file_holds(bundle: Path) -> None:
    said = json.loads((bundle / "contract.json").read_text())
    assert Contract.from_json(json.dumps(said["contract"])) == load(fixture("one_head")).contract
    assert said["certificate"] == {"verdict": "causal"}
    assert said["source"]["class"] == "OneHead"
    assert set(said["files"]) == {
        path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()
    } - {"contract.json"}


def test_a_changed_byte_anywhere_is_found(bundle: Path) -> None:
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    assert len(files) > 10
    for path in files:
        content = path.read_bytes()
        step = max(1, len(content) // 40)
        for place in {*range(0, len(content), step), len(content) - 1}:
            changed = bytearray(content)
            changed[place] ^= 1 << place % 8
            path.write_bytes(changed)
            assert findings(bundle), f"{path.name}, byte {place}"
        path.write_bytes(content)
    assert verify_bundle(bundle).passed


def test_a_file_that_is_longer_or_cut_is_found(bundle: Path) -> None:
    content = (bundle / "README.md").read_bytes()
    for changed in (content + b"\n", content[:-1], b""):
        (bundle / "README.md").write_bytes(changed)
        assert "README.md was changed" in findings(bundle)


def test_missing_and_extra_files_are_named(bundle: Path) -> None:
    (bundle / "test_data_set_1" / "input_0.pb").unlink()
    (bundle / "notes.txt").write_text("hello")
    (bundle / "linked").symlink_to(bundle / "model.onnx")
    said = findings(bundle)
    assert "test_data_set_1/input_0.pb is missing" in said
    assert "notes.txt does not belong to the bundle" in said
    assert "linked is not a regular file" in said


def rehashed(bundle: Path, name: str, content: bytes) -> None:
    """Change a file and its hash, as somebody would on purpose."""
    import hashlib

    (bundle / name).write_bytes(content)
    said = json.loads((bundle / "contract.json").read_text())
    said["files"][name] = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
    }
    text = json.dumps(said, sort_keys=True, indent=1) + "\n"
    (bundle / "contract.json").write_text(text)


def test_a_contract_that_is_not_the_models_is_found(bundle: Path) -> None:
    path = bundle / "contract.json"
    said = json.loads(path.read_text())
    said["contract"]["max_seq_len"] = 99
    path.write_text(json.dumps(said, sort_keys=True, indent=1) + "\n")
    assert "contract.json is not what model.onnx says of itself" in findings(bundle)


def test_goldens_that_are_not_the_models_are_found(bundle: Path) -> None:
    said = json.loads((bundle / "goldens.json").read_text())
    said["tolerance"] = 0.5
    rehashed(bundle, "goldens.json", json.dumps(said, sort_keys=True, indent=1).encode())
    assert "goldens.json does not hold the golden vectors in model.onnx" in findings(bundle)


def test_test_data_that_the_model_does_not_repeat_is_found(bundle: Path) -> None:
    name = "test_data_set_1/output_0.pb"
    content = bytearray((bundle / name).read_bytes())
    content[-1] ^= 0x40  # of an exponent
    rehashed(bundle, name, bytes(content))
    assert "test_data_set_*: largest error" in findings(bundle)


def test_another_model_with_its_own_hash_is_found(bundle: Path) -> None:
    rehashed(bundle, "model.onnx", fixture("decoder").read_bytes())
    assert "carries no contract or no golden vectors" in findings(bundle)


def test_a_folder_that_is_no_bundle_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"not a bundle: it has no file contract\.json"):
        verify_bundle(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        verify_bundle(tmp_path / "nowhere")


def test_a_model_that_fails_its_goldens_leaves_nothing(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", golden=make_golden(wrong_by=0.01))
    with pytest.raises(ArtifactError, match="does not repeat its golden vectors on cpu"):
        write_bundle(path, tmp_path / "bundle")
    assert [item.name for item in tmp_path.iterdir()] == ["m.onnx"]


def test_a_cache_that_does_not_continue_is_refused(tmp_path: Path) -> None:
    """Its sums begin anew with each chunk, so that only the stream tells."""
    path = write_model(tmp_path / "m.onnx", contract=make_cached_contract())
    assert load(path).selftest().passed
    with pytest.raises(ArtifactError, match="does not repeat its golden vectors"):
        write_bundle(path, tmp_path / "bundle")


@pytest.mark.parametrize(("name", "lacks"), [("foreign", "contract"), ("decoder", "golden")])
def test_files_without_contract_or_goldens_are_refused(
    name: str, lacks: str, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=f"carries no {lacks}"):
        write_bundle(fixture(name), tmp_path / "bundle")


def test_a_folder_in_use_is_kept(bundle: Path, tmp_path: Path) -> None:
    (bundle / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="already holds a bundle"):
        write_bundle(fixture("one_head"), bundle)
    assert (bundle / "mine.txt").exists()
    write_bundle(fixture("one_head"), bundle, replace=True)
    assert verify_bundle(bundle).passed
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty and not a bundle"):
        write_bundle(fixture("one_head"), other, replace=True)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["bundle", "other"]


def test_the_same_model_gives_the_same_bundle(bundle: Path, tmp_path: Path) -> None:
    files = write_bundle(fixture("one_head"), tmp_path / "again")
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == (bundle / name).read_bytes(), name


def test_a_tokenizer_beside_the_model_goes_along(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    shutil.copy(fixture("one_head"), model)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"a": 1}')
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(
        write_bundle(model, tmp_path / "bundle")
    )
    assert verify_bundle(tmp_path / "bundle").passed
    with pytest.raises(FileNotFoundError, match="there is no tokenizer"):
        write_bundle(model, tmp_path / "other", tokenizer=tmp_path / "nowhere.json")
    (tmp_path / "tokenizer.json").write_text("<html>")
    with pytest.raises(ArtifactError, match="not a tokenizer: it is not JSON"):
        write_bundle(model, tmp_path / "other")


def checkpoint(folder: Path, **settings: Any) -> Path:
    """A folder of Hugging Face's layout, without weights."""
    folder.mkdir()
    (folder / "generation_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(
        '{"bos_token_id": 1, "eos_token_id": 9, "pad_token_id": -1}'
    )
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (folder / "LICENSE").write_text("all of it")
    (folder / "modeling.py").write_text("raise SystemExit")
    return folder


def test_a_checkpoint_gives_its_tokenizer_templates_settings_and_licence(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "checkpoint", eos_token_id=[2, 5], temperature=0.7)
    files = write_bundle(fixture("one_head"), tmp_path / "model", checkpoint=source)
    carried = {item.relative_to(source).as_posix() for item in source.rglob("*.*")} | {"LICENSE"}
    assert carried - set(files) == {"config.json", "modeling.py"}
    assert json.loads((tmp_path / "model" / "generation_config.json").read_text()) == {
        "eos_token_id": [2, 5],
        "bos_token_id": 1,
        "temperature": 0.7,
    }
    assert verify_bundle(tmp_path / "model").passed


def test_a_bundle_of_a_bundle_is_the_same(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "checkpoint", eos_token_id=[2, 5])
    files = write_bundle(fixture("one_head"), tmp_path / "model", checkpoint=source)
    assert write_bundle(tmp_path / "model", tmp_path / "again") == files
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


def test_the_contracts_special_tokens_are_settings_too(tmp_path: Path) -> None:
    contract = replace(load(fixture("one_head")).contract, eos_token_ids=(3, 4), bos_token_id=0)
    assert generation_settings(contract, None) == {"eos_token_id": [3, 4], "bos_token_id": 0}
    assert generation_settings(contract, checkpoint(tmp_path / "c", eos_token_id=2)) == {
        "eos_token_id": 2,
        "bos_token_id": 1,
    }


def test_what_lies_beside_a_bare_file_is_not_taken_for_its_own(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "c", eos_token_id=2)
    (source / "tokenizer.json").unlink()
    shutil.copy(fixture("one_head"), source / "m.onnx")
    files = write_bundle(source / "m.onnx", tmp_path / "bundle")
    assert not {"LICENSE", "generation_config.json", "chat_template.jinja"} & set(files)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eos_token_id": ["2"]}, r"eos_token_id in generation_config.json is \['2'\], expected"),
        ({"bos_token_id": [1, 2]}, r"bos_token_id in generation_config.json is \[1, 2\]"),
    ],
)
def test_special_tokens_that_are_no_ids_are_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = checkpoint(tmp_path / "checkpoint", **settings)
    with pytest.raises(ArtifactError, match=message):
        write_bundle(fixture("one_head"), tmp_path / "model", checkpoint=source)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        write_bundle(fixture("one_head"), tmp_path / "model", checkpoint=tmp_path / "nowhere")


def language_model(**changes: object) -> Contract:
    """A contract of two layers, four query heads over two, as an export writes it."""
    kinds = [f"{layer}.{kind}" for layer in range(2) for kind in ("key", "value")]
    past, present = ("batch", 2, "past_seq", 8), ("batch", 2, "total_seq", 8)
    settings: dict[str, object] = {
        "inputs": (
            TensorSpec(name="input_ids", dtype="int64", axes=("batch", "seq"), vocab_size=99),
            TensorSpec(name="attention_mask", dtype="int64", axes=("batch", "total_seq")),
            *(TensorSpec(name=f"past_key_values.{k}", dtype="float32", axes=past) for k in kinds),
        ),
        "outputs": (
            TensorSpec(name="logits", dtype="float32", axes=("batch", "seq", 99)),
            *(TensorSpec(name=f"present.{k}", dtype="float32", axes=present) for k in kinds),
        ),
        "cache": tuple(
            CachePair(past=f"past_key_values.{k}", present=f"present.{k}") for k in kinds
        ),
        "mask": "attention_mask",
        "max_seq_len": 64,
        **changes,
    }
    return Contract(**settings)  # type: ignore[arg-type]


def test_genai_config_says_how_the_cache_is_named_and_how_wide_it_is() -> None:
    certificate = {"cores": [{"num_heads": 4}]}
    settings = {"eos_token_id": [2, 7], "do_sample": True, "top_k": 50, "surprise": 1}
    content = genai_config(language_model(), certificate, settings)
    assert content is not None
    model, search = json.loads(content)["model"], json.loads(content)["search"]
    assert model["decoder"]["inputs"]["past_key_names"] == "past_key_values.%d.key"
    assert model["decoder"]["outputs"]["present_value_names"] == "present.%d.value"
    sizes = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_size")
    assert [model["decoder"][key] for key in sizes] == [2, 4, 2, 8]
    assert (model["eos_token_id"], model["vocab_size"], model["context_length"]) == ([2, 7], 99, 64)
    assert (search["do_sample"], search["top_k"], search["max_length"]) == (True, 50, 64)


def test_genai_config_is_for_cached_language_models_alone() -> None:
    contract = load(fixture("one_head")).contract
    assert genai_config(contract, None, {}) is None
    named_otherwise = language_model()
    pairs = named_otherwise.cache
    crossed = (pairs[2], pairs[1], pairs[0], pairs[3])
    assert genai_config(language_model(cache=crossed), None, {}) is None


def test_triton_config_escapes_names_and_knows_every_type() -> None:
    spec = TensorSpec(name='a"b\\', dtype="bfloat16", axes=("batch", "seq", 3))
    text = triton_config(Contract(inputs=(spec,), outputs=(spec,))).decode()
    assert r'name: "a\042b\134" data_type: TYPE_BF16 dims: [ -1, -1, 3 ]' in text


def test_the_readme_of_integer_products_names_the_option_that_they_need() -> None:
    spec = TensorSpec(name="x", dtype="float32", axes=("batch", "seq", 4))
    contract = Contract(inputs=(spec,), outputs=(replace(spec, name="y"),), precision="w8a8")
    assert b"`session.x64quantprecision` is `1`" in bundle_readme(contract, [])
    assert b"x64quantprecision" not in bundle_readme(replace(contract, precision="int8"), [])


def test_the_page_says_which_onnxruntime_a_file_needs() -> None:
    spec = TensorSpec(name="x", dtype="float32", axes=("batch", "seq", 4))
    contract = Contract(inputs=(spec,), outputs=(replace(spec, name="y"),))
    newer = replace(contract, min_onnxruntime="1.30")
    assert b"| onnxruntime | 1.30 or newer |" in bundle_readme(newer, [])
    assert b"| onnxruntime |" not in bundle_readme(contract, [])


def test_the_readmes_python_runs(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(bundle)
    blocks = (bundle / "README.md").read_text().split("```python\n")[1:]
    for block in blocks:
        exec(block.partition("```")[0], {})
    assert capsys.readouterr().out == "(1, 3, 8)\n" * 2


def test_the_readme_of_a_language_model_continues_text_and_chats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tokenizers", reason="text needs the extra `text`")
    pytest.importorskip("jinja2", reason="chats need the extra `text`")
    shutil.copy(fixture("language"), tmp_path / "model.onnx")
    write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    monkeypatch.chdir(tmp_path)
    model = load(".")
    page = bundle_readme(model.contract, ["tokenizer.json", "chat_template.jinja"]).decode()
    exec(page.partition("## Text")[2].partition("```python\n")[2].partition("```")[0], {})
    said = model.chat([{"role": "user", "content": "Hello"}], max_new_tokens=20)
    greedy = model.generate("Hello", max_new_tokens=20)
    assert capsys.readouterr().out == f"{greedy.text}\n{said.text}\n"
    assert "causal-onnx chat ." in page


def test_outputs_of_bundles_repeat_bit_for_bit(bundle: Path) -> None:
    model = load(bundle / "model.onnx")
    x = np.random.default_rng(0).standard_normal((2, 7, 8)).astype(np.float32)
    assert np.array_equal(model(x), model(x))
