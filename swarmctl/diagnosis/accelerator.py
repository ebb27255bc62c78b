"""Rules about GPUs: lost drivers, and inference that silently fell to the CPU. Pure.

Health cannot see the fallback: a server without its GPU still generates, twenty times slower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmctl.diagnosis.finding import Finding, there
from swarmctl.diagnosis.throttling import throttling_findings
from swarmctl.inventory import LlamaCppWish

if TYPE_CHECKING:
    from collections.abc import Iterator

    from swarmctl.diagnosis.examined import Patient, ServerExam
    from swarmctl.facts import Gpu, OllamaSeen

GIB = 2**30
SLOW = "answers come many times slower than this host can, and the router learns the slow speed"
#: What nvidia-smi says → why, and what brings the card back.
LOST = (
    ("Driver/library version mismatch",
     "the driver was upgraded and the old kernel module is still loaded", "sudo reboot"),
    ("couldn't communicate with the NVIDIA driver",
     "the kernel module is not loaded: a kernel upgrade without its module, or a failed resume",
     "sudo modprobe nvidia"),
    ("GPU is lost", "the card fell off the bus; only a power cycle brings it back",
     "ssh {ssh} sudo poweroff    # then switch it on again"),
    ("Unable to determine the device handle", "the card fell off the bus; only a power cycle brings it back",
     "ssh {ssh} sudo poweroff    # then switch it on again"),
    ("No devices were found", "the driver is loaded and sees no card",
     "sudo dmesg | grep -i nvrm"),
)
RESUME = "sudo modprobe -r nvidia_uvm && sudo modprobe nvidia_uvm"


def accelerator_findings(patient: Patient) -> Iterator[Finding]:
    """Drivers, clocks, fallbacks."""
    yield from _drivers(patient)
    yield from throttling_findings(patient)
    working = [gpu for gpu in patient.facts.gpus if gpu.problem is None]
    if working:
        for exam in patient.examined.servers:
            yield from _llamacpp(patient, exam, working)
        for ollama in patient.facts.ollamas:
            yield from _ollama(patient, ollama, working)


def _drivers(patient: Patient) -> Iterator[Finding]:
    host = patient.host
    told = False
    for problem in patient.facts.problems:
        for mark, why, mend in LOST:
            if mark.lower() in problem.lower():
                told = True
                yield Finding(host.name, "driver", "error", "a GPU is there and its driver is lost", problem,
                              f"{why}; until then everything runs on the CPU", there(host, mend))
                break
    working = sum(gpu.problem is None for gpu in patient.facts.gpus)
    before = patient.gpus_recorded
    if before is not None and working < before and not told:
        words = [gpu.problem for gpu in patient.facts.gpus if gpu.problem]
        said = "; ".join(words) or "no word from the driver"
        yield Finding(host.name, "driver", "error", "a GPU is gone",
                      f"{working} of the {before} GPUs that `up` saw work ({said})",
                      "after a resume or a driver upgrade the card is there and its driver is not",
                      there(host, RESUME) + "    # or reboot; then swarmctl up")


def _llamacpp(patient: Patient, exam: ServerExam, gpus: list[Gpu]) -> Iterator[Finding]:
    if not exam.argv or _on_cpu_by_wish(patient, exam):
        return
    seen = _no_gpu_build(exam)
    if not seen and exam.option("n-gpu-layers") != "0":
        seen = _no_gpu_log(exam) or _no_gpu_process(patient, exam)
    if not seen:
        return
    host = patient.host.name
    mend = f"swarmctl down --host {host} && swarmctl up --host {host}"
    if _no_gpu_build(exam):
        mend = f"swarmctl up --host {host}    # once the GPU's toolkit (nvcc or hipcc) is installed there"
    yield Finding(host, "cpu_fallback", "error", f"{exam.name} runs on the CPU beside a {gpus[0].name}", seen,
                  SLOW, mend)


def _on_cpu_by_wish(patient: Patient, exam: ServerExam) -> bool:
    """Whether the inventory says so: by the backend, or by `n-gpu-layers: 0`. A build without GPU support is
    started with no layers on a GPU, whatever was wished."""
    wish = patient.host.llamacpp or LlamaCppWish()
    model = next((claim.model for claim in patient.claims if claim.server == exam.name), exam.name)
    placed = (placement.flags for placement in patient.host.models if placement.model == model)
    flags = {**wish.flags, **next(placed, {})}
    return wish.backend == "cpu" or str(flags.get("n-gpu-layers", "")) == "0"


def _no_gpu_build(exam: ServerExam) -> str:
    key = exam.argv[0].rpartition("/bin/")[0].rpartition("/")[2]
    return f"its build {key} has no GPU support" if "cpu" in key.split("-") else ""


def _no_gpu_log(exam: ServerExam) -> str:
    _, line = exam.said.get("cpu", (0, ""))
    return f"its log says: {line}" if line else ""


def _no_gpu_process(patient: Patient, exam: ServerExam) -> str:
    """The driver lists other processes or none, and the weights would not fit in what is taken there."""
    pids = patient.examined.gpu_pids
    pid = next((server.pid for server in patient.facts.servers if server.name == exam.name), None)
    size = next((claim.size for claim in patient.claims if claim.server == exam.name), 0)
    used = [clock.memory_used for clock in patient.examined.gpu_clocks if clock.memory_used is not None]
    if pids is None or pid is None or pid in pids or not used or not size or sum(used) > size / 2:
        return ""
    layers = exam.option("n-gpu-layers") or "auto"
    return (f"it was started with --n-gpu-layers {layers}, but the driver does not list its pid {pid}, and "
            f"only {sum(used) / GIB:.1f} GiB of GPU memory are taken, the weights are {size / GIB:.1f} GiB")


def _ollama(patient: Patient, ollama: OllamaSeen, gpus: list[Gpu]) -> Iterator[Finding]:
    host = patient.host
    for model in ollama.loaded:
        if not model.size or model.size_vram >= model.size:
            continue
        share = 1 - model.size_vram / model.size
        whole = model.size_vram == 0
        yield Finding(
            host.name, "cpu_fallback", "error" if whole else "warning",
            f"Ollama runs {model.name} {'' if whole else 'partly '}on the CPU beside a {gpus[0].name}",
            f"`ollama ps`: {_processor(share)}, {model.size / GIB:.1f} GiB", SLOW,
            _restart(patient, ollama) if whole else
            there(host, "nvidia-smi") + "    # who else has the memory? Else a smaller `context` or model")


def _processor(on_cpu: float) -> str:
    """As `ollama ps` words it (cmd/cmd.go: the CPU's share is rounded)."""
    percent = round(on_cpu * 100)
    return "100% CPU" if percent >= 100 else f"{percent}%/{100 - percent}% CPU/GPU"


def _restart(patient: Patient, ollama: OllamaSeen) -> str:
    """The command that restarts an Ollama, however it runs."""
    host = patient.host
    if ollama.mode == "own":
        return f"swarmctl down --host {host.name} && swarmctl up --host {host.name}"
    if ollama.mode == "app":
        return "quit the Ollama app on that machine and open it again"
    if ollama.mode == "systemd":
        return there(host, "sudo systemctl restart ollama")
    if ollama.mode == "docker":
        return there(host, "docker restart ollama")
    return there(host, f"kill {ollama.pid or 'PID'}") + "    # then start `ollama serve` again as before"
