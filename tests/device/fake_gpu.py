"""A GPU that no machine of the project has: memory in numpy, and engines that ONNX Runtime runs, recording every call.

Parser and builder stay TensorRT-RTX's own, which needs no GPU to build; only what executes is replaced.
"""

from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from device.model.classifier import open_session
from device.model.engines import Gpu
from device.model.tensorrt import Cuda
from device.signal import FloatArray

GPU = "Orin"


class FakeCuda:
    """`device.model.tensorrt.Cuda` without a driver."""

    def __init__(self) -> None:
        self.name, self.stream = GPU, 7
        self.memory: dict[int, FloatArray] = {}
        self.sizes: dict[int, int] = {}
        self.calls: list[str] = []

    def use(self) -> None:
        self.calls.append("use")

    def allocate(self, size: int) -> int:
        address = 4096 * (len(self.sizes) + 1)
        self.sizes[address] = size
        return address

    def upload(self, address: int, values: FloatArray) -> None:
        assert values.flags.c_contiguous and values.nbytes <= self.sizes[address]
        self.calls.append("upload")
        self.memory[address] = values.copy()

    def download(self, values: FloatArray, address: int) -> None:
        assert values.nbytes <= self.sizes[address]
        self.calls.append("download")
        values[...] = self.memory[address]

    def wait(self) -> None:
        self.calls.append("wait")


class FakeContext:
    """Runs what was built, when it is told to."""

    def __init__(self, gpu: "FakeMachine") -> None:
        self.gpu, self.addresses, self.shape = gpu, dict[str, int](), tuple[int, ...]()

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        # the profile that was built
        return name == "windows" and 1 <= shape[0] <= 8

    def execute_async_v3(self, stream: int) -> bool:
        cuda = self.gpu.cuda
        assert stream == cuda.stream
        cuda.calls.append(f"execute {self.shape[0]}")
        given = cuda.memory[self.addresses["windows"]]
        assert given.shape == self.shape
        cuda.memory[self.addresses["logits"]] = self.gpu.session.run(None, {"windows": given})[0]
        return True


class FakeEngine:
    """A deserialized engine of the machine's model."""

    num_io_tensors = 2

    def __init__(self, gpu: "FakeMachine") -> None:
        self.gpu = gpu

    def get_tensor_name(self, index: int) -> str:
        return ("windows", "logits")[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        session = self.gpu.session
        (tensor,) = session.get_inputs() if name == "windows" else session.get_outputs()
        return (-1, *tensor.shape[1:])

    def create_execution_context(self) -> FakeContext:
        return FakeContext(self.gpu)


class FakeMachine:
    """`tensorrt` and a GPU that runs `model`, whatever was built."""

    def __init__(self, model: bytes, version: str = "10.3.0") -> None:
        rtx: Any = pytest.importorskip("tensorrt_rtx", reason="no TensorRT-RTX here (extra tensorrt-check)")
        self.cuda, self.session, self.builds = FakeCuda(), open_session(model), 0
        self.driver_changed = False  # engines built before do not load
        gpu = self

        class Builder(rtx.Builder):  # type: ignore[misc]
            def create_builder_config(self) -> Any:
                config = super().create_builder_config()
                config.num_compute_capabilities = 1
                config.set_compute_capability(rtx.ComputeCapability.SM86, 0)
                return config

            def build_serialized_network(self, network: Any, config: Any) -> Any:
                gpu.builds += 1
                gpu.driver_changed = False
                return super().build_serialized_network(network, config)

        class Runtime:
            def __init__(self, log: Any) -> None:
                self.log = log

            def deserialize_cuda_engine(self, data: bytes) -> FakeEngine | None:
                if len(data) > 1000 and not gpu.driver_changed:
                    return FakeEngine(gpu)
                self.log.log(rtx.ILogger.ERROR, "engine of another\n version")
                return None

        replaced = {"Builder": Builder, "Runtime": Runtime, "__version__": version}
        self.tensorrt: Any = SimpleNamespace(**{**vars(rtx), **replaced})

    @property
    def here(self) -> Gpu:
        """As the device sees it."""
        return Gpu(self.tensorrt, cast(Cuda, self.cuda))

    def plug(self, patch: pytest.MonkeyPatch) -> None:
        """Make it this machine's."""
        patch.setattr("device.model.engines.load_tensorrt", lambda: self.tensorrt)
        patch.setattr("device.model.engines.Cuda", lambda: self.cuda)


def older_tensorrt(record: list[str]) -> ModuleType:
    """`tensorrt` 8.6 as far as it differs: flags for precisions, explicit batches, no monitor; what it is told."""
    module: Any = ModuleType("tensorrt")

    class ILogger:
        ERROR, INTERNAL_ERROR, INFO = 1, 2, 3

    class Parser:
        num_errors = 1

        def __init__(self, network: Any, log: ILogger) -> None:
            pass

        def parse(self, model: bytes) -> bool:
            return model != b"refused"

        def get_error(self, index: int) -> Any:
            return SimpleNamespace(node=lambda: 12, desc=lambda: "In node 12: UNSUPPORTED_NODE: \n Foo")

    class Config:
        def set_flag(self, flag: str) -> None:
            record.append(f"flag {flag}")

        def add_optimization_profile(self, profile: Any) -> None:
            record.append("profile")

        def create_timing_cache(self, content: bytes) -> Any:
            return SimpleNamespace(content=content, serialize=lambda: b"measured")

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            record.append(f"timings {cache.content.decode()}")
            self.timing = cache
            return cache.content != b"of another GPU" and not ignore_mismatch

        def get_timing_cache(self) -> Any:
            return self.timing

    class Builder:
        def __init__(self, log: ILogger) -> None:
            self.log = log

        def create_network(self, flags: int) -> Any:
            window = SimpleNamespace(name="windows", shape=(-1, 798, 32))
            return SimpleNamespace(get_input=lambda index: window, num_inputs=1, num_outputs=1, flags=flags)

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Any:
            return SimpleNamespace(set_shape=lambda *shapes: record.append(f"shapes {shapes}"))

        def build_serialized_network(self, network: Any, config: Config) -> bytes | None:
            record.append(f"network {network.flags}")
            return b"engine"

    module.ILogger, module.OnnxParser, module.Builder = ILogger, Parser, Builder
    module.BuilderFlag = SimpleNamespace(FP16="FP16", INT8="INT8")
    module.NetworkDefinitionCreationFlag = SimpleNamespace(EXPLICIT_BATCH=0)
    module.__version__ = "8.6.2"
    loaded: ModuleType = module
    return loaded


def batches(calls: list[str]) -> list[int]:
    """Sizes of what was executed."""
    return [int(call.split()[1]) for call in calls if call.startswith("execute")]


def random_windows(count: int, mels: int) -> FloatArray:
    """Model inputs (count, FRAMES, mels)."""
    return np.random.default_rng(0).standard_normal((count, 798, mels)).astype(np.float32)
