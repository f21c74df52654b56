"""What holds of plans whatever happens: nothing of it depends on the order of events."""

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from megaphone_operator.plan.names import GATE, Names
from megaphone_operator.plan.planning import Plan
from tests.operator.world import NODES, UID, World
from tests.support.settings import IS_LONG

Action = Callable[[World], None]
NAMES = Names("demo", UID)


def some_node(world: World, number: int) -> str | None:
    names = sorted(node.name for node in world.ours() if node.agents)
    return names[number % len(names)] if names else None


def on_node(act: Callable[[World, str], None]) -> Callable[[int], Action]:
    def with_number(number: int) -> Action:
        def action(world: World) -> None:
            if name := some_node(world, number):
                act(world, name)

        return action

    return with_number


def silence(world: World, name: str) -> None:
    world.nodes[name].is_silent = True


def forget(world: World) -> None:
    """The operator starts again."""
    world.memory = type(world.memory)()


def lose_service(number: int) -> Action:
    def action(world: World) -> None:
        if world.services:
            del world.services[sorted(world.services)[number % len(world.services)]]

    return action


def change(**spec: object) -> Action:
    return lambda world: world.change(**spec)


def passes(count: int) -> Action:
    def action(world: World) -> None:
        for _ in range(count):
            checked_pass(world)
            world.tick()

    return action


NUMBERS = st.integers(0, 9)
ACTIONS = st.one_of(
    st.integers(1, 6).map(passes),
    st.integers(0, 4).map(lambda replicas: change(replicas=replicas)),
    st.sampled_from(["broker:1", "broker:2"]).map(lambda image: change(image=image)),
    st.integers(1, 3).map(lambda count: change(virtualAgentsPerNode=count)),
    st.booleans().map(lambda wanted: change(agentServices=wanted)),
    NUMBERS.map(on_node(lambda world, name: world.kill(name))),
    NUMBERS.map(on_node(lambda world, name: world.evict(name))),
    NUMBERS.map(on_node(lambda world, name: world.fill(name, 3))),
    NUMBERS.map(on_node(silence)),
    NUMBERS.map(lose_service),
    st.just(forget),
)


def checked_pass(world: World) -> Plan:
    """Run a pass, and check what must be true of any plan."""
    before = set(world.agents())
    planned = world.run_pass()
    for one in planned.apply:
        if one["metadata"]["name"] == NODES and one["kind"] == "Deployment":
            assert one["spec"]["replicas"] == world.resource["spec"]["replicas"]
            assert one["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    kinds = {(ref.kind, ref.name) for ref in planned.delete}
    assert ("Deployment", NODES) not in kinds
    assert not any(kind == "Pod" for kind, _ in kinds)
    if world.resource["spec"].get("agentServices", True):
        gone = {NAMES.agent_of(name) for kind, name in kinds if kind == "Service"}
        assert not gone & before, "a service went while a node had its agent"
        for name in planned.gates:
            assert routed(world, name), "a gate opened before the services were there"
    return planned


def routed(world: World, name: str) -> bool:
    wanted = [NAMES.agent_services(agent) for agent in world.nodes[name].agents]
    return all(service in world.services for pair in wanted if pair for service in pair)


@settings(max_examples=1000 if IS_LONG else 20, deadline=None)
@given(st.lists(ACTIONS, max_size=12))
def test_a_cluster_settles_whatever_has_happened(actions: list[Action]) -> None:
    world = World()
    for action in actions:
        action(world)
    for node in world.nodes.values():
        node.is_silent = False
    world.settle()
    wanted = world.resource["spec"]
    assert len(world.ours()) == wanted["replicas"] == world.status["readyReplicas"]
    assert {node.body["spec"]["containers"][0]["image"] for node in world.ours()} <= {
        wanted["image"]
    }
    agents = {name for name in map(NAMES.agent_of, world.services) if name}
    assert agents == (set(world.agents()) if wanted.get("agentServices", True) else set())
    assert world.status["clusterStatus"] == "idle"
    assert world.condition("Degraded")[1] in ("AsWanted", "ChannelsLost")
    assert world.status["channels"] == sum(
        channels for node in world.ours() for channels in node.agents.values()
    )


@settings(max_examples=500 if IS_LONG else 10, deadline=None)
@given(st.lists(ACTIONS, max_size=10))
def test_a_settled_cluster_stays_as_it_is(actions: list[Action]) -> None:
    world = World()
    for action in actions:
        action(world)
    for node in world.nodes.values():
        node.is_silent = False
    world.settle()
    status = world.status
    again = world.run_pass()
    assert (again.delete, again.gates, again.costs, again.events) == ((), (), {}, ())
    assert world.status == status


def test_a_ready_node_has_its_services() -> None:
    world = World(replicas=3, virtualAgentsPerNode=4)
    for _ in range(30):
        world.run_pass()
        world.tick()
        for node in world.ours():
            assert not node.is_ready or routed(world, node.name)
    assert sum(node.is_ready for node in world.ours()) == 3
    assert GATE in str(world.deployments[NODES])
