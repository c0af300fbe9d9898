"""Where `--init` begins: AudioSet's weights of an Audio Spectrogram Transformer, from the hub, a folder or a .pth.

Or EfficientAT's MobileNet, from its .pt.

Every key of a checkpoint is used, or is of the head of another task and left behind, or is an error.
"""

import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.model.config import MobileNetConfig, ModelConfig
from trainer.model.mobilenet import AudioSetMobileNet
from trainer.model.network import AST, Network
from trainer.run.folder import file_digest
from trainer.run.initial import CONFIG_FILE, TENSORS_FILE, CheckpointError, initial_file

# our part -> theirs, N a block's number; as transformers saves ASTModel, and Gong et al. 2021 on timm's DeiT
HUGGING_FACE: Final[dict[str, tuple[str, ...]]] = {
    "cls_token": ("embeddings.cls_token",),
    "distillation_token": ("embeddings.distillation_token",),
    "positions": ("embeddings.position_embeddings",),
    "stem.projection": ("embeddings.patch_embeddings.projection",),
    "blocks.N.attention_norm": ("encoder.layer.N.layernorm_before",),
    "blocks.N.attention.qkv": tuple(f"encoder.layer.N.attention.attention.{one}" for one in ("query", "key", "value")),
    "blocks.N.attention.out": ("encoder.layer.N.attention.output.dense",),
    "blocks.N.mlp_norm": ("encoder.layer.N.layernorm_after",),
    "blocks.N.mlp_in": ("encoder.layer.N.intermediate.dense",),
    "blocks.N.mlp_out": ("encoder.layer.N.output.dense",),
    "norm": ("layernorm",),
}
ORIGINAL: Final[dict[str, tuple[str, ...]]] = {
    "cls_token": ("cls_token",),
    "distillation_token": ("dist_token",),
    "positions": ("pos_embed",),
    "stem.projection": ("patch_embed.proj",),
    "blocks.N.attention_norm": ("blocks.N.norm1",),
    "blocks.N.attention.qkv": ("blocks.N.attn.qkv",),
    "blocks.N.attention.out": ("blocks.N.attn.proj",),
    "blocks.N.mlp_norm": ("blocks.N.norm2",),
    "blocks.N.mlp_in": ("blocks.N.mlp.fc1",),
    "blocks.N.mlp_out": ("blocks.N.mlp.fc2",),
    "norm": ("norm",),
}
PREFIX: Final = re.compile(r"^(audio_spectrogram_transformer\.|module\.v\.|module\.)")
# left behind on purpose: AudioSet's 527 classes, and ImageNet's 1000, which DeiT still carries
HEAD: Final = re.compile(r"(classifier\.(layernorm|dense)|mlp_head\.[01]|head|head_dist)\.(weight|bias)")
# an original checkpoint does not state these: AudioSet's bands, and DeiT's width of an attention head
ORIGINAL_MELS: Final = 128
ORIGINAL_HEAD_WIDTH: Final = 64


@dataclass(frozen=True)
class Account:
    """How every tensor of a checkpoint was used."""

    file: Path
    """That was read; a file of the hub's cache has the revision in its path."""
    used: int
    """Tensors of the file that are in the model now."""
    fitted: str
    """How the positions of an AST's tokens were fitted, in words."""
    left: tuple[str, ...]
    """Keys of the file that were left behind: heads of other tasks."""

    def __str__(self) -> str:
        left = f"left behind: {', '.join(self.left)}" if self.left else "nothing left behind"
        return f"weights begin at {self.file}: {self.used} tensors used, {self.fitted}; {left}; the head is new"


def load_initial(source: str, model: Network, sha256: str = "") -> Account:
    """Set the model's weights that the source has; errors as `initial_weights`, the model is then as it was."""
    weights, account = initial_weights(source, model.config, sha256)
    model.load_state_dict({**model.state_dict(), **weights})
    return account


