"""`doctor` for the pages, in a process of its own at a low priority: `python -m device.console.checkup`.

The settings come as JSON on stdin, the findings go as JSON lines to stdout.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Final

from device.runtime import yield_priority
from firmware_config.errors import RespSAMError
from firmware_config.settings import Settings

NICENESS: Final = 10  # listening comes first, the pages second
PATIENCE_SECONDS: Final = 120.0
WITHOUT_MICROPHONE: Final = "--without-microphone"


class CheckError(RespSAMError):
    """A check that does not end, or that ends with an error."""


async def check(settings: Settings, microphone: bool) -> AsyncIterator[dict[str, Any]]:
    """The findings as they come; CheckError when it does not end well."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "device.console.checkup", *[WITHOUT_MICROPHONE] * (not microphone)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(settings.model_dump_json().encode())
        process.stdin.close()
        until = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        while line := await asyncio.wait_for(
            process.stdout.readline(), max(0.0, until - asyncio.get_running_loop().time())
        ):
            yield json.loads(line)
        if code := await process.wait():
            raise CheckError(f"the check ended with exit code {code}; run 'respsam-device doctor'")
    except asyncio.TimeoutError:
        raise CheckError(f"the check did not end in {PATIENCE_SECONDS:.0f} s; run 'respsam-device doctor'") from None
    finally:
        with suppress(ProcessLookupError):
            process.kill()


def main() -> None:
    """Check and print."""
    from device.doctor import examine

    yield_priority(NICENESS)
    settings = Settings.model_validate_json(sys.stdin.read())
    for finding in examine(settings, microphone=WITHOUT_MICROPHONE not in sys.argv):
        print(json.dumps(finding.as_json()), flush=True)


if __name__ == "__main__":
    main()
