"""No library that is imported here reports to its maker: usage reports are off before the first import, where their switches work."""

import os
import sys
from typing import Any, cast

# ONNX Runtime 1.32 otherwise connects and keeps a device's number in HOME; its own call to stop that comes too late, after the import.
# huggingface_hub reports downloads.
_OFF = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
# OpenVINO and NNCF have no such variable: they report through this package when they are imported, and do without where it is absent.
_REPORTER = "openvino_telemetry"


def switch_off() -> None:
    """Sets what is not set: a variable of the caller's, or a reporter that was imported already, stays as it is."""
    for name, value in _OFF.items():
        os.environ.setdefault(name, value)
    # None in place of a module makes its import fail as if it were not installed.
    cast(dict[str, Any], sys.modules).setdefault(_REPORTER, None)
