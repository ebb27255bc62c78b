"""What fits where, as data: wishes and facts in, shares with their sums out."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from test_plan import ADA, ARC, DATA, EIGHT_B, FACTS, FILES, GIB, RTX, RTX2, facts

from swarmctl.facts import OllamaLoaded, OllamaModel, OllamaSeen
from swarmctl.inventory import Host, Limits, LlamaCppWish, ModelWish, OllamaWish, Placement
from swarmctl.runtimes.base import Want
from swarmctl.runtimes.placement import place, refusal

OTHER = replace(EIGHT_B, name="other", sha256="d" * 64)
MODELS = {**FILES, "other": OTHER}


def want(*models, runtime="llamacpp", env=None, manage="adopt", limits=None, context=4096, sources=None):
    placed = tuple(Placement(name, context=context, runtime=runtime) for name in models)
    host = Host("calisota", "calisota", models=placed, llamacpp=LlamaCppWish(), data_dir=DATA,
                ollama=OllamaWish(manage=manage, env=env or {}), limits=limits or Limits())
    wishes = {name: ModelWish(name, (sources or {}).get(name, f"{name}.gguf")) for name in models}
    return Want(host, {name: MODELS[name] for name in models if not wishes[name].pulled}, wishes)


def test_a_model_on_a_gpu_shows_weights_cache_and_headroom():
    (share,) = place(want("eight"), facts(ADA, tools=("nvcc",)))
    assert share.fits
    assert share.weights == EIGHT_B.size
    assert share.cache == EIGHT_B.kv_bytes_per_token * 4096 * share.parallel
    assert share.needs <= share.has
    assert share.arithmetic.startswith("weights 4.9 GB + cache 2.4 GB (4 of 4096 tokens) + headroom ")
    assert " ≤ " in share.arithmetic
    assert refusal((share,)) is None


def test_a_model_that_cannot_fit_is_refused_with_the_sum():
    shares = place(want("huge"), facts())
    (share,) = shares
    assert share.fits is False
    error = refusal(shares)
    assert error.host == "calisota"
    assert error.message.startswith("model huge does not fit: weights 40.0 GB + cache 2.7 GB (2 of 4096 ")
    assert "GB > 30.9 GB (30.9 GB of RAM are left for it)" in error.message
    assert "smaller" in error.hint


def test_a_second_server_gets_what_the_first_leaves():
    small = facts(memory=8 * GIB)
    first, second = place(want("eight", "other"), small)
    assert (first.fits, second.fits) == (True, False)
    assert second.has == first.has - first.needs


def test_two_models_of_one_ollama_that_do_not_fit_together_evict_each_other():
    first, second = place(want("eight", "other", runtime="ollama", context=8192), facts(RTX))
    assert first.fits
    assert second.fits
    assert (first.evicts, second.evicts) == (("other",), ("eight",))
    small, _ = place(want("tiny", "eight", runtime="ollama"), facts(ADA))
    assert small.evicts == ()


def test_more_models_than_may_be_loaded_evict_each_other_though_they_fit():
    shares = place(want("eight", "tiny", runtime="ollama", env={"OLLAMA_MAX_LOADED_MODELS": "1"},
                        manage="own"), facts(ADA))
    assert [share.evicts for share in shares] == [("tiny",), ("eight",)]


def test_what_an_owner_has_loaded_is_named_where_it_would_have_to_go():
    theirs = OllamaSeen(11434, "0.33.0", "systemd", loaded=(OllamaLoaded("qwen3:14b", 9 * GIB, 9 * GIB),))
    (share,) = place(want("eight", runtime="ollama"), replace(facts(RTX), ollamas=(theirs,)))
    assert share.evicts == ("qwen3:14b",)


def test_ollama_gets_what_llamacpp_leaves():
    both = want("eight")
    placed = (*both.host.models, Placement("other", context=4096, runtime="ollama"))
    both = replace(both, host=replace(both.host, models=placed), models={"eight": EIGHT_B, "other": OTHER})
    first, second = place(both, facts(memory=16 * GIB))
    assert second.has == first.has - first.needs


def test_a_model_that_spills_over_the_gpu_fits_and_is_called_slow():
    (share,) = place(want("huge", runtime="ollama"), facts(ADA, memory=64 * GIB))
    assert share.fits
    assert share.where.endswith("on the GPU, the rest in RAM and slow")


def test_a_pulled_model_has_a_size_once_it_is_there():
    wanted = want("q", runtime="ollama", sources={"q": "ollama:qwen3:8b"})
    (unknown,) = place(wanted, facts(RTX))
    assert unknown.fits is None
    there = OllamaSeen(11434, "0.33.0", models=(OllamaModel("qwen3:8b", "x", 5 * GIB),))
    (share,) = place(wanted, replace(facts(RTX), ollamas=(there,)))
    assert share.fits
    assert share.weights == 5 * GIB


def test_an_adopted_ollama_has_its_own_defaults_and_our_own_what_up_sets():
    theirs, = place(want("eight", runtime="ollama", context=None), facts(RTX2))
    assert (theirs.context, theirs.parallel) == (4096, 1)
    ours, = place(want("eight", runtime="ollama", context=None, manage="own",
                       env={"OLLAMA_NUM_PARALLEL": 2}), facts(RTX2))
    assert ours.parallel == 2


def test_a_gpu_that_does_not_tell_its_memory_is_said():
    (share,) = place(want("tiny", runtime="ollama"), facts(ARC, tools=("vulkaninfo", "glslc")))
    assert share.fits is not None


@settings(max_examples=60, deadline=None)
@given(memory=st.integers(1 << 30, 1 << 38), gpus=st.lists(st.sampled_from((RTX, RTX2, ADA)), max_size=3),
       names=st.lists(st.sampled_from(tuple(MODELS)), min_size=1, max_size=4, unique=True),
       runtime=st.sampled_from(("llamacpp", "ollama")))
def test_whatever_fits_needs_no_more_than_there_was(memory, gpus, names, runtime):
    seen = replace(FACTS, memory=memory, gpus=tuple(gpus))
    wanted = want(*names, runtime=runtime)
    shares = place(wanted, seen)
    assert shares == place(wanted, seen)
    assert [share.model for share in shares] == names
    for share in shares:
        assert share.fits == (share.needs <= share.has) or share.runtime == "llamacpp"
        assert share.model not in share.evicts
        assert min(share.weights, share.cache, share.headroom, share.has) >= 0
