"""Ready means that all compiled code is there: no kind of request adds any."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.service.http_helpers import publish_tiny

# In a process of its own: in this one other tests have compiled everything.
PROBE = """
import json, sys
from pathlib import Path
from numba.core.dispatcher import Dispatcher
from tests.service.http_helpers import image_bytes, npy_bytes, running_app, settings_for
import numpy as np

def compiled():
    modules = [one for name, one in sys.modules.items() if name.split(".")[0] in ("model_core", "service")]
    found = {value for module in modules for value in vars(module).values() if isinstance(value, Dispatcher)}
    return {f"{one.__module__}.{one.__name__}{signature}" for one in found for signature in one.signatures}

with running_app(settings_for(Path(sys.argv[1]))) as client:
    before = compiled()
    png = {"content": image_bytes(), "headers": {"Content-Type": "image/png"}}
    npy = {"content": npy_bytes(np.eye(784, dtype=np.float32)), "headers": {"Content-Type": "application/x-npy"}}
    mask = {"files": {"file": image_bytes(), "mask": image_bytes()}}
    asked = [("/sample?n=3", {}), ("/sample?steps=0&scale=1", {}), ("/sample?every=5&format=gif", {}), ("/filters", {})]
    statuses = [client.get(path).status_code for path, _ in asked]
    for path, body in [
        ("/dream", png), ("/dream?mode=mean_field&view=pair", png), ("/dream?output=samples&scale=3", png),
        ("/inpaint?steps=3&n=2", mask), ("/features", png), ("/features?kind=samples", npy), ("/energy", npy),
    ]:
        statuses.append(client.post(path, **body).status_code)
    print(json.dumps({"statuses": statuses, "before": len(before), "added": sorted(compiled() - before)}))
"""


def test_no_request_compiles_anything(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "checkpoints")
    command = [sys.executable, "-c", PROBE, str(tmp_path / "checkpoints")]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["statuses"]) == {200} and found["before"] >= 5
    assert found["added"] == []
