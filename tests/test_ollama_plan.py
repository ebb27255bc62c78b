"""The Ollama plan as data: facts in, steps out."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_plan import DATA, FACTS, FILES, GIB, RTX, TINY, applied, facts, want

from swarmctl.errors import DiskFull, SwarmError
from swarmctl.facts import Listener, OllamaModel, OllamaSeen, RuntimeSeen, ServerSeen, Speed
from swarmctl.inventory import Limits, LlamaCppWish, ModelWish, OllamaWish, Placement
from swarmctl.runtimes.ollama_plan import (
    adopted,
    notes,
    ollama_platform,
    plan_ollama,
    speed_name,
    tag_of,
    wanted_server,
)
from swarmctl.runtimes.ollama_serve import OLLAMA
from swarmctl.runtimes.plans import plan_host
from swarmctl.steps import CreateModel, InstallRuntime, MeasureSpeed, PullModel, StartServer, StopServer

PIDS = itertools.count(200_000)
STRANGER = OllamaSeen(11434, "0.32.1", "systemd", 77, "ollama")


def wanted(*placements, ollama=None, **more):
    """A host with `ollama` in its inventory; names of models are placed on it."""
    placed = [Placement(one, runtime="ollama") if isinstance(one, str) else one for one in placements]
    made = want(*placed, **more)
    return replace(made, host=replace(made.host, ollama=ollama or OllamaWish()))


def with_pull(made, name="qwen", source="ollama:qwen3:0.6b"):
    placement = Placement(name, runtime="ollama")
    host = replace(made.host, models=(*made.host.models, placement))
    return replace(made, host=host, wishes={**made.wishes, name: ModelWish(name, source)})


def done(made, seen, steps):
    """What a survey would see after `steps`."""
    for step in steps:
        match step:
            case InstallRuntime(runtime="ollama"):
                new = RuntimeSeen("ollama", step.key, f"{DATA}/runtimes/ollama/{step.key}")
                seen = replace(seen, runtimes=(*seen.runtimes, new))
            case StartServer() if not step.spec.model:
                gone = {one.pid for one in seen.servers if one.name == step.spec.name}
                kept = tuple(one for one in seen.listeners if one.pid not in gone)
                assert all(one.port != step.spec.port for one in kept), "the port is free by then"
                server = ServerSeen("ollama", step.spec.digest, next(PIDS), next(PIDS), mode=step.spec.mode)
                others = tuple(one for one in seen.servers if one.name != "ollama")
                models = tuple(OllamaModel(name, "d", 1) for name in seen.ollama_kept)
                own = OllamaSeen(step.spec.port, "0.33.0", "own", server.pid, "ada", models=models)
                seen = replace(
                    seen, servers=(*others, server), ollama_speeds={},
                    listeners=(*kept, Listener("127.0.0.1", step.spec.port, False, server.pid)),
                    ollamas=(*(one for one in seen.ollamas if one.mode != "own"), own))
            case StopServer(name="ollama"):
                gone = {one.pid for one in seen.servers if one.name == "ollama"}
                seen = replace(seen, ollamas=tuple(one for one in seen.ollamas if one.mode != "own"),
                               servers=tuple(one for one in seen.servers if one.name != "ollama"),
                               listeners=tuple(one for one in seen.listeners if one.pid not in gone))
            case CreateModel() | PullModel():
                seen = replace(seen, ollamas=tuple(_gained(one, step) for one in seen.ollamas))
                if any(one.mode == "own" and one.port == step.port for one in seen.ollamas):
                    seen = replace(seen, ollama_kept=(*seen.ollama_kept, step.tag),
                                   ollama_lacking=tuple(x for x in seen.ollama_lacking if x != step.tag))
            case MeasureSpeed() if step.tag:
                seen = replace(seen, ollama_speeds={**seen.ollama_speeds, speed_name(step.tag): Speed(1, 1)})
            case _:
                seen = applied(made, seen, (step,))
    return seen


def _gained(one, step):
    if one.port != step.port:
        return one
    return replace(one, models=(*one.models, OllamaModel(step.tag, "d", 1)))


def environment(made, seen):
    return wanted_server(made, seen).env


def test_a_bare_host_gets_release_server_models_and_a_measurement():
    steps = plan_ollama(wanted("tiny"), facts())
    assert [type(step) for step in steps] == [InstallRuntime, StartServer, CreateModel, MeasureSpeed]
    install, start, create, _ = steps
    assert (install.runtime, install.version, install.backend) == ("ollama", OLLAMA, "linux-amd64")
    assert start.spec.argv == (f"{DATA}/runtimes/ollama/{OLLAMA}/bin/ollama", "serve")
    assert create.tag == f"tiny:{TINY.sha256[:12]}"
    assert all(step.reason for step in steps)
    assert "OLLAMA_HOST=127.0.0.1:11434" in start.reason


def test_a_model_that_is_listed_and_lacks_its_weights_is_made_anew_and_once():
    made, seen = wanted("tiny"), facts()
    seen = done(made, seen, plan_ollama(made, seen))
    (tag,) = seen.ollama_kept
    hurt = replace(seen, ollama_lacking=(tag, "somebody-elses:latest"))
    (step,) = plan_ollama(made, hurt)
    assert (type(step), step.tag, step.anew) == (CreateModel, tag, True)
    assert step.reason == "it lists that model and lacks its weights"
    assert plan_ollama(made, done(made, hurt, (step,))) == ()
    adopts = facts(ollamas=(STRANGER,), ollama_lacking=(tag,))
    assert [step.anew for step in plan_ollama(made, adopts) if isinstance(step, CreateModel)] == [False]


def test_an_inventory_that_lets_one_model_be_loaded_is_told_what_that_evicts():
    wish = OllamaWish(env={"OLLAMA_MAX_LOADED_MODELS": 1})
    start = next(step for step in plan_ollama(wanted("tiny", "eight", ollama=wish), facts())
                 if isinstance(step, StartServer))
    assert "evicts another model, as at most 1 may be loaded" in start.reason
    assert "OLLAMA_KEEP_ALIVE=10m" in start.reason
    assert environment(wanted("tiny", "eight", ollama=wish), facts())["OLLAMA_MAX_LOADED_MODELS"] == "1"


def test_a_running_ollama_is_adopted_with_a_note_and_without_a_step_of_its_own():
    made, seen = wanted("tiny"), facts(ollamas=(STRANGER,))
    assert [type(step) for step in plan_ollama(made, seen)] == [CreateModel, MeasureSpeed]
    assert adopted(made, seen) == STRANGER
    assert notes(made, seen) == ("adopts Ollama 0.32.1 on 127.0.0.1:11434, which runs as the system service "
                                 "ollama.service of user ollama: it is left as it is",)


def test_an_exposed_one_is_adopted_with_a_warning():
    (_, warning) = notes(wanted("tiny"), facts(ollamas=(replace(STRANGER, exposed=True),)))
    assert "open beyond loopback" in warning


def test_adopt_refuses_a_host_where_none_runs_and_own_one_where_a_strangers_does():
    adopts = wanted("tiny", ollama=OllamaWish(manage="adopt"))
    with pytest.raises(SwarmError, match="nobody's Ollama answers on 127") as caught:
        plan_ollama(adopts, facts())
    assert caught.value.host == "spinoza"
    seen = facts(ollamas=(STRANGER,), listeners=(Listener("127.0.0.1", 11434, False, 77, "x", "ollama"),))
    with pytest.raises(SwarmError, match="taken by ollama pid 77") as caught:
        plan_ollama(wanted("tiny", ollama=OllamaWish(manage="own")), seen)
    assert "manage: auto" in caught.value.hint


def test_a_stranger_on_another_port_is_left_alone():
    made, seen = wanted("tiny", ollama=OllamaWish(port=12000)), facts(ollamas=(STRANGER,))
    assert isinstance(plan_ollama(made, seen)[0], InstallRuntime)
    assert notes(made, seen) == ()


def test_a_model_that_is_there_under_its_bytes_is_not_made_again():
    tag = tag_of(wanted("tiny"), Placement("tiny"))
    there = replace(STRANGER, models=(OllamaModel(tag, "d", 1),))
    assert [type(step) for step in plan_ollama(wanted("tiny"), facts(ollamas=(there,)))] == [MeasureSpeed]
    other = replace(STRANGER, models=(OllamaModel("tiny:latest", "d", 1),))
    assert isinstance(plan_ollama(wanted("tiny"), facts(ollamas=(other,)))[0], CreateModel)


def test_a_registrys_model_is_pulled_under_its_own_name():
    made = with_pull(wanted())
    (pull, measure) = plan_ollama(made, facts(ollamas=(STRANGER,)))
    assert (type(pull), pull.tag, measure.tag) == (PullModel, "qwen3:0.6b", "qwen3:0.6b")
    assert plan_ollama(made, done(made, facts(ollamas=(STRANGER,)), (pull, measure))) == ()


def test_a_stopped_one_of_ours_is_started_and_its_models_are_not_made_again():
    made, seen = wanted("tiny"), facts()
    seen = done(made, seen, plan_ollama(made, seen))
    down = replace(seen, servers=(), listeners=(), ollamas=())
    assert [type(step) for step in plan_ollama(made, down)] == [StartServer, MeasureSpeed]


def test_ours_is_stopped_where_no_model_of_it_is_wanted_any_more():
    seen = done(wanted("tiny"), facts(), plan_host(wanted("tiny"), facts()))
    assert [type(step) for step in plan_host(want(), seen)] == [StopServer]
    moved = replace(want(Placement("tiny", runtime="llamacpp")))
    kinds = [type(step) for step in plan_host(moved, seen)]
    assert kinds[0] is StopServer
    assert StartServer in kinds


def test_both_runtimes_serve_one_host_and_a_second_plan_is_empty():
    made = wanted("tiny", Placement("eight", runtime="llamacpp"), llamacpp=LlamaCppWish())
    seen = facts()
    steps = plan_host(made, seen)
    assert {type(step).__name__ for step in steps} == {"InstallRuntime", "PutBlob", "StartServer",
                                                       "MeasureSpeed", "CreateModel"}
    assert [step.spec.port for step in steps if isinstance(step, StartServer)] == [8091, 11434]
    assert plan_host(made, done(made, seen, steps)) == ()


def test_the_environment_follows_from_facts_and_the_inventory_wins():
    cpu = environment(wanted(Placement("tiny", context=512, parallel=3, runtime="ollama")), facts())
    assert cpu["OLLAMA_CONTEXT_LENGTH"] == "512"
    assert cpu["OLLAMA_NUM_PARALLEL"] == "3"
    assert cpu["OLLAMA_NO_CLOUD"] == "1"
    assert cpu["OLLAMA_MODELS"] == f"{DATA}/ollama/models"
    assert "OLLAMA_FLASH_ATTENTION" not in cpu
    gpu = environment(wanted("tiny"), facts(RTX))
    assert gpu["OLLAMA_FLASH_ATTENTION"] == "1"
    wish = OllamaWish(env={"OLLAMA_FLASH_ATTENTION": False, "OLLAMA_KEEP_ALIVE": "5m", "OLLAMA_DEBUG": True})
    told = environment(wanted("tiny", ollama=wish), facts(RTX))
    assert "OLLAMA_FLASH_ATTENTION" not in told
    assert (told["OLLAMA_KEEP_ALIVE"], told["OLLAMA_DEBUG"]) == ("5m", "1")


def test_models_that_fit_together_stay_and_others_evict_with_a_word():
    both = wanted("tiny", "eight")
    together = environment(both, facts())
    assert together["OLLAMA_MAX_LOADED_MODELS"] == "3"  # these and a canary
    assert together["OLLAMA_KEEP_ALIVE"] == "-1"
    small = facts(memory=int(6.6 * GIB))
    crowded = wanted(Placement("eight", context=2048, parallel=1, runtime="ollama"),
                     Placement("tiny", runtime="ollama"), limits=Limits(memory=int(5.55e9)))
    start = next(step for step in plan_ollama(crowded, small) if isinstance(step, StartServer))
    assert "loading tiny evicts another model" in start.reason
    assert start.spec.env["OLLAMA_KEEP_ALIVE"] == "10m"


def test_a_canary_comes_and_goes_without_a_restart():
    alone, name = wanted("tiny"), "tiny:v1-0badcafe"
    canary = ModelWish(name, "/weights.gguf", of="tiny", release="v1-0badcafe", canary=True)
    host = replace(alone.host, models=(*alone.host.models, Placement(name, runtime="ollama")))
    beside = replace(alone, host=host, wishes={**alone.wishes, name: canary},
                     models={**alone.models, name: replace(alone.models["tiny"], name=name, sha256="c" * 64)})
    assert wanted_server(beside, facts()) == wanted_server(alone, facts())
    (create,) = [one for one in plan_ollama(beside, facts())
                 if isinstance(one, CreateModel) and one.model == name]
    assert create.tag == name


def test_a_model_that_does_not_fit_alone_is_refused_with_the_numbers():
    with pytest.raises(SwarmError, match="huge does not fit: it needs"):
        plan_ollama(wanted("huge"), facts())


def test_a_cpu_box_gets_its_threads_at_create_and_a_gpu_box_leaves_them_to_ollama():
    (create,) = [step for step in plan_ollama(wanted("tiny"), facts()) if isinstance(step, CreateModel)]
    assert create.parameters == {"num_thread": 1}
    (create,) = [step for step in plan_ollama(wanted("tiny"), facts(RTX)) if isinstance(step, CreateModel)]
    assert create.parameters == {}
    adopts = wanted(Placement("tiny", context=512, runtime="ollama"))
    (create, _) = plan_ollama(adopts, facts(ollamas=(STRANGER,)))
    assert create.parameters == {"num_thread": 1, "num_ctx": 512}


def test_the_inventory_decides_which_release_a_host_without_one_gets():
    pinned = wanted("tiny", ollama=OllamaWish(version="0.34.0", sha256="e" * 64))
    install = plan_ollama(pinned, facts())[0]
    assert (install.version, install.sha256) == ("0.34.0", "e" * 64)
    assert "holds no release" in install.reason


def test_up_moves_no_host_from_the_release_it_has():
    there = tuple(RuntimeSeen("ollama", key, f"{DATA}/runtimes/ollama/{key}") for key in ("0.9.1", "0.33.1"))
    pinned = wanted("tiny", ollama=OllamaWish(version="0.34.0", sha256="e" * 64))
    start = plan_ollama(pinned, facts(runtimes=there))[0]
    assert start.spec.argv[0] == f"{DATA}/runtimes/ollama/0.33.1/bin/ollama"


def test_a_mac_is_told_to_start_the_app():
    with pytest.raises(SwarmError, match="on Linux only") as caught:
        plan_ollama(wanted("tiny"), facts(system="Darwin"))
    assert "app" in caught.value.hint
    assert ollama_platform(facts(machine="aarch64")) == "linux-arm64"


def test_no_room_for_the_bytes_twice_is_refused_before_anything_is_changed():
    seen = facts(disk=replace(FACTS.disk, free=2 * FILES["eight"].size - 1))
    with pytest.raises(DiskFull, match="twice their size"):
        plan_ollama(wanted("eight"), seen)


def test_an_inventorys_name_with_a_colon_becomes_one_that_ollama_allows():
    made = wanted("tiny")
    named = replace(made, models={"a:b": replace(TINY, name="a:b")}, wishes={"a:b": ModelWish("a:b", "x")})
    assert tag_of(named, Placement("a:b")) == f"a-b:{TINY.sha256[:12]}"


models = st.lists(st.sampled_from(["tiny", "eight"]), unique=True, max_size=2)
wishes = st.builds(OllamaWish, port=st.sampled_from([11434, 11500]), manage=st.sampled_from(["auto", "own"]),
                   env=st.dictionaries(st.sampled_from(["OLLAMA_DEBUG"]), st.booleans(), max_size=1))


@st.composite
def mixed_wants(draw):
    """A host on which each model runs in Ollama, in llama.cpp or not at all."""
    placed = [Placement(name, runtime=draw(st.sampled_from(["ollama", "llamacpp"]))) for name in draw(models)]
    return wanted(*placed, ollama=draw(wishes), llamacpp=LlamaCppWish())


@given(first=mixed_wants(), second=mixed_wants(), stranger=st.booleans())
@settings(max_examples=150, deadline=None)
def test_from_any_state_a_plan_leads_to_one_that_plans_nothing(first, second, stranger):
    seen = facts(ollamas=(replace(STRANGER, port=11500),)) if stranger else facts()
    for made in (first, second):
        if stranger and made.host.ollama.manage == "own" and made.host.ollama.port == 11500:
            return
        steps = plan_host(made, seen)
        assert steps == plan_host(made, seen)
        seen = done(made, seen, steps)
        assert plan_host(made, seen) == ()


@given(made=mixed_wants())
@settings(max_examples=100, deadline=None)
def test_where_one_is_adopted_no_step_touches_how_ollama_runs(made):
    seen = facts(ollamas=(STRANGER, replace(STRANGER, port=11500)))
    if adopted(made, seen) is None:
        return
    for step in plan_host(made, seen):
        assert not isinstance(step, StartServer) or step.spec.name != "ollama"
        assert not isinstance(step, InstallRuntime) or step.runtime != "ollama"
        assert not isinstance(step, StopServer)
