"""The project itself: which way it imports, what it installs, how fast it answers."""

import ast
import os
import re
import resource
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from firmware_config.command_line import EXTRAS
from tests.conftest import REPOSITORY, RunCli
from tests.trainer.toy_recipe import ALONE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Imports run to the right, never to the left.
ORDER = ("export", "trainer", "device", "firmware_config")
TRAINING_ONLY = (
    *("torch", "transformers", "safetensors", "tensorboard", "matplotlib", "sklearn", "onnx", "onnxscript"),
    *("lightning_fabric", "huggingface_hub", "jinja2", "tensorrt_rtx"),
)
SERVED = ("app", "metrics", "process", "settings_page")  # modules of the console's process alone
CONSOLE_PROCESS = tuple(REPOSITORY / "device" / "console" / f"{name}.py" for name in SERVED)
BLOCK = f"""
import importlib, importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in {TRAINING_ONLY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
"""


@lru_cache
def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def requirements(*extras: str) -> list[Requirement]:
    table = project()["project"]
    listed = table["dependencies"] if not extras else []
    for extra in extras:
        listed = listed + table["optional-dependencies"][extra]
    return [Requirement(text) for text in listed]


def modules(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))


def imported(file: Path) -> Iterator[tuple[str, bool]]:
    """Every top-level package that a module imports, and whether at import time (not inside a function)."""

    def visit(node: ast.AST, at_import: bool) -> Iterator[tuple[str, bool]]:
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield str(node.module).split(".")[0], at_import
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_import and not inside)

    yield from visit(ast.parse(file.read_text()), True)


@pytest.mark.parametrize("package", ORDER)
def test_imports_run_one_way(package: str) -> None:
    forbidden = ORDER[: ORDER.index(package)]
    wrong = [f"{file.name}: {name}" for file in modules(package) for name, _ in imported(file) if name in forbidden]
    assert not wrong


@pytest.mark.parametrize("package", ["device", "firmware_config"])
def test_the_device_imports_what_its_installation_has(package: str) -> None:
    base = {requirement.name.replace("-", "_") for requirement in requirements()}
    own = {"device", "firmware_config"}
    # What an extra brings may be imported where it is used, never at import time; torch not even there.
    optional = {"tensorrt", "argon2", "cryptography", "fhir", "paho", "ray"}
    wrong = [
        f"{file.name}: {name}"
        for file in modules(package)
        for name, at_import in imported(file)
        if name not in sys.stdlib_module_names | base | own | (set() if at_import else optional)
        if file not in CONSOLE_PROCESS or name not in {"prometheus_client", "starlette", "uvicorn"}
    ]
    assert not wrong


def test_nobody_imports_the_process_of_the_console() -> None:
    """It is started as a program, where its extra is installed; so nothing else needs that extra."""
    names = {f"device.console.{name}" for name in SERVED}
    wrong = [
        str(file)
        for file in modules("device")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module in names and file not in CONSOLE_PROCESS
    ]
    assert not wrong


PICKLING = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


@pytest.mark.parametrize("package", ["device", "firmware_config"])
def test_nothing_on_the_device_reads_a_pickle(package: str) -> None:
    """A pickle runs whatever its writer wants; numpy reads one only where it is asked to."""
    wrong = []
    for file in modules(package):
        wrong += [f"{file.name}: {name}" for name, _ in imported(file) if name in PICKLING]
        wrong += [
            f"{file.name}:{node.lineno}: allow_pickle"
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Call)
            for keyword in node.keywords
            if keyword.arg == "allow_pickle" and getattr(keyword.value, "value", True) is not False
        ]
    assert not wrong


def named_at_module_level(file: Path) -> Iterator[str]:
    """Every name that a module binds, once for each time."""
    for statement in ast.parse(file.read_text()).body:
        targets = {ast.Assign: "targets", ast.AnnAssign: "target", ast.AugAssign: "target"}.get(type(statement))
        if targets:
            found = getattr(statement, targets)
            for target in found if isinstance(found, list) else [found]:
                names = (node for node in ast.walk(target) if isinstance(node, ast.Name))
                yield from (name.id for name in names if isinstance(name.ctx, ast.Store))
        elif isinstance(statement, ast.FunctionDef | ast.ClassDef):
            yield statement.name


@pytest.mark.parametrize("package", ORDER)
def test_a_module_gives_each_name_one_value(package: str) -> None:
    counts = {file: Counter(named_at_module_level(file)) for file in modules(package)}
    assert [f"{file.name}: {name}" for file, names in counts.items() for name in names if names[name] > 1] == []


def test_the_device_runs_where_nothing_of_the_training_side_is_installed(run_python: "RunPython") -> None:
    names = [
        ".".join(file.relative_to(REPOSITORY).with_suffix("").parts)
        for package in ("firmware_config", "device")
        for file in modules(package)
        if file.stem != "__main__"
    ]
    run_python(f"{BLOCK}\nfor name in {names!r}: importlib.import_module(name.removesuffix('.__init__'))")


