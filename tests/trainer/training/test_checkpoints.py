"""AudioSet checkpoints against transformers' ASTModel with the same weights, key by key, and what is refused."""

import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ASTConfig, ASTForAudioClassification, ASTModel

from tests.trainer.corpus_maker import make_sprsound
from tests.trainer.model.test_model import randomised
from tests.trainer.toy_fit import AST as AST_TOY
from tests.trainer.toy_fit import Silent, toy_fit
from trainer.model.config import ModelConfig
from trainer.model.mobilenet import AudioSetMobileNet
from trainer.model.network import AST
from trainer.run.folder import METRICS_FILE
from trainer.run.initial import CheckpointError
from trainer.training.checkpoints import load_initial
from trainer.training.train import train

DIM, DEPTH, HEADS = 128, 2, 2


def theirs_of(frames: int = 1024, mels: int = 128, stride: int = 10, **sizes: Any) -> ASTConfig:
    return ASTConfig(
        **{
            "hidden_size": DIM,
            "num_hidden_layers": DEPTH,
            "num_attention_heads": HEADS,
            "intermediate_size": 2 * DIM,
            "frequency_stride": stride,
            "time_stride": stride,
            "max_length": frames,
            "num_mel_bins": mels,
            "num_labels": 7,
            **sizes,
        }
    )


def ours_of(frames: int = 798, stride: int = 10, **sizes: Any) -> ModelConfig:
    values = {"frames": frames, "stride": stride, "dim": DIM, "depth": DEPTH, "heads": HEADS, "mlp_ratio": 2.0}
    return ModelConfig.model_validate({**values, **sizes})


def hugging_face(folder: Path, config: ASTConfig | None = None, kind: Any = ASTForAudioClassification) -> Any:
    """A random model of theirs, saved."""
    model = randomised(kind(config or theirs_of()))
    model.save_pretrained(folder)
    return model


def original(path: Path, stride: int = 10) -> Any:
    """The same in the naming of the AST repository on timm's DeiT, with its heads; written without our tables."""
    model = randomised(ASTModel(theirs_of(stride=stride)))
    theirs = model.state_dict()
    tensors: dict[str, Tensor] = {
        "module.v.cls_token": theirs["embeddings.cls_token"],
        "module.v.dist_token": theirs["embeddings.distillation_token"],
        "module.v.pos_embed": theirs["embeddings.position_embeddings"],
    }

    def layer(name: str, *parts: str) -> None:
        for kind in ("weight", "bias"):
            tensors[f"module.v.{name}.{kind}"] = torch.cat([theirs[f"{part}.{kind}"] for part in parts])

    layer("patch_embed.proj", "embeddings.patch_embeddings.projection")
    for block in range(DEPTH):
        there = f"layers.{block}"
        layer(f"blocks.{block}.norm1", f"{there}.layernorm_before")
        layer(f"blocks.{block}.attn.qkv", *(f"{there}.attention.{one}_proj" for one in "qkv"))
        layer(f"blocks.{block}.attn.proj", f"{there}.attention.o_proj")
        layer(f"blocks.{block}.norm2", f"{there}.layernorm_after")
        layer(f"blocks.{block}.mlp.fc1", f"{there}.mlp.fc1")
        layer(f"blocks.{block}.mlp.fc2", f"{there}.mlp.fc2")
    layer("norm", "layernorm")
    for head, width in (("v.head", 1000), ("v.head_dist", 1000), ("mlp_head.0", DIM), ("mlp_head.1", 527)):
        shape = (DIM,) if head == "mlp_head.0" else (width, DIM)
        tensors |= {f"module.{head}.weight": torch.ones(shape), f"module.{head}.bias": torch.zeros(width)}
    torch.save(tensors, path)
    return model


def windows(frames: int = 1024, mels: int = 128) -> Tensor:
    return torch.randn(2, frames, mels, generator=torch.Generator().manual_seed(1))


def changed(folder: Path, change: Any) -> str:
    """A checkpoint of theirs whose tensors went through `change`."""
    hugging_face(folder, kind=ASTModel)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return str(folder)


