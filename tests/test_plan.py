"""The llama.cpp plan as data: facts in, steps out."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmctl.errors import SwarmError
from swarmctl.facts import BlobSeen, Cpu, Disk, Facts, Gpu, Listener, RuntimeSeen, ServerSeen, Speed
from swarmctl.inventory import Host, Limits, LlamaCppWish, ModelWish, Placement
from swarmctl.runtimes.base import ModelFile, Want
from swarmctl.runtimes.llamacpp_build import choose_backend, choose_build
from swarmctl.runtimes.llamacpp_fit import MIB
from swarmctl.runtimes.llamacpp_plan import plan_llamacpp, plan_removal, wanted_servers
from swarmctl.runtimes.llamacpp_serve import server_name
from swarmctl.steps import InstallRuntime, MeasureSpeed, PutBlob, StartServer, StopServer

GIB = 1 << 30
DATA = "/home/ada/swarm"
RTX = Gpu("nvidia", "NVIDIA GeForce RTX 3080", 10 * GIB, driver="570.1", arch="8.6", uuid="GPU-aa")
RTX2 = Gpu("nvidia", "NVIDIA GeForce RTX 3060", 12 * GIB, driver="570.1", arch="8.6", uuid="GPU-bb")
ADA = Gpu("nvidia", "NVIDIA GeForce RTX 4080 SUPER", 16 * GIB, arch="8.9", uuid="GPU-cc")
RADEON = Gpu("amd", "Radeon RX 7900 XTX", 24 * GIB, arch="gfx1100")
ARC = Gpu("intel", "Arc A770", None)
M2 = Gpu("apple", "Apple M2 Max", None)

PIDS = itertools.count(100_000)
FACTS = Facts(hostname="h", system="Linux", release="6.1", machine="x86_64", user="ada", uid=1000,
              home="/home/ada", data_dir=DATA,
              cpu=Cpu("a CPU", threads=16, cores=8, features=("avx2", "fma")),
              memory=32 * GIB, memory_available=30 * GIB, swap_used=0,
              disk=Disk(DATA, "/dev/x", "ext4", 10**12, 10**12),
              libc="glibc2.36")
TINY = ModelFile("tiny", "/m/tiny.gguf", "a" * 64, 1_400_000, 670_000, "F16", 1024, 3, 1536, "t")
EIGHT_B = ModelFile("eight", "/m/eight.gguf", "b" * 64, int(4.9e9), int(8.2e9), "Q4_K_M", 40960, 36,
                    147_456, "t")
HUGE = ModelFile("huge", "/m/huge.gguf", "c" * 64, int(40e9), int(70e9), "Q4_K_M", 8192, 80, 327_680, "t")
FILES = {model.name: model for model in (TINY, EIGHT_B, HUGE)}


def want(*placements, llamacpp=None, limits=None, wishes=None):
    placed = tuple(Placement(one) if isinstance(one, str) else one for one in placements)
    host = Host("spinoza", "spinoza", models=placed, llamacpp=llamacpp, limits=limits or Limits(),
                data_dir=DATA)
    names = {one.model for one in placed}
    return Want(host, {name: FILES[name] for name in names},
                {name: (wishes or {}).get(name, ModelWish(name, f"{name}.gguf")) for name in names})


def facts(*gpus, tools=(), **changes):
    return replace(FACTS, gpus=gpus, tools=dict.fromkeys(tools, "1"), **changes)


def options(wanted, seen, number=0):
    """A planned server's argv as a mapping; a bare option maps to True."""
    argv = wanted_servers(wanted, seen)[0][number][0].argv[1:]
    found, rest = {}, list(argv)
    while rest:
        key = rest.pop(0).removeprefix("--")
        found[key] = True if not rest or rest[0].startswith("--") else rest.pop(0)
    return found


