"""Importing the client imports nothing of the server, and no library that only a connection needs."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = "import json, sys; import jetstream.client; print(json.dumps(sorted(sys.modules)))"
OURS = {
    "jetstream",
    "jetstream.client",
    "jetstream.clock",
    "jetstream.errors",
    "jetstream.model",
    "jetstream.retry",
    "jetstream.steps",
    "jetstream.urls",
}
LIBRARIES = {"cython_runtime", "idna", "multidict", "orjson", "propcache", "yarl"}
# Parts of the standard library that take long, and that a connection needs.
SLOW = {"http.client", "importlib.metadata", "sqlite3", "urllib.request"}


def test_importing_the_client_imports_nothing_of_the_server() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True)
    imported = set(json.loads(done.stdout))
    ours = {name for name in imported if name.partition(".")[0] == "jetstream"}
    shared = {name for name in ours if not name.startswith(("jetstream.client.", "jetstream.model."))}
    assert shared <= OURS
    assert "jetstream.client.connection" not in ours
    at_start = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("import jetstream.client; ", "")],
        capture_output=True,
        check=True,
    )
    new = {name.partition(".")[0] for name in imported - set(json.loads(at_start.stdout))}
    third_party = {name for name in new if name not in sys.stdlib_module_names and not name.startswith("_")}
    assert third_party - {"jetstream"} <= LIBRARIES
    assert not imported & SLOW
