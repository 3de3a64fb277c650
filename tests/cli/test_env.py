"""What the machine is, and which implementation of the loss it uses."""

import json
from pathlib import Path

from kdengine.cli import env
from kdengine.ops import BackendInfo


def test_env_tells_versions_backend_and_caches(kd, teacher_cache):
    _, out, _ = kd("env")
    for part in ("torch", "python", "backend", "threads", "autoload", "library cache", str(teacher_cache)):
        assert part in out
    assert json.loads(kd("env", "--json")[1])["devices"][0] == "cpu"


def test_env_tells_why_it_is_pure_pytorch(kd, monkeypatch):
    monkeypatch.setenv("KDENGINE_BACKEND", "python")
    facts = json.loads(kd("env", "--json")[1])
    assert facts["backend"] == "python: KDENGINE_BACKEND=python asks for pure PyTorch"
    assert "library" not in facts


def test_env_names_the_libraries_and_what_they_compute_with():
    info = BackendInfo("compiled", "why", Path("one.so"), "avx2", "why too", Path("two.so"), ("80", "90"))
    assert env.implementation(info) | {"library cache": ""} == {
        "backend": "compiled: why",
        "library": "one.so, instruction set avx2",
        "backend on cuda": "why too",
        "cuda library": "two.so, for sm_80, sm_90",
        "library cache": "",
    }


def test_env_refuses_an_unknown_backend(kd, monkeypatch):
    monkeypatch.setenv("KDENGINE_BACKEND", "complied")
    code, _, err = kd("env")
    assert code == 2
    assert "did you mean 'compiled'" in err