def applied(wanted, seen, steps):
    """What a survey would see after `steps`, as far as plans look."""
    for step in steps:
        match step:
            case InstallRuntime():
                new = RuntimeSeen("llamacpp", step.key, f"{DATA}/runtimes/llamacpp/{step.key}")
                seen = replace(seen, runtimes=(*seen.runtimes, new))
            case PutBlob():
                seen = replace(seen, blobs=(*seen.blobs, BlobSeen(step.sha256, step.size)))
            case StopServer():
                gone = {one.pid for one in seen.servers if one.name == step.name}
                seen = replace(seen, servers=tuple(one for one in seen.servers if one.name != step.name),
                               listeners=tuple(one for one in seen.listeners if one.pid not in gone))
            case StartServer():
                gone = {one.pid for one in seen.servers if one.name == step.spec.name}
                server = ServerSeen(step.spec.name, step.spec.digest, next(PIDS), next(PIDS),
                                    mode=step.spec.mode)
                others = tuple(one for one in seen.servers if one.name != step.spec.name)
                kept = tuple(one for one in seen.listeners if one.pid not in gone)
                assert all(one.port != step.spec.port for one in kept), "the port is free by then"
                listener = Listener("127.0.0.1", step.spec.port, False, server.pid, "ada", "llama-server")
                seen = replace(seen, servers=(*others, server), listeners=(*kept, listener))
            case MeasureSpeed():
                servers = (replace(one, speed=Speed(1, 1)) if one.name == step.server else one
                           for one in seen.servers)
                seen = replace(seen, servers=tuple(servers))
    return seen


@pytest.mark.parametrize(("wish", "seen", "name", "words", "flags"), [
    ("auto", facts(), "cpu", "no GPU was found", "-DGGML_METAL=OFF"),
    ("auto", facts(RTX, RTX2, tools=["nvcc"]), "cuda", "nvcc are there", "-DCMAKE_CUDA_ARCHITECTURES=86"),
    ("auto", facts(RTX, ADA, tools=["nvcc"]), "cuda", "RTX 4080 SUPER", "-DCMAKE_CUDA_ARCHITECTURES=86;89"),
    ("auto", facts(RTX), "cpu", "nvcc is not; install the CUDA toolkit or set llamacpp.backend",
     "-DGGML_NATIVE=ON"),
    ("auto", facts(RTX, tools=["glslc", "vulkaninfo"]), "vulkan", "nvcc is not", "-DGGML_VULKAN=ON"),
    ("auto", facts(RADEON, tools=["hipcc"]), "rocm", "Radeon RX 7900 XTX", "-DAMDGPU_TARGETS=gfx1100"),
    ("auto", facts(RADEON), "cpu", "hipcc is not", "-DGGML_NATIVE=ON"),
    ("auto", facts(ARC, tools=["glslc", "vulkan"]), "vulkan", "glslc and Vulkan are there",
     "-DGGML_VULKAN=ON"),
    ("auto", facts(ARC), "cpu", "glslc or Vulkan is not", "-DGGML_NATIVE=ON"),
    ("auto", facts(M2, system="Darwin"), "metal", "has Metal", "-DGGML_METAL_EMBED_LIBRARY=ON"),
    ("auto", facts(replace(RTX, problem="the driver was lost"), tools=["nvcc"]), "cpu", "the driver was lost",
     "-DGGML_NATIVE=ON"),
    ("cpu", facts(RTX, tools=["nvcc"]), "cpu", "llamacpp.backend is cpu", "-DGGML_NATIVE=ON"),
    ("vulkan", facts(RTX, tools=["nvcc"]), "vulkan", "llamacpp.backend is vulkan", "-DGGML_VULKAN=ON"),
])
def test_the_backend_follows_from_facts(wish, seen, name, words, flags):
    backend = choose_backend(wish, seen)
    assert backend.name == name
    assert words in backend.reason
    assert flags in choose_build(wish, seen).cmake_flags


def test_the_builds_key_names_version_platform_backend_and_flags():
    here, there = choose_build("auto", facts()), choose_build("auto", facts(RTX, tools=["nvcc"]))
    assert here.key.startswith("0.3.36-linux-x86_64-glibc2.36-")
    assert "-cpu-" in here.key
    assert here.key != there.key
    assert choose_build("auto", facts(ADA, tools=["nvcc"])).key != there.key


