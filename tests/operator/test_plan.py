"""Plans of clusters in states that people meet: by tables, and by a small Kubernetes in memory."""

from datetime import timedelta
from typing import Any

import pytest

from megaphone_operator.plan.names import GATE, Names
from megaphone_operator.plan.planning import Memory, Plan, count_again, plan
from megaphone_operator.plan.resource import FORMER_FINALIZER, parse_resource
from megaphone_operator.plan.seen import LegacyChannels, Ref, Seen, TooOld, parse_object
from tests.operator.world import (
    BEGIN,
    NODES,
    PROXIES,
    SURROUNDINGS,
    UID,
    Node,
    World,
    resource_body,
)

NAMES = Names("demo", UID)


def first_plan(**spec: Any) -> Plan:
    """Return the plan for a resource of which nothing is there yet."""
    return plan(parse_resource(resource_body(**spec)), Seen(BEGIN), Memory(), SURROUNDINGS)


def applied(planned: Plan) -> dict[tuple[str, str], dict[str, Any]]:
    return {(one["kind"], one["metadata"]["name"]): one for one in planned.apply}


def settled(**spec: Any) -> World:
    world = World(**spec)
    world.settle()
    return world


def events(world: World) -> list[str]:
    return [event.reason for planned in world.plans for event in planned.events]


def with_agents(world: World, channels: int) -> None:
    for node in world.ours():
        world.fill(node.name, channels)


# -- What is made


def test_everything_is_made_in_one_pass() -> None:
    assert set(applied(first_plan())) == {
        ("Service", "mgp-demo-nodes"),
        ("Service", "mgp-demo-takers"),
        ("PodDisruptionBudget", "mgp-demo"),
        ("Deployment", "mgp-demo"),
        ("ConfigMap", "mgp-demo-proxy"),
        ("PodDisruptionBudget", "mgp-demo-proxy"),
        ("Deployment", "mgp-demo-proxy"),
        ("Service", "svc-demo"),
    }


def test_kubernetes_removes_all_of_it_with_the_resource() -> None:
    for one in first_plan(networkPolicy={"enabled": True}).apply:
        [owner] = one["metadata"]["ownerReferences"]
        assert owner["uid"] == UID
        assert owner["controller"]


def test_a_secret_is_made_unless_one_is_named() -> None:
    assert first_plan().secret == NAMES.secret
    assert first_plan(nodeSecretName="mine").secret is None
    assert first_plan(store={"redis": {"urlSecret": {"name": "store"}}}).secret is None


def test_a_secret_that_is_missing_is_made_again() -> None:
    world = settled()
    assert world.run_pass().secret is None
    status = world.ours()[0].body["status"]
    reason = {"reason": "CreateContainerConfigError", "message": "secret not found"}
    status["containerStatuses"] = [{"state": {"waiting": reason}}]
    assert world.run_pass().secret == NAMES.secret