def refused(source: object, config: ModelConfig | None = None) -> str:
    """Why, in one line; the model is as it was."""
    model = AST(config or ours_of())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as raised:
        load_initial(str(source), model)
    assert "\n" not in str(raised.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return str(raised.value)


# --- what is loaded


@pytest.mark.parametrize("stride", [10, 16])
@pytest.mark.parametrize("kind", ["classifier", "model alone", "original"])
def test_states_at_1024_frames_equal_those_of_transformers(tmp_path: Path, kind: str, stride: int) -> None:
    if kind == "original":
        source, theirs = tmp_path / "ast.pth", original(tmp_path / "ast.pth", stride)
    else:
        source, of = tmp_path, ASTModel if kind == "model alone" else ASTForAudioClassification
        theirs = hugging_face(tmp_path, theirs_of(stride=stride), of)
        theirs = theirs if kind == "model alone" else theirs.audio_spectrogram_transformer
    ours = AST(ours_of(1024, stride)).eval()
    load_initial(str(source), ours)
    with torch.inference_mode():
        expected, got = theirs(windows()).last_hidden_state, ours.tokens(windows())
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("stride", "first", "last"), [(10, 11, 90), (16, 7, 56)])
@pytest.mark.parametrize("kind", ["folder", "original"])
def test_positions_are_cropped_from_the_middle(tmp_path: Path, kind: str, stride: int, first: int, last: int) -> None:
    if kind == "folder":
        theirs, source = hugging_face(tmp_path, theirs_of(stride=stride), ASTModel), tmp_path
    else:
        theirs, source = original(tmp_path / "ast.pth", stride), tmp_path / "ast.pth"
    ours = AST(ours_of(stride=stride))
    account = load_initial(str(source), ours)
    positions = theirs.embeddings.position_embeddings
    rows, columns = ours.config.grid[0], {10: 101, 16: 64}[stride]
    grid = positions[0, 2:].reshape(rows, columns, DIM)[:, first:last]
    assert torch.equal(ours.positions[0, 2:], grid.reshape(-1, DIM))
    assert torch.equal(ours.positions[0, :2], positions[0, :2])
    assert f"columns {first}:{last} of {columns}" in str(account)


def test_too_few_positions_are_interpolated_in_time_alone(tmp_path: Path) -> None:
    theirs = hugging_face(tmp_path, theirs_of(frames=400), ASTModel)
    ours = AST(ours_of())
    assert "39 columns of positions interpolated to 79" in str(load_initial(str(tmp_path), ours))
    old = theirs.embeddings.position_embeddings[0, 2:].reshape(12, 39, DIM).detach().numpy()
    new = ours.positions[0, 2:].reshape(12, 79, DIM).detach().numpy()
    centres = (np.arange(79) + 0.5) * 39 / 79 - 0.5
    for row, column in ((0, 0), (7, 100)):
        expected = np.interp(centres, np.arange(39), old[row, :, column])
        np.testing.assert_allclose(new[row, :, column], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["folder", "original"])