def test_a_bare_host_gets_runtime_weights_and_server_in_that_order_each_with_a_reason():
    steps = plan_llamacpp(want("tiny"), facts())
    assert [type(step) for step in steps] == [InstallRuntime, PutBlob, StartServer, MeasureSpeed]
    assert all(step.reason for step in steps)


def test_what_is_there_is_not_planned_again():
    wanted, seen = want("tiny", "eight"), facts()
    after = applied(wanted, seen, plan_llamacpp(wanted, seen))
    assert plan_llamacpp(wanted, after) == ()


def test_two_names_for_the_same_bytes_push_them_once():
    twin = replace(TINY, name="twin")
    wanted = replace(want("tiny"), models={"tiny": TINY, "twin": twin})
    wanted = replace(wanted, host=replace(wanted.host, models=(Placement("tiny"), Placement("twin"))))
    assert sum(isinstance(step, PutBlob) for step in plan_llamacpp(wanted, facts())) == 1


@pytest.mark.parametrize(("change", "words"), [
    ({"supervisor": None}, "nothing supervises it"),
    ({"pid": None, "restarts": 7}, "after 7 restarts"),
    ({"spec": "other"}, "has changed"),
])
def test_a_server_that_is_not_as_wanted_is_started_anew(change, words):
    wanted, seen = want("tiny"), facts()
    seen = applied(wanted, seen, plan_llamacpp(wanted, seen))
    seen = replace(seen, servers=(replace(seen.servers[0], **change),), listeners=())
    (start, _) = plan_llamacpp(wanted, seen)
    assert words in start.reason


def test_an_unmeasured_server_is_only_measured():
    wanted, seen = want("tiny"), facts()
    seen = applied(wanted, seen, plan_llamacpp(wanted, seen)[:-1])
    assert [type(step) for step in plan_llamacpp(wanted, seen)] == [MeasureSpeed]


def test_a_model_no_longer_wanted_is_stopped_and_its_weights_stay():
    seen = applied(want("tiny", "eight"), facts(), plan_llamacpp(want("tiny", "eight"), facts()))
    wanted = want("tiny")
    assert [step.name for step in plan_llamacpp(wanted, seen)] == ["eight"]
    assert [type(step) for step in plan_llamacpp(want(), seen)] == [StopServer, StopServer]
    assert [type(step) for step in plan_removal(seen)] == [StopServer, StopServer]


def test_swapped_ports_stop_both_servers_before_either_starts():
    before = want(Placement("tiny", port=9001), Placement("eight", port=9002))
    seen = applied(before, facts(), plan_llamacpp(before, facts()))
    after = want(Placement("tiny", port=9002), Placement("eight", port=9001))
    steps = plan_llamacpp(after, seen)
    assert [type(step) for step in steps[:2]] == [StopServer, StopServer]
    assert plan_llamacpp(after, applied(after, seen, steps)) == ()


@pytest.mark.parametrize(("listener", "words"), [
    (Listener("0.0.0.0", 8090, True, 77, "bob", "nginx"), "taken by nginx pid 77 of user bob"),
    (Listener("127.0.0.1", 8090, False), "taken by another program"),
])
def test_a_port_somebody_else_holds_is_an_error_that_names_them(listener, words):
    with pytest.raises(SwarmError, match=words) as caught:
        plan_llamacpp(want("tiny"), facts(listeners=(listener,)))
    assert caught.value.host == "spinoza"


def test_a_tiny_model_gets_one_thread_and_the_limits_hold():
    assert options(want("tiny"), facts())["threads"] == "1"
    assert options(want("eight"), facts())["threads"] == "8"
    assert options(want("eight", limits=Limits(threads=3)), facts())["threads"] == "3"
    assert options(want("eight"), facts(cpu=Cpu("x", threads=2, cores=8)))["threads"] == "2"


def test_the_server_listens_on_loopback_and_divides_its_context_by_slots():
    found = options(want(Placement("tiny", context=512, parallel=3)), facts())
    assert (found["host"], found["ctx-size"], found["parallel"]) == ("127.0.0.1", "1536", "3")
    assert found["no-kv-unified"] is True
    assert found["cors-origins"] == "localhost"


