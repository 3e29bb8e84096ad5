# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The event model's entry point: build a design's doors, engines and clients, and run them.

Everything follows from the design's columns; nothing here knows a design's name. world.py has the
simulated machine, duties.py the work of its cores.
"""

from collections.abc import Callable

from dpukv_xdp.model.costs import EngineCosts
from dpukv_xdp.model.duties import Client, Door, Engine, Forward, FusedDoor, OffloadedDoor
from dpukv_xdp.model.world import Batch, Core, Events, Machine, Observation, World
from dpukv_xdp.topology.designs import Place

Endpoint = Callable[[Batch], None]
"""Take a batch that has crossed the wire."""
Endpoints = dict[Place, list[Endpoint]]
Cores = dict[Place, list[Core]]


def run_events(machine: Machine) -> Observation:
    """Build the machine and run it; deterministic for a given `machine.seed`."""
    world = World(machine)
    _build(world)
    return world.run()


def _build(world: World) -> None:
    machine, costs, design = world.machine, world.costs, world.machine.design
    slowdown = costs.host_slowdown(machine.host_cores)
    host = [Core(world, "host", slowdown) for _ in range(machine.host_cores)]
    needs_dpu = "dpu" in (*design.communication, *design.processing) or costs.forward
    dpu = [Core(world, "dpu") for _ in range(machine.dpu_cores)] if needs_dpu else []
    cores: Cores = {"dpu": dpu, "host": host}
    free: Cores = {"dpu": list(dpu), "host": list(host)}
    endpoints: Endpoints = {}
    client_core = dpu[0] if costs.client.is_in_lab and dpu else None
    lab_client = _client(world, client_core) if costs.client.is_in_lab else None
    for side in design.communication:
        endpoints[side] = _build_door(world, side, cores, free)
    if lab_client is not None:
        lab_client.endpoints = [each for side in endpoints.values() for each in side]
        lab_client.weights = _weights(world, endpoints)
        clients = [lab_client]
    else:
        clients = []
        for side, each in endpoints.items():
            for endpoint in each:
                client = _client(world, None, side)
                client.endpoints, client.weights = [endpoint], [1.0]
                clients.append(client)
    if world.is_open:
        world.env.process(_arrivals(world, clients, _rates(world, endpoints)))


def _build_door(world: World, side: Place, cores: Cores, free: Cores) -> list[Endpoint]:
    """Build one side's doors and the engines that they need; return the doors' endpoints.

    `free` has the cores that no engine polls yet; cores that get a dedicated engine leave it.
    """
    design, costs = world.machine.design, world.costs
    processing = design.processing_of(side)
    engines: dict[Place, EngineCosts] = {"dpu": costs.dpu, "host": costs.host}
    doors: list[Door] = []
    if side == processing:
        doors = [
            FusedDoor(world, core, engines[side], side, sends_late=costs.sends_late)
            for core in free[side] or cores[side]
        ]
    else:
        pool = cores[processing]
        count = 1 if design.pairing == "many-to-one" else len(pool)
        processors = [Engine(world, core, engines[processing], processing) for core in pool[:count]]
        if design.pairing == "many-to-one":
            free[processing] = pool[count:]
        doors = [
            OffloadedDoor(world, core, engines[side], side, processors[index % count])
            for index, core in enumerate(cores[side])
        ]
    if side == "dpu":
        return [door.arrive for door in doors]
    return [_host_endpoint(world, door, index, cores["dpu"]) for index, door in enumerate(doors)]


def _host_endpoint(world: World, door: Door, index: int, dpu: list[Core]) -> Endpoint:
    if world.costs.forward and dpu:
        return Forward(world, dpu[index % len(dpu)], door).arrive
    return door.arrive_at_nic


def _client(world: World, core: Core | None, side: Place = "dpu") -> Client:
    batches = world.window_batches
    if side == "host":
        batches = max(round(world.machine.host_window / world.batch_packets), 1)
    return Client(world, core or Core(world, "client"), batches)


def _weights(world: World, endpoints: Endpoints) -> list[float]:
    """Return each endpoint's weight in the load: the doors' shares, equal within a door."""
    share = world.machine.host_share
    if len(endpoints) == 1 or not share:
        return [1.0] * sum(map(len, endpoints.values()))
    parts: dict[Place, float] = {"host": share, "dpu": 1 - share}
    return [parts[side] / len(each) for side, each in endpoints.items() for _ in each]


def _rates(world: World, endpoints: Endpoints) -> list[float]:
    return [1.0] if world.costs.client.is_in_lab else _weights(world, endpoints)


def _arrivals(world: World, clients: list[Client], weights: list[float]) -> Events:
    """Generate an open loop's arrivals: a Poisson process, dealt to the clients by weight."""
    mean_ns = world.batch_requests / world.machine.rate_mops * 1e3
    while True:
        yield world.env.timeout(world.random.expovariate(1 / mean_ns))
        (client,) = world.random.choices(clients, weights)
        client.due.append(world.env.now)
        client.core.wake()