def initial_weights(
    source: str, config: ModelConfig | MobileNetConfig, sha256: str = ""
) -> tuple[dict[str, Tensor], Account]:
    """Weights by name from `hub:OWNER/NAME`, a Hugging Face folder or an original file, and how each was used.

    CheckpointError, in one line, names the file and what is missing, left over, of another shape, or that it is not the
    file of the hash that the recipe states.
    """
    file = initial_file(source, config)
    if isinstance(config, MobileNetConfig):
        return _mobilenet_weights(file, sha256)
    folder = file.name == TENSORS_FILE
    read, sizes = (_read_folder if folder else _read_original)(file, config)
    _check_sizes(file, sizes, config)
    left = {PREFIX.sub("", key): tensor for key, tensor in read.items()}
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in AST(config).state_dict().items() if name[:5] != "head."}
    weights = {name: _part(file, name, HUGGING_FACE if folder else ORIGINAL, left) for name in wanted}
    for key in left:
        if not HEAD.fullmatch(key):
            raise CheckpointError(f"{file}: {key} is left over, no part of this model; of another architecture")
    weights["positions"], fitted = _fitted(file, weights["positions"], sizes, config)
    for name, shape in wanted.items():
        if weights[name].shape != shape:
            raise CheckpointError(
                f"{file}: {name} is {tuple(weights[name].shape)}, the recipe's {tuple(shape)}; of another architecture"
            )
        if not weights[name].isfinite().all():
            raise CheckpointError(f"{file}: NaN or infinite weights in {name}; download it again")
    return weights, Account(file, len(read) - len(left), fitted, tuple(sorted(left)))


def _mobilenet_weights(file: Path, sha256: str) -> tuple[dict[str, Tensor], Account]:
    if sha256 and file_digest(file) != sha256:
        raise CheckpointError(
            f"{file}: sha256 {file_digest(file)[:12]}…, the recipe states {sha256[:12]}…; download the file again, or "
            "state its hash in the recipe (init_sha256)"
        )
    read = _state_dict(file)
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in AudioSetMobileNet().state_dict().items()}
    for name, shape in wanted.items():
        if name not in read:
            raise CheckpointError(f"{file}: {name} is missing; of another architecture, or damaged")
        if read[name].shape != shape:
            raise CheckpointError(
                f"{file}: {name} is {tuple(read[name].shape)}, MobileNet's {tuple(shape)}; of another architecture"
            )
        if not read[name].isfinite().all():
            raise CheckpointError(f"{file}: NaN or infinite weights in {name}; download it again")
    for name in read:
        if name not in wanted:
            raise CheckpointError(f"{file}: {name} is left over, no part of this model; of another architecture")
    used = {f"trunk.{name}": tensor for name, tensor in read.items() if name.startswith("features.")}
    left = tuple(sorted(name for name in read if not name.startswith("features.")))
    return used, Account(file, len(used), "as they are", left)