def test_a_placement_wins_over_the_model_and_the_model_over_the_host():
    wishes = {"tiny": ModelWish("tiny", "x", context=300, flags={"ubatch-size": 64, "threads": 3})}
    host = LlamaCppWish(flags={"threads": 5, "ubatch_size": 32, "mlock": True})
    found = options(want(Placement("tiny", flags={"t": 7}), llamacpp=host, wishes=wishes), facts())
    assert (found["threads"], found["ubatch-size"], found["mlock"]) == ("7", "64", True)
    assert found["ctx-size"] == "600"


def test_a_false_flag_leaves_out_what_we_would_have_set_and_a_bare_one_undoes_its_opposite():
    flags = {"metrics": False, "webui": True, "no-jinja": True}
    found = options(want(Placement("tiny", flags=flags)), facts())
    assert "metrics" not in found
    assert "no-ui" not in found
    assert found["ui"] is True
    assert "jinja" not in found


@pytest.mark.parametrize("flag", ["host", "--port", "m", "ctx_size", "np", "api-key"])
def test_what_makes_a_server_ours_cannot_be_overridden(flag):
    with pytest.raises(SwarmError, match="cannot be overridden"):
        plan_llamacpp(want(Placement("tiny", flags={flag: "1"})), facts())


def test_a_model_that_fits_goes_wholly_onto_the_smallest_gpu_that_holds_it():
    seen = facts(RTX, RTX2, tools=["nvcc"])
    wanted = want(Placement("eight", context=8192, parallel=2))
    found = options(wanted, seen)
    assert (found["n-gpu-layers"], found["split-mode"], found["cache-type-k"]) == ("all", "none", "f16")
    ((spec, note),) = wanted_servers(wanted, seen)[0]
    assert spec.env == {"CUDA_VISIBLE_DEVICES": "GPU-aa"}
    assert "RTX 3080" in note


def test_two_models_share_the_gpus_of_a_host():
    seen = facts(RTX, RTX2, tools=["nvcc"])
    both = want(Placement("eight", context=4096, parallel=1), Placement("eight", context=4096, parallel=2))
    envs = [spec.env["CUDA_VISIBLE_DEVICES"] for spec, _ in wanted_servers(both, seen)[0]]
    assert envs == ["GPU-aa", "GPU-bb"]


def test_the_context_shrinks_before_the_gpu_is_left():
    small = replace(RTX, memory=7 * GIB)
    found = options(want("eight"), facts(small, tools=["nvcc"]))
    assert found["n-gpu-layers"] == "all"
    assert int(found["ctx-size"]) < 4 * 8192


def test_a_wished_context_that_is_too_large_gets_a_smaller_cache_and_flash_attention():
    found = options(want(Placement("eight", context=8192, parallel=4)), facts(RTX, tools=["nvcc"]))
    assert (found["cache-type-k"], found["flash-attn"], found["n-gpu-layers"]) == ("q8_0", "on", "all")


def test_a_model_too_large_for_the_gpu_keeps_the_rest_in_ram_if_that_holds_it():
    seen = facts(RTX, tools=["nvcc"], memory=64 * GIB)
    found = options(want(Placement("huge", context=4096, parallel=1)), seen)
    assert 10 < int(found["n-gpu-layers"]) < 30


def test_a_gpu_of_unknown_memory_is_left_to_the_servers_own_probing():
    found = options(want("eight"), facts(ARC, tools=["glslc", "vulkan"]))
    assert (found["n-gpu-layers"], found["fit"]) == ("auto", "on")


def test_apple_silicon_counts_two_thirds_of_its_memory():
    assert options(want("eight"), facts(M2, system="Darwin", memory=16 * GIB))["n-gpu-layers"] == "all"


