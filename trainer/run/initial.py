"""The file that a run's weights begin at: of the hub, a folder or a file; found without torch."""

import os
import socket
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from device.runtime import disable_telemetry
from firmware_config.errors import RespSAMError
from trainer.model.config import MobileNetConfig, ModelConfig

HUB: Final = "hub:"
CONFIG_FILE: Final = "config.json"
TENSORS_FILE: Final = "model.safetensors"
REACH_SECONDS: Final = 3.0


class CheckpointError(RespSAMError):
    """A checkpoint that is not there, cannot be read, or is not of this model."""


def initial_file(source: str, config: ModelConfig | MobileNetConfig) -> Path:
    """The file that `--init` means, downloaded where it is the hub's and not here yet; CheckpointError."""
    if isinstance(config, MobileNetConfig):
        return _mobilenet_file(Path(source))
    if source.startswith(HUB):
        return _from_hub(source.removeprefix(HUB))
    path = Path(source)
    if path.is_dir():
        for name in (CONFIG_FILE, TENSORS_FILE):
            if not (path / name).is_file():
                raise CheckpointError(f"{path}: no {name} here; --init takes a folder with both, or a .pth file")
        return path / TENSORS_FILE
    if not path.is_file():
        raise CheckpointError(f"{path}: no checkpoint here; --init takes {HUB}OWNER/NAME, a folder or a .pth file")
    return path


def _mobilenet_file(path: Path) -> Path:
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no weights here; a MobileNet begins at EfficientAT's mn04 .pt (MIT licence, from the releases of "
            "that project): give it with --init FILE"
        )
    return path


def _from_hub(name: str) -> Path:
    disable_telemetry()
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    try:
        # the hub's own client would try for most of a minute
        if not all(isinstance(try_to_load_from_cache(name, file), str) for file in (CONFIG_FILE, TENSORS_FILE)):
            _reach_hub()
        hf_hub_download(name, CONFIG_FILE)
        return Path(hf_hub_download(name, TENSORS_FILE))
    # no network, offline by a setting, no such name, an impossible name
    except (EntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CheckpointError(
            f"{HUB}{name}: not in the cache and not to be downloaded ({reason}); where there is a network, download "
            f"{CONFIG_FILE} and {TENSORS_FILE} of {name} into a folder and give it by --init FOLDER"
        ) from error


def _reach_hub() -> None:
    """OSError where nothing answers at the hub's address; behind a proxy its client finds out."""
    disable_telemetry()
    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    proxied = any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))
    if address.hostname and not proxied and not constants.HF_HUB_OFFLINE:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname, port), REACH_SECONDS).close()
