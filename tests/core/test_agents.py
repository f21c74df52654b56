"""A node's agents: which of them take new channels, and when."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from megaphone.core.agents import MOVED_REMEMBERED, TRANSITIONS, Agent, Agents, Step
from megaphone.errors import (
    AgentMoved,
    AgentNotFound,
    BadRequest,
    ChannelNotFound,
    NoAgentAvailable,
    StoreUnavailable,
    TargetUnavailable,
    WrongMode,
)
from megaphone.model import AgentMode
from tests.core.directory import MemoryDirectory
from tests.core.node import Node
from tests.support.settings import fast_settings

CHANNEL_ID = bytes(16)


def one(mode: AgentMode, warmup_s: float = 60.0, now: float = 0.0) -> tuple[Agents, Agent]:
    agents = Agents(warmup_s)
    return agents, agents.add("a", mode, now)


def names_picked(agents: Agents, now: float) -> set[str]:
    """By 200 picks, so that one of two agents is missed once in 10**60 runs."""
    return {agents.pick_for_new_channel(now).name for _ in range(200)}


def test_an_added_agent_is_found_by_its_name() -> None:
    agents, agent = one(AgentMode.MASTER)
    assert agents.get("a") is agent
    assert (agent.name, agent.mode) == ("a", AgentMode.MASTER)


@pytest.mark.parametrize("name", ["a", "node1", "4d454741", "Node_1-b", "-", "x" * 100])
def test_a_name_is_letters_digits_underscores_and_hyphens(name: str) -> None:
    assert Agents(0.0).add(name, AgentMode.MASTER, 0.0).name == name


@pytest.mark.parametrize(
    "name", ["", "a.b", "a b", "a\n", "é", "a/b", "\u0661", "\ud800", "x" * 101]
)
def test_a_name_that_cannot_start_an_address_is_refused(name: str) -> None:
    agents = Agents(0.0)
    with pytest.raises(BadRequest, match="1 to 100 letters"):
        agents.add(name, AgentMode.MASTER, 0.0)
    assert list(agents) == []


def test_a_name_that_exists_is_refused_and_keeps_its_key() -> None:
    agents, first = one(AgentMode.MASTER)
    with pytest.raises(BadRequest, match="already"):
        agents.add("a", AgentMode.REPLICA, 0.0)
    assert list(agents) == [first]


def test_an_unknown_name_is_none() -> None:
    agents, _ = one(AgentMode.MASTER)
    assert agents.get("A") is None


def test_agents_are_listed_as_they_were_added() -> None:
    agents = Agents(0.0)
    added = [agents.add(name, AgentMode.MASTER, 0.0) for name in "bca"]
    assert list(agents) == added


def test_an_agent_knows_since_when_it_is_there() -> None:
    _, agent = one(AgentMode.MASTER)
    assert agent.since.tzinfo is UTC
    assert datetime.now(UTC) - agent.since < timedelta(minutes=1)


def test_each_agent_has_a_key_of_its_own() -> None:
    agents = Agents(0.0)
    for name in "ab":
        agents.add(name, AgentMode.MASTER, 0.0)
    sealed = agents.keys.of("a").seal(CHANNEL_ID)
    assert agents.keys.of("a").open(sealed) == CHANNEL_ID
    with pytest.raises(BadRequest):
        agents.keys.of("b").open(sealed)


def test_the_key_of_an_agent_goes_with_it() -> None:
    agents, _ = one(AgentMode.MASTER)
    agents.remove("a")
    with pytest.raises(KeyError):
        agents.keys.of("a")


def test_an_agent_does_not_show_its_key() -> None:
    agents, agent = one(AgentMode.MASTER)
    secret = agents.keys.of("a").secret
    assert repr(secret) not in repr(agent)
    assert secret.hex() not in repr(agent)


def test_a_master_takes_channels_once_it_is_warm_and_not_before() -> None:
    agents, agent = one(AgentMode.MASTER, warmup_s=60.0, now=5.0)
    assert not agent.takes_channels(64.999)
    with pytest.raises(NoAgentAvailable):
        agents.pick_for_new_channel(64.999)
    assert agent.takes_channels(65.0)
    assert agents.pick_for_new_channel(65.0) is agent


def test_only_a_master_that_is_not_warm_yet_is_warming_up() -> None:
    _, master = one(AgentMode.MASTER, warmup_s=60.0, now=5.0)
    _, replica = one(AgentMode.REPLICA, warmup_s=60.0, now=5.0)
    assert [master.is_warming_up(now) for now in (5.0, 64.999, 65.0)] == [True, True, False]
    assert not replica.is_warming_up(5.0)


def test_without_warm_up_a_master_takes_channels_at_once() -> None:
    agents, agent = one(AgentMode.MASTER, warmup_s=0.0)
    assert agents.pick_for_new_channel(0.0) is agent


def test_a_replica_takes_no_channels() -> None:
    agents, agent = one(AgentMode.REPLICA, warmup_s=0.0)
    assert not agent.takes_channels(1e9)
    with pytest.raises(NoAgentAvailable, match="no MASTER agent"):
        agents.pick_for_new_channel(1e9)


def test_without_agents_no_channel_can_be_made() -> None:
    with pytest.raises(NoAgentAvailable, match="no MASTER agent"):
        Agents(0.0).pick_for_new_channel(0.0)


def test_the_refusal_says_how_long_the_next_agent_takes() -> None:
    agents = Agents(60.0)
    agents.add("replica", AgentMode.REPLICA, 0.0)
    agents.add("late", AgentMode.MASTER, 30.0)
    agents.add("early", AgentMode.MASTER, 10.0)
    with pytest.raises(NoAgentAvailable, match="the next one will be in 30 s"):
        agents.pick_for_new_channel(40.0)


def test_any_agent_that_takes_channels_is_picked_and_no_other() -> None:
    agents = Agents(60.0)
    for name, mode, now in (
        ("a", AgentMode.MASTER, 0.0),
        ("b", AgentMode.MASTER, 0.0),
        ("cold", AgentMode.MASTER, 50.0),
        ("replica", AgentMode.REPLICA, 0.0),
    ):
        agents.add(name, mode, now)
    assert names_picked(agents, 60.0) == {"a", "b"}


STEPS = {
    Step.PIPE: lambda agents: agents.pipe("a"),
    Step.REPLICATE: lambda agents: agents.replicate("a", agents.keys.of("a").secret),
    Step.PROMOTE: lambda agents: agents.promote("a", 0.0),
}


@pytest.mark.parametrize("step", Step)
@pytest.mark.parametrize("mode", AgentMode)
def test_each_step_leads_where_the_table_says_or_is_refused(mode: AgentMode, step: Step) -> None:
    agents, agent = one(mode)
    expected = TRANSITIONS.get((mode, step))
    if expected is None:
        with pytest.raises(WrongMode, match=f"agent a is {mode.value}"):
            STEPS[step](agents)
    else:
        STEPS[step](agents)
    assert agent.mode is (expected or mode)


def test_the_table_has_no_step_that_its_drawing_lacks() -> None:
    assert len(TRANSITIONS) == 6


def test_a_new_mode_has_a_new_time_and_a_repeated_one_has_not() -> None:
    agents, agent = one(AgentMode.MASTER)
    added = agent.since
    piped = agents.pipe("a").since
    assert added < piped == agents.pipe("a").since


def test_a_promoted_agent_takes_channels_at_once() -> None:
    agents, agent = one(AgentMode.REPLICA)
    agents.promote("a", 5.0)
    assert agent.takes_channels(5.0)


def test_an_agent_with_an_incoming_pipe_gets_no_outgoing_pipe() -> None:
    agents = Agents(0.0)
    agents.replicate("a", bytes(32)).sources += 1
    with pytest.raises(WrongMode, match="another node replicates it here"):
        agents.pipe("a")


def test_an_agent_whose_pipe_is_connected_is_not_taken_back() -> None:
    agents, agent = one(AgentMode.MASTER)
    agents.pipe("a")
    agent.pipes += 1
    with pytest.raises(WrongMode, match="its pipe is connected"):
        agents.promote("a", 0.0)


def test_a_replicated_agent_opens_the_addresses_of_its_source() -> None:
    source, target = Agents(0.0), Agents(0.0)
    source.add("a", AgentMode.MASTER, 0.0)
    replica = target.replicate("a", source.keys.of("a").secret)
    assert replica.mode is AgentMode.REPLICA
    assert target.keys.of("a").open(source.keys.of("a").seal(CHANNEL_ID)) == CHANNEL_ID


def test_a_replica_may_be_replicated_again_under_its_key_and_under_no_other() -> None:
    agents = Agents(0.0)
    replica = agents.replicate("a", bytes(32))
    assert agents.replicate("a", bytes(32)) is replica
    with pytest.raises(WrongMode, match="another key"):
        agents.replicate("a", b"1" * 32)


def test_a_configured_replica_takes_the_key_of_its_first_source() -> None:
    agents, replica = one(AgentMode.REPLICA)
    assert agents.replicate("a", bytes(32)) is replica
    assert agents.keys.of("a").secret == bytes(32)
    with pytest.raises(WrongMode, match="another key"):
        agents.replicate("a", b"1" * 32)


@pytest.mark.parametrize("secret", [b"", bytes(31), bytes(33)])
def test_a_key_has_32_bytes(secret: bytes) -> None:
    agents = Agents(0.0)
    with pytest.raises(BadRequest, match="32 bytes"):
        agents.replicate("a", secret)
    assert list(agents) == []


def test_an_unknown_agent_can_be_replicated_and_nothing_else() -> None:
    agents = Agents(0.0)
    for step in (agents.pipe, lambda name: agents.promote(name, 0.0)):
        with pytest.raises(AgentNotFound, match="agent b is not on this node"):
            step("b")
        with pytest.raises(BadRequest):
            step("not a name")


def test_an_agent_that_has_left_is_remembered_until_it_is_back() -> None:
    agents, _ = one(AgentMode.MASTER)
    secret = agents.keys.of("a").secret
    agents.mark_moved("a")
    assert isinstance(agents.error_of_absent("a"), AgentMoved)
    assert isinstance(agents.error_of_absent("b"), ChannelNotFound)
    agents.replicate("a", secret)
    with pytest.raises(AgentMoved):
        agents.served("a")
    agents.promote("a", 0.0)
    assert agents.served("a").name == "a"
    agents.remove("a")
    assert isinstance(agents.error_of_absent("a"), ChannelNotFound)


def test_new_channels_go_to_agents_of_other_nodes_only_if_there_is_no_own() -> None:
    agents, _ = one(AgentMode.MASTER, warmup_s=0.0)
    agents.replicate("b", bytes(32))
    agents.promote("b", 0.0)
    assert names_picked(agents, 0.0) == {"a"}
    agents.mark_moved("a")
    assert names_picked(agents, 0.0) == {"b"}


def test_a_node_answers_for_every_agent_but_its_replicas() -> None:
    agents, _ = one(AgentMode.MASTER)
    agents.add("piped", AgentMode.MASTER, 0.0)
    agents.pipe("piped")
    agents.add("replica", AgentMode.REPLICA, 0.0)
    owned = {name: agents.is_owned(name) for name in ("a", "piped", "replica", "unknown")}
    assert owned == {"a": True, "piped": True, "replica": False, "unknown": True}


def test_a_node_does_not_answer_for_a_replica_that_it_passes_on() -> None:
    agents, agent = one(AgentMode.REPLICA)
    agents.pipe("a")
    agents.pipe("a")
    assert agent.mode is AgentMode.PIPED
    assert not agents.is_owned("a")
    agents.promote("a", 0.0)
    agents.pipe("a")
    assert agents.is_owned("a")


@pytest.mark.parametrize("mode", [AgentMode.MASTER, AgentMode.REPLICA])
def test_an_agent_whose_pipes_led_nowhere_is_again_what_it_was(mode: AgentMode) -> None:
    agents, agent = one(mode)
    agents.pipe("a")
    piped = agents.pipe("a").since
    agents.take_back("a")
    assert agent.mode is mode
    assert agent.since > piped


def test_the_agents_that_left_last_are_remembered_and_no_others() -> None:
    agents = Agents(0.0)
    names = [f"a{number}" for number in range(MOVED_REMEMBERED + 1)]
    for name in names:
        agents.add(name, AgentMode.MASTER, 0.0)
        agents.mark_moved(name)
    assert isinstance(agents.error_of_absent(names[0]), ChannelNotFound)
    assert isinstance(agents.error_of_absent(names[1]), AgentMoved)
    assert isinstance(agents.error_of_absent(names[-1]), AgentMoved)


def test_agents_that_other_nodes_brought_are_listed_oldest_first_and_no_others() -> None:
    agents = Agents(0.0)
    agents.add("configured", AgentMode.REPLICA, 0.0)
    brought = [agents.replicate(name, bytes(32)) for name in ("c", "configured", "b")]
    assert agents.added_by_sources() == [brought[0], brought[2]]


def brought() -> tuple[Agents, Agent]:
    """Return the agents of a node, one of which another node has brought and feeds no more."""
    agents = Agents(0.0)
    return agents, agents.replicate("a", bytes(32))


def test_a_replica_that_nobody_feeds_is_unneeded() -> None:
    agents, agent = brought()
    assert agents.is_unneeded(agent)
    agent.sources += 1
    assert not agents.is_unneeded(agent)


def test_a_configured_agent_is_never_unneeded() -> None:
    agents, agent = one(AgentMode.REPLICA)
    agents.replicate("a", bytes(32))
    assert not agents.is_unneeded(agent)


def test_a_promoted_agent_is_unneeded_where_another_master_takes_new_channels() -> None:
    agents, agent = brought()
    agents.promote("a", 0.0)
    assert not agents.is_unneeded(agent)
    agents.replicate("b", bytes(32))
    agents.promote("b", 0.0)
    assert not agents.is_unneeded(agent)
    agents.add("own", AgentMode.MASTER, 0.0)
    assert agents.is_unneeded(agent)


def test_an_agent_that_is_on_its_way_to_another_node_is_not_unneeded() -> None:
    agents, agent = brought()
    with agents.moving("a"):
        assert not agents.is_unneeded(agent)
    agents.pipe("a")
    assert not agents.is_unneeded(agent)


def test_an_agent_that_is_gone_is_not_unneeded_and_nor_is_its_successor() -> None:
    agents, agent = brought()
    agents.remove("a")
    assert not agents.is_unneeded(agent)
    successor = agents.add("a", AgentMode.REPLICA, 0.0)
    assert not agents.is_unneeded(agent)
    assert not agents.is_unneeded(successor)


@pytest.mark.looptime
async def test_a_call_waits_until_its_agent_moves_no_more() -> None:
    agents, _ = one(AgentMode.MASTER)
    await agents.settled("a")
    with agents.moving("a"):
        assert agents.is_unsettled("a")
        assert not agents.is_unsettled("b")
        await agents.settled("b")
        waiting = asyncio.create_task(agents.settled("a"))
        await asyncio.sleep(100.0)
    with agents.moving("a"):  # it moves again before the call has its turn
        await asyncio.sleep(100.0)
        assert not waiting.done()
    assert not agents.any_unsettled
    await waiting


# The agents of all nodes that share a store.

SECRET = bytes(range(32))


async def sharing(directory: MemoryDirectory, *own: str) -> Agents:
    """Return the agents of a node that was given some of them."""
    agents = Agents(0.0, directory=directory)
    for name in own:
        await agents.introduce(name, AgentMode.MASTER, 0.0)
    return agents


@pytest.mark.looptime
async def test_nodes_with_one_directory_have_the_same_key_for_an_agent() -> None:
    directory = MemoryDirectory()
    nodes = [await sharing(directory, "a") for _ in range(2)]
    sealed = nodes[0].keys.of("a").seal(CHANNEL_ID)
    assert nodes[1].keys.of("a").open(sealed) == CHANNEL_ID


@pytest.mark.looptime
async def test_a_node_is_given_an_agent_once() -> None:
    agents = await sharing(MemoryDirectory(), "a")
    with pytest.raises(BadRequest, match="already"):
        await agents.introduce("a", AgentMode.MASTER, 0.0)
    with pytest.raises(BadRequest, match="1 to 100 letters"):
        await agents.introduce("a.b", AgentMode.MASTER, 0.0)
    alone = Agents(0.0)
    await alone.introduce("a", AgentMode.MASTER, 0.0)
    with pytest.raises(BadRequest, match="already"):
        await alone.introduce("a", AgentMode.MASTER, 0.0)


@pytest.mark.looptime
async def test_an_agent_of_another_node_is_served_but_gets_no_new_channels_here() -> None:
    directory = MemoryDirectory()
    directory.secrets["theirs"] = SECRET
    agents = await sharing(directory, "own")
    assert agents.is_unsettled("theirs")
    await asyncio.gather(agents.settled("theirs"), agents.settled("theirs"))
    assert not agents.is_unsettled("theirs")
    assert agents.served("theirs").is_owned
    assert agents.keys.of("theirs").secret == SECRET
    assert names_picked(agents, 0.0) == {"own"}
    await agents.introduce("theirs", AgentMode.MASTER, 0.0)
    assert agents.keys.of("theirs").secret == SECRET
    assert names_picked(agents, 0.0) == {"own", "theirs"}


@pytest.mark.looptime
async def test_a_node_without_an_agent_of_its_own_says_so() -> None:
    directory = MemoryDirectory()
    directory.secrets["theirs"] = SECRET
    agents = await sharing(directory)
    await agents.settled("theirs")
    with pytest.raises(NoAgentAvailable, match="no MASTER agent"):
        agents.pick_for_new_channel(0.0)


@pytest.mark.looptime
async def test_an_unknown_agent_is_asked_for_again_after_a_second_and_not_before() -> None:
    directory = MemoryDirectory()
    agents = await sharing(directory)
    for _ in range(2):
        await agents.settled("a")
        with pytest.raises(ChannelNotFound):
            agents.served("a")
    await asyncio.sleep(0.999)
    await agents.settled("a")
    assert directory.asked == ["a"]
    directory.secrets["a"] = SECRET
    await asyncio.sleep(0.001)
    await agents.settled("a")
    assert agents.served("a").name == "a"
    assert directory.asked == ["a", "a"]


@pytest.mark.looptime
async def test_only_so_many_unknown_agents_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megaphone.core.agents.UNKNOWN_REMEMBERED", 2)
    agents = await sharing(MemoryDirectory())
    for name in "abc":
        await agents.settled(name)
    assert [name for name in "abc" if agents.is_unsettled(name)] == ["a"]


@pytest.mark.looptime
async def test_a_name_that_no_agent_can_have_is_not_asked_for() -> None:
    directory = MemoryDirectory()
    agents = await sharing(directory)
    for name in ("", "a b", "\ud800", "x" * 101):
        await agents.settled(name)
    assert directory.asked == []


@pytest.mark.looptime
async def test_calls_for_an_agent_wait_while_the_node_gets_its_key() -> None:
    directory = MemoryDirectory(answers_in_s=1.0)
    directory.secrets["a"] = SECRET
    agents = await sharing(directory)
    introduced = asyncio.create_task(agents.introduce("a", AgentMode.MASTER, 0.0))
    await asyncio.sleep(0.5)
    assert agents.is_unsettled("a")
    await agents.settled("a")
    assert agents.keys.of("a").secret == SECRET
    assert await introduced is agents.served("a")


@pytest.mark.looptime
async def test_an_agent_whose_key_a_node_could_not_get_is_looked_up_later() -> None:
    directory = MemoryDirectory()
    directory.secrets["a"] = SECRET
    agents = await sharing(directory)
    directory.is_away = True
    with pytest.raises(StoreUnavailable):
        await agents.introduce("a", AgentMode.MASTER, 0.0)
    with pytest.raises(StoreUnavailable):
        await agents.settled("a")
    directory.is_away = False
    await agents.settled("a")
    assert agents.keys.of("a").secret == SECRET


# -- Workers


async def test_the_others_have_an_agent_before_the_worker_that_is_asked() -> None:
    asked: list[str] = []
    others_answer = False

    async def let_others_have(name: str) -> None:
        asked.append(name)
        assert node.agents.get(name) is None
        if not others_answer:
            raise TargetUnavailable

    node = Node(fast_settings(), let_others_have=let_others_have)
    with pytest.raises(TargetUnavailable):
        await node.admin.add_agent("a")
    assert node.agents.get("a") is None
    others_answer = True
    await node.admin.add_agent("a")  # a repetition does what was not done
    assert node.agents.get("a") is not None
    for name in ("a", "not.a.name"):
        with pytest.raises(BadRequest):
            await node.admin.add_agent(name)
    assert asked == ["a", "a"]