def test_a_network_policy_lets_only_proxies_nodes_and_the_operator_in() -> None:
    monitoring = {"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}
    planned = first_plan(networkPolicy={"enabled": True, "allow": [monitoring]})
    policy = applied(planned)[("NetworkPolicy", NODES)]["spec"]
    proxies = {"podSelector": {"matchLabels": {"megaphone-proxy": "demo"}}}
    nodes = {"podSelector": {"matchLabels": NAMES.node_selector}}
    namespace = {"kubernetes.io/metadata.name": "megaphone-system"}
    operator = {"namespaceSelector": {"matchLabels": namespace}}
    assert {rule["ports"][0]["port"]: rule["from"] for rule in policy["ingress"]} == {
        3000: [proxies],
        3001: [nodes, proxies],
        3002: [proxies, operator, monitoring],
    }


@pytest.mark.parametrize(
    ("spec", "ref"),
    [
        ({"networkPolicy": {"enabled": False}}, Ref("NetworkPolicy", NODES)),
        ({"proxy": {"enabled": False}, "agentServices": False}, Ref("Deployment", PROXIES)),
        ({"proxy": {"enabled": False}, "agentServices": False}, Ref("ConfigMap", PROXIES)),
    ],
)
def test_what_is_switched_off_goes(spec: dict[str, Any], ref: Ref) -> None:
    world = settled(networkPolicy={"enabled": True})
    world.change(**spec)
    assert ref in world.run_pass().delete
    world.settle()
    assert ref not in world.run_pass().delete


# -- Names that somebody else has


@pytest.mark.parametrize("owner", [None, "somebody"])
def test_nothing_is_applied_over_an_object_of_somebody_else(owner: str | None) -> None:
    world = World()
    world.add_service("mgp-demo-takers", {"app": "other"}, owner)
    planned = world.run_pass()
    assert ("Service", "mgp-demo-takers") not in applied(planned)
    assert ("Deployment", NODES) in applied(planned)
    assert world.condition("Degraded") == (
        "True",
        "NameTaken",
        "these belong to somebody else: Service mgp-demo-takers",
    )
    assert [event.reason for event in planned.events] == ["NameTaken"]
    assert world.run_pass().events == ()


def test_a_config_map_of_somebody_else_is_left_alone() -> None:
    body = {"metadata": {"name": PROXIES, "uid": "other"}}
    others = {Ref("ConfigMap", PROXIES): parse_object("ConfigMap", body)}
    resource = parse_resource(resource_body())
    planned = plan(resource, Seen(BEGIN, others=others), Memory(), SURROUNDINGS)
    assert ("ConfigMap", PROXIES) not in applied(planned)


def test_a_service_of_the_former_operator_without_owner_is_adopted() -> None:
    world = World()
    world.add_service("svc-demo", {"accepts-new-channels": "ON"}, owner=None)
    assert ("Service", "svc-demo") in applied(world.run_pass())
    assert world.services["svc-demo"]["spec"]["selector"] == {"megaphone-proxy": "demo"}


def test_a_service_of_somebody_else_with_the_label_is_never_deleted() -> None:
    world = settled()
    for name in ("svc-demo-theirs-read", "their-own"):
        world.add_service(name, {}, owner="somebody")
    world.settle()
    assert {"svc-demo-theirs-read", "their-own"} <= set(world.services)


# -- Rolling


def test_a_new_image_replaces_each_node_and_moves_its_channels() -> None:
    world = settled(replicas=2)
    with_agents(world, 20)
    before = sorted(node.name for node in world.ours())
    world.change(image="broker:2")
    texts = set()
    for _ in range(40):
        world.run_pass()
        texts.add(world.condition("Progressing")[2])
        assert sum(node.is_ready for node in world.ours()) >= 2
        world.tick()
    assert world.status["clusterStatus"] == "idle"
    assert world.status["channels"] == 40
    assert world.lost == 0
    first, second = before
    assert f"0 of 2 nodes are new; 40 channels are yet to move from {first}, {second}" in texts
    assert events(world).count("NodeAdded") == 4
    assert events(world).count("Moved") == events(world).count("Moving") == 2


def test_scaling_down_takes_the_node_with_the_fewest_channels() -> None:
    world = settled(replicas=3)
    first, second, third = (node.name for node in world.ours())
    for name, channels in ((first, 50), (second, 1), (third, 7)):
        world.fill(name, channels)
    world.change(replicas=2)
    assert world.run_pass().costs == {first: 50, second: 1, third: 7}
    world.settle()
    assert {node.name for node in world.ours()} == {first, third}
    assert world.status["channels"] == 58


def test_costs_are_not_set_at_other_times() -> None:
    world = settled()
    with_agents(world, 5)
    world.change(replicas=4)
    world.settle()
    assert all(planned.costs == {} for planned in world.plans)


def test_a_paused_cluster_keeps_its_nodes_and_still_opens_gates() -> None:
    world = settled()
    world.change(image="broker:2", paused=True)
    world.settle()
    assert {node.body["spec"]["containers"][0]["image"] for node in world.ours()} == {"broker:1"}
    assert world.condition("Progressing")[:2] == ("False", "Paused")
    world.kill(world.ours()[0].name)
    for _ in range(10):
        world.run_pass()
        world.tick()
    assert sum(node.is_ready for node in world.ours()) == 2
    world.change(paused=False)
    world.settle()
    assert {node.body["spec"]["containers"][0]["image"] for node in world.ours()} == {"broker:2"}


# -- Agents and their services


def test_services_of_a_lost_node_go_after_everybody_has_answered_twice() -> None:
    world = settled()
    lost, other = world.ours()
    world.fill(lost.name, 3)
    world.run_pass()
    [agent] = lost.agents
    world.kill(lost.name)
    other.is_silent = True
    for _ in range(5):
        assert world.run_pass().delete == ()
    other.is_silent = False
    assert world.run_pass().delete == ()
    planned = world.run_pass()
    assert {ref.name for ref in planned.delete} == set(NAMES.agent_services(agent) or ())
    assert world.condition("Degraded")[1:] == (
        "ChannelsLost",
        "at least 3 channels were lost with their nodes",
    )
    assert "ChannelsLost" in [event.reason for event in planned.events]


def lose_a_node(world: World, memory: Memory | None = None) -> str:
    """Let a node with seven channels die. Returns: the reason of `Degraded` afterwards."""
    lost = world.ours()[0]
    world.fill(lost.name, 7)
    if memory is None:  # nobody has run a pass since the channels were made
        world.memory = count_again(world.look(), world.memory)
    else:
        world.run_pass()
        world.memory = memory
    world.kill(lost.name)
    world.settle()
    return world.condition("Degraded")[1]


def test_channels_that_were_counted_between_two_passes_are_lost_too() -> None:
    world = settled()
    assert lose_a_node(world) == "ChannelsLost"
    assert world.condition("Degraded")[2].startswith("at least 7 channels")


def test_another_copy_of_the_operator_knows_of_the_channels_by_the_status() -> None:
    world = settled()
    assert lose_a_node(world, Memory(trusts_status=True)) == "ChannelsLost"
    assert world.condition("Degraded")[2].startswith("at least 7 channels")


def test_an_operator_that_starts_anew_does_not_believe_what_the_status_said_long_ago() -> None:
    assert lose_a_node(settled(), Memory()) == "AsWanted"


def test_the_status_has_the_channels_of_each_agent_unless_nodes_share_a_store() -> None:
    world = settled()
    with_agents(world, 3)
    agents = sorted(agent for node in world.ours() for agent in node.agents)
    world.run_pass()
    assert world.status["agents"] == [{"name": name, "channels": 3} for name in agents]
    world.change(store={"redis": {"urlSecret": {"name": "redis"}}})
    world.run_pass()
    assert world.status["agents"] == []


def test_a_loss_is_shown_for_an_hour() -> None:
    world = settled()
    with_agents(world, 1)
    world.run_pass()
    world.kill(world.ours()[0].name)
    world.settle()
    assert world.condition("Degraded")[:2] == ("True", "ChannelsLost")
    world.now += timedelta(minutes=61)
    world.run_pass()
    assert world.condition("Degraded")[:2] == ("False", "AsWanted")
    assert events(world).count("ChannelsLost") == 1


def test_an_agent_whose_name_fits_no_service_stops_nothing() -> None:
    world = settled()
    node = world.ours()[0]
    node.agents = {"Blue_Agent": 1, "x" * 90: 1}
    world.settle()
    assert world.run_pass().gates == ()
    assert not any("Blue" in name for name in world.services)
    assert world.status["channels"] == 2


def test_with_a_store_nothing_moves_and_nothing_is_lost() -> None:
    world = settled(store={"redis": {"urlSecret": {"name": "store"}}})
    assert not {"mgp-demo-nodes", "mgp-demo-takers"} & set(world.services)
    assert PROXIES not in world.deployments
    assert world.services["svc-demo"]["spec"]["selector"] == NAMES.node_selector
    agents = {name for name in map(NAMES.agent_of, world.services) if name}
    with_agents(world, 4)
    world.change(image="broker:2", replicas=1)
    world.settle()
    assert all(planned.costs == {} for planned in world.plans)
    assert {"Moving", "Moved", "ChannelsLost"}.isdisjoint(events(world))
    assert agents <= set(map(NAMES.agent_of, world.services))


def test_without_agent_services_there_is_no_gate() -> None:
    world = settled(agentServices=False)
    assert all(NAMES.agent_of(name) is None for name in world.services)
    assert GATE not in str(world.deployments[NODES])
    assert world.status["readyReplicas"] == 2


def test_a_service_that_somebody_changed_is_made_right_before_a_gate_opens() -> None:
    world = World(replicas=1)
    for _ in range(2):
        world.run_pass()
        world.tick()
    world.tick()
    [node] = world.ours()
    [agent] = node.agents
    world.add_service(f"svc-demo-{agent}-read", {"app": "wrong"})
    world.add_service(f"svc-demo-{agent}-write", {"megaphone-proxy": "demo"})
    assert world.run_pass().gates == ()
    assert world.run_pass().gates == (node.name,)


# -- Troubles of nodes


def test_a_node_whose_image_is_too_old_is_shown() -> None:
    world = World(replicas=1)
    world.run_pass()
    for _ in range(3):
        world.tick()
    [node] = world.ours()
    node.answer = TooOld()
    planned = world.run_pass()
    assert world.condition("Degraded")[1:] == (
        "ImageTooOld",
        "set spec.image to an image of this broker",
    )
    assert planned.gates == ()
    assert planned.next_pass_s < 60


def test_a_container_that_does_not_start_is_shown() -> None:
    world = settled()
    reason = {"reason": "ImagePullBackOff", "message": "no such image"}
    node = world.ours()[0]
    node.body["status"]["containerStatuses"] = [{"state": {"waiting": reason}}]
    world.run_pass()
    text = f"{node.name}: ImagePullBackOff: no such image"
    assert world.condition("Progressing") == ("False", "Stuck", text)


ENDED = {"terminated": {"exitCode": 2, "reason": "Error", "message": "one\n the last word\n"}}


@pytest.mark.parametrize(
    "container",
    [
        {"state": ENDED},
        {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": ENDED},
        {"state": {"running": {}}, "lastState": ENDED, "ready": False},
    ],
)
def test_the_last_words_of_a_container_that_fails_are_shown_until_it_is_ready(
    container: dict[str, Any],
) -> None:
    world = settled()
    node = world.ours()[0]
    node.body["status"]["containerStatuses"] = [container]
    world.run_pass()
    text = f"{node.name}: it ended with code 2: the last word"
    assert world.condition("Degraded") == ("True", "NodeFails", text)
    assert world.condition("Progressing") == ("False", "Stuck", text)
    world.run_pass()
    assert events(world).count("NodeFails") == 1
    node.body["status"]["containerStatuses"] = [
        {"state": {"running": {}}, "lastState": ENDED, "ready": True}
    ]
    world.run_pass()
    assert world.condition("Degraded")[1] == "AsWanted"


def test_a_container_that_ended_in_order_is_no_failure() -> None:
    world = settled()
    ended = {"terminated": {"exitCode": 0, "reason": "Completed"}}
    world.ours()[0].body["status"]["containerStatuses"] = [
        {"state": {"running": {}}, "lastState": ended, "ready": False}
    ]
    world.run_pass()
    assert world.condition("Degraded")[1] == "AsWanted"


def test_a_container_that_fails_without_words_is_shown() -> None:
    world = settled()
    killed = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    world.ours()[0].body["status"]["containerStatuses"] = [{"state": {}, "lastState": killed}]
    world.run_pass()
    assert world.condition("Degraded")[2].endswith(": it ended with code 137: OOMKilled")


def test_a_deployment_that_makes_no_progress_is_shown() -> None:
    world = settled()
    condition = {"type": "Progressing", "status": "False", "message": "deadline exceeded"}
    world.deployments[NODES]["status"]["conditions"] = [condition]
    world.run_pass()
    assert world.condition("Progressing") == ("False", "Stuck", "deadline exceeded")


@pytest.mark.parametrize(
    ("replicas", "available"),
    [
        (0, ("False", "NoNodes", "spec.replicas is 0")),
        (2, ("True", "NodesReady", "2 of 2 nodes are ready")),
    ],
)
def test_a_settled_cluster_is_available_if_it_has_nodes(
    replicas: int, available: tuple[str, str, str]
) -> None:
    assert settled(replicas=replicas).condition("Available") == available


def test_a_cluster_without_proxies_that_are_ready_is_not_available() -> None:
    world = settled()
    world.deployments[PROXIES]["status"] = {"readyReplicas": 0}
    world.run_pass()
    assert world.condition("Available")[:2] == ("False", "ProxiesNotReady")


def test_a_resource_that_is_deleted_is_left_to_kubernetes() -> None:
    body = resource_body()
    body["metadata"] |= {"deletionTimestamp": "x", "finalizers": [FORMER_FINALIZER, "other"]}
    planned = plan(parse_resource(body), Seen(BEGIN), Memory(), SURROUNDINGS)
    assert planned.finalizers == ("other",)
    assert (planned.apply, planned.delete, planned.status) == ((), (), None)


# -- Pods of the former operator


def legacy_world(image: str = "broker:1") -> tuple[World, list[Node]]:
    """Return a cluster that the former operator has made, with two pods."""
    world = World(image=image)
    world.resource["metadata"]["finalizers"] = [FORMER_FINALIZER]
    world.add_service("svc-demo", {"megaphone-cluster": "demo", "accepts-new-channels": "ON"})
    pods = [
        world.add_legacy_pod("mgp-demo-111", "rust:0.8.9", "aaaaaaaaaaaaaaaa", 5),
        world.add_legacy_pod("mgp-demo-222", "rust:0.8.9", "bbbbbbbbbbbbbbbb", 2),
    ]
    return world, pods


def test_with_the_former_image_nothing_is_touched() -> None:
    world, _ = legacy_world(image="rust:0.8.9")
    services = dict(world.services)
    planned = world.run_pass()
    assert (planned.apply, planned.delete, planned.secret, planned.gates) == ((), (), None, ())
    assert world.services == services
    assert world.condition("Degraded")[1:] == (
        "ImageTooOld",
        "set spec.image to an image of this broker",
    )
    assert [event.reason for event in planned.events] == ["ImageTooOld"]


def test_the_finalizer_of_the_former_operator_goes_at_first_sight() -> None:
    world, _ = legacy_world()
    assert world.run_pass().finalizers == ()
    assert world.run_pass().finalizers is None


def test_new_channels_go_to_new_nodes_and_former_pods_keep_theirs() -> None:
    world, pods = legacy_world()
    before = {name: one for name, one in world.services.items() if name != "svc-demo"}
    for _ in range(20):
        world.run_pass()
        world.tick()
    assert world.services["svc-demo"]["spec"]["selector"] == {"megaphone-proxy": "demo"}
    assert before.items() <= world.services.items()
    assert all(pod.name in world.nodes for pod in pods)
    assert world.status["readyReplicas"] == 2
    assert world.status["channels"] == 7
    assert world.condition("Degraded")[1:] == (
        "LegacyNodes",
        "2 pods of the former operator have 7 channels",
    )
    assert events(world).count("Takeover") == 1


def test_former_pods_go_when_they_are_empty_and_nodes_are_ready() -> None:
    world, (first, second) = legacy_world()
    first.answer = second.answer = LegacyChannels(0)
    for _ in range(2):
        assert Ref("Pod", first.name) not in world.run_pass().delete
    world.settle()
    assert {first.name, second.name}.isdisjoint(world.nodes)
    assert not any("aaaa" in name or name == first.name for name in world.services)
    assert world.condition("Degraded")[1] == "AsWanted"
    assert world.status["clusterStatus"] == "idle"


def test_a_former_pod_must_be_empty_twice_because_a_client_may_be_on_its_way() -> None:
    world, (first, _) = legacy_world()
    for _ in range(20):
        world.run_pass()
        world.tick()
    for answer in (0, 1, 0):
        first.answer = LegacyChannels(answer)
        assert Ref("Pod", first.name) not in world.run_pass().delete
    assert Ref("Pod", first.name) in world.run_pass().delete


def test_former_pods_with_channels_go_when_their_time_is_over() -> None:
    world, (first, _) = legacy_world()
    world.change(legacy={"deadlineSeconds": 600})
    for _ in range(20):
        world.run_pass()
        world.tick()
    assert first.name in world.nodes
    world.now += timedelta(seconds=600)
    world.run_pass()
    assert first.name not in world.nodes


def test_a_service_that_the_former_operator_has_not_made_yet_is_made() -> None:
    world, _ = legacy_world()
    del world.services["svc-demo-aaaaaaaaaaaaaaaa-read"]
    world.run_pass()
    assert world.services["svc-demo-aaaaaaaaaaaaaaaa-read"]["spec"]["selector"] == {
        "megaphone-cluster": "demo",
        "megaphone-aaaaaaaaaaaaaaaa-read": "ON",
    }