def test_the_account_names_what_was_left_behind_and_our_head_stays(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "ast.pth"
    _ = original(source) if kind == "original" else hugging_face(source)
    model = AST(ours_of())
    head = model.head.weight.clone()
    account = load_initial(str(source), model)
    assert torch.equal(model.head.weight, head)
    layers = ["head", "head_dist", "mlp_head.0", "mlp_head.1"] if kind == "original" else ["classifier.dense"]
    left = {re.sub(r"\.(weight|bias)$", "", key) for key in account.left}
    assert left == {*layers, *(["classifier.layernorm"] if kind == "folder" else [])}
    keys = torch.load(source) if kind == "original" else load_file(source / "model.safetensors")
    assert account.used + len(account.left) == len(keys)
    assert f"{account.used} tensors used" in str(account)
    assert "\n" not in str(account)


def test_half_precision_becomes_whole(tmp_path: Path) -> None:
    def halve(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: tensor.half() for name, tensor in tensors.items()})

    model = AST(ours_of())
    load_initial(changed(tmp_path, halve), model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


# --- what is refused


@pytest.mark.parametrize(
    "key",
    [
        "encoder.layer.1.attention.attention.value.bias",
        "embeddings.distillation_token",
        "layernorm.weight",
        "embeddings.patch_embeddings.projection.bias",
    ],
)
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    assert f"{key} is missing" in refused(changed(tmp_path, lambda tensors: tensors.pop(key)))


@pytest.mark.parametrize("key", ["encoder.layer.2.layernorm_after.bias", "pooler.dense.weight", "classifier.gate.bias"])
def test_a_left_over_key_is_named(tmp_path: Path, key: str) -> None:
    assert f"{key} is left over" in refused(changed(tmp_path, lambda tensors: tensors.update({key: torch.ones(3)})))


def test_an_original_checkpoint_is_taken_key_by_key_too(tmp_path: Path) -> None:
    original(tmp_path / "ast.pth")
    whole = torch.load(tmp_path / "ast.pth")
    torch.save({k: v for k, v in whole.items() if k != "module.v.blocks.1.attn.qkv.bias"}, tmp_path / "less.pth")
    torch.save({**whole, "module.v.blocks.0.gamma": torch.ones(3)}, tmp_path / "more.pth")
    assert "blocks.1.attn.qkv.bias is missing" in refused(tmp_path / "less.pth")
    assert "blocks.0.gamma is left over" in refused(tmp_path / "more.pth")


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"dim": 64}, "dim is 128 and the recipe's 64"),
        ({"depth": 3}, "depth is 2 and the recipe's 3"),
        ({"depth": 1}, "depth is 2 and the recipe's 1"),
        ({"heads": 4}, "heads is 2 and the recipe's 4"),
        ({"patch": 8}, "patch is 16 and the recipe's 8"),
        ({"mels": 64}, "rows is 12 and the recipe's 5"),
        ({"mlp_ratio": 4.0}, r"mlp_in.weight is \(256, 128\), the recipe's \(512, 128\)"),
        ({"stride": 16}, "stride"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "original"])
def test_another_architecture_is_said(tmp_path: Path, kind: str, sizes: dict[str, Any], words: str) -> None:
    source = tmp_path / "ast.pth"
    _ = original(source) if kind == "original" else hugging_face(source)
    assert re.search(words, refused(source, ours_of(**sizes)))


class Code:
    """What an untrustworthy pickle does when it is read."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("harmed",)


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"module.v.pos_embed": Code()}, "bad.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Code()))
    for name in ("bad.pth", "plain.pth"):
        assert "code is never loaded" in refused(name)
    assert not (tmp_path / "harmed").exists()


def test_what_is_no_checkpoint_is_said(tmp_path: Path) -> None:
    hugging_face(tmp_path / "good")
    for name in ("nothing", "cut", "words", "empty"):
        shutil.copytree(tmp_path / "good", tmp_path / name)
    (tmp_path / "nothing" / "model.safetensors").unlink()
    data = (tmp_path / "good" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(data[:1000])
    (tmp_path / "words" / "config.json").write_text("no JSON")
    (tmp_path / "empty" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pth")
    assert "no model.safetensors here" in refused(tmp_path / "nothing")
    assert "damaged" in refused(tmp_path / "cut")
    assert "not the configuration of an AST" in refused(tmp_path / "words")
    assert "'patch_size'" in refused(tmp_path / "empty")
    assert "cannot be read as tensors alone" in refused(tmp_path / "cut.pth")
    assert "not a dictionary of tensors" in refused(tmp_path / "list.pth")
    assert "no module.v.patch_embed.proj" in refused(tmp_path / "other.pth")
    assert "no checkpoint here" in refused(tmp_path / "absent.pth")


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["layernorm.bias"][3] = torch.nan

    assert "NaN or infinite weights in norm.bias" in refused(changed(tmp_path, spoil))


# --- the hub, without a network

OFFLINE = """
from trainer.run.initial import CheckpointError
from trainer.training.checkpoints import load_initial
from trainer.model.config import ModelConfig
from trainer.model.network import AST
model = AST(ModelConfig(dim=128, depth=2, heads=2, mlp_ratio=2.0))
print(load_initial("hub:somebody/ast", model))
for name in ("somebody/other", "no such/name/at all"):
    try:
        load_initial(f"hub:{name}", model)
    except CheckpointError as error:
        print(error)
