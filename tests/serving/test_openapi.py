"""What /openapi.json promises, and what arbitrary requests get."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import requests


def test_the_document_names_every_route_and_its_errors(url: str) -> None:
    """A generated client must know each answer that it can get."""
    document = requests.get(f"{url}/openapi.json", timeout=10).json()
    assert list(document["paths"]) == ["/predict", "/predict/batch", "/hf", "/model", "/healthz", "/readyz"]
    predict = document["paths"]["/predict"]["post"]
    assert set(predict["requestBody"]["content"]) == {"application/octet-stream", "multipart/form-data"}
    assert {"200", "401", "408", "413", "415", "422", "503"} <= set(predict["responses"])
    assert document["components"]["schemas"]["Problem"]["properties"].keys() >= {"type", "title", "status", "detail"}


def test_arbitrary_requests_never_make_a_5xx(url: str, tmp_path: Path) -> None:
    """schemathesis makes requests from the document, valid ones and others."""
    binary = Path(sys.executable).with_name("schemathesis")
    if not binary.exists() and shutil.which("schemathesis") is None:
        pytest.skip("needs schemathesis: pip install schemathesis")
    command = [str(binary) if binary.exists() else "schemathesis", "run", f"{url}/openapi.json", "--no-color"]
    command += [
        "--checks",
        "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
    ]
    command += [
        "--max-examples",
        "40",
        "--seed",
        "1",
        "--generation-database",
        "none",
        "--suppress-health-check",
        "all",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
