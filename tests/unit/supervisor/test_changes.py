from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from emb_model_provider.messages.configs import Intake, LogConfig, RouterConfig
from emb_model_provider.modelmap import HubAccess, Hubs, ModelSpec
from emb_model_provider.settings import load_settings
from supervisor.changes import compare, keep_fixed, router_change

SETTINGS = load_settings({}, None)
ROUTER = RouterConfig(LogConfig("INFO", "plain"), (b"a",), 30.0, 1024, 30.0, 600.0)


def with_models(*specs: ModelSpec):
    return replace(SETTINGS, models=specs)


def test_models_are_kept_added_removed_and_changed():
    en, zh, fr = (ModelSpec(id=name, name=f"hub/{name}") for name in ("en", "zh", "fr"))
    changes = compare(with_models(en, zh, fr), with_models(replace(zh, precision="int8"), en, replace(fr, id="de")))
    assert changes.kept == ("en",)
    assert changes.changed == ("zh",)
    assert changes.added == ("de",)
    assert changes.removed == ("fr",)
    assert changes.summary() == "added: de; removed: fr; changed: zh; kept: en"


def test_a_new_token_changes_no_model_that_is_loaded():
    after = replace(SETTINGS, hubs=Hubs(huggingface=HubAccess(token="hf_new")))
    changes = compare(SETTINGS, after)
    assert (changes.changed, changes.kept) == ((), ("all-MiniLM-L6-v2",))
    assert "hf_new" not in changes.summary()


def test_another_time_of_silence_is_noticed_though_routers_report_as_often():
    after = load_settings({"EMB_PROVIDER_SILENCE_TIMEOUT_S": "60"}, None)
    assert compare(SETTINGS, after).silence
    assert not compare(after, after).silence


def test_what_only_a_restart_can_change_is_named_and_stays_as_it_was():
    after = load_settings(
        {
            "EMB_PROVIDER_PORT": "9001",
            "EMB_PROVIDER_RUN_DIR": "/elsewhere",
            "EMB_PROVIDER_LOG_FORMAT": "json",
            "EMB_PROVIDER_READY_WAIT_S": "7",
        },
        None,
    )
    assert compare(SETTINGS, after).needs_restart == (
        "EMB_PROVIDER_PORT",
        "EMB_PROVIDER_RUN_DIR",
        "EMB_PROVIDER_LOG_FORMAT",
    )
    used = keep_fixed(SETTINGS, after)
    assert (used.server.port, used.processes.run_dir, used.logs.format) == (9000, "", "plain")
    assert used.server.ready_wait_s == 7
    assert compare(used, after).needs_restart == compare(SETTINGS, after).needs_restart, "the next reload says it again"


SPECS = st.lists(
    st.builds(ModelSpec, id=st.sampled_from("abcdef"), name=st.just("n"), precision=st.sampled_from(("fp32", "int8"))),
    unique_by=lambda spec: spec.id,
    max_size=6,
)


@given(SPECS, SPECS)
def test_every_model_is_in_exactly_one_group(before, after):
    changes = compare(with_models(*before), with_models(*after))
    groups = [*changes.kept, *changes.added, *changes.removed, *changes.changed]
    assert sorted(groups) == sorted({spec.id for spec in [*before, *after]})
    assert [*changes.kept, *changes.changed, *changes.added] != [] or not after
    assert compare(with_models(*after), with_models(*after)).kept == tuple(spec.id for spec in after)


def test_a_router_takes_keys_times_and_sizes_while_it_runs_and_is_replaced_for_the_rest():
    assert router_change(ROUTER, ROUTER) == "none"
    live = ROUTER.replace(
        api_key_digests=(b"b",),
        ready_wait_s=1.0,
        request_timeout_s=2.0,
        intake=Intake().replace(max_inputs=3, max_input_chars=4, max_request_tokens=5),
    )
    assert router_change(ROUTER, live) == "live"
    assert router_change(ROUTER, live.replace(max_request_bytes=1)) == "replace"
    assert router_change(ROUTER, ROUTER.replace(intake=Intake().replace(max_connections=9))) == "replace"
