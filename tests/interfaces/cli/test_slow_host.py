"""A real host service that takes its time: what Ctrl+C and a kill come to while a request hangs."""

from __future__ import annotations

import signal

import pytest


@pytest.fixture
def slow_host(cli):
    """The embedded data host, each of whose answers takes 30 s."""
    host = cli.start("sandbox", "data", "--latency", "30", "--json")
    cli.until(lambda: (cli.folder / "data-host.json").exists())
    yield host
    host.signal(signal.SIGINT)
    host.ended()


def loading(cli):
    running = cli.start("--sandbox", "data", "load", "AAPL", "1d", "--json")
    cli.until(lambda: cli.count("progressed", "Fetching"))
    return running


@pytest.mark.slow
def test_ctrl_c_while_a_request_hangs_ends_it_within_a_second(cli, slow_host):
    running = loading(cli)
    running.signal(signal.SIGINT)
    ran = running.ended()
    assert (ran.code, ran.json["status"]) == (130, "cancelled")
    assert ran.json["cancellation"]["latency_ms"] < 1000


@pytest.mark.slow
def test_sigterm_while_a_request_hangs_leaves_it_to_be_resumed(cli, slow_host):
    running = loading(cli)
    running.signal(signal.SIGTERM)
    ran = running.ended()
    assert (ran.code, ran.json["status"]) == (143, "interrupted")
    plan = cli("--sandbox", "recover", "--dry-run", "--json").json
    assert [one["operation_id"] for one in plan["resumed"]] == [ran.json["operation_id"]]


@pytest.mark.slow
def test_a_load_that_nobody_disturbs_completes(cli):
    ran = cli("--sandbox", "data", "load", "AAPL", "1d", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["result"]["rows"] > 3000
    assert cli("--sandbox", "data", "show", "AAPL", "1d", "--json").code == 0