@pytest.mark.parametrize("limits", [Limits(), Limits(memory=4 * GIB)])
def test_what_cannot_fit_is_an_error_with_the_numbers(limits):
    with pytest.raises(SwarmError, match=r"huge does not fit: it needs 4\d\.\d GB .* RAM") as caught:
        plan_llamacpp(want("huge", limits=limits), facts())
    assert caught.value.host == "spinoza"
    assert caught.value.hint


def test_the_second_model_gets_only_what_the_first_left():
    seen = facts(memory=10 * GIB)
    plan_llamacpp(want("eight"), seen)
    with pytest.raises(SwarmError, match="eight does not fit"):
        plan_llamacpp(want("eight", "eight"), seen)


@pytest.mark.parametrize(("limits", "free", "words"), [
    (Limits(disk=4 * GIB), 10**12, r"would take 4\.90 GB, and limits\.disk is 4\.29 GB"),
    (Limits(), 10**9, r"need 4,900 MB at .*, where 1,000 MB are free"),
])
def test_weights_without_room_on_the_disk_are_refused_before_anything_is_changed(limits, free, words):
    seen = facts(disk=replace(FACTS.disk, free=free))
    with pytest.raises(SwarmError, match=words):
        plan_llamacpp(want("eight", limits=limits), seen)
    there = replace(seen, blobs=(BlobSeen(EIGHT_B.sha256, EIGHT_B.size),))
    assert plan_llamacpp(want("eight", limits=limits), there)


def test_a_small_machine_keeps_a_small_prompt_cache():
    assert int(options(want("tiny"), facts(memory=2 * GIB))["cache-ram"]) == 2 * GIB // 20 // MIB
    assert int(options(want("tiny"), facts(memory=512 * GIB))["cache-ram"]) == 2048


def test_server_names_are_safe_and_distinct():
    assert server_name("qwen3-8b") == "qwen3-8b"
    assert "/" not in server_name("org/model:tag")
    assert server_name("org/model:tag") != server_name("org-model-tag")
    assert server_name("..") not in {"", ".", ".."}


GPUS = st.lists(st.sampled_from([RTX, RTX2, ADA, RADEON, ARC, M2, replace(RTX, problem="lost")]), max_size=3)
PLACEMENTS = st.lists(st.builds(
    Placement, st.sampled_from(["tiny", "eight", "huge"]), context=st.none() | st.integers(256, 20_000),
    parallel=st.none() | st.integers(1, 5), flags=st.sampled_from([{}, {"mlock": True}])),
    max_size=3, unique_by=lambda one: one.model)
SEEN = st.builds(
    lambda gpus, tools, memory, cores, systemd: facts(
        *gpus, tools=tools, memory=memory * GIB, systemd_user=systemd,
        cpu=Cpu("x", cores * 2, cores, ("avx2",))),
    GPUS, st.sets(st.sampled_from(["nvcc", "hipcc", "glslc", "vulkan"])), st.integers(1, 256),
    st.integers(1, 64),
    st.booleans())


@given(PLACEMENTS, PLACEMENTS, SEEN)
@settings(max_examples=150, deadline=None)
def test_after_any_plan_is_applied_nothing_is_left_to_do(first, second, seen):
    """Also on a host that already runs something else; and planning twice gives the same plan."""
    for placements in (first, second):
        wanted = want(*placements)
        try:
            steps = plan_llamacpp(wanted, seen)
        except SwarmError:
            return
        assert steps == plan_llamacpp(wanted, seen)
        seen = applied(wanted, seen, steps)
        assert plan_llamacpp(wanted, seen) == ()


@given(PLACEMENTS, SEEN, st.data())
@settings(max_examples=100, deadline=None)
def test_a_plan_cut_anywhere_and_made_again_ends_at_the_same_place(placements, seen, data):
    wanted = want(*placements)
    try:
        steps = plan_llamacpp(wanted, seen)
    except SwarmError:
        return
    cut = data.draw(st.integers(0, len(steps)))
    half = applied(wanted, seen, steps[:cut])
    rest = plan_llamacpp(wanted, half)
    assert len(rest) <= len(steps)
    assert plan_llamacpp(wanted, applied(wanted, half, rest)) == ()
