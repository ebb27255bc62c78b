"""Which llama.cpp a host gets: backend, cmake flags and the key that names the build. Pure, tested as data.

One pinned source for all hosts: the sdist of llama-cpp-python, which vendors the whole of llama.cpp. Another
version than the pinned one is built where the inventory names it or `upgrade` is told to.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from swarmctl.facts import platform_key

if TYPE_CHECKING:
    from swarmctl.facts import Facts, Gpu

LLAMACPP = "0.3.36"
SDIST = f"llama_cpp_python-{LLAMACPP}.tar.gz"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
#: llama.cpp's own tree inside the sdist
SOURCE_FOLDER = f"llama_cpp_python-{LLAMACPP}/vendor/llama.cpp"
TARGETS = ("llama-server", "llama-quantize", "llama-bench", "llama-perplexity")

COMMON_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DGGML_NATIVE=ON",
)
VENDORS = {"nvidia": "an NVIDIA GPU", "amd": "an AMD GPU", "apple": "an Apple GPU", "intel": "an Intel GPU"}
#: vendor → (backend, the compiler it needs, what a person would install)
NATIVE = {"nvidia": ("cuda", "nvcc", "the CUDA toolkit"), "amd": ("rocm", "hipcc", "the ROCm HIP SDK")}


@dataclass(frozen=True, slots=True)
class Backend:
    """A choice of backend. `gpus` are those it will use; `reason` says why it and not a faster one."""

    name: str
    reason: str
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True, slots=True)
class Build:
    """A build of llama.cpp. `key` is its folder's name on every host and in our store."""

    key: str
    version: str
    backend: Backend
    cmake_flags: tuple[str, ...]


def sdist_name(version: str) -> str:
    """The file name of a version's source."""
    return SDIST.replace(LLAMACPP, version)


def source_folder(version: str) -> str:
    """llama.cpp's own tree inside a version's source."""
    return SOURCE_FOLDER.replace(LLAMACPP, version)


def version_of(key: str) -> str:
    """The version that a build's key begins with."""
    return key.partition("-")[0]


def choose_build(wish: str, facts: Facts, version: str = LLAMACPP) -> Build:
    """The build for a host. `wish` is the inventory's llamacpp.backend: a name, or auto."""
    backend = choose_backend(wish, facts)
    flags = cmake_flags(backend)
    digest = sha256(json.dumps([version, flags, TARGETS]).encode()).hexdigest()[:8]
    return Build(f"{version}-{platform_key(facts)}-{backend.name}-{digest}", version, backend, flags)


def choose_backend(wish: str, facts: Facts) -> Backend:
    """The fastest backend that this host can build and run, and why."""
    usable = tuple(gpu for gpu in facts.gpus if gpu.problem is None)
    if wish != "auto":
        return Backend(wish, f"llamacpp.backend is {wish}", _of(wish, usable))
    missing = [f"{gpu.name} cannot be used: {gpu.problem}" for gpu in facts.gpus if gpu.problem is not None]
    for vendor, (name, compiler, package) in NATIVE.items():
        own = tuple(gpu for gpu in usable if gpu.vendor == vendor)
        if own and compiler in facts.tools:
            return Backend(name, f"{VENDORS[vendor]} ({_names(own)}) and {compiler} are there", own)
        if own:
            missing.append(f"{VENDORS[vendor]} is there ({_names(own)}) but {compiler} is not; "
                           f"install {package} or set llamacpp.backend")
    apple = tuple(gpu for gpu in usable if gpu.vendor == "apple")
    if apple:
        return Backend("metal", f"{_names(apple)} has Metal", apple)
    if usable and _has_vulkan(facts):
        there = f"{VENDORS[usable[0].vendor]} ({_names(usable)}), glslc and Vulkan are there"
        because = "; ".join([*missing, there])
        return Backend("vulkan", because, usable)
    if usable and not missing:
        missing.append(f"{VENDORS[usable[0].vendor]} is there but glslc or Vulkan is not")
    return Backend("cpu", "; ".join(missing) or "no GPU was found")


def cmake_flags(backend: Backend) -> tuple[str, ...]:
    """The flags of a backend's build, in a fixed order: they are hashed into the build's key."""
    archs = sorted({gpu.arch for gpu in backend.gpus if gpu.arch})
    if backend.name == "cuda":
        codes = ";".join(arch.replace(".", "") for arch in archs)
        return (*COMMON_FLAGS, "-DGGML_CUDA=ON", *([f"-DCMAKE_CUDA_ARCHITECTURES={codes}"] if codes else ()))
    if backend.name == "rocm":
        targets = ";".join(archs)
        return (*COMMON_FLAGS, "-DGGML_HIP=ON", *([f"-DAMDGPU_TARGETS={targets}"] if targets else ()))
    if backend.name == "metal":
        return (*COMMON_FLAGS, "-DGGML_METAL=ON", "-DGGML_METAL_EMBED_LIBRARY=ON")
    if backend.name == "vulkan":
        return (*COMMON_FLAGS, "-DGGML_VULKAN=ON")
    return (*COMMON_FLAGS, "-DGGML_METAL=OFF")


def _of(wish: str, usable: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    vendors = {"cuda": ("nvidia",), "rocm": ("amd",), "metal": ("apple",), "cpu": ()}
    return tuple(gpu for gpu in usable if gpu.vendor in vendors.get(wish, tuple(VENDORS)))


def _has_vulkan(facts: Facts) -> bool:
    return "glslc" in facts.tools and bool({"vulkan", "vulkaninfo"} & set(facts.tools))


def _names(gpus: tuple[Gpu, ...]) -> str:
    return " + ".join(gpu.name for gpu in gpus)
