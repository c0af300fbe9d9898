"""Nothing leaves the box: no look-up, no connection, and no file outside of the product's own folders."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import soundfile

from device.breath.simulator import simulate
from device.runtime import NO_TELEMETRY
from device.signal import SAMPLE_RATE
from tests.conftest import REPOSITORY
from tests.trainer.corpus_maker import make_sprsound
from tests.trainer.toy_recipe import ALONE

OWN = (".cache/respsam/", ".local/state/respsam/")  # below a home without XDG variables
STRACE = ("strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg")
REPORTING = {
    "onnxruntime": ("load_onnxruntime", "disable_telemetry"),
    "huggingface_hub": ("disable_telemetry",),
    "transformers": ("disable_telemetry",),
    "ray": ("disable_telemetry",),
}


@lru_cache(maxsize=1)
def strace_works() -> bool:
    """It is installed, and tracing is permitted here."""
    return bool(shutil.which("strace")) and not subprocess.run([*STRACE, "true"], capture_output=True).returncode


def outside(trace: str) -> list[str]:
    """Lines of a trace that speak to anybody but this machine, or ask a resolver, which may be this machine."""
    internet = [line for line in trace.splitlines() if "sa_family=AF_INET" in line]
    local = re.compile(r'inet_addr\("127\.|inet_pton\(AF_INET6, "::1"')
    return [line for line in internet if not local.search(line) or re.search(r"port=htons\(53\)", line)]


class Home:
    """A fresh home, and commands that are watched in it."""

    def __init__(self, folder: Path, temporary: Path) -> None:
        self.folder, self.home, self.temporary = folder, folder / "home", temporary
        self.home.mkdir()

    def run(self, *command: str | Path) -> None:
        """It succeeds and says nothing to anybody."""
        trace = self.folder / "trace"
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        private = {"HOME": str(self.home), "TMPDIR": str(self.temporary), "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(
            [*STRACE, "-o", str(trace), *map(str, command)],
            cwd=self.folder,
            env={**kept, **private, "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert not outside(trace.read_text(errors="replace"))
        assert not self.strange_files()

    def strange_files(self) -> list[str]:
        """Files in the home and the folder for temporary files that are not ours."""
        below = [path.relative_to(self.home).as_posix() for path in self.home.rglob("*") if not path.is_dir()]
        left = [str(path) for path in self.temporary.rglob("*") if not path.is_dir()]
        return [name for name in below if not name.startswith(OWN)] + left


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    if not strace_works():
        pytest.skip("nothing shows what is sent: install strace and permit ptrace ('make test' installs it)")
    # short: the workers of a training open Unix sockets in it, whose path may have 107 characters
    with TemporaryDirectory() as temporary:
        yield Home(tmp_path, Path(temporary))


def test_listening_and_screening_tell_nobody(home: Home) -> None:
    device = (sys.executable, "-m", "device")
    home.run(*device, "listen", "--source", "demo", "--fast", "--seconds", "12")
    for number in range(2):
        soundfile.write(home.folder / f"{number}.wav", simulate(number, 6.0).samples, SAMPLE_RATE)
    home.run(*device, "screen", home.folder, "--out", home.folder / "results.csv")


def test_a_broker_elsewhere_gets_nothing_in_the_clear(home: Home) -> None:
    settings = home.folder / "respsam.toml"
    settings.write_text('outputs.mqtt_host = "192.0.2.1"\noutputs.mqtt_tls = false\n')
    home.run(
        sys.executable, "-m", "device", "listen", "--source", "demo", "--fast", "--seconds", "6", "--config", settings
    )


def test_what_is_started_in_other_processes_and_by_a_notebook_tells_nobody(home: Home) -> None:
    """Spawned workers of `screen`, and a caller of the API that never saw our command line."""
    for number in range(4):
        soundfile.write(home.folder / f"{number}.wav", simulate(number, 3.0).samples, SAMPLE_RATE)
    script = home.folder / "notebook.py"
    script.write_text(
        "import os\nfrom pathlib import Path\nfrom device.listening import screening\n"
        "from firmware_config.settings import load_settings\nif __name__ == '__main__':\n"
        "    screening.FILES_PER_PROCESS = 2\n    os.cpu_count = lambda: 2\n"
        "    settings = load_settings(environment={})\n    recordings = sorted(Path('.').glob('*.wav'))\n"
        "    for one in screening.screen(recordings, settings): assert not one.error\n"
    )
    home.run(sys.executable, script)


def test_training_and_exporting_tell_nobody(home: Home) -> None:
    corpus = make_sprsound(home.folder / "corpus", patients=9, recordings_per_patient=2)
    (home.folder / "toy.toml").write_text(ALONE.replace("epochs = 2", "epochs = 1"))
    read = ("--corpus", "sprsound", "--data", corpus)
    home.run(sys.executable, "-m", "trainer", "fit", *read, "--recipe", "toy.toml", "--out", "run", "--device", "cpu")
    home.run(sys.executable, "-m", "export", "build", "run", "--out", "bundle")


def test_a_trace_tells_what_leaves_from_what_stays() -> None:
    def connect(address: str) -> str:
        return f"7 connect(3, {{{address}}}, 16) = 0"

    stays = [
        connect('sa_family=AF_UNIX, sun_path="/run/nscd/socket"'),
        connect('sa_family=AF_INET, sin_port=htons(6379), sin_addr=inet_addr("127.0.0.1")'),
    ]
    leaves = [
        connect('sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("127.0.0.53")'),
        connect('sa_family=AF_INET, sin_port=htons(443), sin_addr=inet_addr("192.0.2.1")'),
    ]
    assert outside("\n".join([*stays, *leaves])) == leaves


def test_every_import_of_what_could_report_comes_after_the_switch() -> None:
    """In the same function, before the import: whoever calls it, in whichever process."""
    wrong = []
    for package in ("device", "trainer", "export"):
        for file in sorted((REPOSITORY / package).rglob("*.py")):
            for scope in ast.walk(ast.parse(file.read_text())):
                if isinstance(scope, (ast.FunctionDef, ast.Module)):
                    wrong += [f"{file.name}:{line}" for line in _unguarded(scope)]
    assert not wrong


def _unguarded(scope: ast.FunctionDef | ast.Module) -> list[int]:
    def own(node: ast.AST) -> list[ast.AST]:
        inner = [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.FunctionDef)]
        return [node, *(below for child in inner for below in own(child))]

    nodes = own(scope)
    calls = {
        node.func.id: node.lineno for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    lines = []
    for node in nodes:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        for package in {name.split(".")[0] for name in names} & set(REPORTING):
            assert isinstance(node, (ast.Import, ast.ImportFrom))
            if not any(calls.get(switch, node.lineno) < node.lineno for switch in REPORTING[package]):
                lines.append(node.lineno)
    return lines


def test_the_switches_are_the_ones_that_the_libraries_read() -> None:
    code = (
        "from device.runtime import load_onnxruntime\nload_onnxruntime()\nimport huggingface_hub.constants as hub\n"
        "assert hub.HF_HUB_DISABLE_TELEMETRY\ntry:\n    from ray._common import usage\nexcept ImportError:\n    pass\n"
        "else:\n    from ray._common.usage import usage_lib\n    assert not usage_lib.usage_stats_enabled()\n"
    )
    bare = {name: value for name, value in os.environ.items() if name not in NO_TELEMETRY}
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=bare, timeout=120, check=True)