COMMANDS = {
    "trainer fit --corpus manifest --data . --recipe toy.toml": "train",
    "trainer evaluate . --corpus manifest --data .": "train",
    "export verify BUNDLE --corpus manifest --data .": "export",
    "export check BUNDLE --tensorrt": None,
    "export inspect BUNDLE": "export",
}


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_that_needs_more_than_a_device_names_the_extra(line: str, tmp_path: Path) -> None:
    package, *arguments = line.replace("BUNDLE", str(REPOSITORY / "device" / "default_bundle")).split()
    (tmp_path / "toy.toml").write_text(ALONE)
    code = f"{BLOCK}\nsys.argv[1:] = {arguments!r}\nimport {package}.cli as cli\ncli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "pip install 'respsam[" in done.stderr and "internal error" not in done.stderr
    if extra := COMMANDS[line]:
        assert re.search(rf"error: no \w+ here; it needs pip install 'respsam\[{extra}\]'", done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["toy.toml"]


def test_inspect_needs_no_torch() -> None:
    code = (
        "import sys\nsys.modules['torch'] = None\nsys.argv[1:] = ['inspect', 'device/default_bundle']\n"
        "from export.cli import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_extra_has_the_packages_that_its_hint_names() -> None:
    known = {"scikit-learn": "sklearn"}
    for extra, packages in EXTRAS.items():
        there = {known.get(one.name, one.name.replace("-", "_")) for one in requirements(extra)}
        assert set(packages) <= there


@pytest.mark.parametrize(("package", "more"), [("device", ()), ("trainer", ("run schema 2", "torch "))])
def test_version_has_the_models_and_the_formats(run_cli: RunCli, package: str, more: tuple[str, ...]) -> None:
    done = run_cli(package, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    begins = ("respsam 0.1.0", "bundle schema 2", "store schema 4", "shipped bundle mobilenet-", *more)
    lines = done.stdout.splitlines()
    assert len(lines) == len(begins) and all(map(str.startswith, lines, begins))


def test_the_shell_completes_commands(run_cli: RunCli) -> None:
    done = run_cli(
        "trainer", _RESPSAM_TRAINER_COMPLETE="complete_bash", COMP_WORDS="respsam-trainer ev", COMP_CWORD="1"
    )
    assert done.stdout.split() == ["evaluate"]


def test_base_installation_has_no_torch() -> None:
    assert not {requirement.name for requirement in requirements()} & {*TRAINING_ONLY, "scikit-learn"}


def test_test_setup_pins_a_torch_inside_the_range() -> None:
    pinned = re.search(r"^TORCH \?= torch==(\S+)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert pinned
    (torch,) = [requirement for requirement in requirements("train") if requirement.name == "torch"]
    assert torch.specifier.contains(pinned[1])


def test_extras_of_the_design() -> None:
    extras = set(project()["project"]["optional-dependencies"])
    assert extras == {"train", "export", "tensorrt", "tensorrt-check", "console", "fhir", "mqtt", "cluster", "dev"}


def test_console_scripts() -> None:
    assert project()["project"]["scripts"] == {
        "respsam-device": "device.cli:main",
        "trainer": "trainer.cli:main",
        "respsam-trainer": "trainer.cli:main",
        "export": "export.cli:main",
        "respsam-export": "export.cli:main",
    }


@pytest.mark.parametrize(
    ("package", "program"),
    [("device", "respsam-device"), ("trainer", "respsam-trainer"), ("export", "respsam-export")],
)
def test_every_package_answers_help(run_cli: RunCli, package: str, program: str) -> None:
    done = run_cli(package, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: {program}")


@pytest.mark.parametrize("package", ["device", "trainer", "export"])
def test_help_is_quick_because_nothing_heavy_is_imported(run_python: "RunPython", package: str) -> None:
    heavy = {"numpy", "scipy", "pydantic", "rich", "onnxruntime", "soundfile", "sounddevice", "torch", "onnx"}
    loaded = run_python(f"import {package}.cli, sys; print(*{heavy!r} & {{*sys.modules}})").split()
    assert not loaded


def test_help_takes_less_than_half_a_second(run_cli: RunCli) -> None:
    # Seconds of the processor, because another program on the machine would show on the clock.
    def seconds() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    taken = []
    for _ in range(3):
        before = seconds()
        assert run_cli("device", "--help").returncode == 0
        taken.append(seconds() - before)
    assert min(taken) < 0.5


def test_the_wheel_holds_the_four_packages_and_their_data(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(build, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {*ORDER, "respsam-0.1.0.dist-info"}
    assert {
        "firmware_config/defaults.toml",
        "firmware_config/profiles/raspberry-pi-5.toml",
        "firmware_config/passports/thinklabs-one.toml",
        "firmware_config/templates/etc/systemd/system/respsam.service",
    } <= set(names)
    assert {"trainer/recipes/mobilenet.toml", "trainer/studies/ablation.toml", "trainer/report/report.html"} <= set(
        names
    )
    assert "device/default_bundle/manifest.json" in names


def test_make_without_a_target_only_tells_the_targets() -> None:
    done = subprocess.run(["make"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True)
    assert "make listen" in done.stdout and "make test" in done.stdout


class RunPython:
    def __call__(self, code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def run_python() -> RunPython:
    """Run code in a process of its own, which must succeed; its output."""
    return RunPython()