def _read_folder(file: Path, config: ModelConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and sizes as transformers saved them."""
    facts_file = file.with_name(CONFIG_FILE)
    try:
        facts = json.loads(facts_file.read_text())
        patch, stride = facts["patch_size"], facts["time_stride"]
        sizes = {
            "patch": patch,
            "stride": stride,
            "dim": facts["hidden_size"],
            "depth": facts["num_hidden_layers"],
            "heads": facts["num_attention_heads"],
            "rows": (facts["num_mel_bins"] - patch) // facts["frequency_stride"] + 1,
            "columns": (facts["max_length"] - patch) // stride + 1,
        }
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{facts_file}: not the configuration of an AST ({type(error).__name__}: {error}); --init takes what "
            "transformers' ASTModel or ASTForAudioClassification saved"
        ) from error
    return _tensors(file), sizes


def _tensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: damaged ({error}); download it again") from error


def _state_dict(file: Path) -> dict[str, Tensor]:
    """The tensors that torch.save wrote of a model; no code is loaded."""
    try:
        read = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{file}: cannot be read as tensors alone, and code is never loaded ({type(error).__name__}); --init takes "
            "an original state dict or a Hugging Face folder"
        ) from error
    if not (isinstance(read, dict) and all(isinstance(value, Tensor) for value in read.values())):
        raise CheckpointError(f"{file}: not a dictionary of tensors; --init takes an original state dict")
    return read


def _read_original(file: Path, config: ModelConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a .pth of the AST repository, and its sizes, as far as they tell, at the model's stride."""
    read = _state_dict(file)
    patches, positions = (read.get(f"module.v.{key}") for key in ("patch_embed.proj.weight", "pos_embed"))
    if patches is None or positions is None or (patches.ndim, positions.ndim) != (4, 3):
        raise CheckpointError(f"{file}: no module.v.patch_embed.proj or module.v.pos_embed; not an original AST .pth")
    dim, patch = patches.shape[0], patches.shape[-1]
    rows, count = (ORIGINAL_MELS - patch) // config.stride + 1, positions.shape[1] - 2
    if count % rows:
        raise CheckpointError(f"{file}: {count} positions are not {rows} rows; not of stride {config.stride}")
    depth = len({key.split(".")[3] for key in read if key.startswith("module.v.blocks.")})
    heads = dim // ORIGINAL_HEAD_WIDTH
    return read, {"patch": patch, "dim": dim, "depth": depth, "heads": heads, "rows": rows, "columns": count // rows}


def _check_sizes(file: Path, sizes: Mapping[str, Any], config: ModelConfig) -> None:
    """CheckpointError where the checkpoint is of another architecture than the recipe's model."""
    ours = {**config.model_dump(), "rows": config.grid[0]}
    for name, size in sizes.items():
        if name in ours and size != ours[name]:
            raise CheckpointError(
                f"{file}: of another architecture, {name} is {size} and the recipe's {ours[name]}; take another "
                "checkpoint or change the recipe's [model]"
            )


def _part(file: Path, name: str, names: Mapping[str, tuple[str, ...]], left: dict[str, Tensor]) -> Tensor:
    """Our tensor `name`; its parts are taken out of `left`. CheckpointError names the key that is missing."""
    part, kind = re.fullmatch(r"(.+?)(\.weight|\.bias|)", name).groups()  # type: ignore[union-attr]
    number = "".join(re.findall(r"\.\d+\.", part))
    keys = [key.replace(".N.", number) + kind for key in names[re.sub(r"\.\d+\.", ".N.", part)]]
    for key in keys:
        if key not in left:
            raise CheckpointError(f"{file}: {key} is missing; the file is damaged or of another architecture")
    return torch.cat([left.pop(key).float() for key in keys])


def _fitted(file: Path, positions: Tensor, sizes: Mapping[str, int], config: ModelConfig) -> tuple[Tensor, str]:
    """Positions (1, 2 + rows * columns, dim) for the model's columns, and how they were fitted.

    Cropped from the middle (Gong et al. 2021), 11:90 of 101 columns for 798 of 1024 frames; bilinear where too few.
    """
    rows, columns, wanted = sizes["rows"], sizes["columns"], config.grid[1]
    if positions.shape != (1, 2 + rows * columns, config.dim):
        raise CheckpointError(f"{file}: positions {tuple(positions.shape)} are not 2 + {rows} x {columns}; damaged")
    special, times = positions[:, :2], positions[:, 2:].transpose(1, 2).reshape(1, -1, rows, columns)
    start = (columns - wanted) // 2
    if wanted > columns:
        times, fitted = (
            F.interpolate(times, (rows, wanted), mode="bilinear"),
            f"{columns} columns of positions interpolated to {wanted}",
        )
    else:
        times, fitted = (
            times[..., start : start + wanted],
            f"positions of columns {start}:{start + wanted} of {columns}",
        )
    return torch.cat([special, times.flatten(2).transpose(1, 2)], dim=1), fitted
