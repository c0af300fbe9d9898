"""Which source a process records from a PulseAudio or PipeWire server; asks libpulse, needs no program."""

import ctypes
import time
from collections.abc import Callable
from ctypes import POINTER, Structure, c_char_p, c_int, c_uint8, c_uint32, c_uint64, c_void_p
from typing import Any, Final

LIBRARY: Final = "libpulse.so.0"
NO_AUTOSPAWN: Final = 1  # PA_CONTEXT_NOAUTOSPAWN: asking must not start a server
READY, FAILED = 4, 5  # pa_context_state_t
RUNNING: Final = 0  # PA_OPERATION_RUNNING
ITERATION_MICROSECONDS: Final = 20_000


class ServerError(Exception):
    """The sound server cannot be reached, or does not answer."""


class SourceOutput(Structure):
    """The beginning of pa_source_output_info, as far as its properties (pulse/introspect.h)."""

    _fields_ = [
        ("index", c_uint32),
        ("name", c_char_p),
        ("owner_module", c_uint32),
        ("client", c_uint32),
        ("source", c_uint32),
        ("sample_spec", c_uint32 * 3),
        ("channels", c_uint8),
        ("map", c_int * 32),
        ("buffer_usec", c_uint64),
        ("source_usec", c_uint64),
        ("resample_method", c_char_p),
        ("driver", c_char_p),
        ("properties", c_void_p),
    ]


class SourceInfo(Structure):
    """The beginning of pa_source_info."""

    _fields_ = [("name", c_char_p), ("index", c_uint32)]


def recorded_source(process: int, timeout_seconds: float) -> str:
    """Name of the source that a process records; empty if it records none (yet). Raises ServerError."""
    try:
        pulse = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise ServerError(f"{LIBRARY} is not installed (Debian: apt install libpulse0)") from error
    for name in ("pa_mainloop_new", "pa_mainloop_get_api", "pa_context_new", "pa_context_get_source_output_info_list"):
        getattr(pulse, name).restype = c_void_p
    pulse.pa_context_get_source_info_by_index.restype = c_void_p
    pulse.pa_proplist_gets.restype = c_char_p
    loop = c_void_p(pulse.pa_mainloop_new())
    context = c_void_p(pulse.pa_context_new(c_void_p(pulse.pa_mainloop_get_api(loop)), b"respsam"))
    try:
        return _ask(pulse, loop, context, process, time.monotonic() + timeout_seconds)
    except MemoryError as error:
        # of a Python whose libffi has no ready-made callbacks, below systemd's MemoryDenyWriteExecute
        raise ServerError("no memory may be made executable here; set MemoryDenyWriteExecute=no") from error
    finally:
        pulse.pa_context_disconnect(context)
        pulse.pa_context_unref(context)
        pulse.pa_mainloop_free(loop)


def _ask(pulse: Any, loop: c_void_p, context: c_void_p, process: int, until: float) -> str:
    sources: list[int] = []
    names: list[bytes] = []

    def output(_context: Any, info: Any, _end: int, _data: Any) -> None:
        if info:
            found = pulse.pa_proplist_gets(c_void_p(info.contents.properties), b"application.process.id")
            if found == str(process).encode():
                sources.append(info.contents.source)

    def source(_context: Any, info: Any, _end: int, _data: Any) -> None:
        if info:
            names.append(info.contents.name)

    if pulse.pa_context_connect(context, None, NO_AUTOSPAWN, None) < 0:
        raise ServerError("the sound server cannot be reached")
    _run(pulse, loop, until, lambda: _is_ready(pulse, context))
    outputs = ctypes.CFUNCTYPE(None, c_void_p, POINTER(SourceOutput), c_int, c_void_p)(output)
    _finish(pulse, loop, until, pulse.pa_context_get_source_output_info_list(context, outputs, None))
    if not sources:
        return ""
    found = ctypes.CFUNCTYPE(None, c_void_p, POINTER(SourceInfo), c_int, c_void_p)(source)
    _finish(pulse, loop, until, pulse.pa_context_get_source_info_by_index(context, c_uint32(sources[-1]), found, None))
    return names[0].decode(errors="replace") if names else ""


def _is_ready(pulse: Any, context: c_void_p) -> bool:
    state = pulse.pa_context_get_state(context)
    if state >= FAILED:
        raise ServerError("the sound server cannot be reached")
    return bool(state == READY)


def _finish(pulse: Any, loop: c_void_p, until: float, operation: int | None) -> None:
    if not operation:
        raise ServerError("the sound server refuses to say what is recorded")
    try:
        _run(pulse, loop, until, lambda: pulse.pa_operation_get_state(c_void_p(operation)) != RUNNING)
    finally:
        pulse.pa_operation_unref(c_void_p(operation))


def _run(pulse: Any, loop: c_void_p, until: float, done: Callable[[], bool]) -> None:
    while not done():
        if time.monotonic() > until:
            raise ServerError("the sound server does not answer")
        pulse.pa_mainloop_prepare(loop, ITERATION_MICROSECONDS)
        if pulse.pa_mainloop_poll(loop) < 0 or pulse.pa_mainloop_dispatch(loop) < 0:
            raise ServerError("the sound server has gone")