"""


def test_the_hub_offline_is_its_cache_or_one_line_that_helps(tmp_path: Path) -> None:
    """In a process of its own, because the hub's client reads its environment once."""
    snapshot = tmp_path / "hub" / "models--somebody--ast" / "snapshots" / "0123abc"
    hugging_face(snapshot)
    (tmp_path / "hub" / "models--somebody--ast" / "refs").mkdir()
    (tmp_path / "hub" / "models--somebody--ast" / "refs" / "main").write_text("0123abc")
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    found, absent, impossible = done.stdout.splitlines()
    assert "0123abc/model.safetensors" in found
    assert "positions of columns 11:90 of 101" in found
    assert absent.startswith("hub:somebody/other: not in the cache and not to be downloaded (")
    assert "download config.json and model.safetensors of somebody/other into a folder" in absent
    assert "--init FOLDER" in absent
    assert impossible.startswith("hub:no such/name/at all: not in the cache")


# --- a run that begins there


def test_a_run_begins_there_and_goes_on_without_the_file(tmp_path: Path) -> None:
    corpus = make_sprsound(tmp_path / "corpus")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    theirs = hugging_face(tmp_path / "ast", theirs_of(mels=32, stride=16, **sizes), ASTModel)
    model = {**AST_TOY, "mlp_ratio": 4.0}
    changes: dict[str, Any] = {"model": model, "init": str(tmp_path / "ast")}
    changes |= {"optimizer__epochs": 2, "optimizer__average_decay": 0.0}

    still, known = toy_fit(corpus, tmp_path / "cache", **{**changes, "optimizer__learning_rate": 1e-12})
    train(still, _folder(tmp_path / "still"), known, resume=False, minutes=0.0, watcher=Silent())
    name = "embeddings.patch_embeddings.projection.weight"
    torch.testing.assert_close(
        still.model.state_dict()["stem.projection.weight"], theirs.state_dict()[name], rtol=0, atol=1e-6
    )

    whole, known = toy_fit(corpus, tmp_path / "cache", **changes)
    train(whole, _folder(tmp_path / "whole"), known, resume=False, minutes=None, watcher=Silent())
    half, known = toy_fit(corpus, tmp_path / "cache", **changes)
    train(half, _folder(tmp_path / "half"), known, resume=False, minutes=0.0, watcher=Silent())
    assert (half.progress.epochs_done, half.progress.steps_done) == (0, 1)
    shutil.rmtree(tmp_path / "ast")
    half, known = toy_fit(corpus, tmp_path / "cache", **changes)
    train(half, tmp_path / "half", known, resume=True, minutes=None, watcher=Silent())
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(half.model.state_dict()[name], tensor)
    lost, known = toy_fit(corpus, tmp_path / "cache", **changes)
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        train(lost, _folder(tmp_path / "lost"), known, resume=False, minutes=None, watcher=Silent())
    assert not (tmp_path / "lost" / METRICS_FILE).exists()


def test_a_mobilenet_begins_at_the_file_that_the_recipe_states(tmp_path: Path) -> None:
    corpus = make_sprsound(tmp_path / "corpus")
    torch.manual_seed(0)
    weights = AudioSetMobileNet().state_dict()
    torch.save(weights, tmp_path / "own.pt")
    own = hashlib.sha256((tmp_path / "own.pt").read_bytes()).hexdigest()
    changes: dict[str, Any] = {"init": str(tmp_path / "own.pt"), "init_sha256": own, "optimizer__epochs": 1}
    changes |= {"optimizer__learning_rate": 1e-12, "optimizer__average_decay": 0.0, "data__draws": 8}
    fit, known = toy_fit(corpus, tmp_path / "cache", **changes)
    train(fit, _folder(tmp_path / "run"), known, resume=False, minutes=None, watcher=Silent())
    trained = fit.model.state_dict()
    for name in ("features.0.0.weight", "features.16.0.weight"):
        torch.testing.assert_close(trained[f"trunk.{name}"], weights[name], rtol=0, atol=1e-6)
    other, known = toy_fit(corpus, tmp_path / "cache", **{**changes, "init_sha256": "0" * 64})
    with pytest.raises(CheckpointError, match=r"sha256 .* the recipe states 000000000000"):
        train(other, _folder(tmp_path / "other"), known, resume=False, minutes=None, watcher=Silent())


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
